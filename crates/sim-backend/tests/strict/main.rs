// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The `strict` profile, operation by operation.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod device;
mod maps;
mod queues;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::{MEMORY, Rig, counter, errno, mapping, memory, physical, table};
use sim_backend::{BlkSim, SimOptions, SimProfile};
use vdpa_bus::{VdpaDevice, VdpaError, VqAddress, VqState};
use virtio_blk_core::memory::IotlbTable;
use virtio_blk_core::spec::{config, feature, status};
use virtio_blk_disks::MemoryDisk;
use virtio_blk_driver::request::{In, Out, Request};
use virtio_blk_driver::vdpa::{Setup, VdpaDriver, negotiate};
use virtio_blk_driver::{Segment, wire};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const EBUSY: i32 = 16;
const EEXIST: i32 = 17;
const ENODEV: i32 = 19;
const EINVAL: i32 = 22;
const ENOSPC: i32 = 28;
const EOPNOTSUPP: i32 = 95;
/// What a driver must acknowledge, and nothing else.
const LEAST: u64 = feature::VERSION_1 | feature::ACCESS_PLATFORM;

fn rig() -> Rig {
    Rig::new(SimOptions::strict_queues(2).stepped(), 2)
}

fn bare(options: SimOptions) -> BlkSim {
    BlkSim::in_memory(options.stepped()).unwrap()
}

/// Strict options with groups and address spaces.
fn grouped(queues: u16, groups: u32, spaces: u32) -> SimOptions {
    let mut options = SimOptions::strict_queues(queues).stepped();
    if let SimProfile::Strict(strict) = &mut options.profile {
        strict.groups = groups;
        strict.address_spaces = spaces;
    }
    options
}
