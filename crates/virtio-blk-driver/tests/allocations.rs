// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests cost no heap allocation once a driver has warmed up.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use allocation_counter::measure;
use common::oracle::Oracle;
use malformed_queues::testmem;
use virtio_blk_driver::request::{ArenaConfig, Framing, Out, Request};
use virtio_blk_driver::ring::RingConfig;
use virtio_blk_driver::wire::{Range, T_OUT};

#[test]
fn the_steady_state_allocates_nothing() {
    let (mem, mut space) = testmem::single(256 * 1024).unwrap();
    let config = RingConfig {
        event_idx: true,
        indirect: true,
        start: 0,
    };
    let arena = ArenaConfig::default();
    let mut driver = space.driver(&mem, 64, config, arena).unwrap();
    let mut device = Oracle::new(&mem, driver.state(), vec![0; 64 * 512]);
    let data = [7; 1024];
    let ranges = [Range::default(); 2];
    let mut spent = 0;
    for round in 0..20 {
        let allocated = measure(|| {
            for nth in 0..8 {
                let request = match nth {
                    0 => Request::read(1, 4096),
                    1 => Request::write(2, &data),
                    2 => Request::new(T_OUT, 0).with_out(Out::InPlace(512)),
                    3 => Request::discard(&ranges),
                    4 => Request::flush(),
                    5 => Request::read(1, 512).framed(Framing::Merged),
                    6 => Request::write(2, &data).indirect(true),
                    _ => Request::read(3, 512).framed(Framing::Random { seed: nth, cuts: 3 }),
                };
                driver.submit(&request).unwrap();
            }
            driver.publish().unwrap();
            let (ring, memory) = driver.ring_mut();
            ring.enable_interrupts(memory).unwrap();
        });
        spent += allocated.count_total;

        device.run();
        let allocated = measure(|| {
            let mut out = [0; 512];
            while let Some(done) = driver.poll().unwrap() {
                let len = driver.data(done.token).unwrap().len.min(512) as usize;
                driver.read_data(done.token, 0, &mut out[..len]).unwrap();
            }
        });
        spent += allocated.count_total;
        assert_eq!(driver.in_flight(), 0);
        assert_eq!(spent, 0, "round {round}");
    }
    let allocated = measure(|| drop(std::hint::black_box(vec![1, 2, 3])));
    assert_ne!(allocated.count_total, 0, "the counter counts");
}
