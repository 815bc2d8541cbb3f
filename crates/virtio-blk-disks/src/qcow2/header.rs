// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The qcow2 header, read by ourselves before the library sees the image.
//!
//! The library trusts a header more than we do: table sizes are not bounded, encryption is not looked at.
//! Source: "qcow2" in QEMU's `docs/interop/qcow2.txt`; the bounds are those of QEMU's `block/qcow2.h`.

use std::path::Path;

use super::error::OpenError;
use super::host::Host;

const MAGIC: u32 = 0x5146_49fb;
/// Bytes of the header of version 3 that we look at.
const HEADER: usize = 104;
/// Bytes of the header of version 2.
const HEADER_V2: usize = 72;
/// Most bytes of the L1 table and of the refcount table.
const MAX_L1: u64 = 32 << 20;
const MAX_REFCOUNTS: u64 = 8 << 20;
/// Most bytes of the backing file's name.
const MAX_NAME: u32 = 1023;
/// Offsets in tables have 56 bits.
pub(super) const MAX_OFFSET: u64 = 1 << 56;
/// Most header extensions that are looked at; there are eight kinds.
const MAX_EXTENSIONS: usize = 64;
const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_BITMAPS: u32 = 0x2385_2875;
/// Where the header of version 3 keeps its autoclear bits: 8 bytes.
pub(super) const AUTOCLEAR: u64 = 88;
/// The autoclear bit that says that persistent bitmaps are up to date.
const AUTOCLEAR_BITMAPS: u64 = 1;

/// A table in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Table {
    /// First byte in the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// What an image says of itself. Checked: sizes and places are possible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Bytes in a cluster, as a power of two.
    pub cluster_bits: u32,
    /// Bytes that the guest sees.
    pub size: u64,
    pub l1: Table,
    pub refcounts: Table,
    /// Bits of a refcount, as a power of two.
    pub refcount_order: u32,
    /// The backing file's name and format as the image gives them.
    pub backing: Option<(String, Option<String>)>,
    /// Features that a change by somebody who does not know them makes stale.
    pub autoclear: u64,
    /// Persistent bitmaps that the image promises to be up to date.
    pub bitmaps: u32,
}

/// What we look at of the header extensions.
#[derive(Default)]
struct Extensions {
    backing_format: Option<String>,
    bitmaps: u32,
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_be_bytes)
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 8)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u64::from_be_bytes)
}

impl Header {
    /// Reads and checks the header of an image whose file has `file_len` bytes.
    ///
    /// # Errors
    /// Not a qcow2 image, one with features we don't have, or a damaged one.
    pub fn read(host: &dyn Host, file_len: u64, path: &Path) -> Result<Self, OpenError> {
        let io = |source| OpenError::Library {
            path: path.to_owned(),
            source,
        };
        let damaged = |what: &str| OpenError::damaged(path, what);
        if file_len < HEADER_V2 as u64 {
            return Err(OpenError::Format {
                path: path.to_owned(),
            });
        }
        let mut raw = [0; HEADER];
        let have = HEADER.min(usize::try_from(file_len).unwrap_or(HEADER));
        host.read(raw.get_mut(..have).unwrap_or_default(), 0)
            .map_err(io)?;
        if be32(&raw, 0) != MAGIC {
            return Err(OpenError::Format {
                path: path.to_owned(),
            });
        }
        let version = be32(&raw, 4);
        if version != 2 && version != 3 {
            return Err(OpenError::unsupported(path, format!("version {version}")));
        }
        if version == 3 {
            if have < HEADER {
                return Err(damaged("the header is cut off"));
            }
            features(be64(&raw, 72), path)?;
        }
        if be32(&raw, 32) != 0 {
            return Err(OpenError::unsupported(path, "encryption"));
        }
        let cluster_bits = be32(&raw, 20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(damaged("its cluster size is impossible"));
        }
        let cluster = 1 << cluster_bits;
        let (refcount_order, header_len) = match version {
            2 => (4, HEADER_V2 as u64),
            _ => (be32(&raw, 96), u64::from(be32(&raw, 100))),
        };
        if refcount_order > 6 {
            return Err(damaged("its refcounts are too wide"));
        }
        if version == 3 && !(HEADER as u64..=cluster).contains(&header_len) {
            return Err(damaged("its header's length is impossible"));
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
        let l1 = table(
            be64(&raw, 40),
            u64::from(be32(&raw, 36)) * 8,
            MAX_L1,
            "L1 table",
        )?;
        let refcounts = table(
            be64(&raw, 48),
            u64::from(be32(&raw, 56)) * cluster,
            MAX_REFCOUNTS,
            "refcount table",
        )?;
        if refcounts.len == 0 {
            return Err(damaged("it has no refcount table"));
        }
        let size = be64(&raw, 24);
        // An entry of the L1 table stands for a table full of clusters.
        let reach = cluster * (cluster / 8);
        if size.div_ceil(reach) > l1.len / 8 {
            return Err(damaged("its L1 table is too small for its size"));
        }
        if !size.is_multiple_of(512) {
            return Err(damaged("its size is not a multiple of 512 bytes"));
        }
        let (name_at, name_len) = (be64(&raw, 8), be32(&raw, 16));
        let autoclear = if version == 3 {
            be64(&raw, AUTOCLEAR as usize)
        } else {
            0
        };
        let end = if name_at == 0 { cluster } else { name_at };
        let extensions = if name_at != 0 || autoclear != 0 {
            extensions(host, header_len, end.min(cluster), path)?
        } else {
            Extensions::default()
        };
        let backing = if name_at == 0 {
            None
        } else {
            if name_len > MAX_NAME || name_at > cluster - u64::from(name_len).min(cluster) {
                return Err(damaged("the name of its backing file is out of bounds"));
            }
            let mut name = vec![0; name_len as usize];
            host.read(&mut name, name_at).map_err(io)?;
            let name = String::from_utf8(name)
                .map_err(|_| damaged("the name of its backing file is not UTF-8"))?;
            Some((name, extensions.backing_format))
        };
        Ok(Self {
            version,
            cluster_bits,
            size,
            l1,
            refcounts,
            refcount_order,
            backing,
            autoclear,
            bitmaps: if autoclear & AUTOCLEAR_BITMAPS != 0 {
                extensions.bitmaps
            } else {
                0
            },
        })
    }

    /// Bytes in a cluster.
    pub const fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }
}

/// Refuses images with an incompatible feature.
fn features(mut bits: u64, path: &Path) -> Result<(), OpenError> {
    for (bit, mark) in [
        (
            0,
            "dirty: it was not closed and its refcounts may be out of date",
        ),
        (1, "corrupt"),
    ] {
        if bits & (1 << bit) != 0 {
            return Err(OpenError::Marked {
                path: path.to_owned(),
                mark,
            });
        }
    }
    let known = [
        (2, "an external data file"),
        (3, "a compression other than zlib (zstd)"),
        (4, "extended L2 entries (subclusters)"),
    ];
    for (bit, feature) in known {
        if bits & (1 << bit) != 0 {
            return Err(OpenError::unsupported(path, feature));
        }
        bits &= !(1 << bit);
    }
    if bits != 0 {
        let feature = format!("incompatible features that nobody knew yet ({bits:#x})");
        return Err(OpenError::unsupported(path, feature));
    }
    Ok(())
}

/// Reads the header extensions, which end at `end` at the latest.
fn extensions(
    host: &dyn Host,
    header_len: u64,
    end: u64,
    path: &Path,
) -> Result<Extensions, OpenError> {
    let cut = || OpenError::damaged(path, "its header extensions are cut off");
    let mut found = Extensions::default();
    let mut at = header_len;
    for _ in 0..MAX_EXTENSIONS {
        if at + 8 > end {
            return Ok(found);
        }
        let mut head = [0; 8];
        host.read(&mut head, at).map_err(|_| cut())?;
        let (kind, len) = (be32(&head, 0), u64::from(be32(&head, 4)));
        at += 8;
        if kind == EXTENSION_END {
            return Ok(found);
        }
        if at + len > end {
            return Err(cut());
        }
        match kind {
            EXTENSION_BACKING_FORMAT => {
                let mut name = vec![0; usize::try_from(len).unwrap_or(0)];
                host.read(&mut name, at).map_err(|_| cut())?;
                let name = String::from_utf8_lossy(&name).into_owned();
                found.backing_format.get_or_insert(name);
            }
            EXTENSION_BITMAPS if len >= 4 => {
                let mut count = [0; 4];
                host.read(&mut count, at).map_err(|_| cut())?;
                found.bitmaps = be32(&count, 0);
            }
            _ => {}
        }
        at += len.next_multiple_of(8);
    }
    Err(OpenError::damaged(
        path,
        "it has too many header extensions",
    ))
}
