// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Dirty bitmaps that a medium keeps itself.

use std::sync::Arc;

/// A dirty bitmap that a medium keeps itself, beside its data: a mark for each block that changed. The disk marks a block
/// before it changes it.
pub trait StoredBitmap: Send + Sync {
    /// Bytes of a block, a power of two of at least 512.
    fn granularity(&self) -> u64;

    /// The marked parts of the disk: first bytes and lengths, in order.
    fn ranges(&self) -> Vec<(u64, u64)>;

    /// Marks the blocks that `len` bytes at `offset` are in.
    fn mark(&self, offset: u64, len: u64);

    /// Takes away the marks of the blocks that `len` bytes at `offset` are in.
    fn clear(&self, offset: u64, len: u64);
}

/// What [`Disk::stored_bitmap`](super::Disk::stored_bitmap) found.
#[derive(Clone)]
pub struct FoundBitmap {
    /// The bitmap.
    pub bitmap: Arc<dyn StoredBitmap>,
    /// Why its marks may not be all that changed, or not be all that changes from now on. `None`: they are.
    pub doubt: Option<&'static str>,
}

impl std::fmt::Debug for FoundBitmap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FoundBitmap")
            .field("doubt", &self.doubt)
            .finish_non_exhaustive()
    }
}
