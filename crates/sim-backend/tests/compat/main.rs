// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The `compat` profile, operation by operation: the behaviour of the kernel's `vdpa_sim_blk` (6.12).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod chains;
#[path = "../common/mod.rs"]
mod common;
mod device;
mod maps;
mod requests;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::{MEMORY, Rig, counter, errno, mapping, memory, physical, table};
use sim_backend::{BlkSim, SimOptions, SimProfile};
use vdpa_bus::{VdpaDevice, VqAddress, VqState};
use virtio_blk_core::memory::IotlbTable;
use virtio_blk_core::spec::config::Config;
use virtio_blk_core::spec::feature;
use virtio_blk_disks::MemoryDisk;
use virtio_blk_driver::request::{Framing, In, Out, Request};
use virtio_blk_driver::vdpa::{Setup, VdpaDriver, negotiate};
use virtio_blk_driver::{Segment, wire};
use vm_memory::{Bytes, GuestAddress};

const EINVAL: i32 = 22;
const EEXIST: i32 = 17;
const ENODEV: i32 = 19;
const EOPNOTSUPP: i32 = 95;
const LEAST: u64 = feature::VERSION_1 | feature::ACCESS_PLATFORM;

fn rig() -> Rig {
    Rig::new(SimOptions::compat().stepped(), 1)
}

fn bare() -> BlkSim {
    BlkSim::in_memory(SimOptions::compat().stepped()).unwrap()
}

/// With `batch_mapping=0`.
fn unbatched() -> SimOptions {
    let mut options = SimOptions::compat().stepped();
    if let SimProfile::Compat(compat) = &mut options.profile {
        compat.batch_mapping = false;
    }
    options
}

fn range(sector: u64, num_sectors: u32, flags: u32) -> wire::Range {
    wire::Range {
        sector,
        num_sectors,
        flags,
    }
}
