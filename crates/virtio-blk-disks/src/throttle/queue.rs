// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One data path with limits.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_blk_core::disk::{
    Completion, DiskError, IoBuf, IoQueue, Op, OpKind, Submit, Token, Wait,
};

use super::group::{ThrottleGroup, Turn};
use super::limits::Cost;
use super::stats::Counts;
use crate::outbox::Outbox;

/// A queue that holds something back looks at the limits again after this time at the latest.
pub const RECHECK: Duration = Duration::from_millis(100);

/// An operation that waits for its turn.
struct Held {
    op: Op,
    cost: Cost,
    since: u64,
}

/// A data path of a [`super::ThrottleDisk`].
pub(super) struct ThrottleQueue {
    group: ThrottleGroup,
    counts: Arc<Counts>,
    inner: Box<dyn IoQueue>,
    limit: usize,
    /// In the order of submission.
    held: VecDeque<Held>,
    /// The turn of the first of them.
    turn: Option<Turn>,
    outbox: Outbox,
    /// The owner is about to stop: limits hold for nothing any more.
    released: bool,
}

impl ThrottleQueue {
    pub(super) fn new(
        group: ThrottleGroup,
        counts: Arc<Counts>,
        inner: Box<dyn IoQueue>,
        depth: u16,
    ) -> Result<Self, DiskError> {
        Ok(Self {
            outbox: Outbox::over(&*inner)?,
            group,
            counts,
            inner,
            limit: usize::from(depth.max(1)),
            held: VecDeque::new(),
            turn: None,
            released: false,
        })
    }

    /// Whether operations have to wait for a turn.
    fn is_limited(&self) -> bool {
        self.group.is_limited() && !self.released
    }

    /// The turn of the first operation that waits. `None`: it needs none any more.
    fn turn_of(&mut self, cost: Cost, now: u64) -> Option<Turn> {
        if self.released {
            return None;
        }
        let turn = match self.turn {
            Some(turn) if self.group.is_current(&turn) => turn,
            _ => self.group.turn(cost, now),
        };
        self.turn = Some(turn);
        Some(turn)
    }

    /// Lets those go whose turn it is.
    fn release(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let now = self.group.now();
        while let Some(cost) = self.held.front().map(|first| first.cost) {
            let turn = self.turn_of(cost, now);
            if turn.is_some_and(|turn| turn.start > now) {
                return;
            }
            let Some(Held { op, cost, since }) = self.held.pop_front() else {
                return;
            };
            let outcome = self.inner.submit(op);
            if let Some(op) = self.outbox.went_down(outcome) {
                // It keeps its turn.
                return self.held.push_front(Held { op, cost, since });
            }
            if let Some(turn) = turn {
                self.group.started(&turn, now);
            }
            self.counts.released(now.saturating_sub(since));
            self.turn = None;
        }
    }

    /// Executes an operation if it may start now.
    #[inline(never)]
    fn execute_limited(&mut self, kind: &OpKind, buf: &IoBuf) -> Option<Result<(), DiskError>> {
        let Some(cost) = Cost::of(kind, buf.len() as u64) else {
            return self.inner.execute(kind, buf);
        };
        let turn = self.group.turn_now(cost, self.group.now())?;
        let result = self.inner.execute(kind, buf);
        if result.is_none() {
            // It comes again, as an operation.
            self.group.give_back(&turn);
        }
        result
    }
}

impl IoQueue for ThrottleQueue {
    fn execute(&mut self, kind: &OpKind, buf: &IoBuf) -> Option<Result<(), DiskError>> {
        if !self.held.is_empty() {
            return None;
        }
        if self.is_limited() {
            return self.execute_limited(kind, buf);
        }
        self.inner.execute(kind, buf)
    }

    fn submit(&mut self, op: Op) -> Submit {
        if self.held.is_empty() && !self.is_limited() {
            return self.inner.submit(op);
        }
        let Some(cost) = Cost::of(&op.kind, op.buf.len() as u64) else {
            return self.inner.submit(op);
        };
        if self.held.len() >= self.limit {
            return Submit::Full(op);
        }
        let now = self.group.now();
        if self.held.is_empty() {
            let turn = self.group.turn(cost, now);
            if turn.start <= now {
                let submitted = self.inner.submit(op);
                if let Submit::Full(_) = submitted {
                    self.group.give_back(&turn);
                }
                return submitted;
            }
            self.turn = Some(turn);
        }
        self.counts.held();
        self.held.push_back(Held {
            op,
            cost,
            since: now,
        });
        Submit::Queued
    }

    fn flush_batch(&mut self) -> Result<(), DiskError> {
        self.outbox.flush_batch(&mut *self.inner)
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        if self.held.is_empty() && self.outbox.is_idle() {
            return Ok(0);
        }
        let before = done.len();
        // First what the disk has finished: then there is room for more.
        let reaped = self.inner.reap(done).map(|_| ());
        self.release();
        self.outbox.hand_out(&mut *self.inner, done, before, reaped)
    }

    fn wait(&self) -> Wait<'_> {
        self.outbox.wait(&*self.inner)
    }

    fn deadline(&self) -> Option<Instant> {
        let own = if self.outbox.is_due() {
            Some(self.group.instant(0))
        } else if self.held.is_empty() {
            None
        } else {
            let recheck = self.group.now().saturating_add(RECHECK.as_nanos() as u64);
            let at = match self.turn {
                Some(turn) => turn.start.min(recheck),
                // What was released waits for room below, of which the disk there tells.
                None if self.released => recheck,
                None => 0,
            };
            Some(self.group.instant(at))
        };
        [own, self.inner.deadline()].into_iter().flatten().min()
    }

    fn release_held(&mut self) {
        self.released = true;
        if let Some(turn) = self.turn.take() {
            self.group.give_back(&turn);
        }
        self.inner.release_held();
        self.release();
    }

    fn cancel(&mut self, token: Token) {
        let Some(index) = self.held.iter().position(|held| held.op.token == token) else {
            return self.inner.cancel(token);
        };
        if index == 0
            && let Some(turn) = self.turn.take()
        {
            self.group.give_back(&turn);
        }
        if let Some(held) = self.held.remove(index) {
            self.counts.cancelled();
            self.outbox
                .push(held.op.complete(Err(DiskError::Cancelled)));
        }
    }
}

impl Drop for ThrottleQueue {
    fn drop(&mut self) {
        if let Some(turn) = self.turn.take() {
            self.group.give_back(&turn);
        }
        for _ in &self.held {
            self.counts.cancelled();
        }
    }
}
