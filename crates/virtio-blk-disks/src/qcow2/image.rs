// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An open image, behind which the library is hidden.

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{PoisonError, RwLock};

use imago::file::File;
use imago::format::gate::ImplicitOpenGate;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatDriverBuilder, ShallowMapping, StorageOpenOptions};
use virtio_blk_core::disk::{DiskError, IoBuf, OpKind};

use super::Qcow2Options;
use super::header::{Header, Qcow2Error, is_qcow2};
use crate::raw::{self, OpenError};

/// The longest chain of backing files.
const MAX_BACKING: usize = 16;
/// Bytes that a worker moves at a time.
const PIECE: usize = 256 << 10;

/// An open image.
pub(super) struct Image {
    /// Read by what leaves the image's tables alone, written by what allocates, zeroes or frees clusters: imago
    /// 0.2.6 loses writes where that happens beside other I/O on the same cluster.
    access: RwLock<FormatAccess<File>>,
    /// Holds the lock on the file.
    _locked: fs::File,
}

/// Opens backing files: read-only, to a certain depth, and no format that is not named.
struct Gate {
    left: usize,
}

fn refuse(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why.into())
}

impl ImplicitOpenGate<File> for Gate {
    fn open_format<F: FormatDriverBuilder<File>>(
        &mut self,
        builder: F,
    ) -> io::Result<FormatAccess<File>> {
        let left = self.left.checked_sub(1).ok_or_else(|| {
            refuse(format!(
                "more than {MAX_BACKING} backing files, or a loop of them"
            ))
        })?;
        Ok(FormatAccess::new(builder.open(Self { left })?))
    }

    fn open_storage(&mut self, options: StorageOpenOptions) -> io::Result<File> {
        let path = options
            .get_filename()
            .ok_or_else(|| refuse("a backing file without a name"))?
            .to_owned();
        let file = fs::File::open(&path)?;
        if is_qcow2(&file)? {
            let header = Header::read(&file, &path, false).map_err(io::Error::other)?;
            if header.backing && !header.backing_format {
                return Err(io::Error::other(Qcow2Error::BackingFormat { path }));
            }
        }
        File::from_open_file(file, options.write(false))
    }
}

fn open(file: fs::File, path: &Path, options: &Qcow2Options) -> io::Result<FormatAccess<File>> {
    let writable = !options.read_only;
    let settings = StorageOpenOptions::new().filename(path).write(writable);
    let storage = File::from_open_file(file, settings)?;
    let left = if options.backing { MAX_BACKING } else { 0 };
    let qcow2 = Qcow2::<File>::builder(storage)
        .write(writable)
        .open(Gate { left })?;
    Ok(FormatAccess::new(qcow2))
}

/// Has the library do something; what it panics at becomes an error.
fn guarded<T>(what: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    catch_unwind(AssertUnwindSafe(what)).unwrap_or_else(|_| {
        Err(io::Error::other(
            "the image is damaged in a way that is not handled",
        ))
    })
}

/// Whether the image file has room of its own for a range, so that writing there changes no table.
fn is_allocated(access: &FormatAccess<File>, mut offset: u64, mut len: u64) -> io::Result<bool> {
    while len != 0 {
        let (mapping, mapped) = access.get_shallow_mapping(offset, len)?;
        if mapped == 0 || !matches!(mapping, ShallowMapping::Raw { writable: true, .. }) {
            return Ok(false);
        }
        offset += mapped;
        len -= mapped;
    }
    Ok(true)
}

fn write(
    access: &FormatAccess<File>,
    mut offset: u64,
    buf: &IoBuf,
    bounce: &mut Vec<u8>,
) -> io::Result<()> {
    let mut done = 0;
    while done < buf.len() {
        let piece = PIECE.min(buf.len() - done);
        bounce.resize(piece, 0);
        buf.copy_out(done, bounce);
        access.write(bounce.as_slice(), offset)?;
        done += piece;
        offset += piece as u64;
    }
    Ok(())
}

impl Image {
    /// Opens it. Answers what its header says, too.
    pub(super) fn open(options: &Qcow2Options) -> Result<(Self, Header), Qcow2Error> {
        let path = &options.path;
        let io_error = |source| OpenError::Io {
            what: "open",
            path: path.clone(),
            source,
        };
        let writable = !options.read_only;
        let file = fs::OpenOptions::new()
            .read(true)
            .write(writable)
            .open(path)
            .map_err(io_error)?;
        if options.lock {
            raw::lock(&file, writable, path)?;
        }
        let header = Header::read(&file, path, writable)?;
        if header.backing && !options.backing {
            return Err(Qcow2Error::Backing { path: path.clone() });
        }
        if header.backing && !header.backing_format {
            return Err(Qcow2Error::BackingFormat { path: path.clone() });
        }
        // The library's descriptor is a duplicate: the lock belongs to both.
        let duplicate = file.try_clone().map_err(io_error)?;
        let access =
            guarded(|| open(duplicate, path, options)).map_err(|error| Qcow2Error::Broken {
                path: path.clone(),
                why: error.to_string(),
            })?;
        let image = Self {
            access: RwLock::new(access),
            _locked: file,
        };
        Ok((image, header))
    }

    fn read(&self, mut offset: u64, buf: &IoBuf, bounce: &mut Vec<u8>) -> io::Result<()> {
        let access = self.access.read().unwrap_or_else(PoisonError::into_inner);
        let mut done = 0;
        while done < buf.len() {
            let piece = PIECE.min(buf.len() - done);
            bounce.resize(piece, 0);
            access.read(bounce.as_mut_slice(), offset)?;
            buf.copy_in(done, bounce);
            done += piece;
            offset += piece as u64;
        }
        Ok(())
    }

    fn write(&self, offset: u64, buf: &IoBuf, bounce: &mut Vec<u8>) -> io::Result<()> {
        {
            let access = self.access.read().unwrap_or_else(PoisonError::into_inner);
            if is_allocated(&access, offset, buf.len() as u64)? {
                return write(&access, offset, buf, bounce);
            }
        }
        // Two writes that allocate the same cluster at a time would each make one, and one of them be
        // forgotten, with the data that was completed there.
        let access = self.access.write().unwrap_or_else(PoisonError::into_inner);
        write(&access, offset, buf, bounce)
    }

    fn flush(&self) -> io::Result<()> {
        let access = self.access.read().unwrap_or_else(PoisonError::into_inner);
        access.flush()?;
        access.sync()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut access = self.access.write().unwrap_or_else(PoisonError::into_inner);
        access.discard_to_zero(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        // The library looks whether the rest of a cluster is zero before it zeroes all of it: nobody may
        // write there meanwhile (imago 0.2.6, `soft_ensure_zero`).
        let access = self.access.write().unwrap_or_else(PoisonError::into_inner);
        access.write_zeroes(offset, len)
    }

    /// Does one operation, which lies inside the disk. `bounce` is kept from one to the next.
    pub(super) fn execute(
        &self,
        kind: &OpKind,
        buf: &IoBuf,
        bounce: &mut Vec<u8>,
    ) -> Result<(), DiskError> {
        let fua = matches!(
            kind,
            OpKind::Write { fua: true, .. } | OpKind::WriteZeroes { fua: true, .. }
        );
        guarded(|| {
            match *kind {
                OpKind::Read { offset } => self.read(offset, buf, bounce)?,
                OpKind::Write { offset, .. } => self.write(offset, buf, bounce)?,
                OpKind::Flush => self.flush()?,
                OpKind::Discard { offset, len } => self.discard(offset, len)?,
                OpKind::WriteZeroes {
                    offset,
                    len,
                    unmap: true,
                    ..
                } => self.discard(offset, len)?,
                OpKind::WriteZeroes { offset, len, .. } => self.write_zeroes(offset, len)?,
                _ => return Ok(Err(DiskError::Unsupported)),
            }
            if fua {
                self.flush()?;
            }
            Ok(Ok(()))
        })?
    }
}
