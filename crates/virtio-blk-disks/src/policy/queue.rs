// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One data path that keeps what failed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use virtio_blk_core::disk::{Completion, DiskError, Execute, IoBuf, Op, OpKind, Submit, Token};

use super::event::PolicyEvent;
use super::{RECHECK, Shared};
use crate::holding::{Holder, HoldingQueue, Lower};
use crate::in_flight::InFlight;

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
pub(super) type PolicyQueue = HoldingQueue<Failures>;

/// The operations of one data path that failed.
pub(super) struct Failures {
    shared: Arc<Shared>,
    limit: usize,
    places: u64,
    below: InFlight<Below>,
    /// In the order of submission.
    kept: VecDeque<Kept>,
    /// Those of them that are tried again, from the first on: the disk underneath had no room yet.
    trying: usize,
    /// Of the calls to try again, how many were followed.
    calls: u64,
    scratch: Vec<Completion>,
    /// The owner is about to stop: nothing is kept any more.
    released: bool,
}

impl Failures {
    pub(super) fn new(shared: Arc<Shared>, depth: u16) -> Self {
        let limit = usize::from(depth.max(1));
        Self {
            calls: shared.calls(),
            shared,
            limit,
            places: 0,
            below: InFlight::new(limit),
            kept: VecDeque::new(),
            trying: 0,
            scratch: Vec::new(),
            released: false,
        }
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
    fn give(&mut self, lower: &mut Lower, place: u64, op: Op) -> Option<Submit> {
        let outer = op.token;
        let below = Below {
            kind: op.kind,
            place,
            cancelled: false,
        };
        let token = self.below.insert(outer, below);
        match lower.queue.submit(Op { token, ..op }) {
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
}

impl Holder for Failures {
    #[inline]
    fn submit(&mut self, lower: &mut Lower, op: Op) -> Submit {
        if self.kept.len() >= self.limit {
            return Submit::Full(op);
        }
        self.places += 1;
        self.give(lower, self.places, op).unwrap_or(Submit::Queued)
    }

    #[inline]
    fn execute(
        &mut self,
        lower: &mut Lower,
        kind: &OpKind,
        buf: &IoBuf,
        _token: Option<Token>,
    ) -> Execute {
        match lower.queue.execute(kind, buf, None) {
            // It comes again, as an operation that can be kept.
            Execute::Done(Err(error)) if self.may_keep(kind, &error) => Execute::Declined,
            executed => executed,
        }
    }

    #[inline]
    fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    #[inline]
    fn collect(&mut self, lower: &mut Lower, _: &mut Vec<Completion>) -> Result<(), DiskError> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let result = lower.queue.reap(&mut scratch);
        for completion in scratch.drain(..) {
            let Some((token, below)) = self.below.remove(completion.token) else {
                continue;
            };
            if let Some(completion) = self.end(token, below, completion) {
                lower.outbox.push(completion);
            }
        }
        self.scratch = scratch;
        result.map(|_| ())
    }

    /// Tries again what is to be tried, as far as there is room.
    fn release(&mut self, lower: &mut Lower) {
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
            let given = self.give(lower, place, op);
            if let Some(op) = given.and_then(|outcome| lower.outbox.went_down(outcome)) {
                self.kept.push_front(Kept { place, op, error });
                self.trying += 1;
                self.shared.held().operations += 1;
                return;
            }
        }
    }

    fn deadline(&self) -> Instant {
        Instant::now() + RECHECK
    }

    /// What is kept fails with its error.
    fn release_held(&mut self, lower: &mut Lower) {
        self.released = true;
        self.trying = 0;
        let operations = self.kept.len() as u64;
        for Kept { op, error, .. } in self.kept.drain(..) {
            lower.outbox.push(op.complete(Err(error)));
        }
        if operations != 0 {
            self.shared.leave(operations);
            let event = PolicyEvent::Failed { operations };
            self.shared.listeners.tell(&event);
        }
        lower.queue.release_held();
    }

    fn cancel(&mut self, lower: &mut Lower, token: Token) {
        if let Some(inner) = self.below.find(token) {
            if let Some(below) = self.below.get_mut(inner) {
                below.cancelled = true;
            }
            return lower.queue.cancel(inner);
        }
        let Some(at) = self.kept.iter().position(|kept| kept.op.token == token) else {
            return;
        };
        if let Some(kept) = self.kept.remove(at) {
            if at < self.trying {
                self.trying -= 1;
            }
            self.shared.leave(1);
            lower
                .outbox
                .push(kept.op.complete(Err(DiskError::Cancelled)));
        }
    }
}

impl Drop for Failures {
    fn drop(&mut self) {
        self.shared.leave(self.kept.len() as u64);
    }
}
