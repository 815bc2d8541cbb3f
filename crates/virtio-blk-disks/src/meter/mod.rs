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
mod options;
mod recorder;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_blk_core::disk::{Caps, Disk, DiskError, IoQueue};

use gauge::Gauge;
pub use histogram::Latency;
pub use options::MeterOptions;
use recorder::Recorder;
pub use recorder::{ClassStats, OpClass, QueueStats};

use crate::layer::{Layer, Layered};
use crate::observe::ObservedQueue;

/// A disk whose operations are counted and timed.
pub type MeterDisk<D = dyn Disk> = Layered<Meter, D>;

/// The layer of a [`MeterDisk`].
#[derive(Clone, Default)]
pub struct Meter {
    /// Of each queue number. A queue that is opened again continues with the numbers of one that was closed.
    recorders: Arc<Mutex<Vec<Arc<Recorder>>>>,
}

impl Meter {
    fn recorders(&self) -> MutexGuard<'_, Vec<Arc<Recorder>>> {
        self.recorders
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Disk + ?Sized> MeterDisk<D> {
    /// Puts the layer over a disk.
    pub fn new(inner: Arc<D>) -> Self {
        Self::with(Meter::default(), inner)
    }

    /// What each queue did so far, in the order in which they were first opened.
    pub fn queues(&self) -> Vec<QueueStats> {
        let recorders = self.layer().recorders();
        recorders.iter().map(|r| r.snapshot()).collect()
    }

    /// What all queues did together.
    pub fn total(&self) -> QueueStats {
        let sum = |sum: QueueStats, queue: &QueueStats| sum.merged(queue);
        self.queues().iter().fold(QueueStats::default(), sum)
    }
}

impl Layer for Meter {
    fn open_queue(
        &self,
        inner: Box<dyn IoQueue>,
        depth: u16,
        _: &Caps,
    ) -> Result<Box<dyn IoQueue>, DiskError> {
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
}

#[cfg(test)]
mod tests;
