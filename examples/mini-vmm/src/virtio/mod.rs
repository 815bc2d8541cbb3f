// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A block device behind a virtio transport: what PCI and MMIO have in common.

pub mod mmio;
pub mod own;
pub mod pci;
pub mod vdpa;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use virtio_blk_core::device::{SavedDevice, SavedQueue};
use virtio_queue::QueueState;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::error::{Context, Result};
use vdpa::SavedVdpa;

/// How a transport interrupts the guest. Called from queue threads; must not block.
pub trait Interrupt: Send + Sync {
    /// Buffers of a queue were used.
    fn queue(&self, index: u16);
    /// The configuration or the status changed.
    fn config(&self);
    /// From now on `call` interrupts the guest as [`Interrupt::queue`] does, without the VMM.
    fn bind(&self, index: u16, call: &Arc<EventFd>);
}

/// A queue as the driver set it up.
pub struct Queue {
    pub state: QueueState,
    /// Written when the driver kicks, by KVM.
    pub kick: Arc<EventFd>,
}

/// What is behind the registers: a device of our own, or a vDPA device.
pub trait Backend: Send {
    /// How many queues it has, and entries of the largest.
    fn queues(&self) -> (u16, u16);
    /// The features to offer.
    fn offered(&self) -> u64;
    /// Reads the configuration space.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes it. The driver can't be told that it wrote where it must not.
    fn write_config(&self, offset: u64, data: &[u8]);
    /// Changes whenever the configuration does.
    fn config_generation(&self) -> u32;
    /// The status as the driver reads it.
    fn status(&mut self) -> u8;
    /// The driver writes the status; `features` are what it acknowledged.
    fn set_status(&mut self, value: u8, features: u64, queues: &mut [Queue]);
    /// The driver enables one queue more.
    fn start(&mut self, index: u16, queue: &Queue);
    /// Has nothing to do with a queue any more when it returns.
    fn stop(&mut self, index: u16, queue: &mut Queue);
    /// Nothing is in flight when it returns; kicks wait in their eventfds.
    fn pause(&mut self, queues: &mut [Queue]) -> Result<()>;
    /// Goes on after [`Backend::pause`] or [`Backend::restore`].
    fn resume(&mut self, queues: &[Queue]) -> Result<()>;
    /// The state while it is paused.
    fn save(&mut self, queues: &[Queue]) -> Result<SavedBackend>;
    /// Takes over saved state; it is paused then.
    fn restore(&mut self, saved: &SavedBackend, features: u64, queues: &mut [Queue]) -> Result<()>;
    /// What it did so far.
    fn stats(&self) -> Value;
}

/// A device with its queues: the registers of a transport are views of this.
pub struct Block {
    pub backend: Box<dyn Backend>,
    /// As the driver wrote them; they count from FEATURES_OK on.
    pub driver_features: u64,
    queues: Vec<Queue>,
    max_size: u16,
}

impl Block {
    pub fn new(backend: Box<dyn Backend>, kicks: Vec<Arc<EventFd>>) -> Self {
        let (_, max_size) = backend.queues();
        let queues = kicks.into_iter().map(|kick| Queue {
            state: reset_state(max_size),
            kick,
        });
        Self {
            queues: queues.collect(),
            backend,
            driver_features: 0,
            max_size,
        }
    }

    /// How many queues it has.
    pub fn count(&self) -> u16 {
        self.queues.len() as u16
    }

    /// The driver writes the status register.
    pub fn set_status(&mut self, value: u8) {
        let queues = &mut self.queues;
        self.backend.set_status(value, self.driver_features, queues);
        if value == 0 {
            self.driver_features = 0;
            for queue in queues {
                queue.state = reset_state(self.max_size);
            }
        }
    }

    /// Forgets a queue (RING_RESET, or `QueueReady` written to 0).
    pub fn reset_queue(&mut self, index: u16) {
        if let Some(queue) = self.queues.get_mut(usize::from(index)) {
            self.backend.stop(index, queue);
            queue.state = reset_state(self.max_size);
        }
    }

    /// Enables a queue as set up. It starts at once if the driver is ready.
    pub fn enable_queue(&mut self, index: u16) {
        if let Some(queue) = self.queues.get_mut(usize::from(index)) {
            queue.state.ready = true;
            self.backend.start(index, queue);
        }
    }

    /// A queue to look at. `None` beyond the last.
    pub fn queue(&self, index: u16) -> Option<&QueueState> {
        self.queues
            .get(usize::from(index))
            .map(|queue| &queue.state)
    }

    /// A queue to set up: only as long as it is not enabled.
    pub fn queue_setup(&mut self, index: u16) -> Option<&mut QueueState> {
        let queue = self.queues.get_mut(usize::from(index))?;
        (!queue.state.ready).then_some(&mut queue.state)
    }

    /// The eventfd by which KVM tells of the driver's kicks. One per queue, by index.
    pub fn kicks(&self) -> impl Iterator<Item = &EventFd> {
        self.queues.iter().map(|queue| &*queue.kick)
    }

    /// A kick that did not go through the eventfd (an access of an unusual width).
    pub fn kick(&self, index: u64) {
        let queue = usize::try_from(index).ok().and_then(|i| self.queues.get(i));
        if let Some(queue) = queue {
            // Only a full counter could fail, and then the queue is awake.
            let _ = queue.kick.write(1);
        }
    }

    /// Stops all queues and leaves everything else as it is. Kicks wait in their eventfds.
    pub fn pause(&mut self) -> Result<()> {
        self.backend.pause(&mut self.queues)
    }

    /// Goes on after [`Block::pause`] or [`Block::restore`].
    pub fn resume(&mut self) -> Result<()> {
        self.backend.resume(&self.queues)
    }

    /// The state of a paused device.
    pub fn save(&mut self) -> Result<SavedBlock> {
        let queues = self.queues.iter();
        Ok(SavedBlock {
            driver_features: self.driver_features,
            queues: queues
                .map(|queue| SavedQueue::new(&queue.state, Vec::new()))
                .collect(),
            backend: self.backend.save(&self.queues)?,
        })
    }

    /// Takes over saved state. [`Block::resume`] starts the queues.
    pub fn restore(&mut self, saved: &SavedBlock) -> Result<()> {
        self.driver_features = saved.driver_features;
        for (queue, saved) in self.queues.iter_mut().zip(&saved.queues) {
            queue.state = saved.state(self.max_size, false);
        }
        let (features, queues) = (saved.driver_features, &mut self.queues);
        self.backend.restore(&saved.backend, features, queues)
    }
}

/// Kicks for that many queues.
pub fn kicks(queues: u16) -> Result<Vec<Arc<EventFd>>> {
    (0..queues).map(|_| eventfd()).collect()
}

fn eventfd() -> Result<Arc<EventFd>> {
    let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).context("no eventfd")?;
    Ok(Arc::new(event))
}

fn reset_state(max_size: u16) -> QueueState {
    QueueState {
        max_size,
        size: max_size,
        ..QueueState::default()
    }
}

/// Puts 32 bits into the lower or upper half of a 64-bit register.
pub fn set_half(register: &mut u64, upper: bool, value: u32) {
    let shift = if upper { 32 } else { 0 };
    *register = *register & !(0xffff_ffff << shift) | u64::from(value) << shift;
}

/// One half of a 64-bit register; other windows read as 0.
pub fn half(register: u64, select: u32) -> u32 {
    match select {
        0 => register as u32,
        1 => (register >> 32) as u32,
        _ => 0,
    }
}

/// A device, its queues and its driver's progress.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedBlock {
    driver_features: u64,
    queues: Vec<SavedQueue>,
    backend: SavedBackend,
}

/// What is behind the registers, as saved.
#[derive(Debug, Serialize, Deserialize)]
pub enum SavedBackend {
    Own { status: u8, device: SavedDevice },
    Vdpa(SavedVdpa),
}
