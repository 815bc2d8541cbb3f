// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A queue of the slow path.

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use virtio_blk_core::disk::{Completion, DiskError, IoQueue, Lifetime, Op, OpKind, Submit, Wait};
use virtio_blk_core::memory::Permissions;
use virtio_blk_core::spec::feature;
use virtio_blk_driver::ring::{Chain, RingError, Used};
use virtio_blk_driver::{Memory, Segment, wire};
use vm_memory::GuestAddress;

use super::lane::Lane;
use super::limits::Limits;
use super::signal::Signal;
use super::task::{Part, Task, copy};
use super::translate::View;
use super::{Shared, Wake};
use crate::lock;

/// How often the status of a device that finishes nothing is looked at, and the device kicked again: some lose a kick.
const LOOK: Duration = Duration::from_secs(1);

/// What became of an attempt to give a task to the device.
enum Issue {
    /// The device has it.
    Issued,
    /// There is no room in the ring, or no bounce buffer: later.
    NoRoom,
}

/// One queue: a lane that is on loan, and the operations in flight.
pub(super) struct SlowQueue {
    shared: Arc<Shared>,
    signal: Arc<Signal>,
    /// There until this is dropped.
    lane: Option<Lane>,
    view: View,
    limits: Limits,
    events: bool,
    flush: bool,
    /// By cookie.
    tasks: Vec<Option<Task>>,
    free: Vec<u16>,
    /// Accepted, and not yet with the device (any more): for want of room.
    waiting: VecDeque<u16>,
    /// When the device last finished something, or got something while it had nothing.
    progress: Option<Instant>,
    looked: Option<Instant>,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    scratch: Vec<libc::iovec>,
}

// SAFETY: `scratch` only holds addresses during a copy.
unsafe impl Send for SlowQueue {}

impl SlowQueue {
    pub(super) fn new(shared: Arc<Shared>, lane: Lane, depth: u16) -> Self {
        let count = depth.max(lane.ring.layout().size());
        let limits = Limits {
            segments: lane.segments(&shared.limits),
            ..shared.limits
        };
        let room = limits.segments + 2;
        let events = shared.options.wake == Wake::Event;
        Self {
            signal: shared.signals[usize::from(lane.index)].clone(),
            view: shared.translations.view(),
            events,
            flush: shared.negotiated(feature::FLUSH),
            tasks: (0..count).map(|_| None).collect(),
            free: (0..count).rev().collect(),
            waiting: VecDeque::with_capacity(count.into()),
            progress: None,
            looked: None,
            readable: Vec::with_capacity(room),
            writable: Vec::with_capacity(room),
            scratch: Vec::with_capacity(room),
            lane: Some(lane),
            limits,
            shared,
        }
    }

    fn is_dead(&self) -> bool {
        self.shared.dead.load(Ordering::Acquire)
    }

    fn in_flight(&self) -> usize {
        self.tasks.len() - self.free.len()
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

    /// Gives the next part of task `index` to the device.
    fn issue(&mut self, index: u16) -> Result<Issue, RingError> {
        let Self {
            shared,
            lane: Some(lane),
            view,
            limits,
            flush: _,
            tasks,
            readable,
            writable,
            scratch,
            ..
        } = self
        else {
            return Ok(Issue::NoRoom);
        };
        let Some(task) = tasks.get_mut(usize::from(index)).and_then(Option::as_mut) else {
            return Ok(Issue::Issued);
        };
        let Some(slot) = lane.take_slot() else {
            return Ok(Issue::NoRoom);
        };
        let place = lane.slot(slot);
        let window = &shared.window;
        readable.clear();
        writable.clear();
        readable.push(place.header());
        let mut part = Part {
            slot,
            ..Part::default()
        };
        let mut kind = wire::T_FLUSH;
        let mut sector = 0;
        let caps = &shared.caps;
        let range = match task.op.kind {
            _ if task.flushing => None,
            OpKind::Flush => None,
            OpKind::Lifetime => {
                kind = wire::T_GET_LIFETIME;
                writable.push(place.lifetime());
                None
            }
            OpKind::Discard { .. } => {
                kind = wire::T_DISCARD;
                Some((caps.discard.map_or(u32::MAX, |l| l.max_sectors), false))
            }
            OpKind::SecureErase { .. } => {
                kind = wire::T_SECURE_ERASE;
                Some((caps.secure_erase.map_or(u32::MAX, |l| l.max_sectors), false))
            }
            OpKind::WriteZeroes { unmap, .. } => {
                kind = wire::T_WRITE_ZEROES;
                Some((caps.write_zeroes.map_or(u32::MAX, |l| l.max_sectors), unmap))
            }
            // `check` let nothing else through.
            _ => {
                let write = matches!(task.op.kind, OpKind::Write { .. });
                let (data, access) = if write {
                    kind = wire::T_OUT;
                    (&mut *readable, Permissions::Read)
                } else {
                    kind = wire::T_IN;
                    (&mut *writable, Permissions::Write)
                };
                sector = task.sector();
                part.len = task.gather(view.enter(), limits, access, data);
                if part.len == 0 {
                    view.settle();
                    data.truncate(usize::from(write));
                    let Some(bounce) = lane.take_bounce() else {
                        lane.give_slot(slot);
                        return Ok(Issue::NoRoom);
                    };
                    part.bounce = Some(bounce);
                    let at = lane.bounce(bounce);
                    part.len = bounce_part(limits, lane.bounce_len(), task.left());
                    shared.copied.fetch_add(part.len, Ordering::Relaxed);
                    cut(at, part.len, limits.segment, data);
                    if let (true, Some(to)) = (write, window.host(at, part.len as usize)) {
                        // SAFETY: `to` has so many bytes in the window, which is nobody's buffer.
                        unsafe {
                            let (done, len) = (task.done as usize, part.len as usize);
                            copy(&task.op.buf, done, len, to, true, scratch);
                        }
                    }
                } else {
                    part.generation = Some(view.commit());
                }
                None
            }
        };
        if let Some((max, unmap)) = range {
            let range = task.range(max, unmap);
            part.len = u64::from(range.num_sectors) * 512;
            window.write_at(place.range().addr, &range.to_bytes())?;
            readable.push(place.range());
        }
        writable.push(place.status());
        lane.prepare(window, place, &wire::header(kind, 0, sector))?;
        let chain = Chain {
            readable,
            writable,
            indirect: lane.indirect.then(|| place.table()),
        };
        match lane.ring.add(window, &chain, index.into()) {
            Ok(_) => {
                task.part = part;
                Ok(Issue::Issued)
            }
            Err(error) => {
                release(lane, view, &part);
                match error {
                    RingError::Full { .. } => Ok(Issue::NoRoom),
                    other => Err(other),
                }
            }
        }
    }

    /// Gives waiting tasks to the device, as far as there is room, and kicks it for everything new.
    fn push(&mut self) -> Result<(), RingError> {
        while let Some(&index) = self.waiting.front() {
            match self.issue(index)? {
                Issue::Issued => self.waiting.pop_front(),
                Issue::NoRoom => break,
            };
        }
        let Some(lane) = &mut self.lane else {
            return Ok(());
        };
        let window = &self.shared.window;
        if lane.ring.publish(window)? != 0 && lane.ring.needs_kick(window)? {
            self.shared.device.kick_vq(lane.index);
        }
        Ok(())
    }

    /// Takes back what the device is done with.
    fn collect(&mut self, done: &mut Vec<Completion>) -> Result<(), RingError> {
        loop {
            let Some(lane) = &mut self.lane else {
                return Ok(());
            };
            let Some(used) = lane.ring.poll_used(&self.shared.window)? else {
                return Ok(());
            };
            self.finish(used, done)?;
        }
    }

    /// The device is done with a part.
    fn finish(&mut self, used: Used, done: &mut Vec<Completion>) -> Result<(), RingError> {
        // The ring hands back only what `issue` gave it.
        let index = used.cookie as u16;
        let (Some(lane), Some(slot)) = (&mut self.lane, self.tasks.get_mut(usize::from(index)))
        else {
            return Ok(());
        };
        let Some(task) = slot else {
            return Ok(());
        };
        let part = task.part;
        let window = &self.shared.window;
        let place = lane.slot(part.slot);
        let result = match lane.status(window, place) {
            wire::S_OK => Ok(()),
            wire::S_UNSUPP => Err(DiskError::Unsupported),
            _ => Err(DiskError::from_errno(libc::EIO)),
        };
        if result.is_ok() {
            match (task.op.kind, part.bounce) {
                (OpKind::Read { .. }, Some(bounce)) => {
                    if let Some(from) = window.host(lane.bounce(bounce), part.len as usize) {
                        // SAFETY: `from` has so many bytes in the window, which is nobody's buffer.
                        unsafe {
                            let (at, len) = (task.done as usize, part.len as usize);
                            copy(&task.op.buf, at, len, from, false, &mut self.scratch);
                        }
                    }
                }
                (OpKind::Lifetime, _) => {
                    let mut bytes = [0; Lifetime::SIZE];
                    window.read_at(place.lifetime().addr, &mut bytes)?;
                    task.op.buf.copy_in(0, &bytes);
                }
                _ => {}
            }
        }
        release(lane, &mut self.view, &part);
        task.advance(part.len);
        let more = result.is_ok()
            && (task.left() != 0 || {
                let flush = self.flush && task.wants_flush() && !task.flushing;
                task.flushing |= flush;
                flush
            });
        if more {
            if !self.waiting.is_empty() || matches!(self.issue(index)?, Issue::NoRoom) {
                self.waiting.push_back(index);
            }
            return Ok(());
        }
        if let Some(task) = slot.take() {
            self.free.push(index);
            done.push(task.op.complete(result));
        }
        Ok(())
    }

    fn try_reap(&mut self, done: &mut Vec<Completion>) -> Result<(), RingError> {
        if self.events {
            self.signal.clear();
        }
        let before = done.len();
        loop {
            self.collect(done)?;
            self.push()?;
            let Some(lane) = &mut self.lane else { break };
            // Interrupts are asked for, then we look again: the device may not have seen that in time.
            if !self.events || !lane.ring.enable_interrupts(&self.shared.window)? {
                break;
            }
        }
        self.watch(done.len() != before);
        Ok(())
    }

    /// Notes progress; looks after a device that makes none.
    fn watch(&mut self, progress: bool) {
        if self.in_flight() == 0 {
            (self.progress, self.looked) = (None, None);
            return;
        }
        if progress || self.progress.is_none() {
            let now = Instant::now();
            (self.progress, self.looked) = (Some(now), Some(now));
        }
    }

    /// Looks whether the device is alive, where it seems not to be.
    fn look(&mut self) {
        let (Some(progress), Some(looked)) = (self.progress, self.looked) else {
            return;
        };
        let now = Instant::now();
        if now.duration_since(looked) < LOOK.min(self.patience()) {
            return;
        }
        self.looked = Some(now);
        if self.shared.looks_broken() {
            self.shared.give_up(&"its status says that it does not run");
        } else if let Some(timeout) = self.shared.options.timeout
            && now.duration_since(progress) >= timeout
        {
            self.shared
                .give_up(&format_args!("nothing was finished for {timeout:?}"));
        } else if let Some(lane) = &self.lane {
            self.shared.device.kick_vq(lane.index);
        }
    }

    fn patience(&self) -> Duration {
        self.shared.options.timeout.unwrap_or(LOOK)
    }

    /// The end of everything that is in flight on a device that was given up.
    fn fail_all(&mut self, done: &mut Vec<Completion>) {
        self.signal.clear();
        self.waiting.clear();
        for (index, slot) in (0..).zip(&mut self.tasks) {
            if let Some(task) = slot.take() {
                if let Some(generation) = task.part.generation {
                    self.view.leave(generation);
                }
                self.free.push(index);
                done.push(task.op.complete(Err(DiskError::from_errno(libc::ENODEV))));
            }
        }
        (self.progress, self.looked) = (None, None);
    }
}

/// Gives back what a part had.
fn release(lane: &mut Lane, view: &mut View, part: &Part) {
    lane.give_slot(part.slot);
    if let Some(bounce) = part.bounce {
        lane.give_bounce(bounce);
    }
    if let Some(generation) = part.generation {
        view.leave(generation);
    }
}

/// Bytes of a part that goes through a bounce buffer: whole blocks.
fn bounce_part(limits: &Limits, room: u32, left: u64) -> u64 {
    let most = u64::from(limits.segment).saturating_mul(limits.segments as u64);
    let len = left.min(most).min(room.into());
    // `limits` and `SlowOptions` see to it that a block fits.
    len - len % u64::from(limits.block)
}

/// Cuts `len` bytes at `at` into segments of at most `max`.
fn cut(mut at: u64, mut len: u64, max: u32, out: &mut Vec<Segment>) {
    while len != 0 {
        let piece = len.min(max.into());
        out.push(Segment::new(GuestAddress(at), piece as u32));
        at += piece;
        len -= piece;
    }
}

impl IoQueue for SlowQueue {
    fn submit(&mut self, op: Op) -> Submit {
        if self.is_dead() {
            return Submit::Done(op.complete(Err(DiskError::from_errno(libc::ENODEV))));
        }
        if let Err(error) = self.check(&op) {
            return Submit::Done(op.complete(Err(error)));
        }
        let task = Task::new(op);
        if task.total == 0 && !matches!(task.op.kind, OpKind::Flush | OpKind::Lifetime) {
            return Submit::Done(task.op.complete(Ok(())));
        }
        if matches!(task.op.kind, OpKind::Flush) && !self.flush {
            // Nothing is cached, or the device makes each write stable by itself.
            return Submit::Done(task.op.complete(Ok(())));
        }
        let Some(index) = self.free.pop() else {
            return Submit::Full(task.op);
        };
        self.tasks[usize::from(index)] = Some(task);
        let issued = if self.waiting.is_empty() {
            self.issue(index)
        } else {
            Ok(Issue::NoRoom)
        };
        match issued {
            Ok(Issue::Issued) => {}
            Ok(Issue::NoRoom) => self.waiting.push_back(index),
            Err(error) => {
                self.waiting.push_back(index);
                self.shared.give_up(&error);
            }
        }
        Submit::Queued
    }

    fn flush_batch(&mut self) -> Result<(), DiskError> {
        if self.is_dead() {
            return Ok(());
        }
        if let Err(error) = self.push() {
            self.shared.give_up(&error);
        }
        self.watch(false);
        Ok(())
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        let before = done.len();
        if !self.is_dead() {
            if let Err(error) = self.try_reap(done) {
                self.shared.give_up(&error);
            } else if done.len() == before {
                self.look();
            }
        }
        if self.is_dead() {
            self.fail_all(done);
        }
        Ok(done.len() - before)
    }

    fn wait(&self) -> Wait<'_> {
        if self.events {
            Wait::Fd(self.signal.as_fd())
        } else {
            Wait::Poll
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.looked.map(|looked| looked + LOOK.min(self.patience()))
    }
}

impl Drop for SlowQueue {
    fn drop(&mut self) {
        let mut done = Vec::new();
        while self.in_flight() != 0 {
            if self.flush_batch().is_ok() && self.reap(&mut done).is_ok_and(|count| count != 0) {
                done.clear();
                continue;
            }
            if self.events {
                let mut fd = libc::pollfd {
                    fd: self.signal.as_fd().as_raw_fd(),
                    events: libc::POLLIN,
                    revents: 0,
                };
                // SAFETY: one valid entry. The end of the time is for the look at the device's health.
                unsafe { libc::poll(&mut fd, 1, 100) };
            } else {
                std::thread::yield_now();
            }
        }
        if let Some(lane) = self.lane.take() {
            lock(&self.shared.lanes).push(lane);
        }
    }
}
