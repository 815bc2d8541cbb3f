// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A vDPA device: the guest's rings go straight into it, or through us, and change between the two while it runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vdpa_bus::{Callback, VqAddress};
use vhost_vdpa_frontend::{GuestQueue, PathSwitch, SavedGuest, SavedGuestQueue};
use virtio_blk_core::spec::{feature, status};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

use super::{Backend, Interrupt, Queue, SavedBackend, eventfd};
use crate::error::{Context, Error, Result};
use crate::memory::Memory;

/// The switch between the paths of a device.
pub type Switch = PathSwitch<Memory>;

/// The device.
pub struct VdpaBlock {
    switch: Arc<Switch>,
    calls: Vec<Arc<EventFd>>,
    watch: ConfigWatch,
    /// The device refused something: the guest should reset it.
    broken: bool,
}

impl VdpaBlock {
    pub fn new(switch: Arc<Switch>, interrupt: Arc<dyn Interrupt>) -> Result<Self> {
        let calls: Vec<_> = (0..switch.queues())
            .map(|_| eventfd())
            .collect::<Result<_>>()?;
        for (index, call) in (0..).zip(&calls) {
            interrupt.bind(index, call);
        }
        let watch = ConfigWatch::new(interrupt)?;
        switch.set_config_call(Some(Callback::Trigger(watch.event.clone())));
        Ok(Self {
            switch,
            calls,
            watch,
            broken: false,
        })
    }

    fn note(&mut self, result: std::result::Result<(), impl std::fmt::Display>) {
        if let Err(error) = result {
            log::warn!("the vDPA device needs a reset: {error}");
            self.broken = true;
        }
    }

    fn set_queues(
        &self,
        queues: &[Queue],
    ) -> std::result::Result<(), vhost_vdpa_frontend::PathError> {
        for ((index, queue), call) in (0..).zip(queues).zip(&self.calls) {
            if queue.state.ready {
                let queue = GuestQueue {
                    size: queue.state.size,
                    address: VqAddress {
                        desc: queue.state.desc_table,
                        driver: queue.state.avail_ring,
                        device: queue.state.used_ring,
                    },
                    kick: queue.kick.clone(),
                    call: Callback::Trigger(call.clone()),
                };
                self.switch.set_queue(index, queue)?;
            }
        }
        Ok(())
    }
}

impl Backend for VdpaBlock {
    fn queues(&self) -> (u16, u16) {
        let size = self.switch.device().get_vq_num_max().max(1);
        (self.switch.queues(), 1 << size.ilog2())
    }

    fn offered(&self) -> u64 {
        self.switch.offered() & !feature::RING_RESET
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let size = self.switch.device().get_config_size();
        let Ok(offset) = usize::try_from(offset) else {
            return;
        };
        let inside = size.saturating_sub(offset).min(data.len());
        if let Some(data) = data.get_mut(..inside).filter(|data| !data.is_empty())
            && let Err(error) = self.switch.read_config(offset, data)
        {
            log::warn!("the configuration can't be read: {error}");
        }
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        if let Ok(offset) = usize::try_from(offset)
            && let Err(error) = self.switch.write_config(offset, data)
        {
            log::debug!("a write of the configuration was refused: {error}");
        }
    }

    fn config_generation(&self) -> u32 {
        self.watch.generation.load(Ordering::Acquire)
    }

    fn status(&mut self) -> u8 {
        let byte = self.switch.status();
        if self.broken && byte != 0 {
            byte | status::DEVICE_NEEDS_RESET
        } else {
            byte
        }
    }

    fn set_status(&mut self, value: u8, features: u64, queues: &mut [Queue]) {
        let new = value & !self.switch.status();
        self.broken &= value != 0;
        if new & status::FEATURES_OK != 0
            && let Err(error) = self.switch.set_features(features)
        {
            // The driver sees that FEATURES_OK did not stay.
            log::debug!("features refused: {error}");
            let result = self.switch.set_status(value & !status::FEATURES_OK);
            return self.note(result);
        }
        if new & status::DRIVER_OK != 0
            && let Err(error) = self.set_queues(queues)
        {
            return self.note(Err(error));
        }
        let result = self.switch.set_status(value);
        self.note(result);
    }

    /// Queues start with the driver; RING_RESET is not offered.
    fn start(&mut self, _index: u16, _queue: &Queue) {}

    fn stop(&mut self, _index: u16, _queue: &mut Queue) {}

    fn pause(&mut self, _queues: &mut [Queue]) -> Result<()> {
        let paused = self.switch.pause();
        paused.map_err(|error| Error::Control(error.to_string()))
    }

    fn resume(&mut self, _queues: &[Queue]) -> Result<()> {
        let resumed = self.switch.resume();
        resumed.map_err(|error| Error::Control(error.to_string()))
    }

    fn save(&mut self, _queues: &[Queue]) -> Result<SavedBackend> {
        let saved = self.switch.save();
        let saved = saved.map_err(|error| Error::Snapshot(error.to_string()))?;
        Ok(SavedBackend::Vdpa(saved.into()))
    }

    fn restore(
        &mut self,
        saved: &SavedBackend,
        _features: u64,
        queues: &mut [Queue],
    ) -> Result<()> {
        let SavedBackend::Vdpa(saved) = saved else {
            return Err(Error::Snapshot("it was no vDPA device".to_owned()));
        };
        // Only asked for queues that there are.
        let events = |index: u16| {
            let index = usize::from(index);
            (
                queues[index].kick.clone(),
                Callback::Trigger(self.calls[index].clone()),
            )
        };
        let restored = self.switch.restore(&saved.into(), events);
        restored.map_err(|error| Error::Snapshot(error.to_string()))
    }

    fn stats(&self) -> Value {
        let path = format!("{:?}", self.switch.path()).to_lowercase();
        let moved = self.switch.last_report().map(|report| {
            json!({
                "in_flight": report.in_flight,
                "pause_us": report.phases.pause().as_micros() as u64,
            })
        });
        let mut sectors = [0; 8];
        self.read_config(0, &mut sectors);
        json!({
            "sectors": u64::from_le_bytes(sectors),
            "path": path,
            "last_switch": moved,
        })
    }
}

/// Waits for changes of the configuration on a thread: they are rare, and change a register.
struct ConfigWatch {
    event: Arc<EventFd>,
    generation: Arc<AtomicU32>,
    ended: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl ConfigWatch {
    fn new(interrupt: Arc<dyn Interrupt>) -> Result<Self> {
        let event = Arc::new(EventFd::new(EFD_CLOEXEC).context("no eventfd")?);
        let (generation, ended) = (Arc::<AtomicU32>::default(), Arc::<AtomicBool>::default());
        let (on, counter, end) = (event.clone(), generation.clone(), ended.clone());
        let watch = move || {
            while on.read().is_ok() && !end.load(Ordering::Acquire) {
                counter.fetch_add(1, Ordering::AcqRel);
                interrupt.config();
            }
        };
        let thread = std::thread::Builder::new().name("config".to_owned());
        let thread = thread.spawn(watch).context("no thread")?;
        Ok(Self {
            event,
            generation,
            ended,
            thread: Some(thread),
        })
    }
}

impl Drop for ConfigWatch {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        // It is open, and far from full.
        let _ = self.event.write(1);
        if let Some(thread) = self.thread.take() {
            // It panicked: a bug, already reported.
            let _ = thread.join();
        }
    }
}

/// Index, entries, the three addresses, position.
type SavedQueue = (u16, u16, [u64; 3], u32);

/// A vDPA device as saved: [`SavedGuest`] in a file.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedVdpa {
    features: u64,
    status: u8,
    written: Vec<(usize, Vec<u8>)>,
    queues: Vec<SavedQueue>,
}

impl From<SavedGuest> for SavedVdpa {
    fn from(saved: SavedGuest) -> Self {
        let queues = saved.queues.iter().map(|queue| {
            let VqAddress {
                desc,
                driver,
                device,
            } = queue.address;
            (queue.index, queue.size, [desc, driver, device], queue.base)
        });
        Self {
            queues: queues.collect(),
            features: saved.features,
            status: saved.status,
            written: saved.written,
        }
    }
}

impl From<&SavedVdpa> for SavedGuest {
    fn from(saved: &SavedVdpa) -> Self {
        let queue = |&(index, size, [desc, driver, device], base): &SavedQueue| SavedGuestQueue {
            index,
            size,
            address: VqAddress {
                desc,
                driver,
                device,
            },
            base,
        };
        Self {
            features: saved.features,
            status: saved.status,
            written: saved.written.clone(),
            queues: saved.queues.iter().map(queue).collect(),
        }
    }
}
