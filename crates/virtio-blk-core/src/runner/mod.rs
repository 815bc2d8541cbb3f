// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One queue at work: chains from a ring become operations on a disk, completions go back.
//!
//! A [`QueueRunner`] has no thread and no event loop. Its embedder calls [`QueueRunner::service`] when the
//! driver kicked, when the disk's [`Wait`] fires, or all the time; and [`QueueRunner::stop`] to get the
//! queue's state back. [`QueueThread`] (feature `thread`) and [`QueueSubscriber`] (feature
//! `event-manager`) are ready-made callers.
//!
//! Whatever the driver does, each chain taken is handed back exactly once, or named in
//! [`Stopped::in_flight`]. The exception is a ring that breaks: nothing is written to it any more, so
//! requests that were finished in the same pass and not yet published are lost with it.

mod broken;
mod completion;
mod counters;
mod inflight;
mod log;
#[cfg(feature = "thread")]
mod medium;
mod pace;
mod refuse;
mod report;
mod setup;
mod simple;
mod slab;
mod stop;
mod submit;
#[cfg(feature = "event-manager")]
mod subscriber;
#[cfg(feature = "thread")]
mod thread;
mod wait;

use std::sync::Arc;
use std::time::Instant;

use virtio_queue::QueueState;

pub use counters::{Counter, Counters};
pub use inflight::{InFlightArea, InFlightError, SplitLog};
pub use log::InFlightLog;
#[cfg(feature = "thread")]
pub use medium::{Medium, MediumEvent, Refused};
use pace::Pace;
pub use report::{ErrorCause, ErrorListener, RequestError};
pub(crate) use report::{ErrorListeners, Reports};
pub use setup::{Notify, QueueSetup};
pub(crate) use setup::{QueueParts, WriteCache};
use slab::Slab;
pub use stop::{Stop, Stopped};
#[cfg(feature = "event-manager")]
pub use subscriber::QueueSubscriber;
#[cfg(feature = "thread")]
pub use thread::{QueueThread, ThreadOptions};

use crate::device::SharedConfig;
use crate::disk::{Completion, DiskError, IoBuf, IoQueue, Op, Wait};
use crate::memory::{DeviceMemory, GuestMap};
use crate::request::{ByteRange, RequestLimits};
use crate::ring::{Chain, Popped, Ring, RingError, SplitRing, Taken, are_distinct};

/// What [`QueueRunner::service`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Nothing to do until the next kick, or until the disk's [`Wait`] fires.
    Idle,
    /// There is more: call again, without waiting.
    More,
    /// As `Idle`, but call again at this instant at the latest.
    WaitUntil(Instant),
    /// The queue is broken ([`QueueRunner::error`]) and takes and returns nothing any more. The transport sets
    /// DEVICE_NEEDS_RESET. Call again when the disk's [`Wait`] fires, until [`QueueRunner::in_flight`] is 0: then a
    /// stop does not wait.
    Fatal,
}

/// Why a queue broke.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// Ring and driver disagree.
    #[error("the virtqueue is broken: {0}")]
    Ring(#[from] RingError),
    /// The disk's data path failed as a whole.
    #[error("the disk's queue is broken: {0}")]
    Disk(#[source] DiskError),
    /// An event loop does not take the queue's descriptors (`QueueSubscriber` only).
    #[error("the event loop can't watch the queue: {0}")]
    Watch(#[source] std::io::Error),
}

/// Told why a queue broke, once, on the thread that noticed. Must not block.
#[cfg(any(feature = "thread", feature = "event-manager"))]
pub type OnFatal = Box<dyn FnOnce(&QueueError) + Send>;

/// Used entries are published at the latest after this many, so that the driver has work while the rest
/// of a batch is executed.
const PUBLISH_EVERY: usize = 16;

/// One virtqueue, served from one disk queue.
pub struct QueueRunner<M: DeviceMemory> {
    map: GuestMap<M>,
    ring: SplitRing,
    io: Option<Box<dyn IoQueue>>,
    limits: RequestLimits,
    shared: Arc<SharedConfig>,
    serial: [u8; crate::spec::SERIAL_SIZE],
    write_cache: WriteCache,
    notify: Notify,
    log: Option<Box<dyn InFlightLog>>,
    replay: std::vec::IntoIter<u16>,
    counters: Arc<Counters>,
    reports: Reports,
    slab: Slab,
    /// Operations that the disk had no room for, or the pass no work left, in reverse order of submission.
    stalled: Vec<Op>,
    pace: Pace,
    /// The disk finishes everything inside `submit`: there is nothing to reap.
    inline: bool,
    /// Operations were submitted since the last `flush_batch`.
    unflushed: bool,
    /// Heads pushed and not yet published; only kept for the log.
    returning: Vec<u16>,
    pushed: usize,
    intake: bool,
    error: Option<QueueError>,
    // Reused from call to call.
    chain: Chain,
    /// The data of the request at hand.
    data: IoBuf,
    done: Vec<Completion>,
    scratch: Vec<u8>,
    spare_ranges: Vec<ByteRange>,
}

/// What a request with `len` bytes counts of a pass's budget: a disk that works inside the call must not
/// keep the caller for long because a guest asks for much at a time.
#[inline(always)]
const fn weight(len: u32) -> usize {
    1 + (len >> 16) as usize
}

impl<M: DeviceMemory> QueueRunner<M> {
    /// Starts at `state`. `open` is asked for the disk's queue once everything else is known to be good.
    pub(crate) fn start<E: From<RingError>>(
        setup: QueueSetup<M>,
        parts: QueueParts,
        state: &QueueState,
        open: impl FnOnce() -> Result<Box<dyn IoQueue>, E>,
    ) -> Result<Self, E> {
        let mut map = GuestMap::new(setup.memory);
        map.track_while(setup.tracking);
        let ring = SplitRing::new(&map, state, parts.features)?;
        let (count, size) = (setup.replay.len(), state.size);
        let taken = state.next_avail.wrapping_sub(state.next_used);
        // More would come back than the driver gave.
        if count > usize::from(taken) || !are_distinct(&setup.replay, size) {
            return Err(RingError::Replay { count, taken, size }.into());
        }
        let io = open()?;
        let inline = matches!(io.wait(), Wait::Inline);
        let runner = Self {
            map,
            ring,
            io: Some(io),
            limits: parts.limits,
            shared: parts.shared,
            serial: parts.serial,
            write_cache: parts.write_cache,
            notify: setup.notify,
            log: setup.log,
            replay: setup.replay.into_iter(),
            counters: parts.counters,
            reports: parts.reports,
            slab: Slab::new(state.size),
            stalled: Vec::new(),
            pace: Pace::default(),
            inline,
            unflushed: false,
            returning: Vec::new(),
            pushed: 0,
            intake: true,
            error: None,
            chain: Chain::new(),
            data: IoBuf::new(),
            done: Vec::with_capacity(usize::from(state.size)),
            scratch: Vec::new(),
            spare_ranges: Vec::new(),
        };
        // The earlier owner may have ended between its last used entry and the interrupt; that there was none
        // can't be told from the indices, which wrap.
        runner.counters.interrupts.add(1);
        (runner.notify)();
        Ok(runner)
    }

    /// Finishes what the disk is done with, takes up to `budget` new requests (one with much data counts once
    /// more for each 64 KiB, one of many descriptors once more for each 64 of them, also if it is refused),
    /// publishes and notifies. The ranges of discards and the like count as well, each
    /// with its bytes on the medium; what is left of them is for the next call. Never blocks, apart from what a
    /// synchronous disk does inside a request.
    ///
    /// What is finished becomes visible to the driver before new requests are taken and before they are
    /// started; of a disk that works inside the call, after 16 of them, or sooner if they take time.
    ///
    /// The first call after a start scans the ring without waiting for a kick. Once it answered `Idle`
    /// the driver has been asked to kick for the next buffer, unless the intake is closed or the disk has
    /// no room: then the disk's [`Wait`] fires before there is anything to do for a kick.
    pub fn service(&mut self, budget: usize) -> Service {
        if self.error.is_some() {
            self.poll_broken();
            return Service::Fatal;
        }
        self.pace.begin(budget);
        match self.try_service(budget) {
            Ok(next) => next,
            Err(error) => {
                self.fail(error);
                Service::Fatal
            }
        }
    }

    fn try_service(&mut self, budget: usize) -> Result<Service, QueueError> {
        if self.map.is_stale() {
            self.remap()?;
        }
        // Also with nothing in flight: the disk may ring for what was collected before it rang, and rings
        // until it is asked.
        if !self.inline || self.slab.len() != 0 {
            self.poll_completions()?;
        }
        let taken = self.take(budget)?;
        if taken != 0 {
            self.counters.batches.add(1);
        }
        self.publish_now()?;
        if !self.has_room() {
            // With nothing in flight no event would bring us back.
            return Ok(if self.outstanding() == 0 || self.pace.is_held() {
                Service::More
            } else {
                self.idle()
            });
        }
        if self.replay.len() != 0
            || self.intake && (taken >= budget.max(1) || self.ring.enable_kicks(&self.map)?)
        {
            return Ok(Service::More);
        }
        Ok(self.idle())
    }

    /// Goes on with what is in flight.
    fn poll_completions(&mut self) -> Result<(), QueueError> {
        self.reap()?;
        // With nothing at the disk no completion makes room, and what waited for this pass needs none.
        if !self.stalled.is_empty() && (self.pace.take_held() || self.outstanding() == 0) {
            self.submit_stalled()?;
        }
        // Not after what is new was taken and started.
        self.publish_now()
    }

    fn idle(&self) -> Service {
        if self.in_flight() != 0
            && let Some(at) = self.io.as_ref().and_then(|io| io.deadline())
        {
            return Service::WaitUntil(at);
        }
        Service::Idle
    }

    /// Takes new chains until the budget, the ring or the disk's room is used up. Answers how many.
    fn take(&mut self, budget: usize) -> Result<usize, QueueError> {
        if !self.has_room() {
            return Ok(0);
        }
        self.limits.capacity = self.shared.capacity();
        let mut taken = 0;
        if self.replay.len() != 0 {
            taken = self.replay_in_flight(budget)?;
        }
        if self.intake {
            self.ring.disable_kicks(&self.map);
            while taken < budget && self.has_room() {
                match self.ring.take_next(&self.map, &mut self.chain)? {
                    Taken::Nothing => break,
                    Taken::Simple(simple) => {
                        taken += weight(simple.data.len);
                        if let Some(log) = &mut self.log {
                            log.taken(simple.head);
                        }
                        self.begin_simple(simple);
                        self.publish_some()?;
                    }
                    Taken::Chain => taken += self.begin_taken()?,
                    Taken::Malformed(error) => taken += self.refuse_malformed(error)?,
                }
            }
        }
        self.check_ring()?;
        if self.slab.len() != 0 {
            // Starting a batch may take long.
            self.publish_now()?;
            self.flush_batch()?;
            if self.outstanding() != 0 {
                self.reap()?;
            }
        }
        Ok(taken)
    }

    /// Takes what an earlier owner had in flight.
    #[cold]
    fn replay_in_flight(&mut self, budget: usize) -> Result<usize, QueueError> {
        let mut taken = 0;
        while taken < budget
            && self.has_room()
            && let Some(head) = self.replay.next()
        {
            match self.ring.resume(&self.map, head, &mut self.chain)? {
                Popped::Chain => taken += self.begin_taken()?,
                Popped::Malformed(error) => taken += self.refuse_malformed(error)?,
                Popped::Empty => {}
            }
        }
        Ok(taken)
    }

    /// Begins the request in `chain`. Answers what it counts.
    #[inline(never)]
    fn begin_taken(&mut self) -> Result<usize, QueueError> {
        // Together below 2^32.
        let weight = weight(self.chain.readable_len() + self.chain.writable_len());
        if let Some(log) = &mut self.log {
            log.taken(self.chain.head());
        }
        self.begin();
        self.publish_some()?;
        // Also what a refusal read.
        Ok(weight + self.ring.effort())
    }

    /// Publishes when enough has come together.
    #[inline(always)]
    fn publish_some(&mut self) -> Result<(), QueueError> {
        if self.pushed >= PUBLISH_EVERY {
            return self.publish();
        }
        Ok(())
    }

    /// Whether another request may be taken: the disk had room for all before, and what is in flight does not
    /// need much memory.
    #[inline(always)]
    fn has_room(&self) -> bool {
        self.stalled.is_empty() && !self.slab.is_crowded()
    }

    /// Operations the disk has: every request in flight has one, with the disk or waiting for room.
    #[inline]
    fn outstanding(&self) -> usize {
        self.slab.len() - self.stalled.len()
    }

    /// Tells the disk to start what it was given since the last call.
    #[inline]
    fn flush_batch(&mut self) -> Result<(), QueueError> {
        match &mut self.io {
            Some(io) if std::mem::take(&mut self.unflushed) => {
                io.flush_batch().map_err(QueueError::Disk)
            }
            _ => Ok(()),
        }
    }

    /// Finishes what the disk is done with, goes on with requests of several operations, and submits
    /// what it had no room for.
    #[inline]
    fn reap(&mut self) -> Result<(), QueueError> {
        if self.inline && self.outstanding() == 0 {
            return Ok(());
        }
        self.reap_queued()
    }

    fn reap_queued(&mut self) -> Result<(), QueueError> {
        let Some(io) = &mut self.io else {
            return Ok(());
        };
        let mut done = std::mem::take(&mut self.done);
        let result = io.reap(&mut done);
        let freed = !done.is_empty();
        for completion in done.drain(..) {
            if let Some(next) = self.complete(completion)
                && let Some(next) = self.paced(next)
            {
                self.submit(next);
            }
        }
        self.done = done;
        result.map_err(QueueError::Disk)?;
        if freed && !self.stalled.is_empty() {
            self.submit_stalled()?;
        }
        self.flush_batch()
    }

    fn submit_stalled(&mut self) -> Result<(), QueueError> {
        while let Some(op) = self.stalled.pop() {
            let Some(op) = self.paced(op) else { break };
            if !self.submit(op) {
                break;
            }
        }
        self.flush_batch()
    }

    /// As `publish_now`, in the midst of a pass.
    #[inline(never)]
    fn publish(&mut self) -> Result<(), QueueError> {
        self.publish_now()
    }

    /// Makes pushed heads visible and notifies the driver if it wants that.
    #[inline(always)]
    fn publish_now(&mut self) -> Result<(), QueueError> {
        if self.pushed == 0 {
            return Ok(());
        }
        self.pushed = 0;
        let used_idx = self.ring.state().next_used;
        if let Some(log) = &mut self.log {
            log.returning(&self.returning, used_idx);
        }
        let notify = self.ring.publish(&self.map)?;
        if let Some(log) = &mut self.log {
            log.returned(&self.returning, used_idx);
            self.returning.clear();
        }
        if notify {
            self.counters.interrupts.add(1);
            (self.notify)();
        }
        Ok(())
    }

    /// Hands a head back to the driver, with the next `publish`.
    #[inline]
    fn add_used(&mut self, head: u16, len: u32) {
        self.ring.push(head, len);
        self.pushed += 1;
        if self.log.is_some() {
            self.returning.push(head);
        }
    }

    /// Takes over a changed memory map or translation. Requests in flight keep the memory they have.
    /// [`QueueRunner::service`] does this by itself when the address space hands out another map; the
    /// owner of a translation (an IOMMU, an IOTLB) calls it after every change, before it answers the
    /// one who asked for the change.
    ///
    /// # Errors
    /// The ring is not mapped any more: the queue is broken.
    pub fn remap(&mut self) -> Result<(), RingError> {
        self.map.renew();
        self.slab.release_memory();
        self.data.release();
        let result = self.ring.remap(&self.map);
        if let Err(error) = result {
            self.fail(QueueError::Ring(error));
        }
        result
    }

    /// Opens or closes the intake. While it is closed `service` takes nothing new and finishes what is
    /// in flight; when [`QueueRunner::in_flight`] is 0, a stop does not block. After opening it, call
    /// `service` without waiting for a kick: it may have come and gone.
    pub fn set_intake(&mut self, open: bool) {
        self.intake = open;
    }

    /// Requests taken and not yet returned to the driver. Of a broken queue: those that the disk still has,
    /// which [`QueueRunner::service`] collects.
    pub fn in_flight(&self) -> usize {
        if self.error.is_some() {
            return self.slab.len();
        }
        self.ring.in_flight()
    }

    /// Where the queue stands. Exact while nothing is in flight, else the requests in flight count as
    /// taken.
    pub fn state(&self) -> QueueState {
        self.ring.state()
    }

    /// How to learn that the disk finished something. `Inline` also once the disk's queue is broken.
    pub fn wait(&self) -> Wait<'_> {
        self.io.as_ref().map_or(Wait::Inline, |io| io.wait())
    }

    /// Whether a call of [`QueueRunner::service`] may find something: for callers that poll. Always true
    /// while the disk has something, as only collecting tells whether it is done. Cheap, and without an
    /// effect the driver could see.
    pub fn has_work(&mut self) -> bool {
        if self.outstanding() != 0 && !self.inline {
            return true;
        }
        if self.error.is_some() {
            return false;
        }
        self.intake && self.ring.has_available()
    }

    /// The counters of this queue.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Why the queue is broken, if it is.
    pub fn error(&self) -> Option<&QueueError> {
        self.error.as_ref()
    }

    /// Notes the error. A broken disk queue fails what it had; a broken ring returns nothing any more.
    #[cold]
    fn fail(&mut self, error: QueueError) {
        if let QueueError::Disk(_) = error {
            self.io = None;
            self.unflushed = false;
            self.stalled.clear();
            for token in self.slab.busy() {
                self.finish(token, crate::spec::RequestStatus::IoErr);
            }
            // The ring is sound; if it is not, its own error says more than the disk's.
            if let Err(error) = self.publish() {
                return self.latch(error);
            }
        }
        self.latch(error);
    }

    /// Notes why the queue is broken, and tells it the first time.
    #[cold]
    fn latch(&mut self, error: QueueError) {
        if self.error.is_none() {
            self.reports.tell(ErrorCause::Queue(&error));
            self.error = Some(error);
            self.cancel_outstanding();
        }
    }
}

#[cfg(test)]
mod tests;
