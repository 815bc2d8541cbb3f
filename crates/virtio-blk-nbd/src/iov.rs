// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sending from and receiving into guests' memory.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use virtio_blk_core::disk::IoBuf;

/// The most pieces that one call of the kernel takes (`UIO_MAXIOV`).
const MAX_PIECES: usize = 1024;

/// Where lists of pieces are made: reused from call to call.
#[derive(Default)]
pub(crate) struct Scratch(Vec<libc::iovec>);

// SAFETY: the pointers in it are only used through `Outbound` and `Inbound`, which borrow what they point to and
// empty it before they are made.
unsafe impl Send for Scratch {}

impl Scratch {
    /// An empty list of what is to be sent, all of which lives for `'a`.
    pub(crate) fn outbound<'a>(&'a mut self) -> Outbound<'a> {
        self.0.clear();
        Outbound(Pieces {
            list: &mut self.0,
            bytes: 0,
            memory: PhantomData,
        })
    }

    /// An empty list of what is to be filled, all of which lives for `'a`.
    pub(crate) fn inbound<'a>(&'a mut self) -> Inbound<'a> {
        self.0.clear();
        Inbound(Pieces {
            list: &mut self.0,
            bytes: 0,
            memory: PhantomData,
        })
    }
}

/// Pieces of memory that live for `'a`, some of it shared with a guest.
struct Pieces<'a> {
    list: &'a mut Vec<libc::iovec>,
    bytes: usize,
    memory: PhantomData<&'a mut ()>,
}

impl Pieces<'_> {
    fn push(&mut self, base: *mut u8, len: usize) {
        if len != 0 {
            self.bytes += len;
            self.list.push(libc::iovec {
                iov_base: base.cast(),
                iov_len: len,
            });
        }
    }

    fn push_part(&mut self, buf: &IoBuf, offset: usize, len: usize) -> usize {
        let room = MAX_PIECES.saturating_sub(self.list.len() + 2);
        let covered = buf.window(offset, len, room, self.list);
        self.bytes += covered;
        covered
    }

    fn header(&self) -> libc::msghdr {
        // SAFETY: all zeroes is an empty message.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = self.list.as_ptr().cast_mut();
        // Its type differs between C libraries.
        header.msg_iovlen = self.list.len() as _;
        header
    }
}

fn outcome(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// What is to be sent.
pub(crate) struct Outbound<'a>(Pieces<'a>);

impl<'a> Outbound<'a> {
    /// Appends bytes.
    pub(crate) fn push(&mut self, bytes: &'a [u8]) {
        self.0.push(bytes.as_ptr().cast_mut(), bytes.len());
    }

    /// Appends bytes of a buffer, as many as there is room for. Returns how many.
    pub(crate) fn push_part(&mut self, buf: &'a IoBuf, offset: usize, len: usize) -> usize {
        self.0.push_part(buf, offset, len)
    }

    /// Bytes of all pieces.
    pub(crate) const fn len(&self) -> usize {
        self.0.bytes
    }

    /// Whether no more pieces fit.
    pub(crate) fn is_full(&self) -> bool {
        self.0.list.len() + 4 > MAX_PIECES
    }

    /// Sends as much as fits without waiting. Returns how much.
    ///
    /// # Errors
    /// `WouldBlock`, or the kernel's.
    pub(crate) fn send(&self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let header = self.0.header();
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the pieces are valid for reads as long as `self` (`'a`); the kernel copies from them before the
        // call returns, and other writers to a guest's memory only change what is sent.
        outcome(unsafe { libc::sendmsg(socket.as_raw_fd(), &header, flags) })
    }

    /// The pieces.
    #[cfg(feature = "tls")]
    pub(crate) fn segments(&self) -> &[libc::iovec] {
        self.0.list
    }
}

/// What is to be filled.
pub(crate) struct Inbound<'a>(Pieces<'a>);

impl<'a> Inbound<'a> {
    /// Appends memory of our own.
    pub(crate) fn push(&mut self, bytes: &'a mut [u8]) {
        self.0.push(bytes.as_mut_ptr(), bytes.len());
    }

    /// Appends bytes of a buffer, as many as there is room for. Returns how many.
    pub(crate) fn push_part(&mut self, buf: &'a IoBuf, offset: usize, len: usize) -> usize {
        self.0.push_part(buf, offset, len)
    }

    /// Bytes of all pieces.
    pub(crate) const fn len(&self) -> usize {
        self.0.bytes
    }

    /// Receives what is there, without waiting. Returns how much; 0: the peer sends nothing more.
    ///
    /// # Errors
    /// `WouldBlock`, or the kernel's.
    pub(crate) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let mut header = self.0.header();
        // SAFETY: the pieces are valid for writes as long as `self` (`'a`), and the kernel writes to them only
        // before the call returns.
        outcome(unsafe { libc::recvmsg(socket.as_raw_fd(), &mut header, libc::MSG_DONTWAIT) })
    }

    /// The pieces.
    #[cfg(feature = "tls")]
    pub(crate) fn segments(&mut self) -> &[libc::iovec] {
        self.0.list
    }
}
