// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory resolved to host addresses, once per memory map instead of once per field.
//!
//! `GuestMap` translates ranges over any [`vm_memory::GuestMemory`]: a plain memory map through a table
//! of its regions, I/O virtual memory (`Iotlb`, feature `iotlb`) through a table of its mappings, any other translated one
//! (vm-memory's `IommuMemory`) through its own lookup, behind checks that keep addresses from wrapping.
//! `RingArea` is a ring structure resolved for repeated access.

mod area;
mod host;
#[cfg(feature = "iotlb")]
mod iotlb;
mod map;

use std::any::Any;

use vm_memory::{GuestAddressSpace, GuestMemory};

pub(crate) use area::RingArea;
pub use host::HostMemory;
#[cfg(feature = "iotlb")]
pub use iotlb::{Iotlb, IotlbError, IotlbMapping, IotlbTable, NoRegion};
#[cfg(feature = "internals")]
pub use map::GuestMap;
#[cfg(not(feature = "internals"))]
pub(crate) use map::GuestMap;
pub(crate) use map::read_16;
#[cfg(feature = "iotlb")]
pub use vm_memory::Permissions;
#[cfg(not(feature = "iotlb"))]
pub(crate) use vm_memory::Permissions;

/// Guest memory that a device can use: an address space whose guard keeps the memory mapped and can
/// travel with an operation to other threads.
///
/// Implemented for all that qualifies: `Arc<GuestMemoryMmap>`, `GuestMemoryAtomic<…>`,
/// `Arc<IommuMemory<…>>`. While a guard exists, every host address it gave out stays mapped; memory that
/// is mapped on demand for each access (vm-memory's `xen` feature) does not do that and can't be used.
pub trait DeviceMemory:
    GuestAddressSpace<M: GuestMemory + 'static, T: Send + Sync + 'static> + Send + 'static
{
}

impl<S> DeviceMemory for S where
    S: GuestAddressSpace<M: GuestMemory + 'static, T: Send + Sync + 'static> + Send + 'static
{
}

/// Anything whose existence keeps a buffer's memory mapped: a guard on guest memory, an allocation.
pub trait KeepAlive: Any + Send + Sync {}
impl<T: Any + Send + Sync> KeepAlive for T {}

/// A guest range that is not mapped, not with the needed permission, or that wraps around.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("guest memory {addr:#x} (+{len:#x} bytes) is not mapped for this access")]
pub struct Unmapped {
    /// First guest address.
    pub addr: u64,
    /// Bytes.
    pub len: u64,
}

#[cfg(test)]
mod tests;
