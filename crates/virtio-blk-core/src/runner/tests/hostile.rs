// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The table of malformed queues, against the whole device.

use malformed_queues::testmem;
use malformed_queues::{Health, Setup, Subject};

use super::*;

/// A device under test.
struct Victim<M: GuestMemory + Send + Sync + 'static> {
    mem: Arc<M>,
    disk: TestDisk,
    size: u16,
    event_idx: bool,
    runner: Option<QueueRunner<Arc<M>>>,
}

impl<M: GuestMemory + Send + Sync + 'static> Victim<M> {
    fn serve(&mut self) -> Health {
        let Some(runner) = &mut self.runner else {
            return Health::Latched;
        };
        for _ in 0..1000 {
            match runner.service(5) {
                Service::More => {}
                Service::Fatal => {
                    assert!(runner.error().is_some());
                    return Health::Latched;
                }
                _ if self.disk.held() != 0 || runner.in_flight() == 0 => return Health::Running,
                _ => {}
            }
        }
        panic!("the device does not come to rest");
    }
}

impl<M: GuestMemory + Send + Sync + 'static> Subject for Victim<M> {
    fn start(&mut self, setup: &Setup) -> Health {
        if setup.deferred {
            self.disk.set_mode(Mode::Held);
        }
        let options = DeviceOptions {
            queue_size: self.size,
            ..DeviceOptions::default()
        };
        let device = Device::new(Arc::new(self.disk.clone()), options).unwrap();
        let mut features = device.offered();
        if !self.event_idx {
            features &= !feature::RING_EVENT_IDX;
        }
        if !setup.indirect {
            features &= !feature::RING_INDIRECT_DESC;
        }
        device.accept(features).unwrap();
        match device.start_queue(0, QueueSetup::new(self.mem.clone(), || {}), &setup.state) {
            Ok(runner) => {
                self.runner = Some(runner);
                Health::Running
            }
            Err(_) => Health::Latched,
        }
    }

    fn service(&mut self) -> Health {
        self.disk.release(usize::MAX);
        self.serve()
    }
}

/// Plays every case on fresh memory.
fn play_all<M: GuestMemory + Send + Sync + 'static>(
    make: impl Fn() -> (M, Space),
    mode: Mode,
    wait: WaitKind,
) {
    let mut failed = Vec::new();
    for case in malformed_queues::cases() {
        for event_idx in [false, true] {
            for start in [0, 65_530] {
                let (mem, space) = make();
                let mem = Arc::new(mem);
                let disk = TestDisk::new(Caps::basic(64)).with_mode(mode, wait);
                let options = malformed_queues::Options {
                    size: 16,
                    start,
                    event_idx,
                };
                let mut victim = Victim {
                    mem: mem.clone(),
                    disk,
                    size: 16,
                    event_idx,
                    runner: None,
                };
                if let Err(error) = malformed_queues::play(case, &*mem, space, options, &mut victim)
                {
                    failed.push(format!("{}: {error} ({options:?})", case.name));
                }
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

const LEN: usize = 128 * 1024;

#[test]
fn malformed_queues_in_plain_memory() {
    play_all(
        || testmem::single(LEN).unwrap(),
        Mode::Inline,
        WaitKind::Inline,
    );
}

#[test]
fn malformed_queues_with_inline_execution() {
    for fragmented in [false, true] {
        if fragmented {
            let make = || testmem::fragmented_naive(LEN, 9).unwrap();
            play_all(make, Mode::Execute, WaitKind::Inline);
        } else {
            let make = || testmem::gapped(LEN).unwrap();
            play_all(make, Mode::Execute, WaitKind::Inline);
        }
    }
}

#[test]
fn malformed_queues_with_operations_that_are_taken() {
    play_all(
        || testmem::gapped(LEN).unwrap(),
        Mode::Taken,
        WaitKind::Poll,
    );
}

#[test]
fn malformed_queues_in_several_regions() {
    play_all(
        || testmem::gapped(LEN).unwrap(),
        Mode::AtFlush,
        WaitKind::Fd,
    );
}

#[test]
fn malformed_queues_behind_an_iommu() {
    play_all(
        || testmem::fragmented(LEN, 7).unwrap(),
        Mode::Inline,
        WaitKind::Inline,
    );
}

#[test]
fn malformed_queues_behind_a_careless_iommu() {
    play_all(
        || testmem::fragmented_naive(LEN, 8).unwrap(),
        Mode::AtFlush,
        WaitKind::Poll,
    );
}
