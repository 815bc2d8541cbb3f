// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is looked at before the library sees an image: whether it is possible, and not made to harm.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use virtio_blk_core::disk::{DiskError, SECTOR_SIZE};

use crate::raw::OpenError;

/// Why a qcow2 image can't be used. Every message names the file and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Qcow2Error {
    /// The file can't be opened or locked.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It is no qcow2 image, or a broken one.
    #[error("{path} is no usable qcow2 image: {why}", path = path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The image uses something that is not possible here.
    #[error("{path} uses {what}, which is not possible here: `qemu-img convert -O qcow2` makes an image \
             without", path = path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it uses.
        what: &'static str,
    },
    /// The image has a backing file, which was not allowed.
    #[error("{path} has a backing file: if you trust the image to name it, say backing=allow",
            path = path.display())]
    Backing {
        /// The file.
        path: PathBuf,
    },
    /// The image says no format for its backing file.
    #[error("{path} does not say the format of its backing file, which is never guessed: `qemu-img rebase -u \
             -F FORMAT -b BACKING {path}` adds it", path = path.display())]
    BackingFormat {
        /// The file.
        path: PathBuf,
    },
}

impl From<Qcow2Error> for DiskError {
    fn from(error: Qcow2Error) -> Self {
        match error {
            Qcow2Error::Open(error) => error.into(),
            error => Self::Config(error.to_string()),
        }
    }
}

/// The first fields, as far as they are looked at; all numbers are big endian.
const HEADER: usize = 112;
/// "QFI" and 0xFB.
const MAGIC: u32 = 0x5146_49FB;
/// What QEMU has as largest L1 table, in bytes.
const MAX_L1_BYTES: u64 = 32 << 20;
/// And as largest refcount table.
const MAX_REFTABLE_BYTES: u64 = 8 << 20;
/// Most snapshots QEMU allows.
const MAX_SNAPSHOTS: u32 = 65_536;
/// The extension that names the backing file's format, and the most extensions looked at.
const BACKING_FORMAT: u32 = 0xE279_2ACA;
const MAX_EXTENSIONS: usize = 64;

/// Incompatible features.
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// What the header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Bytes of the disk.
    pub(super) size: u64,
    /// Bytes of a cluster.
    pub(super) cluster: u64,
    /// Version 3: it has clusters of zeroes that take no space.
    pub(super) has_zeroes: bool,
    pub(super) backing: bool,
    /// It names the format of the backing file.
    pub(super) backing_format: bool,
}

struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn u32(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        for (to, from) in bytes.iter_mut().zip(self.0.iter().skip(at)) {
            *to = *from;
        }
        u32::from_be_bytes(bytes)
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from(self.u32(at)) << 32 | u64::from(self.u32(at + 4))
    }
}

/// Whether the file begins as a qcow2 image does.
pub(super) fn is_qcow2(file: &File) -> io::Result<bool> {
    let mut magic = [0; 4];
    Ok(file.read_at(&mut magic, 0)? == 4 && u32::from_be_bytes(magic) == MAGIC)
}

impl Header {
    /// Reads and checks the header of an image of `len` bytes.
    pub(super) fn read(file: &File, path: &Path, writable: bool) -> Result<Self, Qcow2Error> {
        let io_error = |source| {
            Qcow2Error::Open(OpenError::Io {
                what: "read",
                path: path.to_owned(),
                source,
            })
        };
        let mut bytes = [0; HEADER];
        let mut have = 0;
        while let Some(rest) = bytes.get_mut(have..).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, have as u64).map_err(io_error)? {
                0 => break,
                read => have += read,
            }
        }
        let len = file.metadata().map_err(io_error)?.len();
        let mut header = Self::check(&bytes, len, writable).map_err(|found| match found {
            Found::Broken(why) => Qcow2Error::Broken {
                path: path.to_owned(),
                why: why.to_owned(),
            },
            Found::Unsupported(what) => Qcow2Error::Unsupported {
                path: path.to_owned(),
                what,
            },
        })?;
        if header.backing {
            header.backing_format = names_backing_format(file, &bytes).map_err(io_error)?;
        }
        Ok(header)
    }

    fn check(bytes: &[u8; HEADER], len: u64, writable: bool) -> Result<Self, Found> {
        let field = Bytes(bytes);
        let version = field.u32(4);
        if field.u32(0) != MAGIC {
            return Err(Found::Broken("it does not begin as one"));
        }
        if !(2..=3).contains(&version) {
            return Err(Found::Broken("its version is neither 2 nor 3"));
        }
        let cluster_bits = field.u32(20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(Found::Broken("its clusters are not of 512 bytes to 2 MiB"));
        }
        let cluster = 1_u64 << cluster_bits;
        let size = field.u64(24);
        if size > i64::MAX as u64 || !size.is_multiple_of(SECTOR_SIZE) {
            return Err(Found::Broken(
                "its size is not a number of sectors below 2^63 bytes",
            ));
        }
        if field.u32(32) != 0 {
            return Err(Found::Unsupported("encryption"));
        }
        // A table of clusters, each of which lists cluster / 8 data clusters.
        let covered = u128::from(cluster) * u128::from(cluster / 8);
        let l1_bytes = u64::from(field.u32(36)) * 8;
        if u128::from(l1_bytes / 8) * covered < u128::from(size) {
            return Err(Found::Broken("its L1 table is too short for its size"));
        }
        let reftable_bytes = u64::from(field.u32(56)) << cluster_bits;
        let outside = |offset: u64, bytes: u64| {
            !offset.is_multiple_of(cluster) || offset > len || bytes > len - offset
        };
        if l1_bytes > MAX_L1_BYTES || l1_bytes != 0 && outside(field.u64(40), l1_bytes) {
            return Err(Found::Broken(
                "its L1 table is outside the file, or too large",
            ));
        }
        if reftable_bytes > MAX_REFTABLE_BYTES || outside(field.u64(48), reftable_bytes) {
            return Err(Found::Broken(
                "its refcount table is outside the file, or too large",
            ));
        }
        if field.u32(60) > MAX_SNAPSHOTS {
            return Err(Found::Broken("it has too many snapshots"));
        }
        let incompatible = if version == 3 { field.u64(72) } else { 0 };
        if incompatible & CORRUPT != 0 && writable {
            return Err(Found::Broken(
                "it is marked as corrupt: `qemu-img check -r all` repairs it",
            ));
        }
        if incompatible & DIRTY != 0 && writable {
            return Err(Found::Broken(
                "it was not closed and its refcounts are not up to date: `qemu-img check -r all` repairs it",
            ));
        }
        if incompatible & DATA_FILE != 0 {
            return Err(Found::Unsupported("an external data file"));
        }
        if incompatible & COMPRESSION != 0 {
            return Err(Found::Unsupported("zstd compression"));
        }
        if incompatible & EXTENDED_L2 != 0 {
            return Err(Found::Unsupported("extended L2 entries"));
        }
        if incompatible & !(DIRTY | CORRUPT) != 0 {
            return Err(Found::Unsupported("an unknown feature"));
        }
        if version == 3 && (field.u32(96) > 6 || field.u32(100) < 104) {
            return Err(Found::Broken("its header makes no sense"));
        }
        Ok(Self {
            size,
            cluster,
            has_zeroes: version == 3,
            backing: field.u64(8) != 0,
            backing_format: false,
        })
    }
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Broken(&'static str),
    Unsupported(&'static str),
}

/// Walks the header's extensions.
fn names_backing_format(file: &File, header: &[u8; HEADER]) -> io::Result<bool> {
    let field = Bytes(header);
    let mut at = match field.u32(4) {
        3 => u64::from(field.u32(100)),
        _ => 72,
    };
    for _ in 0..MAX_EXTENSIONS {
        let mut extension = [0; 8];
        if file.read_at(&mut extension, at)? != 8 {
            return Ok(false);
        }
        let extension = Bytes(&extension);
        match (extension.u32(0), extension.u32(4)) {
            (0, _) => return Ok(false),
            (BACKING_FORMAT, len) => return Ok(len != 0),
            (_, len) => at += 8 + u64::from(len).next_multiple_of(8),
        }
    }
    Ok(false)
}
