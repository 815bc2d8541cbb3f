// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![doc = include_str!("../README.md")]

mod bring_up;
mod device_map;
mod dirty;
mod error;
mod fast;
mod guest;
mod slow;
mod switch;
pub mod vhost;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use dirty::Coverage;
pub use error::PathError;
pub use fast::FastPath;
pub use guest::{GuestQueue, SavedFast, SavedFastQueue};
pub use slow::{SlowOptions, SlowPath, Wake};
pub use switch::{
    Interception, Layers, Method, OnFailure, Path, PathSwitch, Phases, Policy, QueueHost, Report,
    SwitchError, SwitchOptions, SwitchParts, SwitchStep, ThreadHost, Vmm,
};
pub use vhost::{Doorbell, VhostVdpa};

/// Locks; whoever panicked with it left the content whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
