// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A bitmap of the image as one that a layer continues with.

use std::sync::Arc;

use virtio_blk_core::disk::{DiskError, FoundBitmap, StoredBitmap};

use super::directory::read_table;
use super::{Bitmaps, Kept, MAX_BITS, PersistentBitmap, claims, is_shared};
use crate::base::Base;
use crate::disk::Qcow2Disk;
use crate::format::{BitmapEntry, bitmap_flag};
use crate::lane::Lane;
use crate::sync::lock;

/// Why a bitmap that was not closed does not know what changed.
const NOT_CLOSED: &str = "the image's own bitmap was not closed";
/// Why one may not have everything that changes.
const IN_USE: &str = "it was started while the disk was in use";

impl StoredBitmap for PersistentBitmap {
    fn granularity(&self) -> u64 {
        Self::granularity(self)
    }

    fn ranges(&self) -> Vec<(u64, u64)> {
        Self::ranges(self)
    }

    fn mark(&self, offset: u64, len: u64) {
        Self::mark(self, offset, len);
    }

    fn clear(&self, offset: u64, len: u64) {
        Self::clear(self, offset, len);
    }
}

impl Bitmaps {
    /// Begins a bitmap anew that was not closed, of a disk of `size` bytes, with everything marked. `None`: it can't be, as
    /// its table is damaged, or it is too large.
    ///
    /// # Errors
    /// The disk's.
    fn begin_anew(
        &self,
        lane: &mut Lane,
        base: &Base,
        entry: &BitmapEntry,
        size: u64,
    ) -> Result<Option<Arc<PersistentBitmap>>, DiskError> {
        let mut state = lock(&self.state);
        let used: u64 = state.kept.iter().map(|kept| kept.bitmap.len()).sum();
        let bitmap = PersistentBitmap::new(&entry.name, entry.granularity_bits, true, size);
        if used + bitmap.len() > MAX_BITS {
            return Ok(None);
        }
        let Ok(table) = read_table(lane, base, entry)? else {
            return Ok(None);
        };
        let bitmap = Arc::new(bitmap);
        bitmap.mark(0, size);
        state.kept.push(Kept {
            bitmap: bitmap.clone(),
            place: (entry.table, table),
            entry: BitmapEntry {
                flags: entry.flags & !bitmap_flag::IN_USE,
                ..entry.clone()
            },
        });
        let found = claims(base, &state.kept);
        if is_shared(&found) {
            state.kept.pop();
            return Ok(None);
        }
        *lock(&self.claims) = found;
        Ok(Some(bitmap))
    }
}

impl Qcow2Disk {
    /// See [`Disk::stored_bitmap`](virtio_blk_core::disk::Disk::stored_bitmap).
    ///
    /// # Errors
    /// As there.
    pub(crate) fn find_bitmap(&self, name: &str) -> Result<Option<FoundBitmap>, DiskError> {
        if self.hands_over() {
            // It is another one after each hand-over.
            return Ok(None);
        }
        let image = self.image()?;
        let Some(bitmaps) = image.base.bitmaps.get() else {
            return Ok(None);
        };
        let Some(entry) = bitmaps.entries.iter().find(|entry| entry.name == name) else {
            return Ok(None);
        };
        if !entry.is_enabled() && !image.read_only {
            let path = self.path().display();
            return Err(DiskError::Config(format!(
                "the dirty bitmap {name} of {path} is disabled, so that nothing is marked in it: `qemu-img bitmap --enable \
                 {path} {name}` before, or take another name"
            )));
        }
        let in_use = self.is_used().then_some(IN_USE);
        if let Some(bitmap) = self.bitmap(name)? {
            let doubt = in_use;
            return Ok(Some(FoundBitmap { bitmap, doubt }));
        }
        if image.read_only || bitmaps.is_spoiled() {
            return Ok(None);
        }
        let mut lane = image.base.medium.lane()?;
        let bitmap = bitmaps.begin_anew(&mut lane, &image.base, entry, image.size())?;
        Ok(bitmap.map(|bitmap| FoundBitmap {
            bitmap,
            doubt: Some(NOT_CLOSED),
        }))
    }
}
