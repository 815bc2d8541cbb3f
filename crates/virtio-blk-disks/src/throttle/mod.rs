// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A layer that limits operations and bytes a second.
//!
//! It has no timer: an operation whose turn has not come waits in its queue, and [`IoQueue::deadline`] says when
//! that will be. Limits belong to a [`ThrottleGroup`], which several disks may share, and can be changed at
//! any time.
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//! use virtio_blk_disks::MemoryDisk;
//! use virtio_blk_disks::throttle::{Limits, Rate, ThrottleDisk, ThrottleGroup};
//!
//! let group = ThrottleGroup::new(Limits {
//!     // 1,000 operations a second, and 4,000 for up to ten seconds after a quiet time.
//!     iops: Some(Rate::new(1000).with_burst(4000, Duration::from_secs(10))),
//!     write_bandwidth: Some(Rate::new(50 << 20)),
//!     ..Limits::default()
//! })?;
//! let disk = ThrottleDisk::new(Arc::new(MemoryDisk::new(4 << 20)?), group.clone());
//! // Later: no limits any more.
//! group.set_limits(Limits::default())?;
//! # drop(disk);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod bucket;
mod group;
mod limits;
mod options;
mod queue;
mod stats;

use std::sync::Arc;

use virtio_blk_core::disk::{Caps, Disk, DiskError, IoQueue};

pub use group::{Clock, ThrottleGroup};
pub use limits::{Burst, LimitError, Limits, Rate};
pub use options::ThrottleOptions;
pub use queue::RECHECK;
use queue::{ThrottleQueue, Turns};
pub use stats::ThrottleStats;

use crate::layer::{Layer, Layered};

/// A disk whose operations take turns.
///
/// An operation that is larger than what the limits give in a moment starts when its turn comes, and what
/// follows waits for it. A flush is never held back: it concerns completed writes.
pub type ThrottleDisk<D = dyn Disk> = Layered<Throttle, D>;

/// The layer of a [`ThrottleDisk`].
#[derive(Clone)]
pub struct Throttle {
    group: ThrottleGroup,
    counts: Arc<stats::Counts>,
}

impl<D: Disk + ?Sized> ThrottleDisk<D> {
    /// Puts the group's limits over a disk.
    pub fn new(inner: Arc<D>, group: ThrottleGroup) -> Self {
        let counts = Arc::default();
        Self::with(Throttle { group, counts }, inner)
    }

    /// The group it belongs to.
    pub fn group(&self) -> &ThrottleGroup {
        &self.layer().group
    }

    /// What was held back.
    pub fn stats(&self) -> ThrottleStats {
        self.layer().counts.get()
    }
}

impl Layer for Throttle {
    fn open_queue(
        &self,
        inner: Box<dyn IoQueue>,
        depth: u16,
        _: &Caps,
    ) -> Result<Box<dyn IoQueue>, DiskError> {
        let turns = Turns::new(self.group.clone(), self.counts.clone(), depth);
        Ok(Box::new(ThrottleQueue::new(turns, inner)?))
    }
}

#[cfg(test)]
mod tests;
