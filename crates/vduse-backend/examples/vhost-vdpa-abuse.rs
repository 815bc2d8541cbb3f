// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A driver of a block device behind `/dev/vhost-vdpa-N` that does what makes daemons fall over. The lab's
//! `vduse-abuse` runs it.
//!
//!     vhost-vdpa-abuse NODE reset ROUNDS        resets with requests in flight
//!     vhost-vdpa-abuse NODE malformed ROUNDS    requests without a status byte, then a reset
//!     vhost-vdpa-abuse NODE hot-add ROUNDS      memory comes and goes under requests
//!     vhost-vdpa-abuse NODE verify N            none of that: MiB number N is written and compared, at depth 16
//!     vhost-vdpa-abuse NODE stall HANG GO-ON    resets while the disk hangs; two shell commands make it do so
//!
//! Each case writes and reads back afterwards.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashMap;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use malformed_queues::testmem::Space;
use vdpa_bus::{VdpaDevice, VqAddress, VqState};
use vhost_vdpa_frontend::VhostVdpa;
use virtio_blk_core::memory::{HostMemory, IotlbMapping, IotlbTable, Permissions};
use virtio_blk_core::spec::feature;
use virtio_blk_driver::Segment;
use virtio_blk_driver::request::{ArenaConfig, Driver, Request};
use virtio_blk_driver::ring::{Chain, RingConfig};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

type Guest = GuestMemoryMmap<()>;

const MEMORY: usize = 4 << 20;
const SIZE: u16 = 64;
const ARENA: ArenaConfig = ArenaConfig {
    slots: 32,
    data_len: 65536,
    data_align: 512,
    table_len: 8,
};
/// How long the device may take for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

struct Host {
    device: VhostVdpa,
    guest: Arc<Guest>,
    /// Memory that comes and goes.
    more: Arc<Guest>,
    kick: Arc<EventFd>,
}

fn memory(base: u64, len: usize) -> Arc<Guest> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = std::fs::File::from(rustix::fs::memfd_create("guest", flags).unwrap());
    file.set_len(len as u64).unwrap();
    let range = (GuestAddress(base), len, Some(FileOffset::new(file, 0)));
    Arc::new(Guest::from_ranges_with_files([range]).unwrap())
}

impl Host {
    fn open(node: &str) -> Self {
        let host = Self {
            device: VhostVdpa::open(node).unwrap(),
            guest: memory(0, MEMORY),
            more: memory(1 << 32, MEMORY),
            kick: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
        };
        host.map(false);
        host
    }

    fn map(&self, more: bool) {
        let mut table = IotlbTable::new();
        let spaces = [Some(&self.guest), more.then_some(&self.more)];
        for (base, memory) in spaces.into_iter().flatten().flat_map(HostMemory::of_map) {
            let mapping = IotlbMapping::new(base, memory, Permissions::ReadWrite).unwrap();
            table.insert(mapping).unwrap();
        }
        self.device.set_map(0, &table).unwrap();
    }

    /// From a reset to DRIVER_OK, with one queue.
    fn start(&self) -> Driver<Arc<Guest>> {
        let device = &self.device;
        for status in [0, 1, 3] {
            device.set_status(status).unwrap();
        }
        // One queue is driven, so that there are no features of more.
        let features = device.get_device_features() & !feature::MQ;
        device.set_driver_features(features).unwrap();
        device.set_status(11).unwrap();
        assert_eq!(device.get_status(), 11, "the features were refused");
        let mut space = Space::new(&[(GuestAddress(0), MEMORY as u64)]);
        let config = RingConfig {
            event_idx: features & feature::RING_EVENT_IDX != 0,
            indirect: true,
            start: 0,
        };
        let driver = space
            .driver(self.guest.clone(), SIZE, config, ARENA)
            .unwrap();
        let state = driver.state();
        device.set_vq_num(0, SIZE.into()).unwrap();
        device
            .set_vq_state(0, VqState::Split { avail_index: 0 })
            .unwrap();
        let address = VqAddress {
            desc: state.desc_table,
            driver: state.avail_ring,
            device: state.used_ring,
        };
        device.set_vq_address(0, address).unwrap();
        device.set_vq_kick(0, Some(self.kick.clone())).unwrap();
        device.set_vq_ready(0, true).unwrap();
        device.set_status(15).unwrap();
        driver
    }

    fn publish(&self, driver: &mut Driver<Arc<Guest>>) {
        if driver.publish().unwrap() {
            self.device.kick_vq(0);
        }
    }

    fn answer(&self, driver: &mut Driver<Arc<Guest>>) -> virtio_blk_driver::request::Done {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(done) = driver.poll().unwrap() {
                return done;
            }
            std::thread::yield_now();
        }
        panic!("no answer");
    }

    /// Puts as much in flight as there is room for.
    fn flood(&self, driver: &mut Driver<Arc<Guest>>) {
        let data = vec![0xa5; 65536];
        for slot in 0..32u64 {
            let request = match slot % 2 {
                0 => Request::write(1024 + 128 * slot, &data),
                _ => Request::read(1024 + 128 * slot, 65536),
            };
            if driver.submit(&request).is_err() {
                break;
            }
            self.publish(driver);
        }
    }

    /// Writes the MiB `number` block by block, and reads it back, with 16 requests in flight.
    fn verify(&self, driver: &mut Driver<Arc<Guest>>, number: u64) {
        let content = |block: u64| (number << 32 | block).to_le_bytes().repeat(512);
        for writes in [true, false] {
            let mut blocks = 0..256u64;
            let mut in_flight = HashMap::new();
            loop {
                while in_flight.len() < 16
                    && let Some(block) = blocks.next()
                {
                    let (sector, data) = (2048 * number + 8 * block, content(block));
                    let request = match writes {
                        true => Request::write(sector, &data),
                        false => Request::read(sector, 4096),
                    };
                    in_flight.insert(driver.submit(&request).unwrap(), block);
                    self.publish(driver);
                }
                if in_flight.is_empty() {
                    break;
                }
                let done = self.answer(driver);
                assert!(done.is_ok());
                let block = in_flight.remove(&done.token).unwrap();
                if !writes {
                    let mut back = [0; 4096];
                    driver.read_data(done.token, 0, &mut back).unwrap();
                    assert!(back[..] == content(block), "block {block} of MiB {number}");
                }
            }
        }
    }

    /// Writes and reads back.
    fn check(&self, driver: &mut Driver<Arc<Guest>>, seed: u8) {
        let data = [seed; 4096];
        driver.submit(&Request::write(8, &data)).unwrap();
        self.publish(driver);
        assert!(self.answer(driver).is_ok());
        driver.submit(&Request::read(8, 4096)).unwrap();
        self.publish(driver);
        let done = self.answer(driver);
        assert!(done.is_ok());
        let mut back = [0; 4096];
        driver.read_data(done.token, 0, &mut back).unwrap();
        assert_eq!(back, data);
    }
}

fn shell(command: &str) {
    let status = Command::new("sh").args(["-c", command]).status().unwrap();
    assert!(status.success(), "{command}: {status}");
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let (node, case, rest) = match words.as_slice() {
        [node, case, rest @ ..] => (*node, *case, rest),
        _ => panic!("NODE CASE ARGUMENT..."),
    };
    let host = Host::open(node);
    let rounds = || rest[0].parse::<u32>().unwrap();
    match case {
        "reset" => {
            for round in 0..rounds() {
                let mut driver = host.start();
                host.flood(&mut driver);
                drop(driver);
                // The next start resets it.
                let mut driver = host.start();
                host.check(&mut driver, round as u8);
            }
        }
        "malformed" => {
            for round in 0..rounds() {
                let mut driver = host.start();
                let (ring, mem) = driver.ring_mut();
                for cookie in 0..8 {
                    let readable = [Segment::new(GuestAddress(MEMORY as u64 - 4096), 16)];
                    let chain = Chain {
                        readable: &readable,
                        writable: &[],
                        indirect: None,
                    };
                    ring.add(mem, &chain, cookie).unwrap();
                }
                ring.publish(mem).unwrap();
                host.device.kick_vq(0);
                // Every second time the reset comes at once.
                if round % 2 == 0 {
                    let deadline = Instant::now() + PATIENCE;
                    let mut back = 0;
                    while back < 8 {
                        assert!(Instant::now() < deadline, "{back} of 8 came back");
                        let (ring, mem) = driver.ring_mut();
                        back += u32::from(ring.poll_used(mem).unwrap().is_some());
                    }
                }
                let mut driver = host.start();
                host.check(&mut driver, round as u8);
            }
        }
        "hot-add" => {
            let mut driver = host.start();
            for round in 0..rounds() {
                for slot in 0..16 {
                    let request = Request::read(1024 + 128 * slot, 65536);
                    driver.submit(&request).unwrap();
                    host.publish(&mut driver);
                }
                host.map(round % 2 == 0);
                for _ in 0..16 {
                    assert!(host.answer(&mut driver).is_ok());
                }
                host.check(&mut driver, round as u8);
            }
        }
        "verify" => {
            let mut driver = host.start();
            host.verify(&mut driver, rounds().into());
            // Between two operations.
            host.device.set_status(0).unwrap();
        }
        "stall" => {
            let mut driver = host.start();
            host.check(&mut driver, 1);
            shell(rest[0]);
            host.flood(&mut driver);
            std::thread::sleep(Duration::from_secs(1));
            let start = Instant::now();
            let mut driver = host.start();
            println!(
                "reset and started again after {:.1} s",
                start.elapsed().as_secs_f32()
            );
            driver.submit(&Request::read(0, 512)).unwrap();
            host.publish(&mut driver);
            // Longer than the kernel waits for an answer, all in all.
            std::thread::sleep(Duration::from_secs(12));
            assert!(
                driver.poll().unwrap().is_none(),
                "served by a disk that hangs"
            );
            shell(rest[1]);
            assert!(host.answer(&mut driver).is_ok());
            host.check(&mut driver, 2);
        }
        other => panic!("{other}: reset, malformed, hot-add, verify or stall"),
    }
    println!("{case}: the device lives");
}
