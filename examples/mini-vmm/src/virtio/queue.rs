// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A queue: its registers, and what is in flight while no thread serves it.

use std::sync::Arc;

use virtio_blk_core::ring::QueueState;
use virtio_blk_core::runner::Stopped;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::error::{Context, Result};

/// A queue as the driver set it up.
pub struct Queue {
    pub state: QueueState,
    /// Heads that were taken from the ring and not returned, in order. The thread that starts next executes
    /// them first.
    pub in_flight: Vec<u16>,
    /// Written when the driver kicks, by KVM.
    pub kick: Arc<EventFd>,
    /// The driver reset the queue: its registers are cleared as soon as the thread has stopped.
    resetting: bool,
}

impl Queue {
    /// A queue that was never set up.
    pub fn new(max_size: u16) -> Result<Self> {
        let kick = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).context("no eventfd")?;
        Ok(Self {
            state: reset_state(max_size),
            in_flight: Vec::new(),
            kick: Arc::new(kick),
            resetting: false,
        })
    }

    /// Everything is to be forgotten, as soon as the thread has stopped.
    pub const fn begin_reset(&mut self) {
        self.resetting = true;
    }

    /// Notes where the queue stands, whose thread has stopped.
    pub fn set_stopped(&mut self, stopped: Stopped) {
        self.state.next_avail = stopped.state.next_avail;
        self.state.next_used = stopped.state.next_used;
        self.in_flight = stopped.in_flight;
    }

    /// Ends a reset that was begun: no thread serves the queue.
    pub fn finish_reset(&mut self) {
        if std::mem::take(&mut self.resetting) {
            self.state = reset_state(self.state.max_size);
            self.in_flight.clear();
        }
    }

    /// Whether a reset of it has begun and is not over.
    pub const fn is_resetting(&self) -> bool {
        self.resetting
    }
}

fn reset_state(max_size: u16) -> QueueState {
    QueueState {
        max_size,
        size: max_size,
        ..QueueState::default()
    }
}
