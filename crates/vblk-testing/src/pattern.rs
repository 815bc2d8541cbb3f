// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sector contents that tell which write put them where.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use crate::{Error, SECTOR};

const WORDS: usize = SECTOR / 8;

/// Names a write. Every write has its own, so that stale data is told from new.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(pub u64);

impl Stamp {
    /// A sector of zeroes.
    pub const ZERO: Self = Self(0);
    /// What [`create_file`] fills a file with.
    pub const FILE: Self = Self(1);
    /// The first stamp for writes; the lower ones have a meaning of their own.
    pub const FIRST: Self = Self(2);
}

/// Constants that differ in each word, so that misplaced words are seen.
static WORD_KEYS: [u64; WORDS] = {
    let mut keys = [0; WORDS];
    let mut i = 0;
    while i < WORDS {
        keys[i] = mix(i as u64 + 1);
        i += 1;
    }
    keys
};

const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The 64 words of `sector` as the write `stamp` stores it: the stamp, the sector, then noise that
/// depends on both.
fn words(stamp: Stamp, sector: u64) -> [u64; WORDS] {
    if stamp == Stamp::ZERO {
        return [0; WORDS];
    }
    let base = mix(mix(stamp.0) ^ sector);
    let mut words = WORD_KEYS;
    for word in &mut words {
        *word ^= base;
    }
    words[0] = stamp.0;
    words[1] = sector;
    words
}

/// Fills `data` with consecutive sectors from `first` on. A tail shorter than a sector stays as it is.
pub fn fill(data: &mut [u8], first: u64, stamp: Stamp) {
    for (data, sector) in data.chunks_exact_mut(SECTOR).zip(first..) {
        for (bytes, word) in data.chunks_exact_mut(8).zip(words(stamp, sector)) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }
}

/// Whether `data`, one sector long, is what the write `stamp` stores in `sector`.
pub fn matches(data: &[u8], sector: u64, stamp: Stamp) -> bool {
    debug_assert_eq!(data.len(), SECTOR);
    let mut difference = 0;
    for (bytes, word) in data.chunks_exact(8).zip(words(stamp, sector)) {
        let mut buf = [0; 8];
        buf.copy_from_slice(bytes);
        difference |= u64::from_le_bytes(buf) ^ word;
    }
    difference == 0
}

/// Whether each byte of `data`, one sector long, comes from one of the writes `stamps`.
pub fn is_mix(data: &[u8], sector: u64, stamps: &[Stamp]) -> bool {
    let mut explained = [false; SECTOR];
    let mut candidate = [0; SECTOR];
    for &stamp in stamps {
        fill(&mut candidate, sector, stamp);
        for ((explained, a), b) in explained.iter_mut().zip(data).zip(candidate) {
            *explained |= *a == b;
        }
    }
    explained.iter().all(|e| *e)
}

/// Says what `data`, one sector long, is, for a message.
pub fn describe(data: &[u8]) -> String {
    let word = |i: usize| {
        let mut buf = [0; 8];
        buf.copy_from_slice(&data[i * 8..i * 8 + 8]);
        u64::from_le_bytes(buf)
    };
    let (stamp, sector) = (Stamp(word(0)), word(1));
    if data.iter().all(|b| *b == 0) {
        "zeroes".into()
    } else if data.iter().all(|b| *b == data[0]) {
        format!("512 bytes of {:#04x}", data[0])
    } else if matches(data, sector, stamp) {
        format!("write {} of sector {sector}", stamp.0)
    } else {
        format!(
            "an unknown or mixed content that starts with {:02x?}",
            &data[..16]
        )
    }
}

/// Creates a file of `len` bytes whose sectors carry [`Stamp::FILE`].
///
/// # Errors
/// The file can't be created or written.
pub fn create_file(path: &Path, len: u64) -> Result<(), Error> {
    let fail = || Error::io(format!("{}", path.display()));
    let mut file = File::create(path).map_err(fail())?;
    // As guests mostly write. Longer pieces make large folios in the page cache, and 4 KiB writes into
    // those cost ext4 (Linux 6.18) several times as much: that would hide what a server costs.
    let mut data = vec![0; 4096];
    let mut at = 0;
    while at < len {
        let part = usize::try_from(len - at).map_or(data.len(), |left| left.min(data.len()));
        fill(&mut data[..part], at / SECTOR as u64, Stamp::FILE);
        file.write_all(&data[..part]).map_err(fail())?;
        at += part as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_depends_on_stamp_sector_and_position() {
        let mut a = [0; SECTOR];
        fill(&mut a, 7, Stamp(9));
        assert!(matches(&a, 7, Stamp(9)));
        assert!(!matches(&a, 8, Stamp(9)));
        assert!(!matches(&a, 7, Stamp(8)));
        assert!(!matches(&a, 7, Stamp::ZERO));
        for i in 0..SECTOR {
            a[i] ^= 1;
            assert!(!matches(&a, 7, Stamp(9)), "byte {i}");
            a[i] ^= 1;
        }
        a.copy_within(24..32, 16);
        assert!(!matches(&a, 7, Stamp(9)), "a word in the wrong place");
    }

    #[test]
    fn a_mix_needs_both_writes() {
        let (mut a, mut b) = ([0; SECTOR], [0; SECTOR]);
        fill(&mut a, 3, Stamp(5));
        fill(&mut b, 3, Stamp(6));
        a[100..].copy_from_slice(&b[100..]);
        assert!(is_mix(&a, 3, &[Stamp(5), Stamp(6)]));
        assert!(!is_mix(&a, 3, &[Stamp(5), Stamp(7)]));
        assert!(!is_mix(&a, 3, &[Stamp(6)]));
    }

    #[test]
    fn descriptions_name_the_write() {
        let mut a = [0; SECTOR];
        assert_eq!(describe(&a), "zeroes");
        fill(&mut a, 3, Stamp(5));
        assert_eq!(describe(&a), "write 5 of sector 3");
        a[511] ^= 1;
        assert!(describe(&a).starts_with("an unknown"));
    }
}
