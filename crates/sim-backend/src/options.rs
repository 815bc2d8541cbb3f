// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a simulator is made.

use std::io;
use std::ops::RangeInclusive;

use virtio_blk_core::device;
use virtio_blk_core::disk::DiskError;
use virtio_blk_core::memory::{HostMemory, IotlbError};

use crate::Faults;

/// The shape of a simulator, fixed for its life.
#[derive(Clone, Debug)]
pub struct SimOptions {
    /// The device that it behaves like.
    pub profile: SimProfile,
    /// The thread that serves its queues.
    pub execution: Execution,
    /// Memory that is mapped, at these addresses, in each address space as long as the driver maps
    /// nothing: what the machine's physical memory is to the kernel's simulator. May be empty.
    pub physical: Vec<(u64, HostMemory)>,
    /// Most mappings of an address space.
    pub max_mappings: usize,
    /// Whether maps name virtual addresses of a bound process (`use_va`, as the kernel's simulator by
    /// default): `bind_mm` and `unbind_mm` have an effect then.
    pub use_va: bool,
    /// Faults to inject.
    pub faults: Faults,
}

impl SimOptions {
    fn new(profile: SimProfile) -> Self {
        Self {
            profile,
            execution: Execution::Thread,
            physical: Vec::new(),
            max_mappings: 1 << 16,
            use_va: true,
            faults: Faults::default(),
        }
    }

    /// The `strict` profile with its defaults, on a thread of its own.
    pub fn strict() -> Self {
        Self::new(SimProfile::Strict(StrictOptions::default()))
    }

    /// The `strict` profile with so many queues.
    pub fn strict_queues(queues: u16) -> Self {
        let mut options = StrictOptions::default();
        options.device.queues = queues;
        Self::new(SimProfile::Strict(options))
    }

    /// The `compat` profile with the module's defaults, on a thread of its own.
    pub fn compat() -> Self {
        Self::new(SimProfile::Compat(CompatOptions::default()))
    }

    /// The same, driven by the caller.
    #[must_use]
    pub fn stepped(mut self) -> Self {
        self.execution = Execution::Stepped;
        self
    }

    /// The same with this going wrong.
    #[must_use]
    pub fn faults(mut self, faults: Faults) -> Self {
        self.faults = faults;
        self
    }

    /// The same with this memory mapped from the start.
    #[must_use]
    pub fn physical(mut self, physical: Vec<(u64, HostMemory)>) -> Self {
        self.physical = physical;
        self
    }
}

/// The device that a simulator behaves like.
#[derive(Clone, Debug)]
pub enum SimProfile {
    /// As virtio 1.4 and the vDPA interface want it.
    Strict(StrictOptions),
    /// As the kernel's `vdpa_sim_blk` (6.12) behaves, faults included, except where it reads or writes
    /// outside its disk: that is answered with IOERR.
    Compat(CompatOptions),
}

/// Options of the `strict` profile.
#[derive(Clone, Debug)]
pub struct StrictOptions {
    /// Queues, serial number and the like. `transport_features` gets ACCESS_PLATFORM in addition.
    pub device: device::DeviceOptions,
    /// Virtqueue groups, at least 1: queue `n` is in group `n % groups`.
    pub groups: u32,
    /// Address spaces, at least 1.
    pub address_spaces: u32,
    /// I/O virtual addresses that can be mapped.
    pub iova_range: RangeInclusive<u64>,
}

impl Default for StrictOptions {
    /// One queue of 256, one group, one address space, all addresses.
    fn default() -> Self {
        Self {
            device: device::DeviceOptions::default(),
            groups: 1,
            address_spaces: 1,
            iova_range: 0..=u64::MAX,
        }
    }
}

/// Options of the `compat` profile: the parameters of the kernel's module.
#[derive(Clone, Debug)]
pub struct CompatOptions {
    /// `batch_mapping`: the device has `set_map`. Without, it has `dma_map`, `dma_unmap` and
    /// `get_vq_size` instead.
    pub batch_mapping: bool,
}

impl Default for CompatOptions {
    /// As the module's.
    fn default() -> Self {
        Self {
            batch_mapping: true,
        }
    }
}

/// The thread that serves a simulator's queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Execution {
    /// A thread of the simulator's, one for all queues as in the kernel.
    Thread,
    /// The caller, by [`crate::BlkSim::step`]: nothing happens meanwhile, and all that happens follows from
    /// the calls.
    Stepped,
}

/// Why a simulator could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SimOptionsError {
    /// The device's options contradict each other or the disk.
    #[error(transparent)]
    Device(#[from] device::DeviceOptionsError),
    /// A number of groups or address spaces is 0.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// The physical memory can't be mapped.
    #[error("the physical memory: {0}")]
    Physical(#[from] IotlbError),
    /// The disk can't be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The system gave no eventfd, epoll or thread.
    #[error("the simulator can't be set up: {0}")]
    System(#[from] io::Error),
}
