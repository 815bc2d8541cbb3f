// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One operation on a disk, and its completion.

use super::{DiskError, IoBuf};

/// Names an operation in flight. Chosen by the submitter; a queue only hands it back. Unique among the
/// operations a queue has in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u64);

/// What to do. Offsets and lengths in bytes, multiples of the medium's guest block
/// ([`super::Alignments::guest_block`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpKind {
    /// Fill the whole buffer with the medium's bytes from `offset` on.
    Read {
        /// First byte.
        offset: u64,
    },
    /// Store the whole buffer from `offset` on.
    Write {
        /// First byte.
        offset: u64,
        /// Stable on the medium before it completes.
        fua: bool,
    },
    /// Make every write stable that completed before this was submitted, on any queue of the disk.
    Flush,
    /// The range's content is no longer needed and may become anything. The buffer is empty.
    Discard {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// The range reads as zeroes afterwards. The buffer is empty.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// The medium may deallocate the range.
        unmap: bool,
        /// Stable on the medium before it completes.
        fua: bool,
    },
    /// The range's content, and all copies the medium may hold of it, become unreadable. The buffer is
    /// empty.
    SecureErase {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Write the medium's [`Lifetime`] into the first [`Lifetime::SIZE`] bytes of the buffer, which is
    /// at least that long.
    Lifetime,
}

impl OpKind {
    /// Whether the operation changes the medium (a flush does not).
    pub const fn is_write(&self) -> bool {
        matches!(
            self,
            Self::Write { .. }
                | Self::Discard { .. }
                | Self::WriteZeroes { .. }
                | Self::SecureErase { .. }
        )
    }

    /// The bytes of the medium the operation covers, as offset and length; `data_len` is the length of
    /// its buffer. `None` for operations that cover no range.
    pub const fn range(&self, data_len: u64) -> Option<(u64, u64)> {
        match *self {
            Self::Read { offset } | Self::Write { offset, .. } => Some((offset, data_len)),
            Self::Discard { offset, len }
            | Self::WriteZeroes { offset, len, .. }
            | Self::SecureErase { offset, len } => Some((offset, len)),
            Self::Flush | Self::Lifetime => None,
        }
    }
}

/// What operations are checked against, by every disk before it touches its medium: see [`Bounds::check`].
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of the medium, as of now.
    pub capacity: u64,
    /// Bytes of the guest block, a power of two.
    pub block: u32,
    /// Nothing may change the medium.
    pub read_only: bool,
}

impl Bounds {
    /// Checks an operation whose buffer holds `data_len` bytes.
    ///
    /// # Errors
    /// [`DiskError::ReadOnly`], [`DiskError::OutOfRange`] or [`DiskError::Misaligned`], in this order.
    #[inline]
    pub fn check(self, kind: &OpKind, data_len: usize) -> Result<(), DiskError> {
        if self.read_only && kind.is_write() {
            return Err(DiskError::ReadOnly);
        }
        let Some((offset, len)) = kind.range(data_len as u64) else {
            return Ok(());
        };
        if offset > self.capacity || len > self.capacity - offset {
            return Err(DiskError::OutOfRange);
        }
        if (offset | len) & (u64::from(self.block) - 1) != 0 {
            return Err(DiskError::Misaligned);
        }
        Ok(())
    }
}

/// One operation, owning all it needs: memory it refers to stays mapped while it lives.
#[derive(Debug)]
pub struct Op {
    /// The submitter's name for it.
    pub token: Token,
    /// What to do.
    pub kind: OpKind,
    /// The data, for kinds that have any; else empty.
    pub buf: IoBuf,
}

impl Op {
    /// The completion of this operation with `result`.
    pub fn complete(self, result: Result<(), DiskError>) -> Completion {
        Completion {
            token: self.token,
            result,
            buf: self.buf,
        }
    }
}

/// The end of an operation.
#[derive(Debug)]
pub struct Completion {
    /// The operation's token.
    pub token: Token,
    /// `Ok`: done, the whole of it.
    pub result: Result<(), DiskError>,
    /// The operation's buffer, returned; empty for an operation that was taken without it.
    pub buf: IoBuf,
}

/// Wear of a medium, as `VIRTIO_BLK_T_GET_LIFETIME` reports it (virtio 1.4, 5.2.6): three `le16`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lifetime {
    /// Reserved blocks used up: 0 undefined, 1 normal, 2 80 percent, 3 90 percent.
    pub pre_eol_info: u16,
    /// Wear of type A cells in steps of ten percent: 0 undefined, 1 to 10, 11 exceeded.
    pub device_lifetime_est_typ_a: u16,
    /// The same for type B cells.
    pub device_lifetime_est_typ_b: u16,
}

impl Lifetime {
    /// Bytes on the wire.
    pub const SIZE: usize = 6;

    /// The wire form.
    pub const fn to_bytes(self) -> [u8; Self::SIZE] {
        let [a, b] = self.pre_eol_info.to_le_bytes();
        let [c, d] = self.device_lifetime_est_typ_a.to_le_bytes();
        let [e, f] = self.device_lifetime_est_typ_b.to_le_bytes();
        [a, b, c, d, e, f]
    }

    /// Reads the wire form. `None` if a field holds a value the specification reserves.
    pub const fn from_bytes(bytes: [u8; Self::SIZE]) -> Option<Self> {
        let [a, b, c, d, e, f] = bytes;
        let this = Self {
            pre_eol_info: u16::from_le_bytes([a, b]),
            device_lifetime_est_typ_a: u16::from_le_bytes([c, d]),
            device_lifetime_est_typ_b: u16::from_le_bytes([e, f]),
        };
        if this.pre_eol_info <= 3
            && this.device_lifetime_est_typ_a <= 11
            && this.device_lifetime_est_typ_b <= 11
        {
            Some(this)
        } else {
            None
        }
    }
}
