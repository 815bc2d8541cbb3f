// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One data path that keeps what failed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use virtio_blk_core::disk::{
    Completion, DiskError, IoBuf, IoQueue, Op, OpKind, Submit, Token, Wait,
};

use super::event::PolicyEvent;
use super::{RECHECK, Shared};
use crate::in_flight::InFlight;
use crate::outbox::Outbox;

/// An operation that is with the disk underneath.
struct Below {
    kind: OpKind,
    /// Its place in the order of submission.
    place: u64,
    /// The owner asked for it to end.
    cancelled: bool,
}

/// An operation that is not with the disk underneath.
struct Kept {
    place: u64,
    op: Op,
    /// Why it failed.
    error: DiskError,
}

/// A data path of a [`super::PolicyDisk`].
pub(super) struct PolicyQueue {
    shared: Arc<Shared>,
    inner: Box<dyn IoQueue>,
    limit: usize,
    places: u64,
    below: InFlight<Below>,
    /// In the order of submission.
    kept: VecDeque<Kept>,
    /// Those of them that are tried again, from the first on: the disk underneath had no room yet.
    trying: usize,
    /// Of the calls to try again, how many were followed.
    calls: u64,
    outbox: Outbox,
    scratch: Vec<Completion>,
    /// The owner is about to stop: nothing is kept any more.
    released: bool,
}

impl PolicyQueue {
    pub(super) fn new(
        shared: Arc<Shared>,
        inner: Box<dyn IoQueue>,
        depth: u16,
    ) -> Result<Self, DiskError> {
        let limit = usize::from(depth.max(1));
        Ok(Self {
            outbox: Outbox::over(&*inner)?,
            calls: shared.calls(),
            shared,
            inner,
            limit,
            places: 0,
            below: InFlight::new(limit),
            kept: VecDeque::new(),
            trying: 0,
            scratch: Vec::new(),
            released: false,
        })
    }

    /// Whether an operation that failed does not end with its error.
    fn may_keep(&self, kind: &OpKind, error: &DiskError) -> bool {
        !self.released && self.shared.keeps(kind, error)
    }

    /// Keeps an operation that failed, or returns its completion.
    fn end(&mut self, token: Token, below: Below, completion: Completion) -> Option<Completion> {
        match completion.result {
            // The owner asked for its end, as it does to move it to another disk or server, where it is tried again.
            Err(error) if below.cancelled && self.may_keep(&below.kind, &error) => {
                Some(Completion {
                    token,
                    result: Err(DiskError::Cancelled),
                    buf: completion.buf,
                })
            }
            Err(error) if self.may_keep(&below.kind, &error) => {
                self.shared.keep(&below.kind, completion.buf.len(), &error);
                let op = Op {
                    token,
                    kind: below.kind,
                    buf: completion.buf,
                };
                // Behind those that are tried again, or they would be tried for ever.
                let waits = self.kept.iter().skip(self.trying);
                let before = waits.take_while(|kept| kept.place < below.place).count();
                let kept = Kept {
                    place: below.place,
                    op,
                    error,
                };
                self.kept.insert(self.trying + before, kept);
                None
            }
            result => Some(Completion {
                token,
                result,
                buf: completion.buf,
            }),
        }
    }

    /// Gives an operation to the disk underneath. `None`: it is kept, as it has failed.
    fn give(&mut self, place: u64, op: Op) -> Option<Submit> {
        let outer = op.token;
        let below = Below {
            kind: op.kind,
            place,
            cancelled: false,
        };
        let token = self.below.insert(outer, below);
        match self.inner.submit(Op { token, ..op }) {
            Submit::Queued => Some(Submit::Queued),
            Submit::Full(op) => {
                self.below.remove(token);
                Some(Submit::Full(Op { token: outer, ..op }))
            }
            Submit::Done(completion) => {
                let (_, below) = self.below.remove(token)?;
                self.end(outer, below, completion).map(Submit::Done)
            }
        }
    }

    /// Takes over what the disk underneath finished.
    fn collect(&mut self) -> Result<(), DiskError> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let result = self.inner.reap(&mut scratch);
        for completion in scratch.drain(..) {
            let Some((token, below)) = self.below.remove(completion.token) else {
                continue;
            };
            if let Some(completion) = self.end(token, below, completion) {
                self.outbox.push(completion);
            }
        }
        self.scratch = scratch;
        result.map(|_| ())
    }

    /// Tries again what shall be, as far as there is room.
    fn try_again(&mut self) {
        let calls = self.shared.calls();
        if calls != self.calls {
            self.calls = calls;
            self.trying = self.kept.len();
        }
        while self.trying != 0 {
            let Some(Kept { place, op, error }) = self.kept.pop_front() else {
                return;
            };
            self.trying -= 1;
            self.shared.leave(1);
            let given = self.give(place, op);
            if let Some(op) = given.and_then(|outcome| self.outbox.went_down(outcome)) {
                self.kept.push_front(Kept { place, op, error });
                self.trying += 1;
                self.shared.held().operations += 1;
                return;
            }
        }
    }
}

impl IoQueue for PolicyQueue {
    fn submit(&mut self, op: Op) -> Submit {
        if self.kept.len() >= self.limit {
            return Submit::Full(op);
        }
        self.places += 1;
        self.give(self.places, op).unwrap_or(Submit::Queued)
    }

    fn execute(&mut self, kind: &OpKind, buf: &IoBuf) -> Option<Result<(), DiskError>> {
        match self.inner.execute(kind, buf) {
            // It comes again, as an operation that can be kept.
            Some(Err(error)) if self.may_keep(kind, &error) => None,
            result => result,
        }
    }

    fn flush_batch(&mut self) -> Result<(), DiskError> {
        self.outbox.flush_batch(&mut *self.inner)
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        if self.kept.is_empty() && self.outbox.is_idle() {
            return Ok(0);
        }
        let before = done.len();
        let reaped = self.collect();
        self.try_again();
        self.outbox.hand_out(&mut *self.inner, done, before, reaped)
    }

    fn wait(&self) -> Wait<'_> {
        self.outbox.wait(&*self.inner)
    }

    fn deadline(&self) -> Option<Instant> {
        let own = if self.outbox.is_due() {
            Some(Instant::now())
        } else if self.kept.is_empty() {
            None
        } else {
            Some(Instant::now() + RECHECK)
        };
        [own, self.inner.deadline()].into_iter().flatten().min()
    }

    /// What is kept fails with its error.
    fn release_held(&mut self) {
        self.released = true;
        self.trying = 0;
        let operations = self.kept.len() as u64;
        for Kept { op, error, .. } in self.kept.drain(..) {
            self.outbox.push(op.complete(Err(error)));
        }
        if operations != 0 {
            self.shared.leave(operations);
            let event = PolicyEvent::Failed { operations };
            self.shared.listeners.tell(&event);
        }
        self.inner.release_held();
    }

    fn cancel(&mut self, token: Token) {
        if let Some(inner) = self.below.find(token) {
            if let Some(below) = self.below.get_mut(inner) {
                below.cancelled = true;
            }
            return self.inner.cancel(inner);
        }
        let Some(at) = self.kept.iter().position(|kept| kept.op.token == token) else {
            return;
        };
        if let Some(kept) = self.kept.remove(at) {
            if at < self.trying {
                self.trying -= 1;
            }
            self.shared.leave(1);
            self.outbox
                .push(kept.op.complete(Err(DiskError::Cancelled)));
        }
    }
}

impl Drop for PolicyQueue {
    fn drop(&mut self) {
        self.shared.leave(self.kept.len() as u64);
    }
}
