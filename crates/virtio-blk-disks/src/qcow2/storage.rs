// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A file as the library's storage.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;
use virtio_blk_core::disk::{DiskError, IoBuf};

use super::host::Host;
use super::order::Order;

/// The image itself, or one of its backing files.
pub(super) struct ImageFile {
    pub host: Arc<dyn Host>,
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
    pub fn image(host: Arc<dyn Host>, path: PathBuf, order: Option<Order>) -> Self {
        Self {
            host,
            path,
            order: order.map(Mutex::new),
            top: true,
            frozen: Arc::default(),
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

    /// The switch that stops all writes.
    pub fn frozen(&self) -> Arc<AtomicBool> {
        self.frozen.clone()
    }

    /// Whether this is the image itself.
    pub const fn is_top(&self) -> bool {
        self.top
    }

    /// The order of what is written.
    ///
    /// # Errors
    /// Nothing may be written.
    pub fn order(&self) -> io::Result<MutexGuard<'_, Order>> {
        match &self.order {
            Some(order) if !self.frozen.load(Ordering::Acquire) => {
                Ok(order.lock().unwrap_or_else(PoisonError::into_inner))
            }
            _ => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
        }
    }

    /// Stores `len` bytes of a buffer from its byte `done` on at `offset`, in clusters that are the guest's,
    /// or will be if they are `new`.
    ///
    /// # Errors
    /// The host's.
    pub fn write_from(
        &self,
        buf: &IoBuf,
        done: usize,
        len: usize,
        offset: u64,
        new: bool,
    ) -> Result<(), DiskError> {
        if new {
            self.order()?.new_data(&*self.host, offset, len as u64)?;
        }
        self.host.write_buf(buf, done, len, offset)
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
            if let Some(order) = &self.order {
                let order = order.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(view) = order.view(offset)
                    && view.len() == slice.len()
                {
                    slice.copy_from_slice(view);
                    offset += slice.len() as u64;
                    continue;
                }
            }
            self.host.read(&mut slice, offset)?;
            offset += slice.len() as u64;
        }
        Ok(())
    }

    unsafe fn pure_writev(&self, bufv: IoVector<'_>, mut offset: u64) -> io::Result<()> {
        for slice in bufv.into_inner() {
            self.order()?.write(&*self.host, offset, &slice)?;
            offset += slice.len() as u64;
        }
        Ok(())
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.order()?.new_zeroes(&*self.host, offset, length)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.order()?.sync(&*self.host)
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }
}
