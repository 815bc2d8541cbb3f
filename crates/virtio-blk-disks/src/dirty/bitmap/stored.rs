// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How the disk's own bitmap goes along with one in memory.

use std::sync::atomic::{Ordering, fence};

use virtio_blk_core::disk::StoredBitmap;

use super::DirtyBitmap;
use crate::dirty::words::{BITS, mask};

impl DirtyBitmap {
    /// Takes the marks from the disk's own bitmap that this one does not have, taken or not.
    pub(super) fn follow(&self, stored: &dyn StoredBitmap) {
        let granularity = self.granularity();
        let tracked = self.tracked.load(Ordering::Acquire);
        // The last one may be a part of one, unless there is more of it that counts as changed.
        let blocks = match tracked < self.size() {
            true => tracked / granularity,
            false => tracked.div_ceil(granularity),
        };
        for (offset, len) in stored.ranges() {
            let (first, end) = (offset / granularity, (offset + len).div_ceil(granularity));
            let end = end.min(blocks);
            if first >= end {
                continue;
            }
            for index in first / BITS..=(end - 1) / BITS {
                let gone = mask(index, first, end - 1) & !self.word(index);
                each_run(index, gone, |first, count| {
                    stored.clear(first * granularity, count * granularity);
                });
                // Who marks here afterwards marks there afterwards, too; what was marked here before is seen now.
                fence(Ordering::SeqCst);
                each_run(index, gone & self.word(index), |first, count| {
                    stored.mark(first * granularity, count * granularity);
                });
            }
        }
    }
}

/// Calls `f` with the first block and the number of blocks of each run of bits in the word `index`.
fn each_run(index: u64, bits: u64, mut f: impl FnMut(u64, u64)) {
    let mut at = 0;
    while at < BITS {
        let rest = bits >> at;
        if rest == 0 {
            return;
        }
        at += u64::from(rest.trailing_zeros());
        let count = u64::from((bits >> at).trailing_ones());
        f(index * BITS + at, count);
        at += count;
    }
}
