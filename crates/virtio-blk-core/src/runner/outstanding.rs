// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is in flight: the requests that the disk works on, or has no room for yet, and the way to the disk.

use std::time::Instant;

use super::pace::Pace;
use super::slab::{RequestKind, Slab, Slot, StatusByte};
use crate::disk::{
    Completion, DiskError, Execute, IoBuf, IoQueue, Op, OpKind, Submit, Token, Wait,
};
use crate::memory::{DeviceMemory, GuestMap};
use crate::ring::Chain;

/// What became of an operation that was given to [`Outstanding::submit`].
pub(super) enum Submitted {
    /// The disk finished it inside the call.
    Done(Completion),
    /// The disk works on it.
    Queued,
    /// It waits for room, or for the next pass.
    Stalled,
}

/// In the place of a disk's queue that was given up.
struct Closed;

impl IoQueue for Closed {
    fn submit(&mut self, op: Op) -> Submit {
        Submit::Done(op.complete(Err(DiskError::Cancelled)))
    }

    fn reap(&mut self, _done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        Ok(0)
    }

    fn wait(&self) -> Wait<'_> {
        Wait::Inline
    }
}

/// Requests in flight, each with one operation that the disk has or that waits.
pub(super) struct Outstanding {
    io: Box<dyn IoQueue>,
    slab: Slab,
    /// Operations that the disk had no room for, or the pass no work left, in reverse order of submission.
    stalled: Vec<Op>,
    pace: Pace,
    /// The disk finishes everything inside `submit`: there is nothing to reap.
    inline: bool,
    /// Operations were submitted since the last `flush_batch`.
    unflushed: bool,
    /// Reused from call to call.
    done: Vec<Completion>,
}

impl Outstanding {
    /// For a queue of `size` descriptors, with nothing in flight.
    pub(super) fn new(io: Box<dyn IoQueue>, size: u16) -> Self {
        Self {
            inline: matches!(io.wait(), Wait::Inline),
            io,
            slab: Slab::new(size),
            stalled: Vec::new(),
            pace: Pace::default(),
            unflushed: false,
            done: Vec::with_capacity(usize::from(size)),
        }
    }

    /// Begins a pass that may do so much for ranges.
    #[inline(always)]
    pub(super) fn begin_pass(&mut self, budget: usize) {
        self.pace.begin(budget);
    }

    /// Whether something waits for the next pass alone.
    pub(super) const fn is_paced(&self) -> bool {
        self.pace.is_held()
    }

    /// Whether what was finished is due to be shown, after an operation that may have taken long.
    pub(super) fn is_due(&mut self) -> bool {
        self.pace.is_due()
    }

    /// Requests in flight.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    /// Operations that the disk has: those of the requests in flight that don't wait for room.
    #[inline]
    pub(super) fn with_disk(&self) -> usize {
        self.slab.len() - self.stalled.len()
    }

    /// Whether a completion may come out of the disk's queue.
    #[inline]
    pub(super) fn may_complete(&self) -> bool {
        !self.inline || self.with_disk() != 0
    }

    /// Whether there is anything in flight, or a disk that wants to be asked. Also with nothing in flight: a
    /// disk may signal what was collected before, and does so until it is asked.
    #[inline]
    pub(super) fn is_active(&self) -> bool {
        !self.inline || self.slab.len() != 0
    }

    /// Whether only collecting tells if the disk is done with what it has.
    pub(super) fn must_be_polled(&self) -> bool {
        !self.inline && self.with_disk() != 0
    }

    /// Whether another request may be taken: the disk had room for all before, and what is in flight does not
    /// need much memory.
    #[inline(always)]
    pub(super) fn has_room(&self) -> bool {
        self.stalled.is_empty() && !self.slab.is_crowded()
    }

    /// How to learn that the disk finished something. `Inline` also once the disk's queue is broken.
    pub(super) fn wait(&self) -> Wait<'_> {
        self.io.wait()
    }

    /// When to collect next although nothing tells so.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.io.deadline()
    }

    /// Has the disk execute an operation inside the call, or take it, if it can. What it takes has the token that
    /// [`Outstanding::reserve`] gives out next.
    #[inline(always)]
    pub(super) fn execute(&mut self, kind: &OpKind, data: &IoBuf) -> Execute {
        self.io.execute(kind, data, Some(self.slab.next()))
    }

    /// The disk has taken an operation in [`Outstanding::execute`].
    pub(super) const fn note_taken(&mut self) {
        self.unflushed = true;
    }

    /// Reserves a slot for the request in `chain`. `None` if there are more in flight than the queue has
    /// descriptors, which the ring rules out.
    #[inline(always)]
    pub(super) fn reserve<M: DeviceMemory>(
        &mut self,
        map: &GuestMap<M>,
        chain: &Chain,
        status: StatusByte,
        kind: RequestKind,
    ) -> Option<(Token, &mut Slot)> {
        let (token, slot) = self.slab.reserve()?;
        slot.head = chain.head();
        slot.kind = kind;
        slot.status = status;
        slot.writable_len = chain.writable_len();
        slot.hold(map);
        if map.tracks_dirty() {
            slot.dirty.clear();
            slot.dirty.extend_from_slice(chain.writable());
        }
        Some((token, slot))
    }

    /// Notes that the request of `token` has `segments` segments of data.
    #[inline(always)]
    pub(super) fn note_segments(&mut self, token: Token, segments: usize) {
        self.slab.note_segments(token, segments);
    }

    /// The request of `token`. `None`: it was never given out, or is done.
    #[inline(always)]
    pub(super) fn get(&mut self, token: Token) -> Option<&mut Slot> {
        self.slab.get(token)
    }

    /// Ends the request of `token`.
    #[inline(always)]
    pub(super) fn release(&mut self, token: Token) {
        self.slab.release(token);
    }

    /// The operation on a range, if this pass may begin it; else it waits for the next.
    #[cold]
    pub(super) fn paced(&mut self, op: Op) -> Option<Op> {
        let (_, len) = op.kind.range(0).unwrap_or_default();
        if self.pace.spend(len) {
            return Some(op);
        }
        self.stalled.push(op);
        None
    }

    /// Gives an operation to the disk.
    #[inline(always)]
    pub(super) fn submit(&mut self, op: Op) -> Submitted {
        match self.io.submit(op) {
            Submit::Done(completion) => Submitted::Done(completion),
            Submit::Queued => {
                self.unflushed = true;
                Submitted::Queued
            }
            Submit::Full(op) => {
                self.stalled.push(op);
                Submitted::Stalled
            }
        }
    }

    /// The next operation that waits and may be submitted now, if this pass may begin it.
    pub(super) fn next_stalled(&mut self) -> Option<Op> {
        let op = self.stalled.pop()?;
        self.paced(op)
    }

    /// Whether operations wait that may be submitted although nothing completed: with nothing at the disk no
    /// completion makes room, and what waited for this pass needs none.
    pub(super) fn may_resubmit(&mut self) -> bool {
        !self.stalled.is_empty() && (self.pace.take_held() || self.with_disk() == 0)
    }

    /// Whether operations wait.
    pub(super) const fn is_stalled(&self) -> bool {
        !self.stalled.is_empty()
    }

    /// Tells the disk to start what it was given since the last call.
    #[inline]
    pub(super) fn flush_batch(&mut self) -> Result<(), DiskError> {
        match std::mem::take(&mut self.unflushed) {
            true => self.io.flush_batch(),
            false => Ok(()),
        }
    }

    /// Collects what the disk has finished. The list goes back with [`Outstanding::recycle`].
    pub(super) fn reap(&mut self) -> (Vec<Completion>, Result<(), DiskError>) {
        let mut done = std::mem::take(&mut self.done);
        let result = self.io.reap(&mut done).map(drop);
        (done, result)
    }

    /// Takes a list of completions back, for the next call.
    pub(super) fn recycle(&mut self, done: Vec<Completion>) {
        self.done = done;
    }

    /// Lets go of memory that ended requests keep mapped.
    pub(super) fn release_memory(&mut self) {
        self.slab.release_memory();
    }

    /// Has the disk let go of what it holds back.
    pub(super) fn release_held(&mut self) {
        self.io.release_held();
    }

    /// Has the disk finish early what it has. What it was not given yet is not given to it any more.
    pub(super) fn cancel(&mut self) {
        self.stalled.clear();
        for token in self.slab.busy() {
            self.io.cancel(token);
        }
    }

    /// Gives up the disk's queue. Blocks until no buffer is used any more.
    pub(super) fn close(&mut self) {
        self.io = Box::new(Closed);
        self.unflushed = false;
        self.stalled.clear();
    }

    /// The tokens of all requests in flight, in the order in which they were taken.
    pub(super) fn tokens(&self) -> Vec<Token> {
        self.slab.busy()
    }

    /// The heads of all requests in flight, in the order in which they were taken.
    pub(super) fn heads(&mut self) -> Vec<u16> {
        let tokens = self.slab.busy().into_iter();
        tokens
            .filter_map(|token| self.slab.get(token).map(|slot| slot.head))
            .collect()
    }

    /// Of a broken ring, to which nothing is returned any more: has the disk finish early what it has, and
    /// forgets what it was not given yet.
    #[cold]
    pub(super) fn give_up(&mut self) {
        for op in std::mem::take(&mut self.stalled) {
            self.slab.release(op.token);
        }
        self.cancel();
        self.release_held();
        self.collect();
    }

    /// Of a broken ring: collects what the disk has finished, so that a reset finds the queue at rest.
    #[cold]
    pub(super) fn collect(&mut self) {
        let started = self.flush_batch();
        let (mut done, reaped) = self.reap();
        for completion in done.drain(..) {
            if self.slab.get(completion.token).is_some() {
                self.slab.release(completion.token);
            }
        }
        self.recycle(done);
        self.slab.release_memory();
        if started.is_err() || reaped.is_err() {
            self.close();
            for token in self.slab.busy() {
                self.slab.release(token);
            }
        }
    }

    /// Whether the requests in flight need so much memory that no more are taken.
    #[cfg(test)]
    pub(super) fn is_crowded(&self) -> bool {
        self.slab.is_crowded()
    }
}
