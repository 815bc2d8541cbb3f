// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One data path with limits.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_blk_core::disk::{Completion, DiskError, Execute, IoBuf, Op, OpKind, Submit, Token};

use super::group::{ThrottleGroup, Turn};
use super::limits::Cost;
use super::stats::Counts;
use crate::holding::{Holder, HoldingQueue, Lower};

/// A queue that holds something back looks at the limits again after this time at the latest.
pub const RECHECK: Duration = Duration::from_millis(100);

/// An operation that waits for its turn.
struct Held {
    op: Op,
    cost: Cost,
    since: u64,
}

/// A data path of a [`super::ThrottleDisk`].
pub(super) type ThrottleQueue = HoldingQueue<Turns>;

/// The operations of one data path that wait for their turn.
pub(super) struct Turns {
    group: ThrottleGroup,
    counts: Arc<Counts>,
    limit: usize,
    /// In the order of submission.
    held: VecDeque<Held>,
    /// The turn of the first of them.
    turn: Option<Turn>,
    /// The owner is about to stop: limits hold for nothing any more.
    released: bool,
}

impl Turns {
    pub(super) fn new(group: ThrottleGroup, counts: Arc<Counts>, depth: u16) -> Self {
        Self {
            group,
            counts,
            limit: usize::from(depth.max(1)),
            held: VecDeque::new(),
            turn: None,
            released: false,
        }
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

    /// Executes an operation if it may start now.
    #[inline(never)]
    fn execute_limited(
        &mut self,
        lower: &mut Lower,
        kind: &OpKind,
        buf: &IoBuf,
        token: Option<Token>,
    ) -> Execute {
        let Some(cost) = Cost::of(kind, buf.len() as u64) else {
            return lower.queue.execute(kind, buf, token);
        };
        let Some(turn) = self.group.turn_now(cost, self.group.now()) else {
            return Execute::Declined;
        };
        let executed = lower.queue.execute(kind, buf, token);
        if let Execute::Declined = executed {
            // It comes again, as an operation.
            self.group.give_back(&turn);
        }
        executed
    }
}

impl Holder for Turns {
    #[inline]
    fn execute(
        &mut self,
        lower: &mut Lower,
        kind: &OpKind,
        buf: &IoBuf,
        token: Option<Token>,
    ) -> Execute {
        if !self.held.is_empty() {
            return Execute::Declined;
        }
        if self.is_limited() {
            return self.execute_limited(lower, kind, buf, token);
        }
        lower.queue.execute(kind, buf, token)
    }

    #[inline]
    fn submit(&mut self, lower: &mut Lower, op: Op) -> Submit {
        if self.held.is_empty() && !self.is_limited() {
            return lower.queue.submit(op);
        }
        let Some(cost) = Cost::of(&op.kind, op.buf.len() as u64) else {
            return lower.queue.submit(op);
        };
        if self.held.len() >= self.limit {
            return Submit::Full(op);
        }
        let now = self.group.now();
        if self.held.is_empty() {
            let turn = self.group.turn(cost, now);
            if turn.start <= now {
                let submitted = lower.queue.submit(op);
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

    #[inline]
    fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    #[inline]
    fn collect(&mut self, lower: &mut Lower, done: &mut Vec<Completion>) -> Result<(), DiskError> {
        lower.queue.reap(done).map(|_| ())
    }

    fn release(&mut self, lower: &mut Lower) {
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
            let outcome = lower.queue.execute_or_submit(op);
            if let Some(op) = lower.outbox.went_down(outcome) {
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

    fn deadline(&self) -> Instant {
        let recheck = self.group.now().saturating_add(RECHECK.as_nanos() as u64);
        self.group.instant(match self.turn {
            Some(turn) => turn.start.min(recheck),
            // What was released waits for room below, of which the disk there tells.
            None if self.released => recheck,
            None => 0,
        })
    }

    fn now(&self) -> Instant {
        self.group.instant(0)
    }

    fn release_held(&mut self, lower: &mut Lower) {
        self.released = true;
        if let Some(turn) = self.turn.take() {
            self.group.give_back(&turn);
        }
        lower.queue.release_held();
        self.release(lower);
    }

    fn cancel(&mut self, lower: &mut Lower, token: Token) {
        let Some(index) = self.held.iter().position(|held| held.op.token == token) else {
            return lower.queue.cancel(token);
        };
        if index == 0
            && let Some(turn) = self.turn.take()
        {
            self.group.give_back(&turn);
        }
        if let Some(held) = self.held.remove(index) {
            self.counts.cancelled();
            lower
                .outbox
                .push(held.op.complete(Err(DiskError::Cancelled)));
        }
    }
}

impl Drop for Turns {
    fn drop(&mut self) {
        if let Some(turn) = self.turn.take() {
            self.group.give_back(&turn);
        }
        for _ in &self.held {
            self.counts.cancelled();
        }
    }
}
