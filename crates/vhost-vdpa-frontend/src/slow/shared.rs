// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the handles and the queues of a slow path share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use vdpa_bus::{VdpaDevice, VqAddress, VqState};
use virtio_blk_core::disk::{Caps, DiskError, DiskEvent, DiskListener};
use virtio_blk_core::memory::IotlbTable;
use virtio_blk_core::spec::{feature, status};

use super::completion_event::CompletionEvent;
use super::iova_window::IovaWindow;
use super::limits::Limits;
use super::shadow_queue::ShadowQueue;
use super::translate::TranslationHistory;
use super::{PathError, SlowOptions};
use crate::iotlb_sync::IotlbSync;
use crate::virtio_init::Ring;
use crate::{guest, lock};

/// A device on the slow path.
pub(super) struct Shared {
    pub(super) device: Arc<dyn VdpaDevice>,
    pub(super) map: Arc<IotlbSync>,
    pub(super) options: SlowOptions,
    pub(super) window: IovaWindow,
    pub(super) limits: Limits,
    pub(super) caps: Caps,
    pub(super) capacity: AtomicU64,
    pub(super) offered: u64,
    pub(super) features: AtomicU64,
    pub(super) translations: Arc<TranslationHistory>,
    pub(super) completion_events: Vec<Arc<CompletionEvent>>,
    pub(super) config: Arc<CompletionEvent>,
    pub(super) listeners: Mutex<Vec<DiskListener>>,
    /// Locked while the device is set up or given up.
    pub(super) control: Mutex<Control>,
    pub(super) shadow_queues: Mutex<Vec<ShadowQueue>>,
    pub(super) running: AtomicBool,
    pub(super) failed: AtomicBool,
    /// Bytes that went through bounce buffers.
    pub(super) copied: AtomicU64,
    /// The device is about to be given up.
    pub(super) giving_up: AtomicBool,
    /// Whether this path resets the device at its end.
    pub(super) owns_device: bool,
}

#[derive(Default)]
pub(super) struct Control {
    /// What the guest's memory is, without the window.
    pub(super) guest: IotlbTable,
}

impl Shared {
    /// Takes the free queue with the lowest index.
    pub(super) fn take_queue(&self) -> Result<ShadowQueue, DiskError> {
        if !self.running.load(Ordering::Acquire) {
            return Err(DiskError::Config("the slow path is not active".into()));
        }
        let usable = if self.negotiated(feature::MQ) {
            u16::MAX
        } else {
            1
        };
        let mut shadow_queues = lock(&self.shadow_queues);
        let free = (0..)
            .zip(shadow_queues.iter())
            .filter(|(_, queue)| queue.index < usable)
            .min_by_key(|(_, queue)| queue.index)
            .map(|(at, _)| at);
        match free {
            Some(at) => Ok(shadow_queues.swap_remove(at)),
            None => Err(DiskError::Config(
                "every queue of the vDPA device is in use".into(),
            )),
        }
    }

    pub(super) fn with_window(&self, guest: &IotlbTable) -> Result<IotlbTable, PathError> {
        let mut table = guest.clone();
        table.insert(self.window.mapping()?)?;
        Ok(table)
    }

    /// What to start a shadow queue with.
    pub(super) fn ring(&self, queue: &ShadowQueue) -> Ring {
        let layout = queue.ring.layout();
        Ring {
            index: queue.index,
            size: layout.size(),
            state: VqState::Split { avail_index: 0 },
            address: VqAddress {
                desc: layout.desc().0,
                driver: layout.avail().0,
                device: layout.used().0,
            },
            kick: None,
            callback: Some(self.completion_events[usize::from(queue.index)].call()),
        }
    }

    /// Gives the device up. When it returns nothing of ours is touched any more.
    pub(super) fn give_up(&self, why: &dyn std::fmt::Display) {
        self.giving_up.store(true, Ordering::Release);
        let control = lock(&self.control);
        self.give_up_locked(&control, why);
    }

    pub(super) fn give_up_locked(&self, _control: &Control, why: &dyn std::fmt::Display) {
        if self.failed.load(Ordering::Acquire) {
            return;
        }
        log::error!("the vDPA device is given up: {why}");
        self.end_requests();
        let listeners = lock(&self.listeners).clone();
        listeners
            .iter()
            .for_each(|tell| tell(DiskEvent::MediaError));
    }

    /// Resets the device, after which each queue fails what it has. `control` is locked.
    pub(super) fn end_requests(&self) {
        if guest::reset(self.device.as_ref()).is_err() {
            // It promises the same, for good.
            self.device.free();
        }
        self.failed.store(true, Ordering::Release);
        self.running.store(false, Ordering::Release);
        self.completion_events
            .iter()
            .for_each(|event| event.signal());
    }

    /// Whether the device says of itself that it does not work (any more).
    pub(super) fn looks_broken(&self) -> bool {
        let byte = self.device.get_status();
        byte & status::DRIVER_OK == 0 || byte & (status::DEVICE_NEEDS_RESET | status::FAILED) != 0
    }

    pub(super) fn negotiated(&self, bit: u64) -> bool {
        self.features.load(Ordering::Relaxed) & bit != 0
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.owns_device {
            if self.device.reset().is_err() {
                self.device.free();
            }
            // Nothing to be done about a device that fails in this.
            let _ = self.map.set(IotlbTable::new());
        }
    }
}
