// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The slow path: our own driver in front of a vDPA block device, as a disk.

mod completion_event;
mod iova_window;
mod limits;
mod options;
mod pending;
mod queue;
mod serial;
mod shadow_queue;
mod shared;
mod translate;

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vdpa_bus::{Callback, VdpaDevice, VdpaError};
use virtio_blk_core::disk::{Caps, Disk, DiskError, DiskEvent, DiskListener, IoQueue};
use virtio_blk_core::memory::{HostMemory, IotlbMapping, IotlbTable, Permissions};
use virtio_blk_core::spec::{self, feature};

use crate::error::{DeviceStep, PathError, Step};
use crate::iotlb_sync::IotlbSync;
use crate::vhost::holds;
use crate::virtio_init;
use crate::{guest, lock, try_lock};
use completion_event::CompletionEvent;
use iova_window::IovaWindow;
pub(crate) use limits::{BLOCK_FEATURES, RING_FEATURES};
pub use options::{CompletionMode, SlowOptions};
use queue::SlowQueue;
use shadow_queue::ShadowQueue;
use shared::Shared;
use translate::Translation;

/// How long memory that is taken away may still be in use.
const UNMAP_TIMEOUT: Duration = Duration::from_secs(10);

/// A vDPA block device as a [`Disk`].
///
/// Our own driver runs on rings of ours (the *shadow rings*), which lie in a window of I/O addresses of their own.
/// Everything that works on a disk works above it: layers, any transport.
///
/// **Zero copy.** Buffers in memory that the device knows ([`SlowPath::set_memory`]) go into descriptors as they are,
/// whatever their alignment. Others are copied through a bounded part of the window. Operations larger than the device's
/// limits (`seg_max`, `size_max`, …) are cut into several requests.
///
/// **Queues.** Each open queue has one of the device's to itself.
///
/// **Failures.** A device that breaks the rules of the ring, asks for a reset, or goes away is reset and given up:
/// all its requests fail, once each, and so does everything that is asked later. The cause is logged.
///
/// Dropping the last handle (queues are handles, too) resets the device.
#[derive(Clone)]
pub struct SlowPath(Arc<Shared>);

impl SlowPath {
    /// Takes a device over: resets it and drives it with all it offers.
    ///
    /// # Errors
    /// It is no block device, can't be driven ([`PathError`] says why), or refused a step.
    pub fn new(device: Arc<dyn VdpaDevice>, options: SlowOptions) -> Result<Self, PathError> {
        let map = Arc::new(IotlbSync::new(device.clone()));
        device.reset().step(DeviceStep::Reset)?;
        let path = Self::idle(device, map, options, true)?;
        path.start(&IotlbTable::new(), path.0.offered)?;
        Ok(path)
    }

    /// Makes a path that does not touch the device before [`SlowPath::start`].
    pub(crate) fn idle(
        device: Arc<dyn VdpaDevice>,
        map: Arc<IotlbSync>,
        options: SlowOptions,
        owns_device: bool,
    ) -> Result<Self, PathError> {
        match device.get_device_id() {
            spec::DEVICE_ID => {}
            other => return Err(PathError::DeviceClass(other)),
        }
        let offered = device.get_device_features() & (BLOCK_FEATURES | RING_FEATURES);
        if offered & feature::VERSION_1 == 0 {
            return Err(PathError::Missing("VIRTIO_F_VERSION_1"));
        }
        let config = limits::read_config(device.as_ref())?;
        let limits = limits::limits(offered, &config)?;
        let queues = if offered & feature::MQ != 0 {
            config.num_queues.min(device.nvqs())
        } else {
            device.nvqs().min(1)
        };
        let queues = queues.min(options.queues);
        if queues == 0 {
            return Err(PathError::Config("no queues".into()));
        }
        let shape = options.shape(device.as_ref(), queues, &limits)?;
        let len = shape.len() * u64::from(queues);
        let iova = options.window_at(device.as_ref(), len)?;
        let bytes = usize::try_from(len).map_err(|_| PathError::Window {
            at: iova,
            len,
            why: "it is larger than this machine's memory",
        })?;
        let window = IovaWindow::new(iova, bytes)?;
        let shadow_queues = (0..queues)
            .map(|index| {
                let base = iova + shape.len() * u64::from(index);
                ShadowQueue::new(index, base, shape, &window)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let caps = limits::caps(offered, &config, queues)?;
        Ok(Self(Arc::new(Shared {
            device,
            map,
            options,
            window,
            limits,
            capacity: AtomicU64::new(caps.capacity),
            caps,
            offered,
            features: AtomicU64::new(0),
            translations: Arc::default(),
            completion_events: (0..queues)
                .map(|_| CompletionEvent::new())
                .collect::<Result<_, _>>()?,
            config: CompletionEvent::new()?,
            listeners: Mutex::default(),
            control: Mutex::default(),
            shadow_queues: Mutex::new(shadow_queues),
            running: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            copied: AtomicU64::new(0),
            giving_up: AtomicBool::new(false),
            owns_device,
        })))
    }

    /// Drives a device that was just reset. No queue may be open.
    fn start(&self, guest: &IotlbTable, features: u64) -> Result<(), PathError> {
        self.start_with(guest, features, Some(self.0.config.trigger()))
    }

    /// As [`SlowPath::start`], with another to be told of configuration changes.
    pub(crate) fn start_with(
        &self,
        guest: &IotlbTable,
        features: u64,
        config: Option<Callback>,
    ) -> Result<(), PathError> {
        let shared = &self.0;
        let mut control = lock(&shared.control);
        let device = shared.device.as_ref();
        virtio_init::negotiate(device, features)?;
        shared.map.set(shared.with_window(guest)?)?;
        control.guest = guest.clone();
        shared.translations.publish(Translation::new(guest));
        let mut shadow_queues = lock(&shared.shadow_queues);
        if shadow_queues.len() != shared.completion_events.len() {
            return Err(PathError::Busy("a queue of the slow path is still open"));
        }
        let count = if features & feature::MQ != 0 {
            shadow_queues.len()
        } else {
            1
        };
        let has = |bit| features & bit != 0;
        for queue in shadow_queues.iter_mut() {
            queue
                .reset(
                    &shared.window,
                    has(feature::RING_EVENT_IDX),
                    has(feature::RING_INDIRECT_DESC),
                )
                .map_err(|error| PathError::Queue {
                    index: queue.index,
                    why: error.to_string(),
                })?;
        }
        let mut rings: Vec<_> = shadow_queues
            .iter()
            .filter(|queue| usize::from(queue.index) < count)
            .map(|queue| shared.ring(queue))
            .collect();
        rings.sort_unstable_by_key(|ring| ring.index);
        let polls = shared.options.completion_mode == CompletionMode::Poll;
        if polls {
            rings.iter_mut().for_each(|ring| ring.callback = None);
        } else if let Some(first) = rings.first() {
            match device.set_vq_cb(first.index, first.callback.clone()) {
                // A kernel device.
                Err(VdpaError::NotSupported(_)) => {
                    for ring in &mut rings {
                        let event = &shared.completion_events[usize::from(ring.index)];
                        ring.callback = Some(event.trigger());
                    }
                }
                other => other.step(DeviceStep::SetQueueCallback)?,
            }
        }
        virtio_init::start(device, &rings, config)?;
        shared.features.store(features, Ordering::Release);
        shared.failed.store(false, Ordering::Release);
        shared.giving_up.store(false, Ordering::Release);
        shared.running.store(true, Ordering::Release);
        Ok(())
    }

    /// Ends the path, whose device is reset next. All queues were closed.
    pub(crate) fn stop(&self) -> Result<(), PathError> {
        let _control = lock(&self.0.control);
        let shadow_queues = lock(&self.0.shadow_queues);
        if shadow_queues.len() != self.0.completion_events.len() {
            return Err(PathError::Busy("a queue of the slow path is still open"));
        }
        self.0.running.store(false, Ordering::Release);
        Ok(())
    }

    /// Resets the device, so that everything in flight ends with an error at once. The path must be stopped next.
    pub(crate) fn cancel_all(&self) {
        let _control = lock(&self.0.control);
        self.0.end_requests();
    }

    /// Drives the device for as long as it takes to ask for its serial number, as text, and leaves it reset. For a path
    /// that is not running yet, so that nobody waits for the answer later.
    ///
    /// # Errors
    /// The device can't be driven. One that does not answer has an empty serial number.
    pub(crate) fn serial_of_idle(&self) -> Result<String, PathError> {
        self.start(&IotlbTable::new(), self.0.offered)?;
        let serial = self.serial().unwrap_or_else(|error| {
            log::debug!("the device has no serial number: {error}");
            Vec::new()
        });
        self.stop()?;
        guest::reset(self.0.device.as_ref())?;
        let text = |byte: u8| {
            if byte.is_ascii() {
                char::from(byte)
            } else {
                '?'
            }
        };
        Ok(serial.into_iter().map(text).collect())
    }

    /// As [`Disk::refresh`] while the path runs, else nothing. Never waits for a path that is being set up or stopped.
    pub(crate) fn refresh_if_running(&self) -> Result<(), DiskError> {
        if self.0.running.load(Ordering::Acquire) {
            self.refresh()?;
        }
        Ok(())
    }

    /// The features that are negotiated with the device.
    pub fn features(&self) -> u64 {
        self.0.features.load(Ordering::Acquire)
    }

    /// The shadow window's first and last I/O address.
    pub fn window(&self) -> (u64, u64) {
        (self.0.window.iova(), self.0.window.last())
    }

    /// Bytes of data that were copied, to or from buffers in memory that the device does not know, since the path was
    /// made.
    pub fn copied_bytes(&self) -> u64 {
        self.0.copied.load(Ordering::Relaxed)
    }

    /// Whether the device was given up.
    pub fn is_broken(&self) -> bool {
        self.0.failed.load(Ordering::Acquire)
    }

    /// Readable when the device changed its configuration: call [`Disk::refresh`], which also makes it unreadable.
    pub fn config_event(&self) -> BorrowedFd<'_> {
        self.0.config.as_fd()
    }

    /// The device's serial number (`VIRTIO_BLK_T_GET_ID`): up to 20 bytes. Sends a request, and gives the device up
    /// if that is not answered in time (ten seconds, or [`SlowOptions::timeout`]).
    ///
    /// # Errors
    /// No queue is free, or the device answered with an error.
    pub fn serial(&self) -> Result<Vec<u8>, DiskError> {
        let queue = self.0.take_queue()?;
        serial::get(&self.0, queue)
    }

    /// Tells the device of the memory that buffers will lie in, by I/O address, in the place of what it knew before.
    /// What lies elsewhere is copied. May be called while requests are in flight: it waits for those that use memory
    /// which goes away.
    ///
    /// # Errors
    /// The device refused; ranges overlap each other or the window; [`PathError::Busy`] after ten seconds in which
    /// requests did not end, with nothing changed.
    pub fn set_memory(&self, memory: &[(u64, HostMemory)]) -> Result<(), PathError> {
        let mut table = IotlbTable::new();
        for (iova, memory) in memory {
            let mapping = IotlbMapping::new(*iova, memory.clone(), Permissions::ReadWrite)?;
            table.insert(mapping)?;
        }
        self.set_guest(&table)
    }

    pub(crate) fn set_guest(&self, new: &IotlbTable) -> Result<(), PathError> {
        let shared = &self.0;
        let full = shared.with_window(new)?;
        let mut control = lock(&shared.control);
        let mut both = IotlbTable::new();
        for kept in control.guest.mappings().iter().filter(|m| holds(new, m)) {
            both.insert(kept.clone())?;
        }
        if both.mappings().len() != control.guest.mappings().len() {
            let generation = shared.translations.publish(Translation::new(&both));
            let deadline = Instant::now() + UNMAP_TIMEOUT;
            while !shared.translations.is_past(generation) {
                if Instant::now() >= deadline || shared.giving_up.load(Ordering::Acquire) {
                    let old = Translation::new(&control.guest);
                    shared.translations.publish(old);
                    return Err(PathError::Busy("requests that use the memory don't end"));
                }
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        let mapped = shared.map.set(full);
        if mapped.is_ok() {
            control.guest = new.clone();
        }
        // Where the device refused, what stays is mapped in any case.
        let known = if mapped.is_ok() { new } else { &both };
        shared.translations.publish(Translation::new(known));
        mapped
    }
}

impl Disk for SlowPath {
    fn caps(&self) -> Caps {
        Caps {
            capacity: self.0.capacity.load(Ordering::Acquire),
            ..self.0.caps
        }
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        let queue = self.0.take_queue()?;
        Ok(Box::new(SlowQueue::new(self.0.clone(), queue, depth)))
    }

    fn refresh(&self) -> Result<(), DiskError> {
        let shared = &self.0;
        shared.config.clear();
        if self.is_broken() {
            return Err(DiskError::from_errno(libc::ENODEV));
        }
        // Not while the path is set up or stopped: the status byte says something else then.
        if let Some(control) = try_lock(&shared.control)
            && shared.running.load(Ordering::Acquire)
            && shared.looks_broken()
        {
            shared.give_up_locked(&control, &"its status says that it does not run");
            return Err(DiskError::from_errno(libc::ENODEV));
        }
        let config = limits::read_config(shared.device.as_ref())
            .map_err(|error| DiskError::Io(std::io::Error::other(error)))?;
        let capacity = limits::capacity(&config, shared.limits.block);
        if (Caps {
            capacity,
            ..shared.caps
        })
        .validate()
        .is_ok()
            && shared.capacity.swap(capacity, Ordering::AcqRel) != capacity
        {
            let listeners = lock(&shared.listeners).clone();
            listeners
                .iter()
                .for_each(|tell| tell(DiskEvent::Resized { capacity }));
        }
        Ok(())
    }

    fn listen(&self, listener: DiskListener) {
        lock(&self.0.listeners).push(listener);
    }
}

impl std::fmt::Debug for SlowPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SlowPath")
            .field("caps", &self.caps())
            .field("window", &self.window())
            .field("broken", &self.is_broken())
            .finish_non_exhaustive()
    }
}
