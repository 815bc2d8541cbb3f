// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is allowed.

use std::time::Duration;

use virtio_blk_core::disk::OpKind;

/// A limit on one thing: operations, or bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Units a second, on average; at least 1.
    pub per_second: u64,
    /// What may be taken beyond that after a quiet time.
    pub burst: Option<Burst>,
}

/// A burst: after a time in which nothing was used, this rate holds for this long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Burst {
    /// Units a second while it lasts; at least the average.
    pub per_second: u64,
    /// How long it lasts when it is used in full. Used at a lower rate it lasts longer.
    pub length: Duration,
}

impl Rate {
    /// A rate without bursts.
    pub const fn new(per_second: u64) -> Self {
        Self {
            per_second,
            burst: None,
        }
    }

    /// With bursts.
    #[must_use]
    pub const fn with_burst(self, per_second: u64, length: Duration) -> Self {
        Self {
            burst: Some(Burst { per_second, length }),
            ..self
        }
    }

    const fn is_valid(&self) -> bool {
        self.per_second != 0
            && match &self.burst {
                Some(burst) => burst.per_second >= self.per_second && !burst.length.is_zero(),
                None => true,
            }
    }
}

/// Limits of a [`super::ThrottleGroup`]; all that are set hold at once. The default sets none.
///
/// Reads move data out, everything that changes the medium counts as a write. Discards and secure
/// erases count as an operation of no bytes. Flushes are never held back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Operations of either kind.
    pub iops: Option<Rate>,
    /// Reads.
    pub read_iops: Option<Rate>,
    /// Writes.
    pub write_iops: Option<Rate>,
    /// Bytes read and written.
    pub bandwidth: Option<Rate>,
    /// Bytes read.
    pub read_bandwidth: Option<Rate>,
    /// Bytes written.
    pub write_bandwidth: Option<Rate>,
}

/// A limit that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0}: give at least 1 a second, and for a burst at least the average rate for longer than no time"
)]
pub struct LimitError(pub(super) &'static str);

impl LimitError {
    /// Which one.
    pub(crate) const fn limit(&self) -> &'static str {
        self.0
    }
}

/// How many limits there are.
pub(super) const LIMITS: usize = 6;

impl Limits {
    pub(super) const fn all(&self) -> [Option<Rate>; LIMITS] {
        [
            self.iops,
            self.read_iops,
            self.write_iops,
            self.bandwidth,
            self.read_bandwidth,
            self.write_bandwidth,
        ]
    }

    /// Checks that they make sense.
    ///
    /// # Errors
    /// Names the first that does not.
    pub fn validate(&self) -> Result<(), LimitError> {
        const NAMES: [&str; LIMITS] = [
            "iops",
            "read_iops",
            "write_iops",
            "bandwidth",
            "read_bandwidth",
            "write_bandwidth",
        ];
        for (rate, name) in self.all().iter().zip(NAMES) {
            if rate.is_some_and(|rate| !rate.is_valid()) {
                return Err(LimitError(name));
            }
        }
        Ok(())
    }
}

/// What an operation takes of each limit, in the order of [`Limits::all`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cost(pub(super) [u64; LIMITS]);

impl Cost {
    /// `None`: nothing.
    pub(super) fn of(kind: &OpKind, data_len: u64) -> Option<Self> {
        Some(Self(match *kind {
            OpKind::Read { .. } => [1, 1, 0, data_len, data_len, 0],
            OpKind::Write { .. } => [1, 0, 1, data_len, 0, data_len],
            OpKind::WriteZeroes { len, .. } => [1, 0, 1, len, 0, len],
            OpKind::Discard { .. } | OpKind::SecureErase { .. } => [1, 0, 1, 0, 0, 0],
            _ => return None,
        }))
    }
}
