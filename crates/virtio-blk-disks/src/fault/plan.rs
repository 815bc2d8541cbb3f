// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is to fail.

use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use virtio_blk_core::disk::{DiskError, OpKind};

/// A kind of operation, without its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// [`OpKind::Read`].
    Read,
    /// [`OpKind::Write`].
    Write,
    /// [`OpKind::Flush`].
    Flush,
    /// [`OpKind::Discard`].
    Discard,
    /// [`OpKind::WriteZeroes`].
    WriteZeroes,
    /// [`OpKind::SecureErase`].
    SecureErase,
    /// Anything else.
    Other,
}

impl Kind {
    /// The kind of an operation.
    pub const fn of(kind: &OpKind) -> Self {
        match kind {
            OpKind::Read { .. } => Self::Read,
            OpKind::Write { .. } => Self::Write,
            OpKind::Flush => Self::Flush,
            OpKind::Discard { .. } => Self::Discard,
            OpKind::WriteZeroes { .. } => Self::WriteZeroes,
            OpKind::SecureErase { .. } => Self::SecureErase,
            _ => Self::Other,
        }
    }
}

/// The result a rule makes.
#[derive(Clone, Copy, Debug)]
enum Failure {
    Errno(i32),
    Unsupported,
    /// None: it says that all went well.
    Silent,
}

/// What an operation does that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Nothing,
    Part,
    All,
}

/// Which operations fail, and how. A fresh rule fails every operation, before it had an effect.
#[derive(Clone, Debug)]
pub struct Rule {
    failure: Failure,
    kind: Option<Kind>,
    bytes: Option<Range<u64>>,
    per_mille: u32,
    skip: u64,
    times: u64,
    pub(super) effect: Effect,
}

impl Rule {
    const fn new(failure: Failure) -> Self {
        Self {
            failure,
            kind: None,
            bytes: None,
            per_mille: 1000,
            skip: 0,
            times: u64::MAX,
            effect: Effect::Nothing,
        }
    }

    /// Fails with [`DiskError::Io`] of this `errno`.
    pub const fn errno(code: i32) -> Self {
        Self::new(Failure::Errno(code))
    }

    /// Fails with [`DiskError::Unsupported`].
    pub const fn unsupported() -> Self {
        Self::new(Failure::Unsupported)
    }

    /// Says that all went well, although it was not done: a lost write, or a read that leaves its buffer as it
    /// was. With [`Rule::torn`], although only a part was done.
    pub const fn silent() -> Self {
        Self::new(Failure::Silent)
    }

    /// Only operations of this kind.
    #[must_use]
    pub const fn kind(mut self, kind: Kind) -> Self {
        self.kind = Some(kind);
        self
    }

    /// Only operations that touch these bytes of the disk.
    #[must_use]
    pub const fn bytes(mut self, bytes: Range<u64>) -> Self {
        self.bytes = Some(bytes);
        self
    }

    /// Only so many of a thousand matching operations (default: all).
    #[must_use]
    pub const fn per_mille(mut self, rate: u32) -> Self {
        self.per_mille = rate;
        self
    }

    /// Leaves out the first `count` matches.
    #[must_use]
    pub const fn skip(mut self, count: u64) -> Self {
        self.skip = count;
        self
    }

    /// At most `count` times (default: without end).
    #[must_use]
    pub const fn times(mut self, count: u64) -> Self {
        self.times = count;
        self
    }

    /// Fails the operation although it was done, as a lost answer would.
    #[must_use]
    pub const fn after_effect(mut self) -> Self {
        self.effect = Effect::All;
        self
    }

    /// Fails a change although a part of it was done: whole blocks next to each other, none of them or any number
    /// but all, and of a write at most 1 MiB. What changes nothing fails without an effect.
    #[must_use]
    pub const fn torn(mut self) -> Self {
        self.effect = Effect::Part;
        self
    }

    /// Whether the rule is about this operation, chance and counts aside.
    pub(super) fn matches(&self, kind: &OpKind, data_len: usize) -> bool {
        let touches = |wanted: &Range<u64>| {
            kind.range(data_len as u64).is_some_and(|(offset, len)| {
                offset < wanted.end && offset.saturating_add(len) > wanted.start
            })
        };
        self.kind.is_none_or(|wanted| wanted == Kind::of(kind))
            && self.bytes.as_ref().is_none_or(touches)
    }

    /// Its chance, in a thousand.
    pub(super) const fn rate(&self) -> u32 {
        self.per_mille
    }

    /// Whether the match with this number, from 0 on, fails.
    pub(super) const fn hits(&self, number: u64) -> bool {
        number >= self.skip && number - self.skip < self.times
    }

    /// The result.
    pub(super) fn result(&self) -> Result<(), DiskError> {
        match self.failure {
            Failure::Errno(code) => Err(DiskError::from_errno(code)),
            Failure::Unsupported => Err(DiskError::Unsupported),
            Failure::Silent => Ok(()),
        }
    }
}

/// What is to fail, repeatably. A fresh plan changes nothing.
#[derive(Clone, Debug)]
pub struct FaultPlan {
    pub(super) seed: u64,
    pub(super) rules: Vec<Rule>,
    pub(super) delay: Option<RangeInclusive<u64>>,
    pub(super) real_delay: Option<RangeInclusive<Duration>>,
    pub(super) reorder: bool,
    pub(super) full_per_mille: u32,
    pub(super) break_after: Option<u64>,
    pub(super) poll: bool,
}

impl FaultPlan {
    /// A plan that changes nothing yet.
    pub const fn new(seed: u64) -> Self {
        Self {
            seed,
            rules: Vec::new(),
            delay: None,
            real_delay: None,
            reorder: false,
            full_per_mille: 0,
            break_after: None,
            poll: false,
        }
    }

    /// Adds a rule. The first one that hits decides.
    #[must_use]
    pub fn rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    /// Holds each completion back for a number of calls of `reap` from this range, beyond the first
    /// call that would have had it. With `0..=0` everything goes through `reap` as soon as possible,
    /// which makes any disk asynchronous.
    #[must_use]
    pub const fn delay_reaps(mut self, calls: RangeInclusive<u64>) -> Self {
        self.delay = Some(calls);
        self
    }

    /// Holds each completion back for a time from this range, in addition. Not repeatable. The queue's
    /// `deadline` says until when.
    #[must_use]
    pub const fn delay_time(mut self, time: RangeInclusive<Duration>) -> Self {
        self.real_delay = Some(time);
        self
    }

    /// Completions that come out of one `reap` come in an order drawn from the seed.
    #[must_use]
    pub const fn reorder(mut self) -> Self {
        self.reorder = true;
        self
    }

    /// Returns `Full` for so many of a thousand submissions, as long as the queue has something in
    /// flight (else the submitter would wait for ever).
    #[must_use]
    pub const fn full_per_mille(mut self, rate: u32) -> Self {
        self.full_per_mille = rate;
        self
    }

    /// Breaks each queue for good once it took `count` operations: `flush_batch` and `reap` return
    /// an error, as after the loss of an io_uring.
    #[must_use]
    pub const fn break_after(mut self, count: u64) -> Self {
        self.break_after = Some(count);
        self
    }

    /// Held-back completions of a disk that has no descriptor to wait on are announced by
    /// [`Wait::Poll`](virtio_blk_core::disk::Wait::Poll) instead of a descriptor of our own (the
    /// default).
    #[must_use]
    pub const fn poll(mut self) -> Self {
        self.poll = true;
        self
    }

    /// Whether nothing goes wrong at all.
    pub(super) const fn is_empty(&self) -> bool {
        self.rules.is_empty()
            && !self.holds()
            && self.full_per_mille == 0
            && self.break_after.is_none()
    }

    /// Whether completions go through `reap` of ours.
    pub(super) const fn holds(&self) -> bool {
        self.delay.is_some() || self.real_delay.is_some() || self.reorder
    }
}
