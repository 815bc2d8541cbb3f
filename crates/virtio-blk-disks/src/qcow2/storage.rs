// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A file as the library's storage.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;
use virtio_blk_core::disk::{DiskError, IoBuf};

use super::order::Order;
use crate::raw::sys;

/// Most bytes and segments in one call.
const MAX_CALL: usize = 1 << 30;
const MAX_SEGMENTS: usize = 1024;

/// The image itself, or one of its backing files.
pub(super) struct ImageFile {
    pub file: Arc<File>,
    path: PathBuf,
    /// Of the image itself, if it is writable: the order of metadata.
    order: Option<Mutex<Order>>,
    /// Is it the image itself?
    top: bool,
    /// Nothing may be written any more.
    frozen: Arc<AtomicBool>,
    helper: CommonStorageHelper,
}

impl ImageFile {
    /// The image itself; writable if there is an `order`.
    pub fn image(file: Arc<File>, path: PathBuf, order: Option<Order>) -> Self {
        Self {
            file,
            path,
            order: order.map(Mutex::new),
            top: true,
            frozen: Arc::default(),
            helper: CommonStorageHelper::default(),
        }
    }

    /// A backing file.
    pub fn backing(file: Arc<File>, path: PathBuf) -> Self {
        Self {
            top: false,
            ..Self::image(file, path, None)
        }
    }

    /// The switch that stops all writes.
    pub fn frozen(&self) -> Arc<AtomicBool> {
        self.frozen.clone()
    }

    /// Whether this is the image itself.
    pub const fn is_top(&self) -> bool {
        self.top
    }

    /// Stores `len` bytes of a buffer from its byte `done` on at `offset`.
    ///
    /// # Errors
    /// The host's.
    pub fn write_from(
        &self,
        buf: &IoBuf,
        mut done: usize,
        mut len: usize,
        mut offset: u64,
    ) -> Result<(), DiskError> {
        let mut segments = Vec::new();
        while len > 0 {
            segments.clear();
            if buf.window(done, len.min(MAX_CALL), MAX_SEGMENTS, &mut segments) == 0 {
                return Err(DiskError::OutOfRange);
            }
            // SAFETY: as in `read_into`.
            let put = match unsafe { sys::pwritev2(&self.file, &segments, offset, 0) } {
                0 => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                outcome => moved(outcome)?,
            };
            done += put;
            len -= put.min(len);
            offset += put as u64;
        }
        Ok(())
    }

    /// Gives `len` bytes at `offset` back to the host, where it takes them.
    pub fn punch(&self, offset: u64, len: u64) -> bool {
        let mode = libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE;
        sys::fallocate(&self.file, mode, offset, len) == 0
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.order.is_none() || self.frozen.load(Ordering::Acquire) {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        Ok(())
    }
}

/// Fills `len` bytes of a buffer from its byte `done` on with what is at `offset`; zeroes behind the
/// end of the file.
///
/// # Errors
/// The host's.
pub(super) fn read_into(
    file: &File,
    buf: &IoBuf,
    mut done: usize,
    mut len: usize,
    mut offset: u64,
) -> Result<(), DiskError> {
    let mut segments = Vec::new();
    while len > 0 {
        segments.clear();
        if buf.window(done, len.min(MAX_CALL), MAX_SEGMENTS, &mut segments) == 0 {
            return Err(DiskError::OutOfRange);
        }
        // SAFETY: the segments are the buffer's, which is borrowed for the length of the call.
        let got = match unsafe { sys::preadv2(file, &segments, offset, 0) } {
            0 => {
                buf.fill(done, len, 0);
                return Ok(());
            }
            outcome => moved(outcome)?,
        };
        done += got;
        len -= got.min(len);
        offset += got as u64;
    }
    Ok(())
}

/// Bytes moved by a call; none if it was interrupted.
fn moved(outcome: i32) -> Result<usize, DiskError> {
    match usize::try_from(outcome) {
        Ok(count) => Ok(count),
        Err(_) if outcome == -libc::EINTR => Ok(0),
        Err(_) => Err(DiskError::from_errno(outcome.saturating_neg())),
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
        Ok(self.file.metadata()?.len())
    }

    unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, mut offset: u64) -> io::Result<()> {
        for mut slice in bufv.into_inner() {
            let mut part: &mut [u8] = &mut slice;
            while !part.is_empty() {
                match self.file.read_at(part, offset) {
                    Ok(0) => {
                        part.fill(0);
                        offset += part.len() as u64;
                        break;
                    }
                    Ok(got) => {
                        offset += got as u64;
                        part = part.get_mut(got..).unwrap_or_default();
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    unsafe fn pure_writev(&self, bufv: IoVector<'_>, mut offset: u64) -> io::Result<()> {
        self.check_writable()?;
        let Some(order) = &self.order else {
            return Ok(());
        };
        for slice in bufv.into_inner() {
            // Held while writing, so that what comes after a barrier was not begun before it.
            let mut order = order.lock().unwrap_or_else(PoisonError::into_inner);
            order.before(&self.file, offset, slice.len() as u64)?;
            self.file.write_all_at(&slice, offset)?;
            order.after(&self.file, offset, &slice)?;
            offset += slice.len() as u64;
        }
        Ok(())
    }

    unsafe fn pure_write_zeroes(&self, mut offset: u64, length: u64) -> io::Result<()> {
        self.check_writable()?;
        // Behind the end there are zeroes.
        let end = offset.saturating_add(length).min(self.size()?);
        if offset >= end || self.punch(offset, end - offset) {
            return Ok(());
        }
        let zeroes = [0; 4096];
        while offset < end {
            let len = zeroes
                .len()
                .min(usize::try_from(end - offset).unwrap_or(zeroes.len()));
            let part = zeroes.get(..len).unwrap_or_default();
            self.file.write_all_at(part, offset)?;
            offset += len as u64;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        if let Some(order) = &self.order {
            let mut order = order.lock().unwrap_or_else(PoisonError::into_inner);
            self.file.sync_data()?;
            order.synced();
        }
        Ok(())
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }
}
