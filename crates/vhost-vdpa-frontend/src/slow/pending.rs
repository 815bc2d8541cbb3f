// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An operation in progress, carried out by one or more requests to the device.

use virtio_blk_core::disk::{IoBuf, Op, OpKind, SECTOR_SIZE};
use virtio_blk_core::memory::Permissions;
use virtio_blk_driver::{Segment, wire};
use vm_memory::GuestAddress;

use super::limits::Limits;
use super::translate::Translation;

/// One request to the device: all or a part of an operation. There is one of each, as what it holds is released once.
#[derive(Debug, Default)]
pub(super) struct SubRequest {
    /// The head of its chain, which says where its header and status are.
    pub(super) head: u16,
    /// Bytes of the operation that it covers.
    pub(super) len: u64,
    /// The bounce buffer that holds its data.
    pub(super) bounce: Option<u16>,
    /// The generation its data was translated with.
    pub(super) generation: Option<u64>,
}

/// An operation, and how far it is.
#[derive(Debug)]
pub(super) struct PendingOp {
    pub(super) op: Op,
    /// Bytes in all, and done.
    pub(super) total: u64,
    pub(super) done: u64,
    /// Where in the buffer `done` lies: segment and byte in it.
    segment: usize,
    offset: usize,
    /// All data is through, and its flush is on its way.
    pub(super) flushing: bool,
    /// It was cancelled: nothing more of it is given to the device.
    pub(super) cancelled: bool,
    pub(super) sub_request: SubRequest,
}

impl PendingOp {
    pub(super) fn new(op: Op) -> Self {
        let total = op.kind.range(op.buf.len() as u64).map_or(0, |(_, len)| len);
        Self {
            op,
            total,
            done: 0,
            segment: 0,
            offset: 0,
            flushing: false,
            cancelled: false,
            sub_request: SubRequest::default(),
        }
    }

    /// The sector at which the next sub-request begins.
    pub(super) fn sector(&self) -> u64 {
        let (offset, _) = self.op.kind.range(self.total).unwrap_or_default();
        (offset + self.done) / SECTOR_SIZE
    }

    /// Bytes still to do.
    pub(super) const fn left(&self) -> u64 {
        self.total - self.done
    }

    /// Whether the operation ends with a flush, where the device has one.
    pub(super) const fn wants_flush(&self) -> bool {
        matches!(
            self.op.kind,
            OpKind::Write { fua: true, .. } | OpKind::WriteZeroes { fua: true, .. }
        )
    }

    /// Counts a sub-request as done.
    pub(super) fn advance(&mut self, len: u64) {
        self.done += len;
        if self.left() == 0 {
            return;
        }
        let mut skip = self.offset + len as usize;
        while let Some(segment) = self.op.buf.segments().get(self.segment)
            && skip >= segment.iov_len
        {
            skip -= segment.iov_len;
            self.segment += 1;
        }
        self.offset = skip;
    }

    /// Appends the next data, as the device knows it, to `out`. Returns the number of bytes: whole blocks, 0 if the
    /// buffer's memory is not the device's.
    #[inline]
    pub(super) fn gather(
        &self,
        translation: &Translation,
        limits: &Limits,
        access: Permissions,
        out: &mut Vec<Segment>,
    ) -> u64 {
        let start = out.len();
        let room = start + limits.segments;
        let (mut index, mut offset) = (self.segment, self.offset);
        let mut bytes = 0u64;
        while let Some(segment) = self.op.buf.segments().get(index)
            && out.len() < room
            && bytes < MAX_SUB_REQUEST
        {
            let host = segment.iov_base as usize + offset;
            let Some((iova, piece)) = translation.find(host, access) else {
                break;
            };
            let len = piece
                .min(segment.iov_len - offset)
                .min(limits.segment as usize)
                .min((MAX_SUB_REQUEST - bytes) as usize);
            out.push(Segment::new(GuestAddress(iova), len as u32));
            bytes += len as u64;
            offset += len;
            if offset == segment.iov_len {
                (index, offset) = (index + 1, 0);
            }
        }
        trim(out, start, bytes, limits.block.into())
    }

    /// The sectors of the next range of at most `max`.
    pub(super) fn range(&self, max: u32, unmap: bool) -> wire::Range {
        wire::Range {
            sector: self.sector(),
            num_sectors: u32::try_from(self.left() / SECTOR_SIZE)
                .unwrap_or(u32::MAX)
                .min(max),
            flags: if unmap { wire::RANGE_F_UNMAP } else { 0 },
        }
    }
}

/// Bytes of one request, far from the 4 GiB that a chain may have.
pub(super) const MAX_SUB_REQUEST: u64 = 1 << 30;

/// Cuts what was appended to `out` from `start` on, `bytes` in all, down to whole blocks.
#[inline]
fn trim(out: &mut Vec<Segment>, start: usize, bytes: u64, block: u64) -> u64 {
    let mut excess = bytes % block;
    let whole = bytes - excess;
    while excess != 0 && out.len() > start {
        let Some(last) = out.last_mut() else { break };
        if u64::from(last.len) > excess {
            last.len -= excess as u32;
            break;
        }
        excess -= u64::from(last.len);
        out.pop();
    }
    whole
}

/// Copies `len` bytes between a buffer, from byte `offset` on, and `memory`.
///
/// # Safety
/// `memory` is mapped for `len` bytes, for writing where `from_buf`, and does not overlap the buffer.
pub(super) unsafe fn copy(
    buf: &IoBuf,
    offset: usize,
    len: usize,
    memory: *mut u8,
    from_buf: bool,
    scratch: &mut Vec<libc::iovec>,
) {
    scratch.clear();
    buf.window(offset, len, usize::MAX, scratch);
    let mut at = memory;
    for piece in scratch.iter() {
        let base = piece.iov_base.cast::<u8>();
        // SAFETY: the pieces lie in the buffer, which is valid for its operation's direction, and add up to at
        // most `len`; the rest is the caller's promise.
        unsafe {
            if from_buf {
                std::ptr::copy_nonoverlapping(base.cast_const(), at, piece.iov_len);
            } else {
                std::ptr::copy_nonoverlapping(at.cast_const(), base, piece.iov_len);
            }
        }
        at = at.wrapping_add(piece.iov_len);
    }
}
