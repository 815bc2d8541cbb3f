// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![doc = include_str!("../README.md")]

pub mod dirty;
pub mod disk_arg;
pub mod fault;
mod holding;
pub mod hot_swap;
mod in_flight;
#[cfg(feature = "inject")]
pub mod inject;
pub mod layer;
mod listeners;
pub mod memory;
pub mod meter;
pub mod null;
mod observe;
mod outbox;
pub mod policy;
#[cfg(feature = "power-cut")]
pub mod power_cut;
pub mod raw;
pub mod stack;
pub mod throttle;
pub mod verify;

pub use dirty::DirtyDisk;
pub use disk_arg::{ArgError, DiskArg};
pub use fault::{FaultDisk, FaultPlan};
pub use hot_swap::SwitchDisk;
pub use memory::MemoryDisk;
pub use meter::MeterDisk;
pub use null::NullDisk;
pub use policy::PolicyDisk;
pub use raw::{Engine, Lock, RawDisk, RawOptions};
pub use stack::{Stack, StackArg};
pub use throttle::{ThrottleDisk, ThrottleGroup};
pub use verify::VerifyDisk;
