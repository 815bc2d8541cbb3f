// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The bits of a bitmap, in words.

/// Bits in a word.
pub(super) const BITS: u64 = u64::BITS as u64;
/// The bits from block `first` to `last` in the word `index`, which holds some of them.
#[inline]
pub(super) fn mask(index: u64, first: u64, last: u64) -> u64 {
    let low = first.max(index * BITS) - index * BITS;
    let high = last.min(index * BITS + BITS - 1) - index * BITS;
    (u64::MAX >> (BITS - 1 - (high - low))) << low
}
