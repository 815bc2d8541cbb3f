// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A layer that counts and times operations, for each queue and kind.
//!
//! Reading costs the queues nothing; measuring costs two looks at the clock and a few additions for each
//! operation, no lock and no allocation.
//!
//! ```
//! use std::sync::Arc;
//! use virtio_blk_disks::MemoryDisk;
//! use virtio_blk_disks::meter::{MeterDisk, OpClass};
//!
//! let disk = MeterDisk::new(Arc::new(MemoryDisk::new(4 << 20)?));
//! // … the guest works …
//! let reads = disk.total().class(OpClass::Read).clone();
//! println!("{} reads, p99 {:?}", reads.count(), reads.latency.quantile(0.99));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod gauge;
mod histogram;
mod recorder;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_blk_core::disk::{Caps, Disk, DiskError, IoQueue};

use gauge::Gauge;
pub use histogram::Latency;
use recorder::Recorder;
pub use recorder::{ClassStats, OpClass, QueueStats};

use crate::observe::ObservedQueue;

/// A disk whose operations are counted and timed.
pub struct MeterDisk<D: ?Sized = dyn Disk> {
    /// Of each queue number. A queue that is opened again goes on with the numbers of one that was closed.
    recorders: Arc<Mutex<Vec<Arc<Recorder>>>>,
    inner: Arc<D>,
}

impl<D: Disk + ?Sized> MeterDisk<D> {
    /// Puts the layer over a disk.
    pub fn new(inner: Arc<D>) -> Self {
        Self {
            recorders: Arc::default(),
            inner,
        }
    }

    /// The same layer, with its numbers, over another view of the disk.
    pub(crate) fn over(&self, inner: Arc<D>) -> Self {
        Self {
            recorders: self.recorders.clone(),
            inner,
        }
    }

    fn recorders(&self) -> MutexGuard<'_, Vec<Arc<Recorder>>> {
        self.recorders
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What each queue did so far, in the order in which they were first opened.
    pub fn queues(&self) -> Vec<QueueStats> {
        self.recorders().iter().map(|r| r.snapshot()).collect()
    }

    /// What all queues did together.
    pub fn total(&self) -> QueueStats {
        let sum = |sum: QueueStats, queue: &QueueStats| sum.merged(queue);
        self.queues().iter().fold(QueueStats::default(), sum)
    }
}

impl<D: Disk + ?Sized> Disk for MeterDisk<D> {
    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        let inner = self.inner.open_queue(depth)?;
        let recorder = {
            let mut recorders = self.recorders();
            // Nobody else holds the recorder of a queue that was closed.
            match recorders.iter().find(|found| Arc::strong_count(found) == 1) {
                Some(free) => free.clone(),
                None => {
                    let new = Arc::<Recorder>::default();
                    recorders.push(new.clone());
                    new
                }
            }
        };
        Ok(Box::new(ObservedQueue::new(
            Gauge::new(recorder, depth),
            inner,
            depth,
        )))
    }

    crate::forward::control!(self, self.inner);
}

#[cfg(test)]
mod tests;
