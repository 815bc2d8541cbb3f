// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device of our own: a disk, and a thread for each queue.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use virtio_blk_core::device::{Device, SavedQueue, StatusChange, StatusRegister};
use virtio_blk_core::runner::{QueueSetup, QueueThread, Stop, ThreadOptions};
use virtio_blk_core::spec::status;

use super::{Backend, Interrupt, Queue, SavedBackend};
use crate::error::{Error, Result};
use crate::memory::Memory;

/// The device.
pub struct OwnDevice {
    device: Arc<Device>,
    memory: Memory,
    interrupt: Arc<dyn Interrupt>,
    status: StatusRegister,
    threads: BTreeMap<u16, QueueThread<Memory>>,
    /// Set by a queue that broke, on its thread.
    broken: Arc<AtomicBool>,
    paused: bool,
}

impl OwnDevice {
    pub fn new(device: Arc<Device>, memory: Memory, interrupt: Arc<dyn Interrupt>) -> Self {
        let listener = interrupt.clone();
        device.listen(Box::new(move || listener.config()));
        Self {
            device,
            memory,
            interrupt,
            status: StatusRegister::default(),
            threads: BTreeMap::new(),
            broken: Arc::default(),
            paused: false,
        }
    }

    fn stop_all(&mut self, queues: &mut [Queue]) {
        for (index, queue) in (0..).zip(queues) {
            self.stop(index, queue);
        }
    }

    fn start_all(&mut self, queues: &[Queue]) {
        for (index, queue) in (0..).zip(queues) {
            self.start(index, queue);
        }
    }
}

impl Backend for OwnDevice {
    fn queues(&self) -> (u16, u16) {
        let options = self.device.options();
        (options.queues, options.queue_size)
    }

    fn offered(&self) -> u64 {
        self.device.offered()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.device.read_config(offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        let _ = self.device.write_config(offset, data);
    }

    fn config_generation(&self) -> u32 {
        self.device.config_generation()
    }

    fn status(&mut self) -> u8 {
        if self.broken.load(Ordering::Acquire) {
            self.status.need_reset();
        }
        self.status.get()
    }

    // ANCHOR: status
    fn set_status(&mut self, value: u8, features: u64, queues: &mut [Queue]) {
        match self.status.write(value, features, &self.device) {
            StatusChange::Reset => {
                self.stop_all(queues);
                self.broken.store(false, Ordering::Release);
                self.device.reset();
            }
            StatusChange::Start => self.start_all(queues),
            StatusChange::None | StatusChange::Refused => {}
        }
    }
    // ANCHOR_END: status

    // ANCHOR: start
    /// Starts a queue if it and the device are ready for it.
    fn start(&mut self, index: u16, queue: &Queue) {
        let ready = queue.state.ready && self.status.is_live() && !self.paused;
        if !ready || self.threads.contains_key(&index) {
            return;
        }
        let interrupt = self.interrupt.clone();
        let setup = QueueSetup::new(self.memory.clone(), move || interrupt.queue(index));
        let broken = on_broken(index, self.broken.clone(), self.interrupt.clone());
        let started = self
            .device
            .start_queue(index, setup, &queue.state)
            .map_err(|error| error.to_string())
            .and_then(|runner| {
                let options = ThreadOptions {
                    name: format!("queue{index}"),
                    poll: Duration::ZERO,
                    on_fatal: Box::new({
                        let broken = broken.clone();
                        move |error| broken(&error.to_string())
                    }),
                };
                let kick = queue.kick.try_clone();
                kick.and_then(|kick| QueueThread::spawn(runner, kick, options))
                    .map_err(|error| error.to_string())
            });
        match started {
            Ok(thread) => drop(self.threads.insert(index, thread)),
            Err(why) => broken(&why),
        }
    }
    // ANCHOR_END: start

    // ANCHOR: stop
    /// Stops a queue; every request it took was answered when this returns.
    fn stop(&mut self, index: u16, queue: &mut Queue) {
        let stopped = (self.threads.remove(&index)).and_then(|thread| thread.stop(Stop::Drain));
        if let Some(stopped) = stopped {
            queue.state.next_avail = stopped.state.next_avail;
            queue.state.next_used = stopped.state.next_used;
        }
    }
    // ANCHOR_END: stop

    fn pause(&mut self, queues: &mut [Queue]) -> Result<()> {
        self.paused = true;
        self.stop_all(queues);
        Ok(())
    }

    fn resume(&mut self, queues: &[Queue]) -> Result<()> {
        self.paused = false;
        self.start_all(queues);
        Ok(())
    }

    fn save(&mut self, queues: &[Queue]) -> Result<SavedBackend> {
        let queues = queues.iter();
        let queues = queues.map(|queue| SavedQueue::new(&queue.state, Vec::new()));
        Ok(SavedBackend::Own {
            status: self.status(),
            device: self.device.save(queues.collect()),
        })
    }

    fn restore(
        &mut self,
        saved: &SavedBackend,
        _features: u64,
        _queues: &mut [Queue],
    ) -> Result<()> {
        let SavedBackend::Own {
            status: byte,
            device,
        } = saved
        else {
            return Err(Error::Snapshot("it was a vDPA device".to_owned()));
        };
        self.paused = true;
        // One after the other, as the driver did it.
        for bit in [
            status::ACKNOWLEDGE,
            status::DRIVER,
            status::FEATURES_OK,
            status::DRIVER_OK,
            status::FAILED,
        ] {
            if byte & bit != 0 {
                self.status.write(bit, device.features, &self.device);
            }
        }
        let broken = byte & status::DEVICE_NEEDS_RESET != 0;
        self.broken.store(broken, Ordering::Release);
        let restored = self.device.restore(device);
        restored.map_err(|error| Error::Snapshot(error.to_string()))
    }

    /// Counters of all queues together.
    fn stats(&self) -> Value {
        let mut sums = BTreeMap::new();
        let queues = 0..self.device.options().queues;
        for queue in queues.filter_map(|queue| self.device.counters(queue)) {
            for (name, value) in queue.snapshot() {
                *sums.entry(name).or_insert(0) += value;
            }
        }
        json!({ "sectors": self.device.capacity(), "counters": sums })
    }
}

/// What is done when a queue can't go on: the driver learns that the device needs a reset.
fn on_broken(
    index: u16,
    flag: Arc<AtomicBool>,
    interrupt: Arc<dyn Interrupt>,
) -> Arc<dyn Fn(&str) + Send + Sync> {
    Arc::new(move |why| {
        log::info!("queue {index} stopped, the device needs a reset: {why}");
        flag.store(true, Ordering::Release);
        interrupt.config();
    })
}
