// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Well-formed traffic, with virtio-queue as the other half.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::HashMap;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use common::ID;
use common::oracle::Oracle;
use malformed_queues::on_each_memory;
use malformed_queues::testmem::{self, Space};
use virtio_blk_driver::request::{ArenaConfig, Done, Driver, Framing, Request, Token};
use virtio_blk_driver::ring::RingConfig;
use virtio_blk_driver::wire::{S_IOERR, S_UNSUPP};
use vm_memory::GuestMemory;

const LEN: usize = 768 * 1024;
const SECTORS: u64 = 64;
const ARENA: ArenaConfig = ArenaConfig {
    slots: 24,
    data_len: 8192,
    data_align: 512,
    table_len: 32,
};

/// A generator of its own, so that the tests don't share what they test.
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn configs() -> impl Iterator<Item = RingConfig> {
    [(false, 0), (true, 0), (false, 65_500), (true, 65_500)]
        .into_iter()
        .map(|(event_idx, start)| RingConfig {
            event_idx,
            indirect: true,
            start,
        })
}

/// What a request must answer.
enum Want {
    Nothing,
    Data(Vec<u8>),
    Status(u8),
}

/// Random reads and writes in random pieces, completed in random order, against a copy of the disk.
fn traffic<M: GuestMemory>(mem: &Arc<M>, space: &mut Space, config: RingConfig, size: u16) {
    let mut driver = space.driver(Arc::clone(mem), size, config, ARENA).unwrap();
    let mut disk: Vec<u8> = (0..SECTORS * 512).map(|i| (i % 251) as u8).collect();
    let mut device = Oracle::new(&**mem, driver.state(), disk.clone());
    let mut rng = Lcg(size.into());
    let mut open: HashMap<Token, Want> = HashMap::new();
    let mut done = 0;
    while done < 600 {
        for _ in 0..rng.below(6) {
            let framing = match rng.below(3) {
                0 => Framing::Separate,
                1 => Framing::Merged,
                _ => Framing::Random {
                    seed: rng.below(u64::MAX),
                    cuts: 4,
                },
            };
            let indirect = rng.below(2) == 0;
            submit(
                &mut driver,
                &mut rng,
                framing,
                indirect,
                &mut disk,
                &mut open,
            );
        }
        driver.publish().unwrap();
        device.take();
        for _ in 0..rng.below(device.held.len() as u64 + 1) {
            let pick = rng.below(device.held.len() as u64) as usize;
            device.complete(pick);
        }
        while let Some(answer) = driver.poll().unwrap() {
            let want = open.remove(&answer.token).expect("an open request");
            judge(&driver, answer, want);
            done += 1;
        }
        assert_eq!(usize::from(driver.in_flight()), open.len());
    }
    let (ring, mem) = driver.ring_mut();
    ring.audit(mem).unwrap();
    assert_eq!(device.disk, disk);
}

fn submit<G>(
    driver: &mut Driver<G>,
    rng: &mut Lcg,
    framing: Framing<'_>,
    indirect: bool,
    disk: &mut [u8],
    open: &mut HashMap<Token, Want>,
) where
    G: std::ops::Deref,
    G::Target: virtio_blk_driver::Memory,
{
    let sectors = rng.below(16) + 1;
    let sector = rng.below(SECTORS - sectors);
    let range = sector as usize * 512..(sector + sectors) as usize * 512;
    let data = vec![rng.below(256) as u8; range.len()];
    let (request, want) = match rng.below(8) {
        0 => (Request::flush(), Want::Nothing),
        1 => (Request::get_id(), Want::Data(ID.to_vec())),
        2 => (Request::new(99, 0), Want::Status(S_UNSUPP)),
        3 => (Request::write(SECTORS, &data), Want::Status(S_IOERR)),
        4 | 5 => (Request::write(sector, &data), Want::Nothing),
        _ => (
            Request::read(sector, range.len() as u32),
            Want::Data(disk[range.clone()].to_vec()),
        ),
    };
    // No room now: later.
    if let Ok(token) = driver.submit(&request.framed(framing).indirect(indirect)) {
        if request.header[0] == 1 && matches!(want, Want::Nothing) {
            disk[range].copy_from_slice(&data);
        }
        open.insert(token, want);
    }
}

fn judge<G>(driver: &Driver<G>, done: Done, want: Want)
where
    G: std::ops::Deref,
    G::Target: virtio_blk_driver::Memory,
{
    match want {
        Want::Nothing => assert!(done.is_ok() && done.len == 1, "{done:?}"),
        Want::Status(status) => assert_eq!(done.status, status),
        Want::Data(expected) => {
            assert!(
                done.is_ok() && done.len as usize == expected.len() + 1,
                "{done:?}"
            );
            let mut data = vec![0; expected.len()];
            driver.read_data(done.token, 0, &mut data).unwrap();
            assert!(data == expected, "wrong data");
        }
    }
}

#[test]
fn random_traffic_arrives_as_it_was_sent() {
    for config in configs() {
        for size in [8, 32, 256] {
            on_each_memory!(LEN, |mem, space| {
                traffic(&mem, &mut space, config, size);
            });
        }
    }
}

/// Each side acts only when the other one notifies it: if a notification got lost, all would stop.
#[test]
fn no_notification_is_lost_and_few_are_sent() {
    for config in configs() {
        let (mem, mut space) = testmem::single(LEN).unwrap();
        let mut driver = space.driver(&mem, 32, config, ARENA).unwrap();
        let mut device = Oracle::new(&mem, driver.state(), vec![0; 512]);
        // The device has looked at the empty ring once, as every device does when it starts.
        device.run();
        let mut rng = Lcg(1);
        for round in 0..200 {
            let count = rng.below(8) + 1;
            for _ in 0..count {
                driver.submit(&Request::flush()).unwrap();
            }
            assert!(
                driver.publish().unwrap(),
                "round {round}: the device sleeps"
            );
            let (ring, mem) = driver.ring_mut();
            let after = rng.below(count) as u16 + 1;
            assert!(!ring.interrupt_after(mem, after).unwrap());

            let (served, interrupt) = device.run();
            assert_eq!(served as u64, count);
            let (ring, mem) = driver.ring_mut();
            assert!(ring.interrupt_due(mem).unwrap());
            assert!(interrupt, "round {round}: the driver sleeps");
            for _ in 0..count {
                assert!(driver.poll().unwrap().unwrap().is_ok());
            }

            // Work without interrupts is served as well, and without one if the device can tell.
            let (ring, mem) = driver.ring_mut();
            ring.disable_interrupts(mem).unwrap();
            driver.submit(&Request::flush()).unwrap();
            assert!(driver.publish().unwrap());
            let (served, interrupt) = device.run();
            assert_eq!(served, 1);
            // virtio-queue does not look at the flag that is used without event index.
            assert_eq!(interrupt, !config.event_idx);
            let (ring, mem) = driver.ring_mut();
            assert!(!ring.interrupt_due(mem).unwrap());
            assert!(driver.poll().unwrap().unwrap().is_ok());
            assert!(driver.poll().unwrap().is_none());
        }
    }
}

/// More chains than the 16-bit indices count, in rings small and large.
#[test]
fn indices_go_round() {
    for (size, event_idx) in [(2, true), (64, false), (64, true)] {
        let (mem, mut space) = testmem::single(LEN).unwrap();
        let config = RingConfig {
            event_idx,
            ..RingConfig::default()
        };
        let mut driver = space.driver(&mem, size, config, ARENA).unwrap();
        let mut device = Oracle::new(&mem, driver.state(), vec![0; 512]);
        let mut done = 0;
        while done < 140_000 {
            let mut sent = 0;
            while sent < 20 && driver.submit(&Request::flush()).is_ok() {
                sent += 1;
            }
            driver.publish().unwrap();
            assert_eq!(device.run().0, sent);
            while let Some(answer) = driver.poll().unwrap() {
                assert!(answer.is_ok());
                done += 1;
            }
        }
        let (ring, mem) = driver.ring_mut();
        ring.audit(mem).unwrap();
    }
}

/// Another device half continues where one stopped, at a moment when nothing is in flight.
#[test]
fn a_device_can_be_replaced_when_drained() {
    let (mem, mut space) = testmem::fragmented(LEN, 4).unwrap();
    let config = RingConfig {
        event_idx: true,
        indirect: true,
        start: 65_530,
    };
    let mut driver = space.driver(&mem, 16, config, ARENA).unwrap();
    let mut disk = vec![0; 8 * 512];
    for round in 0..20 {
        let mut device = Oracle::new(&mem, driver.state(), disk);
        let value = [round; 512];
        driver
            .submit(&Request::write(3, &value).indirect(true))
            .unwrap();
        driver.publish().unwrap();
        device.run();
        assert!(driver.poll().unwrap().unwrap().is_ok());
        disk = device.disk;
        assert_eq!(disk[3 * 512..4 * 512], value);
    }
}

/// Both halves on threads of their own, sleeping whenever the ring says they may. The limit is there
/// for the test to end if one sleeps for ever.
#[test]
fn two_threads_never_wait_for_each_other() {
    const LIMIT: Duration = Duration::from_secs(120);
    for config in configs() {
        let (mem, mut space) = testmem::single(LEN).unwrap();
        let mut driver = space.driver(&mem, 16, config, ARENA).unwrap();
        let mut device = Oracle::new(&mem, driver.state(), vec![0; 512]);
        device.run();
        let (kick, kicked) = mpsc::channel();
        let (interrupt, interrupted) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                while kicked.recv().is_ok() {
                    if device.run().1 {
                        // The driver may be gone, with all its completions.
                        let _ = interrupt.send(());
                    }
                }
            });
            let (mut sent, mut done) = (0, 0);
            while done < 20_000 {
                while sent < 20_000 && driver.submit(&Request::flush()).is_ok() {
                    sent += 1;
                    if driver.publish().unwrap() {
                        kick.send(()).unwrap();
                    }
                }
                while let Some(answer) = driver.poll().unwrap() {
                    assert!(answer.is_ok());
                    done += 1;
                }
                let (ring, mem) = driver.ring_mut();
                if done < sent && !ring.enable_interrupts(mem).unwrap() {
                    interrupted.recv_timeout(LIMIT).expect("an interrupt");
                }
            }
            drop(kick);
        });
        assert_eq!(driver.in_flight(), 0);
    }
}
