// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Doorbell pages: a write there reaches the hardware without a system call, also from a guest.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::mm::{MapFlags, ProtFlags};

/// One queue's doorbell page, mapped until this is dropped. A VMM may map [`Doorbell::as_ptr`] into its guest in the
/// place of the queue's notification address; it takes that away before the path is switched.
#[derive(Debug)]
pub struct Doorbell {
    base: *mut u8,
    len: usize,
    vq: u16,
}

// SAFETY: the page is mapped for all threads, and only written with single volatile stores.
unsafe impl Send for Doorbell {}
// SAFETY: as above.
unsafe impl Sync for Doorbell {}

impl Doorbell {
    /// Maps the page of queue `vq` (vhost-vdpa: one page at offset `vq` pages, for writing only).
    pub(super) fn map(fd: BorrowedFd<'_>, vq: u16) -> io::Result<Self> {
        let len = rustix::param::page_size();
        let offset = u64::from(vq) * len as u64;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::WRITE,
                MapFlags::SHARED,
                fd,
                offset,
            )?
        };
        Ok(Self {
            base: base.cast(),
            len,
            vq,
        })
    }

    /// The page's host address.
    pub const fn as_ptr(&self) -> *mut u8 {
        self.base
    }

    /// Bytes of the page.
    #[expect(clippy::len_without_is_empty, reason = "a page is never empty")]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Kicks the queue.
    pub fn ring(&self) {
        // SAFETY: the page is mapped for writing while `self` lives, and its start is aligned. A driver writes the
        // queue's index there (virtio 1.4, 4.1.5.2).
        unsafe { self.base.cast::<u16>().write_volatile(self.vq.to_le()) };
    }
}

impl Drop for Doorbell {
    fn drop(&mut self) {
        // SAFETY: `map` mapped it, and who took `as_ptr` was told how long it is valid.
        let _ = unsafe { rustix::mm::munmap(self.base.cast(), self.len) };
    }
}
