// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A queue of the slow path.

mod health;
mod issue;
mod taken;

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use virtio_blk_core::disk::{
    Completion, DiskError, Execute, IoBuf, IoQueue, Lifetime, Op, OpKind, SECTOR_SIZE, Submit,
    Token, Wait,
};
use virtio_blk_core::spec::feature;
use virtio_blk_driver::ring::{RingError, Used};
use virtio_blk_driver::{Memory, Segment, wire};

use super::completion_event::CompletionEvent;
use super::iova_window::IovaWindow;
use super::limits::Limits;
use super::pending::{PendingOp, SubRequest, copy};
use super::shadow_queue::ShadowQueue;
use super::translate::TranslationReader;
use super::{CompletionMode, Shared};
use crate::lock;
use health::Health;
use issue::Issue;
use taken::TakenRequests;

/// A shadow queue that this has to itself, and the operations in flight.
pub(super) struct SlowQueue {
    shared: Arc<Shared>,
    window: IovaWindow,
    event: Arc<CompletionEvent>,
    /// There until this is dropped.
    shadow: Option<ShadowQueue>,
    view: TranslationReader,
    limits: Limits,
    events: bool,
    flush: bool,
    read_only: bool,
    /// Bytes of the longest segment that can be taken.
    longest: u64,
    /// What the device has without an operation.
    taken: TakenRequests,
    /// By cookie.
    pending: Vec<Option<PendingOp>>,
    free: Vec<u16>,
    /// Ended outside `reap`, which returns them.
    ended: Vec<Completion>,
    /// Nothing more is given to the device.
    closing: bool,
    /// Accepted, and not yet with the device (any more): for want of room.
    waiting: VecDeque<u16>,
    /// Something was submitted or taken since the last [`IoQueue::reap`].
    submitted: bool,
    health: Health,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    scratch: Vec<libc::iovec>,
}

// SAFETY: `scratch` only holds addresses during a copy.
unsafe impl Send for SlowQueue {}

impl SlowQueue {
    pub(super) fn new(shared: Arc<Shared>, shadow: ShadowQueue, depth: u16) -> Self {
        let count = depth.max(shadow.ring.layout().size());
        let limits = Limits {
            segments: shadow.segments(&shared.limits),
            ..shared.limits
        };
        let room = limits.segments + 2;
        let events = shared.options.completion_mode == CompletionMode::Event;
        Self {
            event: shared.completion_events[usize::from(shadow.index)].clone(),
            view: shared.translations.view(),
            window: shared.window.clone(),
            events,
            flush: shared.negotiated(feature::FLUSH),
            read_only: shared.caps.read_only,
            longest: taken::longest(limits.segment),
            taken: TakenRequests::new(shadow.ring.layout().size()),
            pending: (0..count).map(|_| None).collect(),
            free: (0..count).rev().collect(),
            ended: Vec::new(),
            closing: false,
            waiting: VecDeque::with_capacity(count.into()),
            submitted: false,
            health: Health::new(),
            readable: Vec::with_capacity(room),
            writable: Vec::with_capacity(room),
            scratch: Vec::with_capacity(room),
            shadow: Some(shadow),
            limits,
            shared,
        }
    }

    #[inline]
    fn is_failed(&self) -> bool {
        self.shared.failed.load(Ordering::Acquire)
    }

    #[inline]
    fn in_flight(&self) -> usize {
        self.pending.len() - self.free.len() + self.taken.len()
    }

    /// Bytes of the device.
    #[inline]
    fn capacity(&self) -> u64 {
        self.shared.capacity.load(Ordering::Relaxed) * SECTOR_SIZE
    }

    /// Whether [`IoQueue::reap`] need not look at the ring: the device has nothing, or has had no time for what it was
    /// just given. Interrupts are asked for: the event tells when there is something, or the owner polls.
    #[inline]
    fn is_quiet(&self, submitted: bool) -> bool {
        self.ended.is_empty()
            && (self.in_flight() == 0 || submitted && self.waiting.is_empty())
            && (!self.events || self.event.is_clear())
            // Without an event nothing else tells of a device that was given up.
            && !self.is_failed()
    }

    /// The checks every disk makes, and whether the device was told of this kind of operation.
    fn check(&self, op: &Op) -> Result<(), DiskError> {
        let caps = &self.shared.caps;
        if caps.read_only && op.kind.is_write() {
            return Err(DiskError::ReadOnly);
        }
        let bit = match op.kind {
            OpKind::Discard { .. } => feature::DISCARD,
            OpKind::WriteZeroes { .. } => feature::WRITE_ZEROES,
            OpKind::SecureErase { .. } => feature::SECURE_ERASE,
            OpKind::Lifetime => feature::LIFETIME,
            _ => 0,
        };
        if bit != 0 && !self.shared.negotiated(bit) {
            return Err(DiskError::Unsupported);
        }
        if let Some((offset, len)) = op.kind.range(op.buf.len() as u64) {
            let capacity = self.capacity();
            if offset > capacity || len > capacity - offset {
                return Err(DiskError::OutOfRange);
            }
            if (offset | len) & (u64::from(self.limits.block) - 1) != 0 {
                return Err(DiskError::Misaligned);
            }
        }
        Ok(())
    }

    /// Gives waiting operations to the device, as far as there is room, and kicks it for everything new.
    #[inline(always)]
    fn push(&mut self) -> Result<(), RingError> {
        if !self.waiting.is_empty() {
            self.issue_waiting()?;
        }
        let window = &self.window;
        if let Some(shadow) = &mut self.shadow
            && !shadow.ring.is_published()
        {
            shadow.ring.publish(window)?;
            if shadow.ring.needs_kick(window)? {
                self.shared.device.kick_vq(shadow.index);
            }
        }
        Ok(())
    }

    #[cold]
    fn issue_waiting(&mut self) -> Result<(), RingError> {
        while let Some(&index) = self.waiting.front() {
            match self.issue(index)? {
                Issue::Issued => {}
                Issue::NoRoom => break,
                Issue::Refused(error) => self.end(index, Err(error)),
            }
            self.waiting.pop_front();
        }
        Ok(())
    }

    /// Ends operation `index`, of which the device has nothing, outside [`IoQueue::reap`].
    #[cold]
    fn end(&mut self, index: u16, result: Result<(), DiskError>) {
        let slot = self.pending.get_mut(usize::from(index));
        if let Some(entry) = slot.and_then(Option::take) {
            self.free.push(index);
            self.ended.push(entry.op.complete(result));
            // The owner may be asleep.
            self.event.signal();
        }
    }

    /// Takes back what the device is done with, as far as one look at its index tells.
    #[inline]
    fn collect(&mut self, done: &mut Vec<Completion>) -> Result<(), RingError> {
        loop {
            let Some(shadow) = &mut self.shadow else {
                return Ok(());
            };
            let window = &self.window;
            let Some(used) = shadow.ring.poll_used(window)? else {
                return Ok(());
            };
            let more = shadow.ring.has_seen_more();
            if let Some(taken) = self.taken.remove(used.head) {
                let status = shadow.status(window, shadow.slot(used.head));
                self.view.release(taken.generation);
                done.push(taken.complete(result_of(status)));
            } else {
                self.finish(used, done)?;
            }
            if !more {
                return Ok(());
            }
        }
    }

    /// The device is done with a sub-request.
    fn finish(&mut self, used: Used, done: &mut Vec<Completion>) -> Result<(), RingError> {
        // The ring returns only what `issue` gave it.
        let index = used.cookie as u16;
        let (Some(shadow), Some(slot)) =
            (&mut self.shadow, self.pending.get_mut(usize::from(index)))
        else {
            return Ok(());
        };
        let Some(entry) = slot else {
            return Ok(());
        };
        // Of an operation that has more to do, nothing else tells that the device works.
        self.health.note_progress();
        // What it held is released below, once: the operation may have to wait before it has another.
        let sub_request = std::mem::take(&mut entry.sub_request);
        let window = &self.shared.window;
        let place = shadow.slot(sub_request.head);
        let result = result_of(shadow.status(window, place));
        if result.is_ok() {
            match (entry.op.kind, sub_request.bounce) {
                (OpKind::Read { .. }, Some(bounce)) => {
                    if let Some(from) = window.host(shadow.bounce(bounce), sub_request.len as usize)
                    {
                        // SAFETY: `from` has so many bytes in the window, which is nobody's buffer.
                        unsafe {
                            let (at, len) = (entry.done as usize, sub_request.len as usize);
                            copy(&entry.op.buf, at, len, from, false, &mut self.scratch);
                        }
                    }
                }
                (OpKind::Lifetime, _) => {
                    let mut bytes = [0; Lifetime::SIZE];
                    window.read_at(place.lifetime().addr, &mut bytes)?;
                    entry.op.buf.copy_in(0, &bytes);
                }
                _ => {}
            }
        }
        release(shadow, &mut self.view, &sub_request);
        entry.advance(sub_request.len);
        let more = result.is_ok()
            && !self.closing
            && (entry.left() != 0 || {
                let flush = self.flush && entry.wants_flush() && !entry.flushing;
                entry.flushing |= flush;
                flush
            });
        let (more, result) = if more && entry.cancelled {
            (false, Err(DiskError::Cancelled))
        } else {
            (more, result)
        };
        if more {
            if !self.waiting.is_empty() {
                self.waiting.push_back(index);
                return Ok(());
            }
            match self.issue(index)? {
                Issue::Issued => {}
                Issue::NoRoom => self.waiting.push_back(index),
                Issue::Refused(error) => self.end(index, Err(error)),
            }
            return Ok(());
        }
        if let Some(entry) = slot.take() {
            self.free.push(index);
            done.push(entry.op.complete(result));
        }
        Ok(())
    }

    #[inline]
    fn try_reap(&mut self, done: &mut Vec<Completion>) -> Result<(), RingError> {
        if self.events {
            self.event.clear();
        }
        loop {
            self.collect(done)?;
            self.push()?;
            let Some(shadow) = &mut self.shadow else {
                break;
            };
            // Interrupts are asked for, then we look again: the device may not have seen that in time.
            if !self.events || !shadow.ring.enable_interrupts(&self.window)? {
                break;
            }
        }
        Ok(())
    }

    /// [`IoQueue::reap`] where there may be something.
    #[inline(never)]
    fn reap_some(&mut self, done: &mut Vec<Completion>) -> usize {
        let before = done.len();
        if !self.is_failed() {
            match self.try_reap(done) {
                Err(error) => self.shared.give_up(&error),
                Ok(()) if done.len() != before => self.health.note_progress(),
                Ok(()) => self.check_health(),
            }
        }
        // Not the device's work: one that does nothing else is looked at above.
        if !self.ended.is_empty() {
            done.append(&mut self.ended);
        }
        if self.is_failed() {
            self.fail_all(done);
        }
        done.len() - before
    }

    /// The end of everything that is in flight on a device that was given up.
    fn fail_all(&mut self, done: &mut Vec<Completion>) {
        self.event.clear();
        self.waiting.clear();
        let gone = || DiskError::from_errno(libc::ENODEV);
        for taken in self.taken.drain() {
            self.view.release(taken.generation);
            done.push(taken.complete(Err(gone())));
        }
        for (index, slot) in (0..).zip(&mut self.pending) {
            if let Some(entry) = slot.take() {
                self.free.push(index);
                if let Some(generation) = entry.sub_request.generation {
                    self.view.release(generation);
                }
                done.push(entry.op.complete(Err(gone())));
            }
        }
        self.health.note_progress();
    }
}

/// What a status byte says.
#[inline]
fn result_of(status: u8) -> Result<(), DiskError> {
    if status == wire::S_OK {
        return Ok(());
    }
    Err(error_of(status))
}

#[cold]
fn error_of(status: u8) -> DiskError {
    match status {
        wire::S_UNSUPP => DiskError::Unsupported,
        _ => DiskError::from_errno(libc::EIO),
    }
}

/// Releases what a sub-request held.
fn release(shadow: &mut ShadowQueue, view: &mut TranslationReader, sub_request: &SubRequest) {
    if let Some(bounce) = sub_request.bounce {
        shadow.give_bounce(bounce);
    }
    if let Some(generation) = sub_request.generation {
        view.release(generation);
    }
}

impl IoQueue for SlowQueue {
    fn submit(&mut self, op: Op) -> Submit {
        if self.is_failed() {
            return Submit::Done(op.complete(Err(DiskError::from_errno(libc::ENODEV))));
        }
        if let Err(error) = self.check(&op) {
            return Submit::Done(op.complete(Err(error)));
        }
        let entry = PendingOp::new(op);
        if entry.total == 0 && !matches!(entry.op.kind, OpKind::Flush | OpKind::Lifetime) {
            return Submit::Done(entry.op.complete(Ok(())));
        }
        if matches!(entry.op.kind, OpKind::Flush) && !self.flush {
            // Nothing is cached, or the device makes each write stable by itself.
            return Submit::Done(entry.op.complete(Ok(())));
        }
        let Some(index) = self.free.pop() else {
            return Submit::Full(entry.op);
        };
        self.pending[usize::from(index)] = Some(entry);
        self.submitted = true;
        let issued = if self.waiting.is_empty() {
            self.issue(index)
        } else {
            Ok(Issue::NoRoom)
        };
        match issued {
            Ok(Issue::Issued) => {}
            Ok(Issue::NoRoom) => self.waiting.push_back(index),
            Ok(Issue::Refused(error)) => self.end(index, Err(error)),
            Err(error) => {
                self.waiting.push_back(index);
                self.shared.give_up(&error);
            }
        }
        Submit::Queued
    }

    #[inline]
    fn execute(&mut self, kind: &OpKind, buf: &IoBuf, token: Option<Token>) -> Execute {
        match token.and_then(|token| self.take(kind, buf, token)) {
            Some(()) => Execute::Taken,
            None => Execute::Declined,
        }
    }

    fn flush_batch(&mut self) -> Result<(), DiskError> {
        if self.is_failed() {
            return Ok(());
        }
        if let Err(error) = self.push() {
            self.shared.give_up(&error);
        }
        Ok(())
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        let submitted = std::mem::take(&mut self.submitted);
        if self.is_quiet(submitted) {
            return Ok(0);
        }
        Ok(self.reap_some(done))
    }

    fn wait(&self) -> Wait<'_> {
        if self.events {
            Wait::Fd(self.event.as_fd())
        } else {
            Wait::Poll
        }
    }

    /// What the device has can't be called back: such an operation completes when that ends, and what is left of it is
    /// not given to the device any more.
    fn cancel(&mut self, token: Token) {
        let cancelled = |slot: &Option<PendingOp>| {
            let found = slot.as_ref().map(|entry| entry.op.token);
            found == Some(token)
        };
        let Some(at) = self.pending.iter().position(cancelled) else {
            return;
        };
        if let Some(waiting) = self
            .waiting
            .iter()
            .position(|index| usize::from(*index) == at)
        {
            self.waiting.remove(waiting);
            self.end(at as u16, Err(DiskError::Cancelled));
        } else if let Some(Some(entry)) = self.pending.get_mut(at) {
            entry.cancelled = true;
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.next_check()
    }
}

impl Drop for SlowQueue {
    fn drop(&mut self) {
        // Nothing new: the memory of what waits may not be its owner's any more.
        self.closing = true;
        for index in std::mem::take(&mut self.waiting) {
            self.end(index, Err(DiskError::Cancelled));
        }
        let mut done = Vec::new();
        while self.in_flight() != 0 {
            if self.flush_batch().is_ok() && self.reap(&mut done).is_ok_and(|count| count != 0) {
                done.clear();
                continue;
            }
            if self.events {
                let mut fd = libc::pollfd {
                    fd: self.event.as_fd().as_raw_fd(),
                    events: libc::POLLIN,
                    revents: 0,
                };
                // SAFETY: one valid entry. The end of the time is for the look at the device's health.
                unsafe { libc::poll(&mut fd, 1, 100) };
            } else {
                std::thread::yield_now();
            }
        }
        if let Some(shadow) = self.shadow.take() {
            lock(&self.shared.shadow_queues).push(shadow);
        }
    }
}
