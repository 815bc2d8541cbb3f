// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which device an address belongs to. Ports and memory have a bus each.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// A device on a bus. Offsets are relative to its range; data has 1 to 8 bytes, of any alignment.
pub trait BusDevice: Send {
    fn read(&mut self, offset: u64, data: &mut [u8]);
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device with a lock of its own: accesses to different devices don't wait for each other.
pub type Shared = Arc<Mutex<dyn BusDevice>>;

/// Ranges of addresses and the devices behind them.
#[derive(Default)]
pub struct Bus(RwLock<BTreeMap<u64, (u64, Shared)>>);

impl Bus {
    /// Puts a device at `base`. What was there is replaced.
    pub fn insert(&self, base: u64, len: u64, device: Shared) {
        let mut map = self.0.write().unwrap_or_else(PoisonError::into_inner);
        map.insert(base, (len, device));
    }

    fn find(&self, address: u64) -> Option<(u64, Shared)> {
        let map = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let (base, (len, device)) = map.range(..=address).next_back()?;
        let offset = address - base;
        (offset < *len).then(|| (offset, device.clone()))
    }

    /// A read by the guest. Where there is nothing, all bits are set.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((offset, device)) => lock(&device).read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A write by the guest. Where there is nothing, nothing happens.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address) {
            lock(&device).write(offset, data);
        }
    }
}

/// Locks; a device that panicked is a bug, but no reason to take the others along.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
