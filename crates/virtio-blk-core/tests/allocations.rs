// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A request costs the device no heap allocation once its queue has warmed up.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;

use allocation_counter::measure;
use malformed_queues::on_each_memory;
use virtio_blk_core::device::{Device, DeviceOptions};
use virtio_blk_core::disk::{
    Caps, Completion, Disk, DiskError, EraseLimits, IoQueue, Op, Submit, Wait,
};
use virtio_blk_core::runner::{QueueSetup, Service};
use virtio_blk_driver::request::{ArenaConfig, Framing, Request};
use virtio_blk_driver::ring::RingConfig;
use virtio_blk_driver::wire::Range;

/// Succeeds at everything; at once, or with the next `reap`.
#[derive(Clone)]
struct Nothing {
    inline: bool,
    ready: Arc<std::sync::Mutex<Vec<Completion>>>,
}

impl Disk for Nothing {
    fn caps(&self) -> Caps {
        Caps {
            flush: true,
            discard: Some(EraseLimits {
                max_sectors: 8,
                max_segments: 8,
                alignment: 1,
            }),
            ..Caps::basic(2048)
        }
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        self.ready.lock().unwrap().reserve(depth.into());
        Ok(Box::new(self.clone()))
    }
}

impl IoQueue for Nothing {
    fn submit(&mut self, op: Op) -> Submit {
        let completion = op.complete(Ok(()));
        if self.inline {
            return Submit::Done(completion);
        }
        self.ready.lock().unwrap().push(completion);
        Submit::Queued
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        let mut ready = self.ready.lock().unwrap();
        let count = ready.len();
        done.append(&mut ready);
        Ok(count)
    }

    fn wait(&self) -> Wait<'_> {
        if self.inline {
            Wait::Inline
        } else {
            Wait::Poll
        }
    }
}

#[test]
fn the_steady_state_allocates_nothing() {
    for inline in [true, false] {
        on_each_memory!(384 * 1024, |mem, space| {
            let disk = Nothing {
                inline,
                ready: Arc::default(),
            };
            let device = Device::new(Arc::new(disk), DeviceOptions::default()).unwrap();
            device.accept(device.offered()).unwrap();
            let config = RingConfig {
                event_idx: true,
                indirect: true,
                start: 0,
            };
            let arena = ArenaConfig::default();
            let mut driver = space.driver(mem.clone(), 64, config, arena).unwrap();
            let setup = QueueSetup::new(mem.clone(), || {});
            let mut queue = device.start_queue(0, setup, driver.state()).unwrap();
            let data = [7; 1024];
            let range = Range {
                sector: 1,
                num_sectors: 1,
                flags: 0,
            };
            let mut spent = 0;
            for round in 0..20 {
                for nth in 0..12u64 {
                    let request = match nth % 4 {
                        0 => Request::read(1, 4096),
                        1 => Request::write(2, &data),
                        2 => Request::flush(),
                        _ => Request::write(9, &data).framed(Framing::Merged),
                    };
                    driver.submit(&request.indirect(nth % 2 == 0)).unwrap();
                }
                driver.publish().unwrap();
                let allocated =
                    measure(
                        || {
                            while queue.service(64) == Service::More || queue.in_flight() != 0 {}
                        },
                    );
                if round >= 2 {
                    spent += allocated.count_total;
                }
                while let Some(done) = driver.poll().unwrap() {
                    assert!(done.is_ok());
                }
            }
            assert_eq!(spent, 0, "inline: {inline}");
            // The counter counts: ranges are no part of the promise.
            let ranges = [range; 2];
            driver.submit(&Request::discard(&ranges)).unwrap();
            driver.publish().unwrap();
            let allocated =
                measure(
                    || {
                        while queue.service(64) == Service::More || queue.in_flight() != 0 {}
                    },
                );
            assert_ne!(allocated.count_total, 0);
        });
    }
}
