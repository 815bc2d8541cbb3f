// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A layer that remembers a checksum of each sector and reports the first mismatch.
//!
//! For tests, and for the hunt after a disk or a path that loses data. It takes some 50 bytes of memory for
//! each sector that was touched.
//!
//! ```
//! use std::sync::Arc;
//! use virtio_blk_disks::MemoryDisk;
//! use virtio_blk_disks::verify::VerifyDisk;
//!
//! let disk = VerifyDisk::new(Arc::new(MemoryDisk::new(4 << 20)?));
//! // … the guest works …
//! assert_eq!(disk.mismatch(), None);
//! # Ok::<(), virtio_blk_core::disk::DiskError>(())
//! ```

mod checker;
mod options;
mod sums;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use virtio_blk_core::disk::{Caps, ContentStamp, Disk, DiskError, Handover, IoQueue};

use checker::Checker;
pub use options::VerifyOptions;
use sums::Sums;

use crate::layer::{Layer, Layered};
use crate::observe::ObservedQueue;

/// A sector that was read and did not hold what was written to it, or what was read from it before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("sector {sector} does not hold what was last written to it or read from it")]
pub struct Mismatch {
    /// Which sector, of 512 bytes.
    pub sector: u64,
}

/// The most sectors of one discard, write-zeroes or secure erase: bounds what one operation costs here.
const MAX_ERASE_SECTORS: u64 = 32_768;

struct Shared {
    sums: Sums,
    mismatch: OnceLock<Mismatch>,
    /// Others may change the disk. With what names its content at the beginning.
    left: Mutex<Option<Option<ContentStamp>>>,
}

impl Shared {
    fn left(&self) -> MutexGuard<'_, Option<Option<ContentStamp>>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A disk whose reads are checked.
///
/// A read that finds a mismatch fails, and the first mismatch is kept. Sectors that were changed while they were
/// read are passed over, as the standard allows any mixture then; so are discarded ones until they are
/// written again. What others may have changed while the disk was released ([`Disk::handover`]) is unknown.
pub type VerifyDisk<D = dyn Disk> = Layered<Verify, D>;

/// The layer of a [`VerifyDisk`].
#[derive(Clone)]
pub struct Verify {
    shared: Arc<Shared>,
}

impl<D: Disk + ?Sized> VerifyDisk<D> {
    /// Puts the layer over a disk, of which nothing is known yet: what is read first must stay.
    pub fn new(inner: Arc<D>) -> Self {
        let shared = Arc::new(Shared {
            sums: Sums::default(),
            mismatch: OnceLock::new(),
            left: Mutex::default(),
        });
        Self::with(Verify { shared }, inner)
    }

    /// The first mismatch, if there was one.
    pub fn mismatch(&self) -> Option<Mismatch> {
        self.layer().shared.mismatch.get().copied()
    }
}

impl Layer for Verify {
    fn caps(&self, mut caps: Caps) -> Caps {
        for erase in [&mut caps.discard, &mut caps.secure_erase]
            .into_iter()
            .flatten()
        {
            erase.max_sectors = erase.max_sectors.min(MAX_ERASE_SECTORS as u32);
        }
        if let Some(zero) = &mut caps.write_zeroes {
            zero.max_sectors = zero.max_sectors.min(MAX_ERASE_SECTORS as u32);
        }
        caps
    }

    fn open_queue(
        &self,
        inner: Box<dyn IoQueue>,
        depth: u16,
        _: &Caps,
    ) -> Result<Box<dyn IoQueue>, DiskError> {
        let shared = self.shared.clone();
        Ok(Box::new(ObservedQueue::new(
            Checker { shared },
            inner,
            depth,
        )))
    }

    fn activate<D: Disk + ?Sized>(&self, inner: &D) -> Result<(), DiskError> {
        inner.activate()?;
        if let Handover::Held(found) = inner.handover()
            && let Some(left) = self.shared.left().take()
            && (left.is_none() || left != found)
        {
            self.shared.sums.forget();
        }
        Ok(())
    }

    fn deactivate<D: Disk + ?Sized>(&self, inner: &D) -> Result<(), DiskError> {
        let before = inner.handover();
        let result = inner.deactivate();
        if let (Handover::Held(_), Handover::Released(left)) = (before, inner.handover()) {
            // A stamp is of a disk that was left in order, whichever disk made it.
            *self.shared.left() = Some(left.filter(|_| result.is_ok()));
        }
        result
    }
}

#[cfg(test)]
mod tests;
