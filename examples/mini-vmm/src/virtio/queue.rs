// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A queue: its registers, and the thread that serves it.

use std::sync::Arc;
use std::time::Instant;

use virtio_blk_core::ring::QueueState;
use virtio_blk_core::runner::{QueueThread, Stop};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::error::{Context, Result};
use crate::memory::Memory;

/// A queue as the driver set it up.
pub struct Queue {
    pub state: QueueState,
    /// Heads that were taken from the ring and not returned, in order. The thread that starts next executes
    /// them first.
    pub in_flight: Vec<u16>,
    /// Written when the driver kicks, by KVM.
    pub kick: Arc<EventFd>,
    pub thread: Option<QueueThread<Memory>>,
    /// The thread was told to stop.
    stopping: bool,
    /// The thread panicked: what it had taken and returned is not known.
    panicked: bool,
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
            thread: None,
            stopping: false,
            panicked: false,
            resetting: false,
        })
    }

    /// Has the thread stop. It serves until [`Queue::has_stopped`] says otherwise.
    pub fn begin_stop(&mut self, mode: Stop) {
        if let Some(thread) = &self.thread {
            thread.begin_stop(mode, || {});
            self.stopping = true;
        }
    }

    /// As [`Queue::begin_stop`], at a reset: what is in flight is cancelled, and everything forgotten.
    pub fn begin_reset(&mut self) {
        self.begin_stop(Stop::HandOver);
        self.resetting = true;
    }

    /// Waits until `deadline` for the end of a stop that was begun. `false`: the disk has not let go of the
    /// buffers yet.
    pub fn has_stopped(&mut self, deadline: Instant) -> bool {
        if self.stopping {
            let thread = self.thread.take();
            if let Some(thread) = thread {
                if !thread.wait_stopped(deadline) {
                    self.thread = Some(thread);
                    return false;
                }
                match thread.stop(Stop::HandOver) {
                    Some(stopped) => {
                        self.state.next_avail = stopped.state.next_avail;
                        self.state.next_used = stopped.state.next_used;
                        self.in_flight = stopped.in_flight;
                    }
                    None => self.panicked = true,
                }
            }
            self.stopping = false;
        }
        if std::mem::take(&mut self.resetting) {
            self.state = reset_state(self.state.max_size);
            self.in_flight.clear();
            self.panicked = false;
        }
        true
    }

    /// Whether a reset of it has begun, and [`Queue::has_stopped`] did not see its end.
    pub const fn is_resetting(&self) -> bool {
        self.resetting
    }

    /// Whether its thread panicked (a bug in a disk) since the queue was reset: only a reset of the device helps.
    pub const fn panicked(&self) -> bool {
        self.panicked
    }

    /// Whether a thread takes requests.
    pub const fn serves(&self) -> bool {
        self.thread.is_some() && !self.stopping
    }
}

fn reset_state(max_size: u16) -> QueueState {
    QueueState {
        max_size,
        size: max_size,
        ..QueueState::default()
    }
}
