// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A small VMM whose disks are `virtio-blk-core`'s: an example to copy from. The README has the map.
//!
//! The program is [`main`]. A program of your own runs the built-in guest over a vDPA device with [`BuiltinGuest`].
//! All of it is for x86_64; elsewhere this crate is empty.

#[cfg(target_arch = "x86_64")]
mod acpi;
#[cfg(target_arch = "x86_64")]
mod app;
#[cfg(target_arch = "x86_64")]
mod boot;
#[cfg(target_arch = "x86_64")]
mod builtin;
#[cfg(target_arch = "x86_64")]
mod bus;
#[cfg(target_arch = "x86_64")]
mod control;
#[cfg(target_arch = "x86_64")]
mod cpu;
#[cfg(target_arch = "x86_64")]
mod disks;
#[cfg(target_arch = "x86_64")]
mod error;
#[cfg(target_arch = "x86_64")]
mod guest;
#[cfg(target_arch = "x86_64")]
mod interrupt;
#[cfg(target_arch = "x86_64")]
mod legacy;
#[cfg(target_arch = "x86_64")]
mod machine;
#[cfg(target_arch = "x86_64")]
mod memory;
#[cfg(target_arch = "x86_64")]
mod pci;
#[cfg(target_arch = "x86_64")]
mod snapshot;
#[cfg(all(test, target_arch = "x86_64"))]
#[allow(clippy::unwrap_used)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod vcpu;
#[cfg(target_arch = "x86_64")]
mod virtio;

#[cfg(target_arch = "x86_64")]
pub use app::main;
#[cfg(target_arch = "x86_64")]
pub use error::Error;
#[cfg(target_arch = "x86_64")]
pub use guest::{BuiltinGuest, GuestEvent};
#[cfg(target_arch = "x86_64")]
pub use memory::Memory;
