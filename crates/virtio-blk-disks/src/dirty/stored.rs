// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A bitmap that the medium keeps itself, and that goes along with one in memory.
//!
//! The medium's disk marks a block in its own bitmap **before** it changes it; here it is marked, in both, when the change
//! has ended. So the medium's has at any time what this one has, what is taken, and what is in flight: what it has when
//! it is stored is all that a later user needs. Its marks go when what was taken is committed.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_blk_core::disk::{FoundBitmap, StoredBitmap};

use super::bitmap::DirtyBitmap;
use super::dirty_marker::{ByteRange, DirtyMarker, EndMarker};
use super::error::BitmapError;

/// A bitmap in memory that continues with the medium's own, of a disk of `size` bytes.
///
/// # Errors
/// As of [`DirtyBitmap::new`].
pub(super) fn open(size: u64, found: &FoundBitmap) -> Result<Arc<DirtyBitmap>, BitmapError> {
    let own = found.bitmap.granularity();
    let bitmap = match found.doubt {
        Some(why) => DirtyBitmap::incomplete(size, own, why)?,
        None => DirtyBitmap::new(size, own)?,
    };
    for (offset, len) in found.bitmap.ranges() {
        bitmap.mark(offset, len);
    }
    bitmap.go_with(found.bitmap.clone());
    Ok(Arc::new(bitmap))
}

/// Marks what operations changed in the bitmaps in memory and then in the medium's own.
pub(super) struct StoredMarker {
    pub(super) marker: DirtyMarker,
    pub(super) stored: Arc<dyn StoredBitmap>,
}

impl EndMarker for StoredMarker {
    fn mark(&self, range: ByteRange) {
        self.marker.mark(range);
        if let Some((offset, len)) = range {
            // See `DirtyBitmap::follow`: that looks here, and we there, whatever comes first.
            fence(Ordering::SeqCst);
            self.stored.mark(offset, len);
        }
    }
}
