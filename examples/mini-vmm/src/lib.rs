// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A small VMM whose disks are `virtio-blk-core`'s: an example to copy from. The README has the map.
//!
//! The program is [`main`]. A program of your own runs the built-in guest over a vDPA device with [`BuiltinGuest`].
//! All of it is for x86_64; elsewhere this crate is empty.

#![cfg(target_arch = "x86_64")]

mod acpi;
mod app;
mod boot;
mod builtin;
mod bus;
mod config;
mod control;
mod cpu;
mod disks;
mod error;
mod event;
mod guest;
mod interrupt;
mod legacy;
mod machine;
mod memory;
mod pci;
mod snapshot;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod vcpu;
mod virtio;

pub use app::main;
pub use error::Error;
pub use guest::{BuiltinGuest, GuestEvent};
pub use memory::Memory;
