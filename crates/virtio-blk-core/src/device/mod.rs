// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device a driver sees: features, configuration space, cache mode, serial number, live resize, and
//! the start of queues. Knows no transport: that calls these methods from its registers or messages.
//!
//! A transport
//! 1. shows [`Device::offered`] (plus its own bits, given in [`DeviceOptions::transport_features`]),
//! 2. passes on what the driver acknowledges with [`Device::accept`], reads and writes of the
//!    configuration space, and resets,
//! 3. starts each enabled queue with [`Device::start_queue`] at DRIVER_OK (not before: virtio 1.4,
//!    2.1.2), and
//! 4. tells the driver when its config listener is called, and
//! 5. keeps the rings that wait. A [`QueueRunner`](crate::runner::QueueRunner) has a mapped ring and a disk that
//!    was activated ([`Disk::activate`]), and no state of waiting for either: a queue whose ring was unmapped,
//!    whose medium is not active yet, or whose disk could not be opened is stopped or was never started, and the
//!    transport starts it once the cause has passed, at the position where it stopped.
//!
//! [`StatusRegister`] does the bookkeeping of the status byte for transports that have one.

mod adopt;
mod config;
mod features;
mod options;
mod saved;
mod start;
mod status;
#[cfg(feature = "thread")]
mod virtio_device;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use config::ConfigError;
pub use features::NegotiationError;
pub use options::{DeviceOptions, DeviceOptionsError};
pub use saved::{RestoreError, SavedDevice, SavedQueue};
pub use start::StartError;
pub use status::{StatusChange, StatusRegister};
#[cfg(feature = "thread")]
pub use virtio_device::{DriveError, DriverInterrupt, QueueResources, StartedQueue, VirtioDevice};

pub use crate::guest_abi::{AbiError, GuestAbi, MAX_SEG_MAX};

use crate::disk::{Caps, Disk, DiskEvent};
use crate::request::SharedConfig;
use crate::runner::{Counters, ErrorListeners, RequestError};

/// Called after each change of the configuration space that the driver did not make.
type ConfigListener = Box<dyn Fn() + Send + Sync>;

/// What the guest is told.
struct Shown {
    /// Without capacity and cache mode, which are in [`SharedConfig`].
    abi: GuestAbi,
    /// The cache mode that was taken over with `abi` and has not taken effect yet.
    writeback: Option<bool>,
}

/// A virtio-blk device over a [`Disk`]. Shared: all methods take `&self`.
pub struct Device {
    disk: Arc<dyn Disk>,
    caps: Caps,
    options: DeviceOptions,
    /// What disk and options can present.
    own: GuestAbi,
    shown: Mutex<Shown>,
    accepted: AtomicU64,
    shared: Arc<SharedConfig>,
    /// Counts changes of the configuration space. Locked while one happens: a reader of the old value
    /// before a change reads the new one after it.
    generation: Mutex<u32>,
    listeners: Mutex<Vec<ConfigListener>>,
    errors: Arc<ErrorListeners>,
    counters: Vec<Arc<Counters>>,
}

impl Device {
    /// Makes a device. It listens to the disk's changes as long as it lives.
    ///
    /// # Errors
    /// The options contradict each other or the disk's capabilities.
    pub fn new(
        disk: Arc<dyn Disk>,
        options: DeviceOptions,
    ) -> Result<Arc<Self>, DeviceOptionsError> {
        let mut caps = disk.caps();
        caps.validate().map_err(DeviceOptionsError::Disk)?;
        options.validate(&caps)?;
        if options.read_only {
            caps.read_only = true;
        }
        let own = options.present(&caps, features::offer(&caps, &options));
        let device = Arc::new(Self {
            caps,
            own,
            shown: Mutex::new(Shown {
                abi: own,
                writeback: None,
            }),
            accepted: AtomicU64::new(0),
            shared: Arc::new(SharedConfig::new(caps.capacity)),
            generation: Mutex::new(0),
            listeners: Mutex::new(Vec::new()),
            errors: Arc::default(),
            counters: (0..options.queues).map(|_| Arc::default()).collect(),
            options,
            disk: disk.clone(),
        });
        device.shared.set_writeback(device.initial_writeback());
        let weak = Arc::downgrade(&device);
        disk.listen(Arc::new(move |event| {
            if let Some(device) = weak.upgrade() {
                device.disk_changed(event);
            }
        }));
        // A change between `caps` and `listen` would go unseen.
        device.take_capacity();
        Ok(device)
    }

    /// The disk below.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// The options it was made with.
    pub fn options(&self) -> &DeviceOptions {
        &self.options
    }

    /// Capacity in sectors of 512 bytes, as the driver sees it now.
    pub fn capacity(&self) -> u64 {
        self.shared.capacity()
    }

    /// The counters of a queue; they continue over restarts of the queue. `None` beyond the last queue.
    pub fn counters(&self, queue: u16) -> Option<&Arc<Counters>> {
        self.counters.get(usize::from(queue))
    }

    /// Adds a listener for changes of the configuration space that the driver did not make. It must not block.
    pub fn listen(&self, listener: impl Fn() + Send + Sync + 'static) {
        lock(&self.listeners).push(Box::new(listener));
    }

    /// Adds a listener for what goes wrong in this device's queues: failures of the disk, which the driver
    /// sees as a status byte without a reason, chains that can't be taken, and broken queues. It is called
    /// on the queue's thread and must not block; one that keeps the time of its work low, or its log short, counts. Costs nothing while nothing goes wrong.
    pub fn on_request_error(&self, listener: impl Fn(&RequestError<'_>) + Send + Sync + 'static) {
        self.errors.add(Box::new(listener));
    }

    /// Forgets what was negotiated, as a device reset does (virtio 1.4, 2.4.1). The transport has
    /// stopped all queues.
    pub fn reset(&self) {
        self.accepted.store(0, Ordering::Release);
        lock(&self.shown).writeback = None;
        self.set_writeback();
    }

    fn disk_changed(&self, event: DiskEvent) {
        if let DiskEvent::Resized { .. } = event {
            self.take_capacity();
        }
    }

    /// Takes the disk's present capacity over. It is asked for under the lock and not taken from an
    /// event, so that of several changes at a time the last one stays.
    fn take_capacity(&self) {
        let changed = {
            let mut generation = lock(&self.generation);
            let caps = self.disk.caps();
            // Nothing may be computed with a capacity that `Caps::validate` would refuse.
            let changed = caps.validate().is_ok() && self.shared.set_capacity(caps.capacity);
            *generation = generation.wrapping_add(u32::from(changed));
            changed
        };
        if changed {
            self.tell_listeners();
        }
    }

    fn config_changed(&self) {
        {
            let mut generation = lock(&self.generation);
            *generation = generation.wrapping_add(1);
        }
        self.tell_listeners();
    }

    fn tell_listeners(&self) {
        for listener in lock(&self.listeners).iter() {
            listener();
        }
    }
}

/// Locks. The content is whole also after a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device")
            .field("capacity", &self.capacity())
            .field("offered", &self.offered())
            .field("accepted", &self.accepted())
            .field("options", &self.options)
            .finish()
    }
}

#[cfg(test)]
mod tests;
