// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod address_space;
mod callback;
mod compat;
mod faults;
mod in_use;
mod model;
mod notifier;
mod options;
mod sim;
mod strict;
mod worker;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use faults::{FaultCounts, Faults};
pub use options::{
    CompatOptions, Execution, SimOptions, SimOptionsError, SimProfile, StrictOptions,
};
pub use sim::BlkSim;

/// Locks. A thread that panicked with the lock left the content whole.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
