// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

mod abi;
mod cache;
mod config;
mod features;
mod saved;
mod start;
mod status;

use std::sync::Arc;

use super::*;
use crate::disk::{Caps, EraseLimits, Topology, ZeroLimits};
use crate::spec::feature;
use crate::testdisk::TestDisk;

const LIMITS: EraseLimits = EraseLimits {
    max_sectors: 1000,
    max_segments: 7,
    alignment: 8,
};

/// Everything a disk can do.
fn full() -> Caps {
    Caps {
        flush: true,
        discard: Some(LIMITS),
        write_zeroes: Some(ZeroLimits {
            max_sectors: 2000,
            max_segments: 9,
            may_unmap: true,
        }),
        secure_erase: Some(EraseLimits {
            max_segments: 3,
            ..LIMITS
        }),
        lifetime: true,
        ..Caps::basic(2048)
    }
}

fn device(caps: Caps, options: DeviceOptions) -> Arc<Device> {
    Device::new(Arc::new(TestDisk::new(caps)), options).unwrap()
}
