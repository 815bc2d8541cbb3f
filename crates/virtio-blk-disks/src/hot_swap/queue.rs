// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One data path that moves from disk to disk.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{EventfdFlags, epoll, eventfd};
use virtio_blk_core::disk::{
    Completion, DiskError, Execute, IoBuf, IoQueue, Op, OpKind, Submit, Token, Wait,
};

use super::{QueueSlot, Shared, signal};
use crate::in_flight::InFlight;

/// An operation that is with the disk in force.
struct Below {
    kind: OpKind,
    /// Its place in the order of submission.
    place: u64,
    /// The owner asked for it to end.
    cancelled: bool,
    /// We did, to move.
    for_move: bool,
}

/// What becomes of operations that are submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// They go to the disk.
    Through,
    /// What is in flight ends before the queue moves; or all of it has ended, and the queue holds still.
    Draining,
    /// They go to the disk, whatever is asked for: the owner is about to stop.
    Released,
}

/// A data path of a [`super::SwitchDisk`].
pub(super) struct SwitchQueue {
    shared: Arc<Shared>,
    id: u64,
    version: u64,
    depth: u16,
    inner: Box<dyn IoQueue>,
    below: InFlight<Below>,
    pace: Pace,
    /// Nothing is in flight, and the queue holds still until then.
    held: Option<Instant>,
    /// Operations submitted so far.
    places: u64,
    /// Cancelled for the move, or submitted while the queue holds still, to be given to the next disk: in the order of
    /// submission, with their places in it.
    again: VecDeque<(u64, Op)>,
    /// Ended here, or inside the `submit` of another operation.
    done: Vec<Completion>,
    scratch: Vec<Completion>,
    /// Readable while `notifier` is signalled or the disk underneath has something.
    ready: OwnedFd,
    /// Rung by the disk for a change, by ourselves for `done`, and all the time for a disk that has to be
    /// asked.
    notifier: OwnedFd,
}

/// Makes the descriptor of a disk's queue part of `ready`.
fn watch(ready: &OwnedFd, inner: &dyn IoQueue) -> Result<(), DiskError> {
    if let Wait::Fd(fd) = inner.wait() {
        let data = epoll::EventData::new_u64(0);
        epoll::add(ready, fd, data, epoll::EventFlags::IN).map_err(io::Error::from)?;
    }
    Ok(())
}

impl SwitchQueue {
    pub(super) fn open(shared: Arc<Shared>, depth: u16) -> Result<Self, DiskError> {
        let notifier =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(io::Error::from)?;
        let ready = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(io::Error::from)?;
        let data = epoll::EventData::new_u64(0);
        epoll::add(&ready, &notifier, data, epoll::EventFlags::IN).map_err(io::Error::from)?;
        let (disk, version) = shared.current();
        let inner = disk.open_queue(depth)?;
        watch(&ready, &*inner)?;
        let mut state = shared.state();
        let id = state.next;
        state.next += 1;
        state.queues.push(QueueSlot {
            id,
            version,
            notifier: notifier.try_clone()?,
        });
        drop(state);
        let mut this = Self {
            shared,
            id,
            version,
            depth,
            inner,
            below: InFlight::new(usize::from(depth)),
            pace: Pace::Through,
            held: None,
            places: 0,
            again: VecDeque::new(),
            done: Vec::new(),
            scratch: Vec::new(),
            ready,
            notifier,
        };
        (this.held, _) = this.shared.hold();
        if this.held.is_some() {
            this.pace = Pace::Draining;
        }
        if this.is_behind() {
            // It was exchanged before we had a slot.
            signal(&this.notifier);
        }
        Ok(this)
    }

    fn is_behind(&self) -> bool {
        self.version != self.shared.version()
    }

    /// Moves, as far as that is possible now.
    fn follow(&mut self) -> Result<(), DiskError> {
        if self.pace != Pace::Draining {
            self.pace = Pace::Draining;
            for (token, below) in self.below.all_mut() {
                below.for_move = true;
                self.inner.cancel(token);
            }
            self.inner.flush_batch()?;
            self.collect()?;
        }
        if self.below.len() == 0 {
            self.settle();
        }
        Ok(())
    }

    /// With nothing in flight: moves, or holds still.
    fn settle(&mut self) {
        let (held, version) = self.shared.hold();
        self.held = held;
        if held.is_some() {
            self.pace = Pace::Draining;
            self.shared.moved(self.id, version);
        } else {
            self.pace = Pace::Through;
            self.move_over();
        }
    }

    /// Takes an operation while the queue has to follow, or was released.
    #[cold]
    fn submit_moving(&mut self, op: Op) -> Submit {
        if self.pace == Pace::Released {
            self.shared.breach();
            return self.pass(op);
        }
        if self.below.len() == 0 {
            self.settle();
            if self.held.is_some() && self.again.len() < usize::from(self.depth.max(1)) {
                self.places += 1;
                self.again.push_back((self.places, op));
                return Submit::Queued;
            }
            if self.pace == Pace::Through && self.again.is_empty() {
                return self.submit(op);
            }
        }
        if self.pace == Pace::Through {
            signal(&self.notifier);
        }
        Submit::Full(op)
    }

    /// Gives the disk in force a new operation.
    #[inline]
    fn pass(&mut self, op: Op) -> Submit {
        if !self.again.is_empty() {
            return Submit::Full(op);
        }
        self.places += 1;
        let given = self.give(self.places, op);
        if let Submit::Queued = given
            && let Wait::Poll = self.inner.wait()
        {
            signal(&self.notifier);
        }
        given
    }

    /// Opens the queue of the disk in force, closes the other one.
    fn move_over(&mut self) {
        let (disk, version) = self.shared.current();
        match disk.open_queue(self.depth).and_then(|queue| {
            watch(&self.ready, &*queue)?;
            Ok(queue)
        }) {
            Ok(queue) => {
                if let Wait::Fd(fd) = self.inner.wait() {
                    // It may be a clone that outlives the queue.
                    let _ = epoll::delete(&self.ready, fd);
                }
                self.inner = queue;
                self.shared.moved(self.id, version);
            }
            Err(error) => self.shared.failed(&error),
        }
        self.version = version;
    }

    #[inline]
    fn give(&mut self, place: u64, op: Op) -> Submit {
        let outer = op.token;
        let below = Below {
            kind: op.kind,
            place,
            cancelled: false,
            for_move: false,
        };
        let token = self.below.insert(outer, below);
        match self.inner.submit(Op { token, ..op }) {
            Submit::Queued => Submit::Queued,
            Submit::Done(completion) => {
                self.below.remove(token);
                Submit::Done(Completion {
                    token: outer,
                    ..completion
                })
            }
            Submit::Full(op) => {
                self.below.remove(token);
                Submit::Full(Op { token: outer, ..op })
            }
        }
    }

    /// Gives the disk in force what was cancelled for the move, or waited.
    fn give_again(&mut self) -> Result<(), DiskError> {
        if self.pace == Pace::Released {
            self.shared.breach();
        }
        while let Some((place, op)) = self.again.pop_front() {
            match self.give(place, op) {
                Submit::Queued => {}
                Submit::Done(completion) => self.done.push(completion),
                Submit::Full(op) => {
                    self.again.push_front((place, op));
                    break;
                }
            }
        }
        self.inner.flush_batch()
    }

    /// Takes over what the disk underneath finished.
    fn collect(&mut self) -> Result<(), DiskError> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let result = self.inner.reap(&mut scratch);
        for mut completion in scratch.drain(..) {
            let Some((token, below)) = self.below.remove(completion.token) else {
                continue;
            };
            let for_move = below.for_move && !below.cancelled;
            if for_move && matches!(completion.result, Err(DiskError::Cancelled)) {
                let op = Op {
                    token,
                    kind: below.kind,
                    buf: completion.buf,
                };
                let at = (self.again).partition_point(|(place, _)| *place < below.place);
                self.again.insert(at, (below.place, op));
            } else {
                completion.token = token;
                self.done.push(completion);
            }
        }
        self.scratch = scratch;
        result.map(|_| ())
    }

    /// Clears the notifier before anything is looked at, so that no later signal is missed.
    fn silence(&self) {
        let mut count = [0; 8];
        // Fails only where it did not ring.
        let _ = rustix::io::read(&self.notifier, &mut count);
    }
}

impl IoQueue for SwitchQueue {
    fn submit(&mut self, op: Op) -> Submit {
        if self.pace != Pace::Through || self.is_behind() {
            return self.submit_moving(op);
        }
        self.pass(op)
    }

    fn execute(&mut self, kind: &OpKind, buf: &IoBuf, _token: Option<Token>) -> Execute {
        if self.pace != Pace::Through || self.is_behind() {
            return Execute::Declined;
        }
        self.inner.execute(kind, buf, None)
    }

    fn flush_batch(&mut self) -> Result<(), DiskError> {
        self.inner.flush_batch()
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        self.silence();
        let mut result = self.collect();
        if result.is_ok()
            && (self.pace == Pace::Draining || self.is_behind() && self.pace == Pace::Through)
        {
            result = self.follow();
        }
        if !self.again.is_empty() && result.is_ok() && self.pace != Pace::Draining {
            result = self.give_again();
        }
        let count = self.done.len();
        done.append(&mut self.done);
        if self.below.len() != 0
            && let Wait::Poll = self.inner.wait()
        {
            signal(&self.notifier);
        }
        result.map(|()| count)
    }

    fn wait(&self) -> Wait<'_> {
        Wait::Fd(self.ready.as_fd())
    }

    fn deadline(&self) -> Option<Instant> {
        [self.held, self.inner.deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// The queue stays with its disk from now on, which also knows of the call, and does not hold still any more.
    fn release_held(&mut self) {
        self.pace = Pace::Released;
        self.held = None;
        self.inner.release_held();
        signal(&self.notifier);
    }

    fn cancel(&mut self, token: Token) {
        if let Some(inner) = self.below.find(token) {
            if let Some(below) = self.below.get_mut(inner) {
                below.cancelled = true;
            }
            self.inner.cancel(inner);
        } else if let Some(at) = (self.again.iter()).position(|(_, op)| op.token == token)
            && let Some((_, op)) = self.again.remove(at)
        {
            self.done.push(op.complete(Err(DiskError::Cancelled)));
            signal(&self.notifier);
        }
    }
}

impl Drop for SwitchQueue {
    fn drop(&mut self) {
        self.shared.leave(self.id);
    }
}
