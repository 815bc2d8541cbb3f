// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is in flight: the requests that the disk works on, or has no room for yet, and the way to the disk.

use std::time::{Duration, Instant};

use super::slot::{RequestKind, Slot, StatusByte, index};
use crate::disk::{
    Completion, DiskError, Execute, IoBuf, IoQueue, Op, OpKind, Submit, Token, Wait,
};
use crate::memory::{DeviceMemory, GuestMap};
use crate::ring::Segment;

/// What a disk finished inside the call is shown at the latest after this time.
const PUBLISH_AFTER: Duration = Duration::from_micros(100);

/// A request with more segments of data than this is long. Drivers make up to about 1,000.
const LONG: usize = 1024;

/// Long requests in flight together have at most about this many segments: while there are as many, no request
/// is taken. A chain may have 32,768 segments, in a table that many chains share, so that a driver could make
/// this side keep half a megabyte for each descriptor of its ring.
const MAX_LONG_SEGMENTS: usize = 64 * 1024;

/// What became of an operation that was given to [`Outstanding::submit`].
pub(super) enum Submitted {
    /// The disk finished it inside the call.
    Done(Completion),
    /// The disk works on it.
    Queued,
    /// It waits for room, or for the next pass.
    Stalled,
}

/// Requests in flight, each with one operation that the disk has or that waits.
pub(super) struct Outstanding {
    pub(super) io: Box<dyn IoQueue>,
    slab: Slab,
    /// Operations that the disk had no room for, or the pass no work left, in reverse order of submission.
    pub(super) stalled: Vec<Op>,
    pace: Pace,
    /// The disk finishes everything inside `submit`: there is nothing to reap.
    inline: bool,
    /// Operations were submitted since the last `flush_batch`.
    pub(super) unflushed: bool,
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
    pub(super) fn submitted(&self) -> usize {
        self.slab.len() - self.stalled.len()
    }

    /// Whether a completion may come out of the disk's queue.
    #[inline]
    pub(super) fn may_complete(&self) -> bool {
        !self.inline || self.submitted() != 0
    }

    /// Whether there is anything in flight, or a disk that wants to be asked. Also with nothing in flight: a
    /// disk may signal what was collected before, and does so until it is asked.
    #[inline]
    pub(super) fn is_active(&self) -> bool {
        !self.inline || self.slab.len() != 0
    }

    /// Whether only collecting tells if the disk is done with what it has.
    pub(super) fn must_be_polled(&self) -> bool {
        !self.inline && self.submitted() != 0
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

    /// Reserves a slot for a request, with the segments and the bytes that are writable without the status. `None` if there are more in flight than the queue has
    /// descriptors, which the ring rules out.
    #[inline(always)]
    pub(super) fn reserve<M: DeviceMemory>(
        &mut self,
        map: &GuestMap<M>,
        head: u16,
        writable: (&[Segment], u32),
        status: StatusByte,
        kind: RequestKind,
    ) -> Option<(Token, &mut Slot)> {
        let (token, slot) = self.slab.reserve()?;
        slot.head = head;
        slot.kind = kind;
        slot.status = status;
        slot.writable_len = writable.1;
        slot.hold(map);
        if map.tracks_dirty() {
            slot.dirty.clear();
            slot.dirty.extend_from_slice(writable.0);
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
        !self.stalled.is_empty() && (self.pace.take_held() || self.submitted() == 0)
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

    /// Collects what the disk has finished. The list goes back with [`Outstanding::recycle`]. `None`: there is nothing, and
    /// nothing that [`Outstanding::flush_batch`] would start.
    #[inline]
    pub(super) fn reap(&mut self) -> Option<(Vec<Completion>, Result<(), DiskError>)> {
        let result = self.io.reap(&mut self.done);
        if result.is_ok() && self.done.is_empty() && !self.unflushed {
            return None;
        }
        Some((std::mem::take(&mut self.done), result.map(drop)))
    }

    /// Takes a list of completions back, for the next call.
    pub(super) fn recycle(&mut self, done: Vec<Completion>) {
        self.done = done;
    }

    /// The tokens of all requests in flight, in the order in which they were taken.
    pub(super) fn tokens(&self) -> Vec<Token> {
        self.slab.busy()
    }

    /// Lets go of memory that ended requests keep mapped.
    pub(super) fn release_memory(&mut self) {
        self.slab.release_memory();
    }

    /// Has the disk let go of what it holds back.
    pub(super) fn release_held(&mut self) {
        self.io.release_held();
    }

    /// Whether the requests in flight need so much memory that no more are taken.
    #[cfg(test)]
    pub(super) fn is_crowded(&self) -> bool {
        self.slab.is_crowded()
    }
}

/// Slots, with a list of the free ones. As many as the queue has descriptors: a queue can't have more
/// chains in flight than that.
struct Slab {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// The token of the next request, while a slot is free.
    next: Token,
    sequence: u64,
    /// Sum of all [`Slot::long`].
    long: usize,
}

impl Slab {
    fn new(size: u16) -> Self {
        let mut slab = Self {
            slots: (0..size).map(|_| Slot::new()).collect(),
            free: (0..u32::from(size)).rev().collect(),
            next: Token(0),
            sequence: 0,
            long: 0,
        };
        slab.find_next();
        slab
    }

    /// The token that [`Slab::reserve`] gives out next, while a slot is free: one is for each chain that was taken.
    #[inline(always)]
    const fn next(&self) -> Token {
        self.next
    }

    /// Makes `next` fit the list of free slots.
    fn find_next(&mut self) {
        if let Some(&index) = self.free.last()
            && let Some(slot) = self.slots.get(index as usize)
        {
            self.next = slot.next_token(index);
        }
    }

    /// Notes that the request of `slot` has `segments` segments of data.
    #[inline(always)]
    fn note_segments(&mut self, token: Token, segments: usize) {
        if segments > LONG {
            self.note_long(token, segments);
        }
    }

    #[cold]
    fn note_long(&mut self, token: Token, segments: usize) {
        if let Some(slot) = self.get(token) {
            slot.long = segments;
            self.long += segments;
        }
    }

    /// Whether requests in flight have so many segments that no more requests are to be taken.
    #[inline(always)]
    fn is_crowded(&self) -> bool {
        self.long >= MAX_LONG_SEGMENTS
    }

    /// Frees the lists of a request with many segments.
    #[cold]
    fn release_long(&mut self, index: usize) {
        if let Some(slot) = self.slots.get_mut(index) {
            self.long -= std::mem::take(&mut slot.long);
            slot.release_memory();
            slot.dirty = Vec::new();
        }
    }

    /// Reserves a slot. `None` only if more chains are in flight than the queue holds, which the ring
    /// rules out.
    #[inline(always)]
    fn reserve(&mut self) -> Option<(Token, &mut Slot)> {
        self.free.pop()?;
        let token = self.next;
        self.find_next();
        let slot = self.slots.get_mut(index(token))?;
        slot.busy = true;
        slot.generation = (token.0 >> 32) as u32;
        slot.sequence = self.sequence;
        self.sequence += 1;
        Some((token, slot))
    }

    /// The busy slot of a token; `None` for a token that was never given out or is done.
    #[inline(always)]
    fn get(&mut self, token: Token) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(index(token))?;
        (slot.busy && u64::from(slot.generation) == token.0 >> 32).then_some(slot)
    }

    /// Frees a busy slot.
    #[inline(always)]
    fn release(&mut self, token: Token) {
        if let Some(slot) = self.slots.get_mut(index(token)) {
            slot.busy = false;
            self.next = slot.next_token(index(token) as u32);
            self.free.push(index(token) as u32);
            if slot.long != 0 {
                self.release_long(index(token));
            }
        }
    }

    /// How many slots are busy.
    #[inline]
    fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The tokens of all busy slots, in the order in which they were taken.
    fn busy(&self) -> Vec<Token> {
        let mut busy: Vec<(u64, Token)> = self
            .slots
            .iter()
            .zip(0u64..)
            .filter(|(slot, _)| slot.busy)
            .map(|(slot, index)| {
                (
                    slot.sequence,
                    Token(u64::from(slot.generation) << 32 | index),
                )
            })
            .collect();
        busy.sort_unstable_by_key(|(sequence, _)| *sequence);
        busy.into_iter().map(|(_, token)| token).collect()
    }

    /// Lets go of memory that idle slots keep mapped.
    fn release_memory(&mut self) {
        for slot in self.slots.iter_mut().filter(|s| !s.busy) {
            slot.release_memory();
        }
    }
}

/// The state of a pass. Only looked at for ranges, and for operations that took the long way.
#[derive(Debug, Default)]
struct Pace {
    /// What may still be done for ranges.
    left: usize,
    /// Something waits for the next pass.
    held: bool,
    /// When something was last shown in this pass, as far as that was looked at.
    shown: Option<Instant>,
}

impl Pace {
    /// A new pass.
    #[inline(always)]
    fn begin(&mut self, budget: usize) {
        self.left = budget;
        self.shown = None;
    }

    /// Whether an operation on `len` bytes of the medium may be begun in this pass; then it counts. At least
    /// one may.
    fn spend(&mut self, len: u64) -> bool {
        if self.left == 0 {
            self.held = true;
            return false;
        }
        let weight = 1 + usize::try_from(len >> 16).unwrap_or(usize::MAX - 1);
        self.left = self.left.saturating_sub(weight);
        true
    }

    /// Whether something waits for the next pass alone.
    const fn is_held(&self) -> bool {
        self.held
    }

    /// As `is_held`; it waits no longer.
    fn take_held(&mut self) -> bool {
        std::mem::take(&mut self.held)
    }

    /// Whether what was finished is due, after an operation that may have taken long.
    fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let due = match self.shown {
            // How long the first took is not known.
            None => true,
            Some(at) => now.saturating_duration_since(at) >= PUBLISH_AFTER,
        };
        if due {
            self.shown = Some(now);
        }
        due
    }
}
