// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A vDPA device as a disk: the guest's rings go into the device itself, or to us, and are moved between the two.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use vdpa_bus::{Callback, VdpaDevice, VqAddress, VqState};
use vhost_vdpa_frontend::{
    PathSwitch, SavedGuest, SavedGuestQueue, SwitchError, SwitchOptions, SwitchParts, SwitchPolicy,
    ThreadExecutor, Vmm,
};
use virtio_blk_core::device::{self, SavedQueue, VirtioDevice};
use virtio_blk_core::spec::status;
use virtio_blk_disks::stack::{Groups, LayerArg, Stack, StackError};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::Interrupt;
use super::disk::{MachineDisk, other_kind};
use super::saved::{RestoredQueue, SavedBackend};
use crate::bus::lock;
use crate::error::{Context, Error, Result};
use crate::memory::Memory;

/// Somebody asked for the slow path, at the start or through the control socket.
const ASKED: &str = "asked for";
const LAYERS: &str = "layers";

/// A vDPA device and what is wanted of it; outlives the machines that its guest reboots.
pub struct VdpaSource {
    pub device: Arc<dyn VdpaDevice>,
    /// The slow path is asked for, whatever the layers.
    pub slow: AtomicBool,
    /// Layers of the slow path, where they decide on the path (`path=auto`).
    pub layers: Option<Mutex<Vec<LayerArg>>>,
}

/// The device of a machine.
pub struct VdpaDisk {
    pub switch: Arc<PathSwitch<Memory>>,
    source: Arc<VdpaSource>,
    stack: Option<Stack>,
}

fn failed(error: &dyn std::fmt::Display) -> Error {
    Error::Control(error.to_string())
}

impl VdpaDisk {
    pub fn new(source: Arc<VdpaSource>, memory: Memory, vmm: Arc<dyn Vmm>) -> Result<Self> {
        let made: Arc<Mutex<Option<std::result::Result<Stack, StackError>>>> = Arc::default();
        let wanted = source.layers.as_ref().map(|layers| lock(layers).clone());
        let to = made.clone();
        let layers: Option<vhost_vdpa_frontend::Layers> = wanted.map(|layers| {
            let build: vhost_vdpa_frontend::Layers = Box::new(move |disk| {
                // A disk of one queue has layers that can't be changed.
                let live = Stack::live(disk.clone(), &layers, Groups::default());
                let stack =
                    live.or_else(|_| Stack::fixed(disk.clone(), &layers, Groups::default()));
                let top = stack.as_ref().map_or(disk, Stack::disk);
                *to.lock().unwrap_or_else(PoisonError::into_inner) = Some(stack);
                top
            });
            build
        });
        let parts = SwitchParts {
            device: source.device.clone(),
            memory,
            executor: Box::new(ThreadExecutor::new(Duration::ZERO)),
            vmm,
            layers,
        };
        let options = SwitchOptions {
            policy: SwitchPolicy::Auto,
            ..SwitchOptions::default()
        };
        let switch = Arc::new(PathSwitch::new(parts, options).map_err(|error| failed(&error))?);
        let stack = lock(&made).take().transpose();
        let disk = Self {
            switch,
            stack: stack.map_err(|error| failed(&error))?,
            source,
        };
        disk.choose().map_err(|error| failed(&error))?;
        Ok(disk)
    }

    /// Has the path follow what is wanted.
    fn choose(&self) -> std::result::Result<(), SwitchError> {
        let slow = self.source.slow.load(Ordering::Acquire);
        self.switch.set_interception(ASKED, slow)?;
        let seen = self.stack.as_ref().is_some_and(Stack::sees_requests);
        self.switch.set_interception(LAYERS, seen)
    }

    /// Moves the guest. It stays slow where layers need that.
    pub fn send(&self, slow: bool) -> Result<Value> {
        self.source.slow.store(slow, Ordering::Release);
        self.choose().map_err(|error| failed(&error))?;
        Ok(self.report())
    }

    /// Replaces the layers; the path follows.
    pub fn set_layers(&self, layers: &[LayerArg]) -> Result<Value> {
        let (Some(stack), Some(kept)) = (&self.stack, &self.source.layers) else {
            return Err(failed(&"only a disk with path=auto has layers"));
        };
        stack.change(layers).map_err(|error| failed(&error))?;
        *lock(kept) = layers.to_vec();
        self.choose().map_err(|error| failed(&error))?;
        Ok(self.report())
    }
}

impl MachineDisk for VdpaDisk {
    fn device(&self) -> &dyn VirtioDevice<Memory> {
        self.switch.as_ref()
    }

    fn save(&self, mut queues: Vec<SavedQueue>) -> Result<SavedBackend> {
        let saved = self.switch.save();
        let saved = saved.map_err(|error| Error::Snapshot(error.to_string()))?;
        for running in &saved.queues {
            if let Some(queue) = queues.get_mut(usize::from(running.index)) {
                queue.state.next_avail = running.base as u16;
            }
        }
        Ok(SavedBackend::Vdpa {
            features: saved.features,
            written: saved.config_writes,
            queues,
        })
    }

    fn restore(&self, saved: &SavedBackend, status: u8, queues: Vec<RestoredQueue>) -> Result<()> {
        let SavedBackend::Vdpa {
            features, written, ..
        } = saved
        else {
            return Err(other_kind());
        };
        let state = SavedGuest {
            features: *features,
            status: status & !status::DEVICE_NEEDS_RESET,
            config_writes: written.clone(),
            queues: queues.iter().map(saved_queue).collect(),
        };
        let events = |index| {
            let queue = queues.iter().find(|queue| queue.index == index)?;
            Some((queue.kick.clone(), Callback::Trigger(queue.call.clone()?)))
        };
        let restored = self.switch.restore(&state, events);
        restored.map_err(|error| Error::Snapshot(error.to_string()))
    }

    fn vdpa(&self) -> Option<&VdpaDisk> {
        Some(self)
    }

    /// Where the guest is, why, and what the last switch did.
    fn report(&self) -> Value {
        let last = self.switch.last_report().map(|report| {
            json!({
                "method": report.method.map(|method| format!("{method:?}")),
                "in_flight": report.in_flight,
                "attempts": report.attempts,
                "pause_us": report.phases.pause().as_micros() as u64,
            })
        });
        let path = format!("{:?}", self.switch.path()).to_lowercase();
        json!({ "path": path, "needs": self.switch.reasons(), "last": last })
    }
}

/// A queue of a paused device.
fn saved_queue(queue: &RestoredQueue) -> SavedGuestQueue {
    let state = &queue.state;
    let position = VqState::Split {
        avail_index: state.next_avail,
    };
    SavedGuestQueue {
        index: queue.index,
        size: state.size,
        address: VqAddress {
            desc: state.desc_table,
            driver: state.avail_ring,
            device: state.used_ring,
        },
        base: position.vring_base(),
    }
}

/// Interrupts on their way from a device to the guest. A device writes an eventfd, and whether the guest is
/// interrupted, and by which vector, is for the transport to say: here, unless it had KVM take the eventfd
/// (`interrupt::Source`; before Linux 5.11 both are told of it, and the guest gets an interrupt too many). Dropping
/// this ends it.
pub struct Calls {
    /// By queue, then that of the configuration, then the one that ends the thread.
    events: Vec<Arc<EventFd>>,
    passed: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Calls {
    /// Passes the calls of so many queues on.
    pub fn new(queues: u16, interrupt: Arc<dyn Interrupt>) -> Result<Self> {
        let epoll = Epoll::new().context("no epoll")?;
        let mut events = Vec::new();
        for index in 0..u64::from(queues) + 2 {
            let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).context("no eventfd")?;
            let interest = EpollEvent::new(EventSet::IN, index);
            epoll
                .ctl(ControlOperation::Add, event.as_raw_fd(), interest)
                .context("no epoll")?;
            events.push(Arc::new(event));
        }
        let watched = events.clone();
        let passed = Arc::<AtomicU64>::default();
        let count = passed.clone();
        let thread = std::thread::Builder::new().name("calls".to_owned());
        let thread = thread
            .spawn(move || pass_on(&epoll, &watched, queues, interrupt.as_ref(), &count))
            .context("no thread for interrupts")?;
        Ok(Self {
            events,
            passed,
            thread: Some(thread),
        })
    }

    /// By queue, then that of the configuration.
    pub fn events(&self) -> &[Arc<EventFd>] {
        self.events.split_last().map_or(&[], |(_, events)| events)
    }

    /// How many came through here.
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    /// What a queue's device writes; one beyond the last is for the configuration.
    pub fn interrupt(&self, index: u16) -> Option<device::DriverInterrupt> {
        let event = self.events().get(usize::from(index));
        event.cloned().map(device::DriverInterrupt::EventFd)
    }
}

fn pass_on(
    epoll: &Epoll,
    events: &[Arc<EventFd>],
    queues: u16,
    interrupt: &dyn Interrupt,
    passed: &AtomicU64,
) {
    let mut ready = [EpollEvent::default(); 16];
    loop {
        let count = match epoll.wait(-1, &mut ready) {
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => 0,
            Err(error) => return log::error!("interrupts are lost: {error}"),
        };
        for event in ready.iter().take(count) {
            let Some(fd) = events.get(event.data() as usize) else {
                return;
            };
            // Another event may have come in between: once is enough for both. Or KVM has taken it.
            if fd.read().is_err() {
                continue;
            }
            passed.fetch_add(1, Ordering::Relaxed);
            match u16::try_from(event.data()) {
                Ok(index) if index < queues => interrupt.queue(index),
                Ok(index) if index == queues => interrupt.config(),
                _ => return,
            }
        }
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        if let Some(event) = self.events.last() {
            // It can't be full: nobody else writes it.
            let _ = event.write(1);
        }
        if let Some(thread) = self.thread.take() {
            // It panicked: a bug, already reported.
            let _ = thread.join();
        }
    }
}
