// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The numbers of one queue.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use virtio_blk_core::disk::OpKind;

use super::histogram::{Histogram, Latency};

/// What operations are told apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpClass {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Flushes.
    Flush,
    /// Discards and secure erases.
    Discard,
    /// Write-zeroes.
    WriteZeroes,
    /// Everything else.
    Other,
}

impl OpClass {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Read,
        Self::Write,
        Self::Flush,
        Self::Discard,
        Self::WriteZeroes,
        Self::Other,
    ];

    /// A short name for tables and labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::WriteZeroes => "write_zeroes",
            Self::Other => "other",
        }
    }

    /// The class of an operation.
    pub(crate) const fn of(kind: &OpKind) -> Self {
        match kind {
            OpKind::Read { .. } => Self::Read,
            OpKind::Write { .. } => Self::Write,
            OpKind::Flush => Self::Flush,
            OpKind::Discard { .. } | OpKind::SecureErase { .. } => Self::Discard,
            OpKind::WriteZeroes { .. } => Self::WriteZeroes,
            _ => Self::Other,
        }
    }
}

const CLASSES: usize = OpClass::ALL.len();

/// What one kind of operation did so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClassStats {
    /// Bytes of the operations that succeeded.
    pub bytes: u64,
    /// Operations that failed.
    pub errors: u64,
    /// From the first submission to the end, of all that ended.
    pub latency: Latency,
    /// The part of that for which the disk underneath had no room for them.
    pub queued: Duration,
}

impl ClassStats {
    /// Operations that ended, well or badly.
    pub fn count(&self) -> u64 {
        self.latency.count()
    }

    /// The time in which the disk underneath had them.
    pub fn in_service(&self) -> Duration {
        self.latency.sum().saturating_sub(self.queued)
    }

    fn combined(&self, other: &Self, of: impl Fn(u64, u64) -> u64, latency: Latency) -> Self {
        Self {
            bytes: of(self.bytes, other.bytes),
            errors: of(self.errors, other.errors),
            latency,
            queued: Duration::from_nanos(of(nanos(self.queued), nanos(other.queued))),
        }
    }
}

/// What one queue, or several, did so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    classes: [ClassStats; CLASSES],
    /// Operations that the disk underneath has now.
    pub depth: u64,
}

impl QueueStats {
    /// Those of one kind.
    pub fn class(&self, class: OpClass) -> &ClassStats {
        &self.classes[class as usize]
    }

    /// Those of both.
    #[must_use]
    pub fn merged(&self, other: &Self) -> Self {
        Self {
            classes: self.combined(other, |a, b| {
                a.combined(b, u64::wrapping_add, a.latency.merged(&b.latency))
            }),
            depth: self.depth + other.depth,
        }
    }

    /// What came since an `earlier` snapshot of the same queues; the depth is that of now.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            classes: self.combined(earlier, |a, b| {
                a.combined(b, u64::saturating_sub, a.latency.since(&b.latency))
            }),
            depth: self.depth,
        }
    }

    fn combined(
        &self,
        other: &Self,
        f: impl Fn(&ClassStats, &ClassStats) -> ClassStats,
    ) -> [ClassStats; CLASSES] {
        OpClass::ALL.map(|class| f(self.class(class), other.class(class)))
    }
}

#[derive(Default)]
struct Class {
    bytes: AtomicU64,
    errors: AtomicU64,
    queued: AtomicU64,
    latency: Histogram,
}

/// Written by one queue, read by anybody.
#[derive(Default)]
pub(super) struct Recorder {
    classes: [Class; CLASSES],
    depth: AtomicU64,
}

/// An operation that ended.
pub(super) struct Ended {
    pub(super) class: OpClass,
    pub(super) bytes: u64,
    pub(super) ok: bool,
    pub(super) latency: Duration,
    pub(super) queued: Duration,
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Recorder {
    pub(super) fn set_depth(&self, depth: usize) {
        self.depth.store(depth as u64, Ordering::Relaxed);
    }

    pub(super) fn record(&self, ended: &Ended) {
        let class = &self.classes[ended.class as usize];
        if ended.ok {
            class.bytes.fetch_add(ended.bytes, Ordering::Relaxed);
        } else {
            class.errors.fetch_add(1, Ordering::Relaxed);
        }
        if !ended.queued.is_zero() {
            (class.queued).fetch_add(nanos(ended.queued), Ordering::Relaxed);
        }
        class.latency.record(nanos(ended.latency));
    }

    pub(super) fn snapshot(&self) -> QueueStats {
        QueueStats {
            classes: OpClass::ALL.map(|class| {
                let class = &self.classes[class as usize];
                ClassStats {
                    bytes: class.bytes.load(Ordering::Relaxed),
                    errors: class.errors.load(Ordering::Relaxed),
                    latency: class.latency.snapshot(),
                    queued: Duration::from_nanos(class.queued.load(Ordering::Relaxed)),
                }
            }),
            depth: self.depth.load(Ordering::Relaxed),
        }
    }
}
