// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A queue of the slow path.

mod issue;

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use virtio_blk_core::disk::{
    Completion, DiskError, IoQueue, Lifetime, Op, OpKind, Submit, Token, Wait,
};
use virtio_blk_core::spec::feature;
use virtio_blk_driver::ring::{RingError, Used};
use virtio_blk_driver::{Memory, Segment, wire};

use super::completion_event::CompletionEvent;
use super::limits::Limits;
use super::pending::{PendingOp, SubRequest, copy};
use super::shadow_queue::ShadowQueue;
use super::translate::TranslationReader;
use super::{CompletionMode, Shared};
use crate::lock;
use issue::Issue;

/// How often the status of a device that finishes nothing is checked, and the device kicked again: some lose a kick.
const HEALTH_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A shadow queue that this has to itself, and the operations in flight.
pub(super) struct SlowQueue {
    shared: Arc<Shared>,
    event: Arc<CompletionEvent>,
    /// There until this is dropped.
    shadow: Option<ShadowQueue>,
    view: TranslationReader,
    limits: Limits,
    events: bool,
    flush: bool,
    /// By cookie.
    pending: Vec<Option<PendingOp>>,
    free: Vec<u16>,
    /// Ended outside `reap`, which returns them.
    ended: Vec<Completion>,
    /// Nothing more is given to the device.
    closing: bool,
    /// Accepted, and not yet with the device (any more): for want of room.
    waiting: VecDeque<u16>,
    /// When the device last finished something, or got something while it had nothing.
    progress: Option<Instant>,
    checked: Option<Instant>,
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
            events,
            flush: shared.negotiated(feature::FLUSH),
            pending: (0..count).map(|_| None).collect(),
            free: (0..count).rev().collect(),
            ended: Vec::new(),
            closing: false,
            waiting: VecDeque::with_capacity(count.into()),
            progress: None,
            checked: None,
            readable: Vec::with_capacity(room),
            writable: Vec::with_capacity(room),
            scratch: Vec::with_capacity(room),
            shadow: Some(shadow),
            limits,
            shared,
        }
    }

    fn is_failed(&self) -> bool {
        self.shared.failed.load(Ordering::Acquire)
    }

    fn in_flight(&self) -> usize {
        self.pending.len() - self.free.len()
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
            let capacity = self.shared.capacity.load(Ordering::Relaxed) * 512;
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
    fn push(&mut self) -> Result<(), RingError> {
        while let Some(&index) = self.waiting.front() {
            match self.issue(index)? {
                Issue::Issued => {}
                Issue::NoRoom => break,
                Issue::Refused(error) => self.end(index, Err(error)),
            }
            self.waiting.pop_front();
        }
        let Some(shadow) = &mut self.shadow else {
            return Ok(());
        };
        let window = &self.shared.window;
        if shadow.ring.publish(window)? != 0 && shadow.ring.needs_kick(window)? {
            self.shared.device.kick_vq(shadow.index);
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

    /// Takes back what the device is done with.
    fn collect(&mut self, done: &mut Vec<Completion>) -> Result<(), RingError> {
        loop {
            let Some(shadow) = &mut self.shadow else {
                return Ok(());
            };
            let Some(used) = shadow.ring.poll_used(&self.shared.window)? else {
                return Ok(());
            };
            self.finish(used, done)?;
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
        let sub_request = entry.sub_request;
        let window = &self.shared.window;
        let place = shadow.slot(sub_request.slot);
        let result = match shadow.status(window, place) {
            wire::S_OK => Ok(()),
            wire::S_UNSUPP => Err(DiskError::Unsupported),
            _ => Err(DiskError::from_errno(libc::EIO)),
        };
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

    fn try_reap(&mut self, done: &mut Vec<Completion>) -> Result<(), RingError> {
        if self.events {
            self.event.clear();
        }
        let before = done.len();
        loop {
            done.append(&mut self.ended);
            self.collect(done)?;
            self.push()?;
            let Some(shadow) = &mut self.shadow else {
                break;
            };
            // Interrupts are asked for, then we look again: the device may not have seen that in time.
            if !self.events || !shadow.ring.enable_interrupts(&self.shared.window)? {
                break;
            }
        }
        done.append(&mut self.ended);
        self.note_progress(done.len() != before);
        Ok(())
    }

    /// Notes progress; looks after a device that makes none.
    fn note_progress(&mut self, progress: bool) {
        if self.in_flight() == 0 {
            (self.progress, self.checked) = (None, None);
            return;
        }
        if progress || self.progress.is_none() {
            let now = Instant::now();
            (self.progress, self.checked) = (Some(now), Some(now));
        }
    }

    /// Looks whether the device is alive, where it seems not to be.
    fn check_health(&mut self) {
        let (Some(progress), Some(checked)) = (self.progress, self.checked) else {
            return;
        };
        let now = Instant::now();
        if now.duration_since(checked) < HEALTH_CHECK_INTERVAL.min(self.patience()) {
            return;
        }
        self.checked = Some(now);
        if self.shared.looks_broken() {
            self.shared.give_up(&"its status says that it does not run");
        } else if let Some(timeout) = self.shared.options.timeout
            && now.duration_since(progress) >= timeout
        {
            self.shared
                .give_up(&format_args!("nothing was finished for {timeout:?}"));
        } else if let Some(shadow) = &self.shadow {
            self.shared.device.kick_vq(shadow.index);
        }
    }

    fn patience(&self) -> Duration {
        self.shared.options.timeout.unwrap_or(HEALTH_CHECK_INTERVAL)
    }

    /// The end of everything that is in flight on a device that was given up.
    fn fail_all(&mut self, done: &mut Vec<Completion>) {
        self.event.clear();
        self.waiting.clear();
        done.append(&mut self.ended);
        for (index, slot) in (0..).zip(&mut self.pending) {
            if let Some(entry) = slot.take() {
                if let Some(generation) = entry.sub_request.generation {
                    self.view.release(generation);
                }
                self.free.push(index);
                done.push(entry.op.complete(Err(DiskError::from_errno(libc::ENODEV))));
            }
        }
        (self.progress, self.checked) = (None, None);
    }
}

/// Releases what a sub-request held.
fn release(shadow: &mut ShadowQueue, view: &mut TranslationReader, sub_request: &SubRequest) {
    shadow.give_slot(sub_request.slot);
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

    fn flush_batch(&mut self) -> Result<(), DiskError> {
        if self.is_failed() {
            return Ok(());
        }
        if let Err(error) = self.push() {
            self.shared.give_up(&error);
        }
        self.note_progress(false);
        Ok(())
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        let before = done.len();
        if !self.is_failed() {
            if let Err(error) = self.try_reap(done) {
                self.shared.give_up(&error);
            } else if done.len() == before {
                self.check_health();
            }
        }
        if self.is_failed() {
            self.fail_all(done);
        }
        Ok(done.len() - before)
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
        self.checked
            .map(|checked| checked + HEALTH_CHECK_INTERVAL.min(self.patience()))
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
