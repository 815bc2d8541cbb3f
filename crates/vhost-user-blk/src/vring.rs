// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One queue as the client sets it up.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use virtio_blk_core::device::{Device, StartError};
use virtio_blk_core::ring::{QueueState, RingError};
use virtio_blk_core::runner::{
    InFlightArea, InFlightError, QueueError, QueueSet, QueueSetup, Refused, Stopped, ThreadOptions,
};

use crate::event;
use crate::memory::{Memory, MemoryError, MemoryTable, Table};

/// Why a queue could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VringError {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("the disk takes too long to be taken into use")]
    Busy,
    #[error("where it stands is not known: its thread panicked, and there is no in-flight area")]
    Lost,
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

impl Addresses {
    /// Address and bytes of each part of a ring of `size`.
    fn parts(&self, size: u16) -> [(u64, u64); 3] {
        let size = u64::from(size);
        [
            (self.descriptor, 16 * size),
            (self.available, 6 + 2 * size),
            (self.used, 6 + 8 * size),
        ]
    }

    /// Where the parts are in the guest, if each is in one region of `table`.
    fn resolve(&self, size: u16, table: &Table) -> Option<[u64; 3]> {
        let [descriptor, available, used] = self
            .parts(size)
            .map(|(user, len)| table.guest_range(user, len));
        Some([descriptor?, available?, used?])
    }
}

/// What queues have in common.
pub(crate) struct VringContext<'a> {
    pub(crate) device: &'a Arc<Device>,
    pub(crate) table: &'a MemoryTable,
    pub(crate) in_flight: Option<&'a InFlightArea>,
    pub(crate) poll: Duration,
    pub(crate) threads: &'a mut QueueSet<Memory>,
    /// Until when the disk may be waited for.
    pub(crate) deadline: Instant,
    /// Rings wait for SET_VRING_ENABLE (protocol features were negotiated).
    pub(crate) needs_enable: bool,
}

/// One queue.
#[derive(Default)]
pub(crate) struct Vring {
    pub(crate) size: u16,
    pub(crate) addresses: Option<Addresses>,
    /// The next available entry, while stopped.
    base: u16,
    /// `base` is not where the queue stands: its thread panicked, or was left behind.
    lost: bool,
    /// Its thread is in the session's set.
    running: bool,
    pub(crate) enabled: bool,
    /// It ran, and stopped because the memory of its ring was taken away: it starts again once that is back.
    parked: bool,
    /// It ran since the client began to set it up: the in-flight area's entry is this session's.
    ran: bool,
    /// Its ring broke when it ran last.
    broken: bool,
    kick: Option<File>,
    call: Shared,
    err: Shared,
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
        self.running
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

    /// Starts the queue if everything it needs is there and it does not run. Returns whether it did.
    pub(crate) fn start(
        &mut self,
        index: u16,
        context: &mut VringContext<'_>,
    ) -> Result<bool, VringError> {
        let enabled = self.enabled || !context.needs_enable;
        let (Some(addresses), Some(kick)) = (self.addresses, &self.kick) else {
            return Ok(false);
        };
        if self.is_running()
            || !enabled
            || self.size == 0
            || context.table.is_empty()
            || context.device.accepted() == 0
        {
            return Ok(false);
        }
        if self.parked
            && addresses
                .resolve(self.size, context.table.table())
                .is_none()
        {
            return Ok(false);
        }
        if self.lost && context.in_flight.is_none() {
            return Err(VringError::Lost);
        }
        let taken = context.threads.medium().take(context.deadline);
        taken.ok_or(VringError::Busy)??;
        let memory = context.table.memory();
        let mut state = QueueState {
            max_size: context.device.guest_abi().queue_size,
            size: self.size,
            ready: true,
            next_avail: self.base,
            desc_table: context.table.guest_address(addresses.descriptor)?,
            avail_ring: context.table.guest_address(addresses.available)?,
            used_ring: context.table.guest_address(addresses.used)?,
            ..QueueState::default()
        };
        let call = self.call.clone();
        let mut setup = QueueSetup::new(memory, move || signal(&call));
        setup.tracking = Some(context.table.logging());
        state.next_used = setup.used_index(&state)?;
        if let Some(area) = context.in_flight {
            let replayed = setup.keep_log(area, index, &state);
            // A client that lost its server knows the used index only: what was taken is in the log.
            let taken = replayed.map_err(VringError::InFlight)?;
            state.next_avail = state.next_used.wrapping_add(taken);
        }
        let runner = context.device.start_queue(index, setup, state)?;
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
        let started = context.threads.start(index, runner, kick, options);
        started.map_err(VringError::Thread)?;
        (self.running, self.parked, self.ran) = (true, false, true);
        (self.broken, self.lost) = (false, false);
        log::debug!("queue {index} started at {}", state.next_avail);
        Ok(true)
    }

    /// Notes where the queue stands, which was stopped; `None`: it is not known. After a drain every request that the
    /// queue took was returned to the client, unless its ring is broken. Else the in-flight area keeps naming the
    /// requests.
    pub(crate) fn set_stopped(&mut self, stopped: Option<&Stopped>) {
        self.running = false;
        match stopped {
            Some(stopped) => {
                self.base = stopped.state.next_avail;
                self.broken = matches!(stopped.error, Some(QueueError::Ring(_)));
            }
            None => self.lost = true,
        }
    }

    /// Where the queue continues. `None`: that is not known.
    pub(crate) fn base(&self) -> Option<u16> {
        (!self.lost).then_some(self.base)
    }

    /// Has the queue, which is stopped, continue there.
    pub(crate) const fn set_base(&mut self, base: u16) {
        (self.base, self.lost) = (base, false);
    }

    /// Whether the queue runs on a ring that is somewhere else, or nowhere, once `next` replaces `now`.
    pub(crate) fn loses_ring(&self, now: &Table, next: &Table) -> bool {
        let Some(addresses) = self.addresses.filter(|_| self.is_running()) else {
            return false;
        };
        let there = addresses.resolve(self.size, next);
        there.is_none() || there != addresses.resolve(self.size, now)
    }

    /// Notes whether the queue, if it runs, is stopped because its ring is taken away: it then starts again once
    /// that is mapped again.
    pub(crate) fn set_parked(&mut self, parked: bool) {
        if self.is_running() {
            self.parked = parked;
        }
    }

    /// Whether the queue waits for its ring to be mapped.
    pub(crate) fn is_parked(&self) -> bool {
        self.parked
    }

    /// Whether the disk is in use for the queue: it runs, or would if its ring were mapped.
    pub(crate) fn is_used(&self) -> bool {
        self.is_running() || self.parked
    }

    /// Takes other addresses; the queue is stopped. Returns whether requests of an earlier ring may still
    /// be in the in-flight area, which nobody waits for any more.
    pub(crate) fn set_addresses(&mut self, addresses: Addresses) -> bool {
        self.addresses = Some(addresses);
        self.parked = false;
        std::mem::take(&mut self.ran)
    }

    /// Forgets what the client set, as after GET_VRING_BASE; the queue is stopped. Returns whether what the
    /// in-flight area still names belongs to a ring that broke, so that it can't be returned to the client any
    /// more. What a failed disk left there is for the ring's next server.
    pub(crate) fn close(&mut self) -> bool {
        self.kick = None;
        self.parked = false;
        put(&self.call, None);
        let broken = std::mem::take(&mut self.broken);
        // What is left belongs to the same ring: other addresses will discard it.
        self.ran &= !broken;
        broken
    }
}
