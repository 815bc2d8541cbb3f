// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One queue as the client sets it up, and its thread.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use virtio_blk_core::device::{Device, StartError};
use virtio_blk_core::memory::GuestMap;
use virtio_blk_core::ring::{RingError, SplitRing};
use virtio_blk_core::runner::{
    InFlightArea, InFlightError, InFlightLog, QueueSetup, QueueThread, Stop, ThreadOptions,
};
use virtio_queue::QueueState;

use crate::event;
use crate::memory::{Memory, MemoryError, MemoryTable};

/// Why a queue could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VringError {
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("no thread for the queue: {0}")]
    Thread(#[source] io::Error),
    #[error("the in-flight area can't be used: {0}")]
    InFlight(#[source] InFlightError),
}

/// A descriptor that can be exchanged while a queue's thread uses it.
type Shared = Arc<Mutex<Option<File>>>;

/// The addresses of a queue in the client's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) descriptor: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

/// What queues have in common.
pub(crate) struct VringContext<'a> {
    pub(crate) device: &'a Arc<Device>,
    pub(crate) table: &'a MemoryTable,
    pub(crate) in_flight: Option<&'a InFlightArea>,
    pub(crate) poll: Duration,
    /// Rings wait for SET_VRING_ENABLE (protocol features were negotiated).
    pub(crate) needs_enable: bool,
}

/// One queue.
#[derive(Default)]
pub(crate) struct Vring {
    pub(crate) size: u16,
    pub(crate) addresses: Option<Addresses>,
    /// The next available entry, while stopped.
    pub(crate) base: u16,
    pub(crate) enabled: bool,
    kick: Option<File>,
    call: Shared,
    err: Shared,
    thread: Option<QueueThread<Memory>>,
}

fn put(slot: &Shared, file: Option<File>) {
    *slot.lock().unwrap_or_else(PoisonError::into_inner) = file;
}

fn signal(slot: &Shared) {
    if let Some(file) = slot.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
        event::signal(file);
    }
}

impl Vring {
    pub(crate) fn is_running(&self) -> bool {
        self.thread.is_some()
    }

    pub(crate) fn set_kick(&mut self, kick: Option<File>) {
        self.kick = kick;
    }

    /// Exchanges the call descriptor, also while running. Signals once: used entries may have been
    /// published while there was none.
    pub(crate) fn set_call(&mut self, call: Option<File>) {
        put(&self.call, call);
        if self.is_running() {
            signal(&self.call);
        }
    }

    pub(crate) fn set_err(&mut self, err: Option<File>) {
        put(&self.err, err);
    }

    /// Tells the client that the queue does not work.
    pub(crate) fn signal_error(&self) {
        signal(&self.err);
    }

    /// Starts the queue if everything it needs is there and it does not run.
    pub(crate) fn start(
        &mut self,
        index: u16,
        context: &VringContext<'_>,
    ) -> Result<(), VringError> {
        let enabled = self.enabled || !context.needs_enable;
        let (Some(addresses), Some(kick)) = (self.addresses, &self.kick) else {
            return Ok(());
        };
        if self.is_running()
            || !enabled
            || self.size == 0
            || context.table.is_empty()
            || context.device.accepted() == 0
        {
            return Ok(());
        }
        let memory = context.table.memory();
        let mut state = QueueState {
            max_size: context.device.options().queue_size,
            size: self.size,
            ready: true,
            next_avail: self.base,
            desc_table: context.table.guest_address(addresses.descriptor)?,
            avail_ring: context.table.guest_address(addresses.available)?,
            used_ring: context.table.guest_address(addresses.used)?,
            ..QueueState::default()
        };
        state.next_used = SplitRing::used_index(&GuestMap::new(memory.clone()), &state)?;
        let call = self.call.clone();
        let mut setup = QueueSetup::new(memory, move || signal(&call));
        setup.tracking = Some(context.table.logging());
        if let Some(area) = context.in_flight {
            let (log, heads) = area
                .queue(index, self.size, state.next_used)
                .map_err(VringError::InFlight)?;
            // A client that lost its server knows the used index only: what was taken is in the log.
            state.next_avail = state.next_used.wrapping_add(heads.len() as u16);
            setup.log = Some(Box::new(log) as Box<dyn InFlightLog>);
            setup.replay = heads;
        }
        let runner = context.device.start_queue(index, setup, &state)?;
        let err = self.err.clone();
        let options = ThreadOptions {
            name: format!("vblk-queue{index}"),
            poll: context.poll,
            on_fatal: Box::new(move |error| {
                log::error!("queue {index} stopped: {error}");
                signal(&err);
            }),
        };
        let kick = event::eventfd(kick.try_clone().map_err(VringError::Thread)?);
        self.thread = Some(QueueThread::spawn(runner, kick, options).map_err(VringError::Thread)?);
        log::debug!("queue {index} started at {}", state.next_avail);
        Ok(())
    }

    /// Stops the queue if it runs, after every request it took was returned to the client.
    pub(crate) fn stop(&mut self) {
        if let Some(stopped) = self
            .thread
            .take()
            .and_then(|thread| thread.stop(Stop::Drain))
        {
            self.base = stopped.state.next_avail;
        }
    }

    /// Makes a running queue let go of memory that is no longer in the table.
    pub(crate) fn remap(&self) {
        if let Some(thread) = &self.thread {
            // A ring that is not mapped any more stops the queue, and says so itself.
            let _ = thread.with(|runner| runner.remap());
        }
    }

    /// Forgets what the client set, as after GET_VRING_BASE.
    pub(crate) fn close(&mut self) {
        self.stop();
        self.kick = None;
        put(&self.call, None);
    }
}
