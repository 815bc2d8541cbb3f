// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A layer that makes any disk misbehave, by plan and repeatably.
//!
//! For tests of everything that uses a disk. The contract of [`IoQueue`] is kept throughout: each
//! operation still completes exactly once, only later, in another order, or with an error: without an effect, with
//! a part of it (a torn write) or with all of it. Only [`Rule::silent`] lies.
//!
//! ```
//! use std::sync::Arc;
//! use virtio_blk_core::disk::Disk;
//! use virtio_blk_disks::fault::{FaultDisk, FaultPlan, Kind, Rule};
//! use virtio_blk_disks::MemoryDisk;
//!
//! let plan = FaultPlan::new(42)
//!     // One write in ten to the second MiB fails, without having had an effect ...
//!     .rule(Rule::errno(libc::EIO).kind(Kind::Write).bytes(1 << 20..2 << 20).per_mille(100))
//!     // ... and the third flush, although it was done.
//!     .rule(Rule::errno(libc::EIO).kind(Kind::Flush).skip(2).times(1).after_effect())
//!     // Completions come out of order, up to five calls of `reap` late.
//!     .delay_reaps(0..=5)
//!     .reorder();
//! let disk = FaultDisk::new(Arc::new(MemoryDisk::new(4 << 20)?), plan);
//! let queue = disk.open_queue(32)?;
//! # drop(queue);
//! # Ok::<(), virtio_blk_core::disk::DiskError>(())
//! ```

mod options;
mod plan;
mod queue;
mod rng;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use virtio_blk_core::disk::{Caps, Disk, DiskError, IoQueue};

pub use options::FaultOptions;
pub use plan::{FaultPlan, Kind, Rule};
use queue::FaultQueue;

use crate::layer::{Layer, Layered};

/// A disk that misbehaves by plan.
///
/// Each queue draws its decisions from the plan's seed and the queue's number in order of opening, one
/// set per submission: the same submissions meet the same faults, whatever the clock says. Rules with
/// counts ([`Rule::skip`], [`Rule::times`]) count on all queues together.
pub type FaultDisk<D = dyn Disk> = Layered<Fault, D>;

/// The layer of a [`FaultDisk`].
#[derive(Clone)]
pub struct Fault {
    shared: Arc<Shared>,
}

/// What the disk shares with its queues.
struct Shared {
    plan: FaultPlan,
    armed: AtomicBool,
    /// Matches of each rule so far.
    matches: Vec<AtomicU64>,
    errors: AtomicU64,
    refusals: AtomicU64,
    queues: AtomicU64,
}

impl<D: Disk + ?Sized> FaultDisk<D> {
    /// Puts a plan over a disk.
    pub fn new(inner: Arc<D>, plan: FaultPlan) -> Self {
        let matches = plan.rules.iter().map(|_| AtomicU64::new(0)).collect();
        let shared = Arc::new(Shared {
            plan,
            armed: AtomicBool::new(true),
            matches,
            errors: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
            queues: AtomicU64::new(0),
        });
        Self::with(Fault { shared }, inner)
    }

    /// Switches errors, full queues and broken queues on (the default) or off. Delays and reordering
    /// stay.
    pub fn arm(&self, on: bool) {
        self.layer().shared.armed.store(on, Ordering::SeqCst);
    }

    /// Operations that were failed so far.
    pub fn errors(&self) -> u64 {
        self.layer().shared.errors.load(Ordering::SeqCst)
    }

    /// Submissions so far for which `Full` was returned.
    pub fn refusals(&self) -> u64 {
        self.layer().shared.refusals.load(Ordering::SeqCst)
    }
}

impl Layer for Fault {
    fn open_queue(
        &self,
        inner: Box<dyn IoQueue>,
        depth: u16,
        caps: &Caps,
    ) -> Result<Box<dyn IoQueue>, DiskError> {
        let number = self.shared.queues.fetch_add(1, Ordering::SeqCst);
        let block = caps.align.guest_block;
        let queue = FaultQueue::new(self.shared.clone(), inner, depth, number, block)?;
        Ok(Box::new(queue))
    }
}

#[cfg(test)]
mod tests;
