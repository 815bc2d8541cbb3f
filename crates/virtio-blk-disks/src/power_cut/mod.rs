// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A model of a power cut, for tests of whatever promises that data is stable.
//!
//! [`PowerCutDisk`] notes each change and flush that passes. Afterwards [`PowerCutDisk::cut`] says for any
//! moment what a disk with a volatile cache may hold if the power fails there: everything that a completed
//! flush or a FUA write made stable, and of everything else any part, down to single sectors.
//!
//! A test then either checks that what was promised upwards is in all of these states, or puts some of them
//! on a disk ([`Cut::state`]) and has the software under test open that.
//!
//! It keeps a copy of everything that is written: for tests, not for service.

mod history;
mod recorder;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_blk_core::disk::{Caps, Disk, DiskError, IoQueue};

use history::History;
pub use history::{BrokenPromise, Choice, Content, Cut, Moment};
use recorder::Recorder;

use crate::layer::{Layer, Layered};
use crate::observe::ObservedQueue;

/// The history, shared with the queues.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<History>>);

impl Shared {
    fn get(&self) -> MutexGuard<'_, History> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A disk whose past is known.
pub type PowerCutDisk<D = dyn Disk> = Layered<PowerCut, D>;

/// The layer of a [`PowerCutDisk`].
#[derive(Clone, Default)]
pub struct PowerCut {
    history: Shared,
}

impl<D: Disk + ?Sized> PowerCutDisk<D> {
    /// Puts the layer over a disk, whose content now is the original one.
    pub fn new(inner: Arc<D>) -> Self {
        Self::with(PowerCut::default(), inner)
    }

    /// The last event so far: a submission or an end of a change or a flush.
    pub fn now(&self) -> Moment {
        self.layer().history.get().now()
    }

    /// What the disk may hold if the power fails right after the event `moment`.
    pub fn cut(&self, moment: Moment) -> Cut {
        self.layer().history.get().cut(moment)
    }
}

impl Layer for PowerCut {
    fn open_queue(
        &self,
        inner: Box<dyn IoQueue>,
        depth: u16,
        _: &Caps,
    ) -> Result<Box<dyn IoQueue>, DiskError> {
        let history = self.history.clone();
        Ok(Box::new(ObservedQueue::new(
            Recorder { history },
            inner,
            depth,
        )))
    }
}

#[cfg(test)]
mod tests;
