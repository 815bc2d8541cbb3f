// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a layer is: a disk that passes operations on to another one.
//!
//! A layer says in [`Layer`] what it does to operations; [`Layered`] is the disk, which passes everything else on. A
//! method that is added to [`Disk`] is passed on in one place.

use std::ops::Range;
use std::sync::Arc;

use virtio_blk_core::disk::{
    Caps, Disk, DiskError, DiskListener, Extent, FoundBitmap, Handover, IoQueue,
};

/// What a layer does to operations. A clone is the same layer, with its state, for another view of the disk.
pub trait Layer: Clone + Send + Sync + 'static {
    /// Puts a data path over `inner`, a queue of the disk underneath that was opened for `depth` operations. `caps` is
    /// what that disk can do. See [`Disk::open_queue`].
    ///
    /// # Errors
    /// The layer lacks a resource of the host.
    fn open_queue(
        &self,
        inner: Box<dyn IoQueue>,
        depth: u16,
        caps: &Caps,
    ) -> Result<Box<dyn IoQueue>, DiskError>;

    /// What the disk can do with the layer on it.
    #[must_use]
    fn caps(&self, inner: Caps) -> Caps {
        inner
    }

    /// Takes the disk into use; see [`Disk::activate`]. A layer with state that depends on the content checks it here.
    ///
    /// # Errors
    /// That of the disk underneath.
    fn activate<D: Disk + ?Sized>(&self, inner: &D) -> Result<(), DiskError> {
        inner.activate()
    }

    /// Releases the disk; see [`Disk::deactivate`].
    ///
    /// # Errors
    /// That of the disk underneath. It concerns the disk's data. A layer that can't keep its own state loses it without
    /// an error.
    fn deactivate<D: Disk + ?Sized>(&self, inner: &D) -> Result<(), DiskError> {
        inner.deactivate()
    }
}

/// A disk with a layer on it.
#[derive(Debug)]
pub struct Layered<L, D: ?Sized = dyn Disk> {
    layer: L,
    inner: Arc<D>,
}

impl<L: Layer, D: Disk + ?Sized> Layered<L, D> {
    /// Puts a layer over a disk.
    pub const fn with(layer: L, inner: Arc<D>) -> Self {
        Self { layer, inner }
    }

    /// The same layer, with its state, over another view of the disk.
    #[must_use]
    pub fn over(&self, inner: Arc<D>) -> Self {
        Self::with(self.layer.clone(), inner)
    }

    /// The layer.
    pub const fn layer(&self) -> &L {
        &self.layer
    }

    /// The disk underneath.
    pub const fn inner(&self) -> &Arc<D> {
        &self.inner
    }
}

impl<L: Layer, D: Disk + ?Sized> Disk for Layered<L, D> {
    fn caps(&self) -> Caps {
        self.layer.caps(self.inner.caps())
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        let queue = self.inner.open_queue(depth)?;
        self.layer.open_queue(queue, depth, &self.inner.caps())
    }

    fn flush_error(&self) -> Option<DiskError> {
        self.inner.flush_error()
    }

    fn activate(&self) -> Result<(), DiskError> {
        self.layer.activate(&*self.inner)
    }

    fn deactivate(&self) -> Result<(), DiskError> {
        self.layer.deactivate(&*self.inner)
    }

    fn handover(&self) -> Handover {
        self.inner.handover()
    }

    fn refresh(&self) -> Result<(), DiskError> {
        self.inner.refresh()
    }

    fn resize(&self, bytes: u64) -> Result<(), DiskError> {
        self.inner.resize(bytes)
    }

    fn extents(&self, range: Range<u64>, most: usize) -> Result<Vec<Extent>, DiskError> {
        self.inner.extents(range, most)
    }

    fn stored_bitmap(&self, name: &str) -> Result<Option<FoundBitmap>, DiskError> {
        self.inner.stored_bitmap(name)
    }

    fn listen(&self, listener: DiskListener) {
        self.inner.listen(listener);
    }
}

#[cfg(test)]
mod tests;
