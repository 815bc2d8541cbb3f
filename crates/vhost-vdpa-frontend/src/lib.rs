// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![doc = include_str!("../README.md")]

mod dirty;
mod error;
mod fast;
mod frontend;
mod guest;
mod iotlb_sync;
mod slow;
mod switch;
pub mod vhost;
mod virtio_device;
mod virtio_init;

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

pub use dirty::Coverage;
pub use error::{DeviceStep, PathError};
pub use fast::FastPath;
pub use guest::{GuestQueue, SavedGuest, SavedGuestQueue};
pub use slow::{CompletionMode, SlowOptions, SlowPath};
pub use switch::{
    DataPath, Interception, Layers, OnFailure, PathState, PathSwitch, QueueExecutor, QuiesceMethod,
    SwitchError, SwitchOptions, SwitchParts, SwitchPhases, SwitchPolicy, SwitchReport, SwitchStep,
    ThreadExecutor, Vmm,
};
pub use vhost::{Doorbell, VhostVdpa};

/// Locks. A thread that panicked with the lock left the content whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks if nobody else has the lock.
fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(error)) => Some(error.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}
