// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The directory of persistent bitmaps (QEMU's `docs/interop/qcow2.rst`, "Bitmaps").

use super::{FormatError, be32, be64};

/// Bytes of an entry without its variable parts.
const FIXED: usize = 24;
/// Most bytes of a bitmap's table, and of its name, as QEMU has them.
const MAX_TABLE: u32 = 0x800_0000;
const MAX_NAME: usize = 1023;

/// The flags of a bitmap.
pub mod bitmap_flag {
    /// It was not closed: what it says is out of date.
    pub const IN_USE: u32 = 1;
    /// Changes of the disk are marked in it.
    pub const AUTO: u32 = 2;
}

/// The entry of a bitmap's table for a cluster of bits that are all set, and where none is.
pub const ALL_ONES: u64 = 1;

/// An entry of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapEntry {
    /// Where it begins in the directory.
    pub at: usize,
    /// The bitmap's name.
    pub name: String,
    /// First byte of its table in the file.
    pub table: u64,
    /// Entries of the table.
    pub entries: u32,
    /// See [`bitmap_flag`].
    pub flags: u32,
    /// Bytes of the disk that a bit stands for, as a power of two.
    pub granularity_bits: u32,
}

impl BitmapEntry {
    /// Whether what it says is up to date.
    pub const fn is_consistent(&self) -> bool {
        self.flags & bitmap_flag::IN_USE == 0
    }

    /// Whether changes of the disk are marked in it.
    pub const fn is_enabled(&self) -> bool {
        self.flags & bitmap_flag::AUTO != 0
    }
}

/// Reads the directory of `count` bitmaps.
///
/// # Errors
/// `Damaged`; `Unsupported`: a kind of bitmap that nobody knew when this was written.
pub fn bitmap_directory(bytes: &[u8], count: u32) -> Result<Vec<BitmapEntry>, FormatError> {
    let damaged = |what: &str| FormatError::damaged(format!("its directory of bitmaps {what}"));
    let mut found: Vec<BitmapEntry> = Vec::new();
    let mut at = 0;
    for _ in 0..count {
        let entry = bytes.get(at..).filter(|rest| rest.len() >= FIXED);
        let entry = entry.ok_or_else(|| damaged("is cut off"))?;
        let (kind, granularity) = (be32(entry, 16) >> 24, be32(entry, 16) >> 16 & 0xff);
        let (name, extra) = (
            (be32(entry, 16) & 0xffff) as usize,
            be32(entry, 20) as usize,
        );
        let flags = be32(entry, 12);
        if kind != 1 || extra != 0 || flags & !(bitmap_flag::IN_USE | bitmap_flag::AUTO) != 0 {
            return Err(FormatError::Unsupported("an unknown kind of bitmap".into()));
        }
        let text = entry.get(FIXED..FIXED + name);
        let text = text.filter(|_| (1..=MAX_NAME).contains(&name));
        let text = text.ok_or_else(|| damaged("has an impossible name"))?;
        let entries = be32(entry, 8);
        if !(9..=31).contains(&granularity) || entries == 0 || entries > MAX_TABLE {
            return Err(damaged("has an impossible size"));
        }
        found.push(BitmapEntry {
            at,
            name: String::from_utf8_lossy(text).into_owned(),
            table: be64(entry, 0),
            entries,
            flags,
            granularity_bits: granularity,
        });
        at += (FIXED + name).next_multiple_of(8);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::put;

    fn entry(name: &str) -> Vec<u8> {
        let mut bytes = vec![0; (FIXED + name.len()).next_multiple_of(8)];
        put(&mut bytes, 0, &(5_u64 << 16).to_be_bytes());
        put(&mut bytes, 8, &3_u32.to_be_bytes());
        put(&mut bytes, 12, &2_u32.to_be_bytes());
        put(&mut bytes, 16, &[1, 16]);
        put(&mut bytes, 18, &(name.len() as u16).to_be_bytes());
        put(&mut bytes, FIXED, name.as_bytes());
        bytes
    }

    #[test]
    fn entries_follow_each_other() {
        let bytes = [entry("a"), entry("a longer one")].concat();
        let found = bitmap_directory(&bytes, 2).unwrap();
        let names: Vec<_> = found.iter().map(|entry| &*entry.name).collect();
        assert_eq!(names, ["a", "a longer one"]);
        assert_eq!((found[1].at, found[1].table), (32, 5 << 16));
        assert_eq!((found[1].entries, found[1].granularity_bits), (3, 16));
        assert!(found[1].is_enabled() && found[1].is_consistent());
    }

    #[test]
    fn what_is_impossible_is_refused() {
        assert!(bitmap_directory(&entry("a"), 2).is_err());
        for (at, byte) in [
            (8, 0xff),
            (11, 0),
            (15, 4),
            (16, 2),
            (17, 8),
            (17, 32),
            (19, 0),
            (19, 200),
            (23, 8),
        ] {
            let mut bytes = entry("a");
            bytes[at] = byte;
            assert!(bitmap_directory(&bytes, 1).is_err(), "{at}");
        }
    }
}
