// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The side of a device that a driver of the vDPA bus has.

use std::time::{Duration, Instant};

use rustix::thread::CpuSet;

use super::{FakeDevice, FakeKernel, FakeRegion, PoisonError, World};
use crate::kernel::VqInfo;
use crate::message::{Answer, Message, Request};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// A driver of one device. What goes wrong in a test (no such device) is passed over.
#[derive(Clone, Debug)]
pub struct FakeDriver {
    kernel: FakeKernel,
    name: String,
}

/// A message whose sender waits.
#[derive(Debug)]
#[must_use]
pub struct Pending {
    driver: FakeDriver,
    message: Message,
    /// When the kernel gives the device up.
    deadline: Option<Instant>,
}

impl Pending {
    /// Waits for the answer, as the kernel does. `None`: it did not come in time, and the device is broken
    /// for good.
    pub fn wait(self) -> Option<Answer> {
        let shared = self.driver.kernel.0.clone();
        let mut world = shared.lock();
        loop {
            let device = world.devices.get_mut(&self.driver.name)?;
            if let Some(answer) = device.answers.remove(&self.message.id) {
                device.answered(self.message.request, answer);
                // A response says no more than the request has use for.
                return Some(match (self.message.request, answer) {
                    (Request::GetVqState { .. }, answer) => answer,
                    (_, Answer::VqState { .. }) => Answer::Ok,
                    (_, answer) => answer,
                });
            }
            if device.broken {
                return None;
            }
            let now = Instant::now();
            let left = self
                .deadline
                .map_or(PATIENCE, |at| at.saturating_duration_since(now));
            if left.is_zero() {
                device.broken = true;
                device.signal();
                return None;
            }
            let waited = shared.changed.wait_timeout(world, left);
            world = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether [`Pending::wait`] returns at once.
    pub fn is_over(&self) -> bool {
        let over = |device: &mut FakeDevice| {
            device.broken || device.answers.contains_key(&self.message.id)
        };
        self.driver.with(over).unwrap_or(true)
    }

    /// The sender was killed: the message is dropped.
    pub fn kill(self) {
        self.driver.with(|device| {
            device.sent.retain(|message| message.id != self.message.id);
            device.unanswered.remove(&self.message.id);
        });
    }
}

impl FakeDriver {
    pub(super) fn new(kernel: FakeKernel, name: &str) -> Self {
        let name = name.to_owned();
        Self { kernel, name }
    }

    fn with<T>(&self, act: impl FnOnce(&mut FakeDevice) -> T) -> Option<T> {
        self.kernel.0.lock().devices.get_mut(&self.name).map(act)
    }

    /// Puts the device on the bus, or takes it off.
    pub fn attach(&self, attached: bool) {
        self.with(|device| device.attached = attached);
    }

    /// Sends a message.
    pub fn send(&self, request: Request) -> Pending {
        let sent = self.with(|device| {
            let id = device.next_id;
            device.next_id += 1;
            let message = Message { id, request };
            device.sent.push_back(message);
            device.signal();
            (message, device.patience())
        });
        let nothing = Message { id: 0, request };
        let (message, patience) = sent.unwrap_or((nothing, None));
        Pending {
            driver: self.clone(),
            message,
            deadline: patience.map(|time| Instant::now() + time),
        }
    }

    /// Sends a message and waits for the answer; see [`Pending::wait`].
    pub fn ask(&self, request: Request) -> Option<Answer> {
        self.send(request).wait()
    }

    /// Resets the device and negotiates up to FEATURES_OK. Returns whether the server agreed.
    pub fn negotiate(&self, features: u64) -> bool {
        let ok = |status| self.ask(Request::SetStatus(status)) == Some(Answer::Ok);
        if ![0, 1, 3].into_iter().all(ok) {
            return false;
        }
        self.set_driver_features(features);
        ok(11)
    }

    /// Sets the features that the driver acknowledges. The server is told with FEATURES_OK.
    pub fn set_driver_features(&self, features: u64) {
        self.with(|device| device.driver_features = features);
    }

    /// Sets DRIVER_OK. Returns whether the server agreed.
    pub fn set_driver_ok(&self) -> bool {
        self.ask(Request::SetStatus(15)) == Some(Answer::Ok)
    }

    /// Sets a queue up. A reset forgets it.
    pub fn set_vq(&self, index: u16, info: VqInfo) {
        self.with(|device| {
            if let Some(vq) = device.vqs.get_mut(usize::from(index)) {
                vq.info = info;
            }
        });
    }

    /// Replaces the address space. The server is not told.
    pub fn set_regions(&self, regions: Vec<FakeRegion>) {
        self.with(|device| device.regions = regions);
    }

    /// Makes the kernel answer every look-up in the address space with this, or with the truth again.
    pub fn set_wild_region(&self, region: Option<FakeRegion>) {
        self.with(|device| device.wild = region);
    }

    /// Makes the next message one of another size.
    pub fn shorten_next(&self, size: usize) {
        self.with(|device| device.short = Some(size));
    }

    /// Kicks a queue.
    pub fn kick(&self, index: u16) {
        self.with(|device| {
            let suspended = device.suspended;
            let Some(vq) = device.vqs.get_mut(usize::from(index)) else {
                return;
            };
            match &vq.kick {
                _ if !vq.info.ready || suspended => {}
                Some(kick) => {
                    let _ = kick.write(1);
                }
                None => vq.kicked = true,
            }
        });
    }

    /// Says on which CPUs the driver takes the interrupts of a queue.
    pub fn set_vq_cpus(&self, index: u16, cpus: &[usize]) {
        self.with(|device| {
            if let Some(vq) = device.vqs.get_mut(usize::from(index)) {
                let mut set = CpuSet::new();
                cpus.iter().for_each(|cpu| set.set(*cpu));
                vq.cpus = Some(set);
            }
        });
    }

    /// Interrupts so far.
    pub fn irqs(&self, index: u16) -> u64 {
        let irqs = |device: &mut FakeDevice| device.vqs.get(usize::from(index)).map(|vq| vq.irqs);
        self.with(irqs).flatten().unwrap_or_default()
    }

    /// Waits until there were more than `count` interrupts of a queue.
    pub fn irqs_after(&self, index: u16, count: u64) {
        let shared = self.kernel.0.clone();
        let world = shared.lock();
        let few = |world: &mut World| {
            let device = world.devices.get(&self.name);
            let vq = device.and_then(|device| device.vqs.get(usize::from(index)));
            vq.is_none_or(|vq| vq.irqs <= count)
        };
        let waited = shared.changed.wait_timeout_while(world, PATIENCE, few);
        let waited = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(!waited.1.timed_out(), "queue {index} interrupts nobody");
    }

    /// Waits until there were more than `count` config interrupts. Returns how many there were.
    pub fn config_irqs_after(&self, count: u64) -> u64 {
        let shared = self.kernel.0.clone();
        let deadline = Instant::now() + PATIENCE;
        let mut world = shared.lock();
        loop {
            let irqs = world.devices.get(&self.name).map_or(0, |d| d.config_irqs);
            let left = deadline.saturating_duration_since(Instant::now());
            if irqs > count || left.is_zero() {
                return irqs;
            }
            let waited = shared.changed.wait_timeout(world, left);
            world = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The configuration space.
    pub fn config(&self) -> Vec<u8> {
        self.with(|device| device.config.clone())
            .unwrap_or_default()
    }

    /// The largest sizes of the queues, as the server set them.
    pub fn max_sizes(&self) -> Vec<u16> {
        let sizes = |device: &mut FakeDevice| device.vqs.iter().map(|vq| vq.max_size).collect();
        self.with(sizes).unwrap_or_default()
    }

    /// The features that the device offers.
    pub fn device_features(&self) -> u64 {
        self.with(|device| device.new.features).unwrap_or_default()
    }

    /// Whether the kernel has given the device up.
    pub fn is_broken(&self) -> bool {
        self.with(|device| device.broken).unwrap_or_default()
    }

    /// Gives the device up.
    pub fn break_it(&self) {
        self.with(|device| {
            device.broken = true;
            device.signal();
        });
        self.kernel.0.changed.notify_all();
    }
}
