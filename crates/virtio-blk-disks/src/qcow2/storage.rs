// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A file as the library's storage.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;

use super::changes::Changes;
use super::header::AUTOCLEAR;
use super::host::Host;
use super::tables::Tables;

/// The image itself, or one of its backing files.
pub(super) struct ImageFile {
    pub host: Arc<dyn Host>,
    path: PathBuf,
    /// Of the image itself, if it is writable.
    writable: Option<Writable>,
    /// Is it the image itself?
    top: bool,
    helper: CommonStorageHelper,
}

/// What a writable image's file needs.
pub(super) struct Writable {
    pub changes: Arc<Changes>,
    pub tables: Arc<Tables>,
    /// The header has autoclear bits (version 3).
    pub autoclear: bool,
}

impl ImageFile {
    /// The image itself.
    pub fn image(host: Arc<dyn Host>, path: PathBuf, writable: Option<Writable>) -> Self {
        Self {
            host,
            path,
            writable,
            top: true,
            helper: CommonStorageHelper::default(),
        }
    }

    /// A backing file.
    pub fn backing(host: Arc<dyn Host>, path: PathBuf) -> Self {
        Self {
            top: false,
            ..Self::image(host, path, None)
        }
    }

    /// Whether this is the image itself.
    pub const fn is_top(&self) -> bool {
        self.top
    }

    /// The way to change the file.
    ///
    /// # Errors
    /// It is read-only.
    fn changes(&self) -> io::Result<&Changes> {
        match &self.writable {
            Some(writable) => Ok(&writable.changes),
            None => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
        }
    }

    /// Reads what the library asks for. On a writable image, an error in a table freezes it: the library may be in the
    /// middle of a change.
    fn read_piece(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let Some(Writable {
            changes,
            tables,
            autoclear,
        }) = &self.writable
        else {
            return self.host.read(into, offset);
        };
        if changes.view(offset, into) {
            return Ok(());
        }
        self.host.read(into, offset).inspect_err(|error| {
            if tables.touch(offset, into.len() as u64) {
                changes.freeze(
                    &format_args!("reading its tables at byte {offset:#x}"),
                    error,
                );
            }
        })?;
        // The library would clear them at once. They are cleared before the first change.
        if *autoclear && offset < AUTOCLEAR + 8 {
            let bits = (AUTOCLEAR..AUTOCLEAR + 8).map(|at| at.wrapping_sub(offset));
            for at in bits.filter_map(|at| usize::try_from(at).ok()) {
                if let Some(byte) = into.get_mut(at) {
                    *byte = 0;
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for ImageFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ImageFile({})", self.path.display())
    }
}

impl fmt::Display for ImageFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

impl Storage for ImageFile {
    fn size(&self) -> io::Result<u64> {
        self.host.size()
    }

    unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, mut offset: u64) -> io::Result<()> {
        for mut slice in bufv.into_inner() {
            self.read_piece(&mut slice, offset)?;
            offset += slice.len() as u64;
        }
        Ok(())
    }

    unsafe fn pure_writev(&self, bufv: IoVector<'_>, mut offset: u64) -> io::Result<()> {
        let changes = self.changes()?;
        for slice in bufv.into_inner() {
            changes.make(
                &format_args!("writing its tables at byte {offset:#x}"),
                |order, host| order.write(host, offset, &slice),
            )?;
            offset += slice.len() as u64;
        }
        Ok(())
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.changes()?.make(
            &format_args!("zeroing a new cluster at byte {offset:#x}"),
            |order, host| order.new_zeroes(host, offset, length),
        )
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.changes()?
            .make(&"making it stable", |order, host| Ok(order.sync(host)?))
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }
}
