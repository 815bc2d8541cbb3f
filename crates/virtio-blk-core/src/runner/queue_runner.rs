// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One queue at work.

use std::sync::Arc;
use std::time::Instant;

use super::QueueError;
use super::completion::{Completer, Counters};
use super::fetch::{Fetch, HEADER_LEN, STATUS_LEN};
use super::outstanding::Outstanding;
use super::report::ErrorCause;
use super::setup::{QueueParts, QueueSetup};
use crate::disk::{Completion, DiskError, IoBuf, IoQueue, Op, Token, Wait};
use crate::memory::DeviceMemory;
use crate::request::{ByteRange, DeviceView};
use crate::ring::{Popped, QueueState, Ring, RingError};
use crate::spec::RequestStatus;

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

/// One virtqueue, served from one disk queue.
pub struct QueueRunner<M: DeviceMemory> {
    pub(super) fetch: Fetch<M>,
    pub(super) outstanding: Outstanding,
    pub(super) completer: Completer,
    pub(super) device: DeviceView,
    pub(super) error: Option<QueueError>,
    // Reused from request to request.
    /// The data of the request at hand.
    pub(super) data: IoBuf,
    pub(super) scratch: Vec<u8>,
    pub(super) spare_ranges: Vec<ByteRange>,
}

/// Budget cost of a request with `len` bytes, but for its descriptors: one, and one more for each 64 KiB. A disk that works inside the
/// call must not keep the caller for long because a guest asks for much at a time.
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
        let features = parts.features;
        let fetch = Fetch::new(setup.map, setup.tracking, state, features, setup.replay)?;
        let outstanding = Outstanding::new(open()?, state.size);
        let completer = Completer::new(setup.log, setup.notify, parts.counters, parts.reports);
        // The earlier owner may have ended between its last used entry and the interrupt; that there was none
        // can't be told from the indices, which wrap.
        completer.notify();
        Ok(Self {
            fetch,
            outstanding,
            completer,
            device: parts.device,
            error: None,
            data: IoBuf::new(),
            scratch: Vec::new(),
            spare_ranges: Vec::new(),
        })
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
            self.outstanding.collect();
            return Service::Fatal;
        }
        self.outstanding.begin_pass(budget);
        match self.try_service(budget) {
            Ok(next) => next,
            Err(error) => {
                self.fail(error);
                Service::Fatal
            }
        }
    }

    fn try_service(&mut self, budget: usize) -> Result<Service, QueueError> {
        if self.fetch.map.is_stale() {
            self.remap()?;
        }
        if self.outstanding.is_active() {
            self.poll_completions()?;
        }
        let taken = self.take(budget)?;
        if taken != 0 {
            self.completer.counters().batches.add(1);
        }
        self.publish_now()?;
        if !self.outstanding.has_room() {
            // With nothing at the disk no event would bring us back.
            let again = self.outstanding.submitted() == 0 || self.outstanding.is_paced();
            return Ok(if again { Service::More } else { self.idle() });
        }
        let spent = taken >= budget.max(1);
        if !self.fetch.replay.as_slice().is_empty()
            || self.fetch.open && spent
            || self.enable_kicks()?
        {
            return Ok(Service::More);
        }
        Ok(self.idle())
    }

    /// Asks the driver to kick for the next buffer, unless the intake is closed. Returns whether there is one
    /// already.
    #[inline]
    fn enable_kicks(&mut self) -> Result<bool, RingError> {
        let Fetch {
            ring, map, open, ..
        } = &mut self.fetch;
        match *open {
            true => ring.enable_kicks(map),
            false => Ok(false),
        }
    }

    fn idle(&self) -> Service {
        if self.in_flight() != 0
            && let Some(at) = self.outstanding.deadline()
        {
            return Service::WaitUntil(at);
        }
        Service::Idle
    }

    /// Collects what the disk has finished, and submits what waited for it.
    pub(super) fn poll_completions(&mut self) -> Result<(), QueueError> {
        self.reap()?;
        if self.outstanding.may_resubmit() {
            self.submit_stalled()?;
        }
        // Not after what is new was taken and started.
        self.publish_now()
    }

    /// Finishes what the disk is done with, continues requests of several operations, and submits what it had
    /// no room for.
    #[inline]
    pub(super) fn reap(&mut self) -> Result<(), QueueError> {
        if self.outstanding.may_complete()
            && let Some((done, result)) = self.outstanding.reap()
        {
            return self.finish_all(done, result);
        }
        Ok(())
    }

    /// Takes what the disk has finished, as [`Outstanding::reap`] returned it.
    #[inline(never)]
    fn finish_all(
        &mut self,
        mut done: Vec<Completion>,
        result: Result<(), DiskError>,
    ) -> Result<(), QueueError> {
        let freed = !done.is_empty();
        for completion in done.drain(..) {
            if let Some(next) = self.complete(completion)
                && let Some(next) = self.outstanding.paced(next)
            {
                self.submit(next);
            }
        }
        self.outstanding.recycle(done);
        result.map_err(QueueError::Disk)?;
        if freed && self.outstanding.is_stalled() {
            self.submit_stalled()?;
        }
        self.outstanding.flush_batch().map_err(QueueError::Disk)
    }

    fn submit_stalled(&mut self) -> Result<(), QueueError> {
        while let Some(op) = self.outstanding.next_stalled() {
            if !self.submit(op) {
                break;
            }
        }
        self.outstanding.flush_batch().map_err(QueueError::Disk)
    }

    /// Takes a completion of the disk: finishes the request, or returns its next operation.
    #[inline(always)]
    pub(super) fn complete(&mut self, completion: Completion) -> Option<Op> {
        let Fetch { ring, map, .. } = &mut self.fetch;
        self.completer
            .complete(&mut self.outstanding, ring, map, completion)
    }

    /// Takes new chains until the budget, the ring or the disk's room is used up. Returns the budget used.
    fn take(&mut self, budget: usize) -> Result<usize, QueueError> {
        if !self.outstanding.has_room() {
            return Ok(0);
        }
        self.device.renew_capacity();
        let mut taken = 0;
        if !self.fetch.replay.as_slice().is_empty() {
            taken = self.replay_in_flight(budget)?;
        }
        if self.fetch.open && self.outstanding.has_room() {
            let Fetch { ring, map, .. } = &mut self.fetch;
            ring.disable_kicks(map);
            while taken < budget {
                self.publish_some()?;
                let Some(found) = self.fetch.ring.next()? else {
                    break;
                };
                let Fetch { ring, map, .. } = &self.fetch;
                if let Some(simple) = ring.read_simple::<HEADER_LEN, STATUS_LEN, M>(map, found) {
                    taken += weight(simple.data.len);
                    self.completer.taken(simple.head);
                    if self.begin_simple(simple) {
                        continue;
                    }
                } else {
                    let Fetch {
                        ring, map, chain, ..
                    } = &mut self.fetch;
                    taken += match ring.read(map, found, chain) {
                        Ok(()) => self.begin_taken()?,
                        Err(error) => self.refuse_malformed(error)?,
                    };
                }
                if !self.outstanding.has_room() {
                    break;
                }
            }
        }
        self.check_ring()?;
        if self.outstanding.len() != 0 {
            // Starting a batch may take long.
            self.publish_now()?;
            self.outstanding.flush_batch().map_err(QueueError::Disk)?;
            if self.outstanding.submitted() != 0 {
                self.reap()?;
            }
        }
        Ok(taken)
    }

    /// Takes what an earlier owner had in flight. Returns the budget used.
    #[cold]
    fn replay_in_flight(&mut self, budget: usize) -> Result<usize, QueueError> {
        let mut taken = 0;
        while taken < budget
            && self.outstanding.has_room()
            && let Some(popped) = self.fetch.next_replayed()?
        {
            match popped {
                Popped::Chain => taken += self.begin_taken()?,
                Popped::Malformed(error) => taken += self.refuse_malformed(error)?,
                #[cfg(any(test, feature = "internals"))]
                Popped::Empty => {}
            }
        }
        Ok(taken)
    }

    /// Begins the request in the chain at hand. Returns its budget cost.
    #[inline(never)]
    fn begin_taken(&mut self) -> Result<usize, QueueError> {
        let chain = &self.fetch.chain;
        // Together below 2^32.
        let weight = weight(chain.readable_len() + chain.writable_len());
        self.completer.taken(chain.head());
        self.begin();
        self.publish_some()?;
        // Also what a refusal read.
        Ok(weight + self.fetch.reading_cost())
    }

    /// Publishes when enough has come together.
    #[inline(always)]
    pub(super) fn publish_some(&mut self) -> Result<(), QueueError> {
        if self.completer.is_due() {
            return self.publish();
        }
        Ok(())
    }

    /// As `publish_now`, in the middle of a pass.
    #[inline(never)]
    pub(super) fn publish(&mut self) -> Result<(), QueueError> {
        self.publish_now()
    }

    /// Makes used entries visible and notifies the driver if it wants that.
    #[inline(always)]
    fn publish_now(&mut self) -> Result<(), QueueError> {
        let Fetch { ring, map, .. } = &mut self.fetch;
        self.completer.publish(ring, map)?;
        Ok(())
    }

    /// Takes over a changed memory map or translation. Requests in flight keep the memory they have.
    /// [`QueueRunner::service`] does this by itself when the address space hands out another map; the
    /// owner of a translation (an IOMMU, an IOTLB) calls it after every change, before it replies to the
    /// one who asked for the change.
    ///
    /// # Errors
    /// The ring is not mapped any more: the queue is broken.
    pub fn remap(&mut self) -> Result<(), RingError> {
        self.outstanding.release_memory();
        self.data.release();
        let result = self.fetch.remap();
        if let Err(error) = result {
            self.fail(QueueError::Ring(error));
        }
        result
    }

    /// Opens or closes the intake. While it is closed `service` takes nothing new and finishes what is
    /// in flight; when [`QueueRunner::in_flight`] is 0, a stop does not block. After opening it, call
    /// `service` without waiting for a kick: it may have come and gone.
    pub fn set_intake(&mut self, open: bool) {
        self.fetch.open = open;
    }

    /// Requests taken and not yet returned to the driver. Of a broken queue: those that the disk still has,
    /// which [`QueueRunner::service`] collects.
    pub fn in_flight(&self) -> usize {
        if self.error.is_some() {
            return self.outstanding.len();
        }
        self.fetch.ring.in_flight()
    }

    /// Where the queue stands. Exact while nothing is in flight, else the requests in flight count as
    /// taken.
    pub fn state(&self) -> QueueState {
        self.fetch.ring.state()
    }

    /// How to learn that the disk finished something. `Inline` also once the disk's queue is broken.
    pub fn wait(&self) -> Wait<'_> {
        self.outstanding.wait()
    }

    /// When the disk wants to be asked although nothing tells so.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.outstanding.deadline()
    }

    /// Whether a call of [`QueueRunner::service`] may find something: for callers that poll. Always true
    /// while the disk has something, as only collecting tells whether it is done. Cheap, and without an
    /// effect the driver could see.
    pub fn has_work(&mut self) -> bool {
        if self.outstanding.must_be_polled() {
            return true;
        }
        if self.error.is_some() {
            return false;
        }
        self.fetch.open && self.fetch.ring.has_available()
    }

    /// The counters of this queue.
    pub fn counters(&self) -> &Arc<Counters> {
        self.completer.counters()
    }

    /// Why the queue is broken, if it is.
    pub fn error(&self) -> Option<&QueueError> {
        self.error.as_ref()
    }

    /// Whether the ring still works.
    #[inline]
    pub(super) fn check_ring(&self) -> Result<(), QueueError> {
        match self.fetch.ring.latched() {
            None => Ok(()),
            Some(error) => Err(QueueError::Ring(error)),
        }
    }

    /// Notes the error. A broken disk queue fails what it had; a broken ring returns nothing any more.
    #[cold]
    fn fail(&mut self, error: QueueError) {
        if let QueueError::Disk(_) = error {
            self.outstanding.close();
            for token in self.outstanding.tokens() {
                self.finish(token, RequestStatus::IoErr);
            }
            // The ring is sound; if it is not, its own error says more than the disk's.
            if let Err(error) = self.publish() {
                return self.latch(error);
            }
        }
        self.latch(error);
    }

    /// Finishes a request in flight with `result`.
    pub(super) fn finish(&mut self, token: Token, result: RequestStatus) {
        if let Some(slot) = self.outstanding.get(token) {
            let Fetch { ring, map, .. } = &mut self.fetch;
            self.completer.finish_slot(ring, map, slot, result);
            self.outstanding.release(token);
        }
    }

    /// Notes why the queue is broken, and tells it the first time.
    #[cold]
    fn latch(&mut self, error: QueueError) {
        if self.error.is_none() {
            self.completer.reports().tell(ErrorCause::Queue(&error));
            self.error = Some(error);
            self.outstanding.give_up();
        }
    }
}
