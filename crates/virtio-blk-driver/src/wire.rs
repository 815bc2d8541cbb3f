// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What lies in memory between driver and device: descriptors, headers, numbers (virtio 1.4, 2.7 and
//! 5.2.6). Written apart from the device's definitions, so that a mistake in one shows.

use virtio_bindings::bindings::{virtio_blk as blk, virtio_ring as vring};
use vm_memory::GuestAddress;

/// The descriptor continues at `next`.
pub const DESC_F_NEXT: u16 = vring::VRING_DESC_F_NEXT as u16;
/// The device writes the buffer (else it reads it).
pub const DESC_F_WRITE: u16 = vring::VRING_DESC_F_WRITE as u16;
/// The buffer is a table of descriptors.
pub const DESC_F_INDIRECT: u16 = vring::VRING_DESC_F_INDIRECT as u16;
/// In the available ring's flags: please don't interrupt.
pub const AVAIL_F_NO_INTERRUPT: u16 = vring::VRING_AVAIL_F_NO_INTERRUPT as u16;
/// In the used ring's flags: please don't kick.
pub const USED_F_NO_NOTIFY: u16 = vring::VRING_USED_F_NO_NOTIFY as u16;

/// Request type: the device fills the data from the medium.
pub const T_IN: u32 = blk::VIRTIO_BLK_T_IN;
/// Request type: the device stores the data on the medium.
pub const T_OUT: u32 = blk::VIRTIO_BLK_T_OUT;
/// Request type: make completed writes stable.
pub const T_FLUSH: u32 = blk::VIRTIO_BLK_T_FLUSH;
/// Request type: the device's name, [`ID_LEN`] bytes.
pub const T_GET_ID: u32 = blk::VIRTIO_BLK_T_GET_ID;
/// Request type: the medium's wear, [`LIFETIME_LEN`] bytes (virtio-bindings lacks it).
pub const T_GET_LIFETIME: u32 = 10;
/// Request type: ranges may be deallocated.
pub const T_DISCARD: u32 = blk::VIRTIO_BLK_T_DISCARD;
/// Request type: ranges shall read as zeroes.
pub const T_WRITE_ZEROES: u32 = blk::VIRTIO_BLK_T_WRITE_ZEROES;
/// Request type: ranges shall become unreadable.
pub const T_SECURE_ERASE: u32 = blk::VIRTIO_BLK_T_SECURE_ERASE;

/// Status: done.
pub const S_OK: u8 = blk::VIRTIO_BLK_S_OK as u8;
/// Status: failed.
pub const S_IOERR: u8 = blk::VIRTIO_BLK_S_IOERR as u8;
/// Status: the device does not do that.
pub const S_UNSUPP: u8 = blk::VIRTIO_BLK_S_UNSUPP as u8;
/// What we put into a status byte before the device may write it; no device stores this.
pub const S_UNWRITTEN: u8 = 0xee;

/// Bytes of a request's header.
pub const HEADER_LEN: u32 = 16;
/// Bytes a device writes for [`T_GET_ID`].
pub const ID_LEN: u32 = blk::VIRTIO_BLK_ID_BYTES;
/// Bytes a device writes for [`T_GET_LIFETIME`].
pub const LIFETIME_LEN: u32 = 6;
/// In a [`Range`]'s flags: the device may deallocate.
pub const RANGE_F_UNMAP: u32 = blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;

/// Bytes of a descriptor.
pub const DESC_LEN: u64 = 16;

/// One descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// First byte of the buffer.
    pub addr: GuestAddress,
    /// Bytes of the buffer.
    pub len: u32,
    /// `DESC_F_*`.
    pub flags: u16,
    /// Index of the next descriptor; meaningful with [`DESC_F_NEXT`].
    pub next: u16,
}

impl Descriptor {
    /// A buffer the device reads; the last of its chain.
    pub const fn readable(addr: GuestAddress, len: u32) -> Self {
        Self {
            addr,
            len,
            flags: 0,
            next: 0,
        }
    }

    /// A buffer the device writes; the last of its chain.
    pub const fn writable(addr: GuestAddress, len: u32) -> Self {
        Self {
            flags: DESC_F_WRITE,
            ..Self::readable(addr, len)
        }
    }

    /// A table of descriptors, `len` bytes long.
    pub const fn indirect(addr: GuestAddress, len: u32) -> Self {
        Self {
            flags: DESC_F_INDIRECT,
            ..Self::readable(addr, len)
        }
    }

    /// The same, continued at `next`.
    #[must_use]
    pub const fn then(self, next: u16) -> Self {
        Self {
            flags: self.flags | DESC_F_NEXT,
            next,
            ..self
        }
    }

    /// The same with `flags` set in addition.
    #[must_use]
    pub const fn with_flags(self, flags: u16) -> Self {
        Self {
            flags: self.flags | flags,
            ..self
        }
    }

    /// As it lies in memory.
    #[inline]
    pub fn to_bytes(self) -> [u8; DESC_LEN as usize] {
        let value = u128::from(self.addr.0)
            | u128::from(self.len) << 64
            | u128::from(self.flags) << 96
            | u128::from(self.next) << 112;
        value.to_le_bytes()
    }

    /// From how it lies in memory.
    #[inline]
    pub fn from_bytes(bytes: [u8; DESC_LEN as usize]) -> Self {
        let value = u128::from_le_bytes(bytes);
        Self {
            addr: GuestAddress(value as u64),
            len: (value >> 64) as u32,
            flags: (value >> 96) as u16,
            next: (value >> 112) as u16,
        }
    }
}

/// The header of a request as it lies in memory.
#[inline]
pub fn header(kind: u32, reserved: u32, sector: u64) -> [u8; HEADER_LEN as usize] {
    let value = u128::from(kind) | u128::from(reserved) << 32 | u128::from(sector) << 64;
    value.to_le_bytes()
}

/// One range of a discard, write-zeroes or secure-erase request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// First sector of 512 bytes.
    pub sector: u64,
    /// Sectors of 512 bytes.
    pub num_sectors: u32,
    /// [`RANGE_F_UNMAP`]; other bits are reserved.
    pub flags: u32,
}

impl Range {
    /// Bytes of a range in memory.
    pub const LEN: u32 = 16;

    /// As it lies in memory.
    pub fn to_bytes(self) -> [u8; Self::LEN as usize] {
        let value = u128::from(self.sector)
            | u128::from(self.num_sectors) << 64
            | u128::from(self.flags) << 96;
        value.to_le_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_those_of_the_specification() {
        let desc = Descriptor {
            addr: GuestAddress(0x1122_3344_5566_7788),
            len: 0x99aa_bbcc,
            flags: 0x0102,
            next: 0x0304,
        };
        assert_eq!(
            desc.to_bytes(),
            [
                0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0xcc, 0xbb, 0xaa, 0x99, 0x02, 0x01,
                0x04, 0x03
            ]
        );
        assert_eq!(Descriptor::from_bytes(desc.to_bytes()), desc);
        assert_eq!(
            header(T_WRITE_ZEROES, 0x0807_0605, 0x1817_1615_1413_1211),
            [
                13, 0, 0, 0, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18
            ]
        );
        let range = Range {
            sector: 0x0807_0605_0403_0201,
            num_sectors: 0x0c0b_0a09,
            flags: RANGE_F_UNMAP,
        };
        assert_eq!(
            range.to_bytes(),
            [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 1, 0, 0, 0]
        );
    }

    #[test]
    fn numbers_are_those_of_the_specification() {
        assert_eq!(
            [
                T_IN,
                T_OUT,
                T_FLUSH,
                T_GET_ID,
                T_GET_LIFETIME,
                T_DISCARD,
                T_WRITE_ZEROES,
                T_SECURE_ERASE
            ],
            [0, 1, 4, 8, 10, 11, 13, 14]
        );
        assert_eq!([S_OK, S_IOERR, S_UNSUPP], [0, 1, 2]);
        assert_eq!([DESC_F_NEXT, DESC_F_WRITE, DESC_F_INDIRECT], [1, 2, 4]);
        assert_eq!((ID_LEN, AVAIL_F_NO_INTERRUPT, USED_F_NO_NOTIFY), (20, 1, 1));
    }
}
