// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The `strict` profile, operation by operation.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{ask, bring_up, state};
use sim_backend::Options;
use vdpa_bus::VdpaDevice;
use virtio_blk_driver::request::Request;

#[test]
fn bring_up_and_io_with_a_worker_and_stepped() {
    for options in [
        Options::strict_queues(2).stepped(),
        Options::strict_queues(2),
    ] {
        let (sim, mut driver) = bring_up(options, 2);
        for i in 0..200u64 {
            let vq = (i % 2) as u16;
            let data = [i as u8; 512];
            assert!(ask(&sim, &mut driver, vq, &Request::write(i, &data)).is_ok());
            let done = ask(&sim, &mut driver, vq, &Request::read(i, 512));
            let mut read = [0; 512];
            driver.queues()[usize::from(vq)]
                .read_data(done.token, 0, &mut read)
                .unwrap();
            assert!(done.is_ok() && read == data);
        }
        sim.suspend().unwrap();
        assert_eq!([state(&sim, 0), state(&sim, 1)], [200, 200]);
        sim.resume().unwrap();
        assert!(ask(&sim, &mut driver, 0, &Request::flush()).is_ok());
    }
}
