// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The header.

use super::{Extensions, FormatError, Geometry, be32, be64};

const MAGIC: u32 = 0x5146_49fb;
/// Bytes of the header of version 2, and the least of version 3.
const LEN_2: usize = 72;
const LEN_3: usize = 104;
/// Most bytes of the L1 table, of the refcount table, and of both for a snapshot.
const MAX_L1: u64 = 32 << 20;
const MAX_REFCOUNTS: u64 = 8 << 20;
/// Most bytes of the backing file's name.
const MAX_NAME: u32 = 1023;
/// Most snapshots, and bytes of the table of them.
const MAX_SNAPSHOTS: u32 = 65_536;

/// Where the header has its fields, in bytes.
pub mod field {
    /// The size that the guest sees: 8 bytes.
    pub const SIZE: usize = 24;
    /// Entries of the L1 table: 4 bytes, then its place: 8 bytes.
    pub const L1: usize = 36;
    /// The refcount table's place: 8 bytes, then its clusters: 4 bytes.
    pub const REFCOUNTS: usize = 48;
    /// Incompatible features: 8 bytes.
    pub const INCOMPATIBLE: usize = 72;
    /// Autoclear features: 8 bytes.
    pub const AUTOCLEAR: usize = 88;
}

/// Features without which an image can't be understood.
pub mod incompatible {
    /// Refcounts may be out of date.
    pub const DIRTY: u64 = 1;
    /// The image is damaged.
    pub const CORRUPT: u64 = 1 << 1;
    /// The guest's data is in another file.
    pub const DATA_FILE: u64 = 1 << 2;
    /// The compression is not zlib.
    pub const COMPRESSION: u64 = 1 << 3;
    /// Subclusters.
    pub const EXTENDED_L2: u64 = 1 << 4;
}

/// Features that a change by somebody who does not know them makes stale.
pub mod autoclear {
    /// Persistent bitmaps are up to date.
    pub const BITMAPS: u64 = 1;
    /// The external data file is the guest's disk byte for byte.
    pub const DATA_FILE_RAW: u64 = 2;
}

/// A table in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// First byte in the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// How compressed clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Deflate, without a header.
    Zlib,
    /// Zstandard.
    Zstd,
}

/// What an image says of itself. Checked: sizes and places are possible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Sizes.
    pub geometry: Geometry,
    /// Bytes that the guest sees.
    pub size: u64,
    /// The active L1 table.
    pub l1: Table,
    /// The refcount table.
    pub refcounts: Table,
    /// The backing file's name.
    pub backing: Option<String>,
    /// Internal snapshots, and where the table of them begins.
    pub snapshots: (u32, u64),
    /// Whether guest data is in another file.
    pub external: bool,
    /// Whether that file is to be kept byte for byte what the guest sees.
    pub raw_external: bool,
    /// How clusters are compressed.
    pub compression: Compression,
    /// Features that a change by somebody who does not know them makes stale.
    pub autoclear: u64,
    /// Extensions.
    pub extensions: Extensions,
    /// The dirty bit: counts may be too small or too large.
    pub dirty: bool,
}

impl Header {
    /// Bytes of the first cluster, found from the first 512 bytes of the file.
    ///
    /// # Errors
    /// `Magic`, `Unsupported` version, `Damaged`.
    pub fn cluster(start: &[u8]) -> Result<u64, FormatError> {
        if start.len() < LEN_2 || be32(start, 0) != MAGIC {
            return Err(FormatError::Magic);
        }
        let version = be32(start, 4);
        if version != 2 && version != 3 {
            return Err(FormatError::Unsupported(format!("version {version}")));
        }
        let bits = be32(start, 20);
        if !(9..=21).contains(&bits) {
            return Err(FormatError::damaged("its cluster size is impossible"));
        }
        Ok(1 << bits)
    }

    /// Reads and checks the header in the first cluster of a file of `file_len` bytes, or what there is of it.
    ///
    /// # Errors
    /// Each of [`FormatError`]. An image that is only marked as dirty is none: see [`Header::dirty`].
    pub fn parse(first: &[u8], file_len: u64) -> Result<Self, FormatError> {
        let damaged = |what: &str| FormatError::damaged(what);
        let cluster = Self::cluster(first)?;
        let version = be32(first, 4);
        let mut features = 0;
        let (mut refcount_order, mut header_len, mut autoclear) = (4, LEN_2, 0);
        if version == 3 {
            if first.len() < LEN_3 {
                return Err(damaged("its header is cut off"));
            }
            features = be64(first, field::INCOMPATIBLE);
            refuse(features)?;
            refcount_order = be32(first, 96);
            header_len = be32(first, 100) as usize;
            autoclear = be64(first, field::AUTOCLEAR);
            if header_len < LEN_3 || header_len as u64 > cluster || header_len % 8 != 0 {
                return Err(damaged("its header's length is impossible"));
            }
        }
        match be32(first, 32) {
            0 => {}
            2 => return Err(FormatError::Unsupported("LUKS encryption".into())),
            _ => return Err(FormatError::Unsupported("AES encryption".into())),
        }
        if refcount_order > 6 {
            return Err(damaged("its refcounts are too wide"));
        }
        let geometry = Geometry {
            cluster_bits: be32(first, 20),
            refcount_order,
            extended: features & incompatible::EXTENDED_L2 != 0,
        };
        if geometry.extended && geometry.cluster_bits < 14 {
            return Err(damaged("its clusters are too small for subclusters"));
        }
        let table = |offset: u64, len: u64, max: u64, name: &str| {
            if len > max {
                return Err(damaged(&format!("its {name} is larger than {max} bytes")));
            }
            let end = offset.checked_add(len).filter(|end| *end <= file_len);
            if !offset.is_multiple_of(cluster) || (len != 0 && offset == 0) || end.is_none() {
                return Err(damaged(&format!("its {name} lies outside the file")));
            }
            Ok(Table { offset, len })
        };
        let l1_len = u64::from(be32(first, field::L1)) * 8;
        let l1 = table(be64(first, field::L1 + 4), l1_len, MAX_L1, "L1 table")?;
        let counts_len = u64::from(be32(first, field::REFCOUNTS + 8)) * cluster;
        let counts_at = be64(first, field::REFCOUNTS);
        let refcounts = table(counts_at, counts_len, MAX_REFCOUNTS, "refcount table")?;
        if refcounts.len == 0 {
            return Err(damaged("it has no refcount table"));
        }
        let size = be64(first, field::SIZE);
        if size.div_ceil(geometry.table_reach()) > l1.len / 8 {
            return Err(damaged("its L1 table is too small for its size"));
        }
        let snapshots = (be32(first, 60), be64(first, 64));
        if snapshots.0 > MAX_SNAPSHOTS
            || (snapshots.0 > 0
                && (!snapshots.1.is_multiple_of(cluster) || snapshots.1 >= file_len))
        {
            return Err(damaged("its table of snapshots is impossible"));
        }
        let (name_at, name_len) = (be64(first, 8), be32(first, 16));
        let name = match usize::try_from(name_at) {
            Ok(0) => None,
            Ok(at) if name_len <= MAX_NAME && at >= header_len => Some((at, name_len as usize)),
            _ => return Err(damaged("the name of its backing file is out of bounds")),
        };
        let end = name.map_or(first.len(), |(at, _)| at.min(first.len()));
        let area = first.get(header_len.min(end)..end).unwrap_or_default();
        // Version 2 may have the extension for the backing file's format.
        let extensions = Extensions::parse(area)?;
        if extensions.luks {
            return Err(FormatError::Unsupported("LUKS encryption".into()));
        }
        let backing = match name {
            None => None,
            Some((at, len)) => {
                let name = (first.get(at..at + len))
                    .ok_or_else(|| damaged("the name of its backing file is out of bounds"))?;
                let name = String::from_utf8(name.to_vec())
                    .map_err(|_| damaged("the name of its backing file is not UTF-8"))?;
                Some(name)
            }
        };
        let external = features & incompatible::DATA_FILE != 0;
        Ok(Self {
            version,
            geometry,
            size,
            l1,
            refcounts,
            backing,
            snapshots,
            external,
            raw_external: external && autoclear & autoclear::DATA_FILE_RAW != 0,
            compression: compression(first, features, header_len)?,
            autoclear,
            extensions,
            dirty: features & incompatible::DIRTY != 0,
        })
    }

    /// Persistent bitmaps that the image promises to be up to date.
    pub fn bitmaps(&self) -> u32 {
        let there = self.autoclear & autoclear::BITMAPS != 0;
        let bitmaps = self.extensions.bitmaps.as_ref().filter(|_| there);
        bitmaps.map_or(0, |bitmaps| bitmaps.count)
    }

    /// The autoclear features that stay true while this crate changes the image: that of raw external data.
    pub const fn kept_autoclear(&self) -> u64 {
        self.autoclear
            & if self.external {
                autoclear::DATA_FILE_RAW
            } else {
                0
            }
    }
}

/// Refuses images with an incompatible feature that nobody knew when this was written, or with the mark of damage.
fn refuse(features: u64) -> Result<(), FormatError> {
    let known = incompatible::DIRTY
        | incompatible::DATA_FILE
        | incompatible::COMPRESSION
        | incompatible::EXTENDED_L2;
    if features & incompatible::CORRUPT != 0 {
        return Err(FormatError::Marked("corrupt"));
    }
    match features & !known {
        0 => Ok(()),
        unknown => Err(FormatError::Unsupported(format!(
            "incompatible features that this version does not know ({unknown:#x})"
        ))),
    }
}

fn compression(first: &[u8], features: u64, header_len: usize) -> Result<Compression, FormatError> {
    let said = if header_len > LEN_3 {
        first.get(LEN_3).copied().unwrap_or(0)
    } else {
        0
    };
    let other = features & incompatible::COMPRESSION != 0;
    match said {
        0 if !other => Ok(Compression::Zlib),
        1 if other => Ok(Compression::Zstd),
        0 | 1 => Err(FormatError::damaged(
            "its compression contradicts its features",
        )),
        _ => Err(FormatError::Unsupported(format!("compression {said}"))),
    }
}

#[cfg(test)]
mod tests;
