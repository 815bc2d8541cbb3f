// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a guest was told about a device, as a value that outlives the device.
//!
//! A driver reads features and configuration space once and builds on them for as long as it runs: it makes
//! chains of up to `seg_max` segments, I/O in whole blocks, discards up to the limits. A device that takes the
//! place of another below a running guest (a restarted server, a restored snapshot, the destination of a
//! migration) must keep to what the first one said. [`GuestAbi`] is that, with one byte form for everything
//! that carries it; [`Device::adopt`](crate::device::Device::adopt) compares and takes it over.

use crate::disk::{EraseLimits, Topology, ZeroLimits};
use crate::ring::MAX_QUEUE_SIZE;
use crate::spec::{SERIAL_SIZE, feature};

/// Why a device can't keep to what the guest was told. `told` is what the guest knows, `now` what this device
/// has; capacities in sectors of 512 bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AbiError {
    /// The record of what was told can't be read.
    #[error("what the guest was told can't be read: {0}")]
    Malformed(&'static str),
    /// The record was written by newer code.
    #[error(
        "what the guest was told has version {found}, this program reads up to {known}: use the program that \
         wrote it, or a newer one"
    )]
    Version {
        /// As recorded.
        found: u16,
        /// The newest that is understood.
        known: u16,
    },
    /// Fewer queues.
    #[error("the guest was told of {told} queues, this device has {now}: give it at least {told}")]
    Queues {
        /// As recorded.
        told: u16,
        /// This device's.
        now: u16,
    },
    /// Smaller queues.
    #[error(
        "the guest was told that a queue may have {told} descriptors, this device takes {now}: give it a queue \
         size of at least {told}"
    )]
    QueueSize {
        /// As recorded.
        told: u16,
        /// This device's.
        now: u16,
    },
    /// Another block size, in bytes.
    #[error(
        "the guest was told of blocks of {told} bytes, this device has blocks of {now}: give it a block size of \
         {told}"
    )]
    BlockSize {
        /// As recorded.
        told: u32,
        /// This device's.
        now: u32,
    },
    /// A smaller capacity.
    #[error(
        "the guest was told of {told} sectors, this disk has {now}: use the same disk, of at least {told} sectors"
    )]
    Capacity {
        /// As recorded.
        told: u64,
        /// This device's.
        now: u64,
    },
    /// The device does not take writes any more.
    #[error(
        "the guest was told that it may write, this device is read-only: open the disk for writing"
    )]
    ReadOnly,
    /// Features that this device does not offer.
    #[error(
        "the guest was offered {}, which this device does not offer: use a disk and settings that do",
        feature::names(*missing).join(", ")
    )]
    Features {
        /// Those bits.
        missing: u64,
    },
    /// A lower limit, named by its field of the configuration space.
    #[error(
        "the guest was told a {field} of {told}, this disk takes {now}: use a disk and settings that take {told}"
    )]
    Limit {
        /// The field.
        field: &'static str,
        /// As recorded.
        told: u32,
        /// This device's.
        now: u32,
    },
    /// Another serial number.
    #[error(
        "the guest was told the serial number {told:?}, this device has {now:?}: use the same disk, or give it \
         that serial number"
    )]
    Serial {
        /// As recorded.
        told: String,
        /// This device's.
        now: String,
    },
    /// The driver acknowledged features that the record does not offer.
    #[error(
        "the driver acknowledged {}, which the guest was not offered by what is to be taken over",
        feature::names(*extra).join(", ")
    )]
    Negotiated {
        /// Those bits.
        extra: u64,
    },
}

/// The version this code writes; it reads all up to this one.
const VERSION: u16 = 1;
/// Version, length and checksum: the same in every version.
const HEADER: usize = 8;
/// Bytes of version 1.
const SIZE: usize = HEADER + 89;

/// The largest `seg_max` of a device. A request may have more segments than it was told of, but not more
/// than 16,384 pieces of host memory, and a segment may lie in two of them.
pub const MAX_SEG_MAX: u32 = 8190;

const WRITEBACK: u8 = 1;
const DISCARD: u8 = 1 << 1;
const WRITE_ZEROES: u8 = 1 << 2;
const SECURE_ERASE: u8 = 1 << 3;
const MAY_UNMAP: u8 = 1 << 4;
const FLAGS: u8 = WRITEBACK | DISCARD | WRITE_ZEROES | SECURE_ERASE | MAY_UNMAP;

/// What a guest was told about a device.
///
/// The byte form ([`GuestAbi::to_bytes`]) begins with {u16 version, u16 length of all of it in bytes, u32
/// CRC-32 of all but this field}, little-endian, in every version; at most [`GuestAbi::MAX_BYTES`] bytes. Code
/// of a newer version reads the older ones, and refuses those it does not know by their number. With feature
/// `serde` the value is serialised as these bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(into = "Vec<u8>", try_from = "Vec<u8>"))]
#[non_exhaustive]
pub struct GuestAbi {
    /// The feature bits offered.
    pub features: u64,
    /// Capacity in sectors of 512 bytes.
    pub capacity: u64,
    /// Number of queues.
    pub queues: u16,
    /// The largest size of a queue in descriptors.
    pub queue_size: u16,
    /// Most data segments of a request.
    pub seg_max: u32,
    /// Logical block in bytes.
    pub block_size: u32,
    /// Geometry hints.
    pub topology: Topology,
    /// The cache mode: write-back (`true`) or write-through.
    pub writeback: bool,
    /// Limits of a discard request, where DISCARD is offered.
    pub discard: Option<EraseLimits>,
    /// Limits of a write-zeroes request, where WRITE_ZEROES is offered.
    pub write_zeroes: Option<ZeroLimits>,
    /// Limits of a secure-erase request, where SECURE_ERASE is offered.
    pub secure_erase: Option<EraseLimits>,
    /// Serial number, NUL-padded.
    pub serial: [u8; SERIAL_SIZE],
}

impl GuestAbi {
    /// Most bytes of the byte form, in any version.
    pub const MAX_BYTES: usize = 256;

    /// The byte form.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(SIZE);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((SIZE as u16).to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(self.features.to_le_bytes());
        bytes.extend(self.capacity.to_le_bytes());
        bytes.extend(self.queues.to_le_bytes());
        bytes.extend(self.queue_size.to_le_bytes());
        bytes.extend(self.seg_max.to_le_bytes());
        bytes.extend(self.block_size.to_le_bytes());
        let topology = &self.topology;
        bytes.push(topology.physical_block_exp);
        bytes.push(topology.alignment_offset);
        bytes.extend(topology.min_io_size.to_le_bytes());
        bytes.extend(topology.opt_io_size.to_le_bytes());
        bytes.push(self.flags());
        let zeroes = self.write_zeroes.map(|limits| EraseLimits {
            max_sectors: limits.max_sectors,
            max_segments: limits.max_segments,
            alignment: 0,
        });
        let limits = |limits: Option<EraseLimits>| {
            let l = limits.unwrap_or(EraseLimits {
                max_sectors: 0,
                max_segments: 0,
                alignment: 0,
            });
            [l.max_sectors, l.max_segments, l.alignment]
        };
        let [discard, secure] = [limits(self.discard), limits(self.secure_erase)];
        let [sectors, segments, _] = limits(zeroes);
        for number in discard.into_iter().chain([sectors, segments]).chain(secure) {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(self.serial);
        let sum = checksum(&bytes).to_le_bytes();
        for (to, from) in bytes.iter_mut().skip(4).zip(sum) {
            *to = from;
        }
        bytes
    }

    fn flags(&self) -> u8 {
        let flag = |condition, flag| if condition { flag } else { 0 };
        let may_unmap = self.write_zeroes.is_some_and(|limits| limits.may_unmap);
        flag(self.writeback, WRITEBACK)
            | flag(self.discard.is_some(), DISCARD)
            | flag(self.write_zeroes.is_some(), WRITE_ZEROES)
            | flag(self.secure_erase.is_some(), SECURE_ERASE)
            | flag(may_unmap, MAY_UNMAP)
    }

    /// Reads the byte form, of this version or an older one, from the beginning of `bytes`. What lies behind
    /// its length is not looked at.
    ///
    /// # Errors
    /// The bytes are cut off, damaged, of a newer version, or say what no device says: the values may come
    /// from a hostile place.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, AbiError> {
        let mut header = Fields(bytes);
        let (version, len, sum) = (header.u16()?, header.u16()?, header.u32()?);
        let len = usize::from(len);
        if !(HEADER..=Self::MAX_BYTES).contains(&len) {
            return Err(AbiError::Malformed("its length can't be"));
        }
        let bytes = bytes.get(..len).ok_or(AbiError::Malformed(CUT_OFF))?;
        if checksum(bytes) != sum {
            return Err(AbiError::Malformed("the checksum does not fit"));
        }
        match version {
            0 => Err(AbiError::Malformed("there is no version 0")),
            VERSION if len == SIZE => Self::version_1(Fields(bytes.get(HEADER..).unwrap_or(&[]))),
            VERSION => Err(AbiError::Malformed("its length is not that of its version")),
            found => Err(AbiError::Version {
                found,
                known: VERSION,
            }),
        }
    }

    fn version_1(mut f: Fields<'_>) -> Result<Self, AbiError> {
        let features = f.u64()?;
        let capacity = f.u64()?;
        let (queues, queue_size) = (f.u16()?, f.u16()?);
        let (seg_max, block_size) = (f.u32()?, f.u32()?);
        let topology = Topology {
            physical_block_exp: f.u8()?,
            alignment_offset: f.u8()?,
            min_io_size: f.u16()?,
            opt_io_size: f.u32()?,
        };
        let flags = f.u8()?;
        let has = |flag| flags & flag != 0;
        if flags & !FLAGS != 0 {
            return Err(AbiError::Malformed("a flag that its version does not have"));
        }
        let erase = |f: &mut Fields<'_>, flag| {
            let limits = EraseLimits {
                max_sectors: f.u32()?,
                max_segments: f.u32()?,
                alignment: f.u32()?,
            };
            Ok::<_, AbiError>(has(flag).then_some(limits))
        };
        let discard = erase(&mut f, DISCARD)?;
        let zeroes = ZeroLimits {
            max_sectors: f.u32()?,
            max_segments: f.u32()?,
            may_unmap: has(MAY_UNMAP),
        };
        let secure_erase = erase(&mut f, SECURE_ERASE)?;
        let abi = Self {
            features,
            capacity,
            queues,
            queue_size,
            seg_max,
            block_size,
            topology,
            writeback: has(WRITEBACK),
            discard,
            write_zeroes: has(WRITE_ZEROES).then_some(zeroes),
            secure_erase,
            serial: f.take()?,
        };
        abi.validate()?;
        Ok(abi)
    }

    /// Checks that a device can have said this.
    ///
    /// # Errors
    /// [`AbiError::Malformed`].
    pub(crate) fn validate(&self) -> Result<(), AbiError> {
        let has = |bit| self.features & bit != 0;
        let erase = |limits: Option<EraseLimits>, bit| match limits {
            Some(l) => has(bit) && l.max_sectors != 0 && l.max_segments != 0 && l.alignment != 0,
            None => !has(bit),
        };
        let zeroes = match self.write_zeroes {
            Some(l) => has(feature::WRITE_ZEROES) && l.max_sectors != 0 && l.max_segments != 0,
            None => !has(feature::WRITE_ZEROES),
        };
        let size = self.queue_size;
        let what = if !has(feature::VERSION_1) {
            "features without VERSION_1"
        } else if self.queues == 0 {
            "no queues"
        } else if !size.is_power_of_two() || size > MAX_QUEUE_SIZE {
            "a queue size that is no power of two from 1 to 32768"
        } else if self.seg_max == 0 || self.seg_max > MAX_SEG_MAX {
            "a seg_max that is not from 1 to 8190"
        } else if !erase(self.discard, feature::DISCARD)
            || !erase(self.secure_erase, feature::SECURE_ERASE)
            || !zeroes
        {
            "limits of 0, of features that are not offered, or features without their limits"
        } else {
            return Ok(());
        };
        Err(AbiError::Malformed(what))
    }

    /// The serial number as text, for messages.
    pub fn serial_text(&self) -> String {
        let end = self.serial.iter().position(|byte| *byte == 0);
        let text = self.serial.get(..end.unwrap_or(SERIAL_SIZE));
        String::from_utf8_lossy(text.unwrap_or_default()).into_owned()
    }
}

impl From<GuestAbi> for Vec<u8> {
    fn from(abi: GuestAbi) -> Self {
        abi.to_bytes()
    }
}

impl TryFrom<Vec<u8>> for GuestAbi {
    type Error = AbiError;

    fn try_from(bytes: Vec<u8>) -> Result<Self, AbiError> {
        Self::from_bytes(&bytes)
    }
}

const CUT_OFF: &str = "it is cut off";

/// Bytes that are read field by field.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], AbiError> {
        let (field, rest) = (self.0)
            .split_first_chunk::<N>()
            .ok_or(AbiError::Malformed(CUT_OFF))?;
        self.0 = rest;
        Ok(*field)
    }

    fn u8(&mut self) -> Result<u8, AbiError> {
        self.take().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Result<u16, AbiError> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, AbiError> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, AbiError> {
        self.take().map(u64::from_le_bytes)
    }
}

/// The CRC-32 (IEEE 802.3) of `bytes`, with the four bytes of the checksum itself taken as 0.
pub(crate) fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for (at, byte) in bytes.iter().enumerate() {
        crc ^= if (4..8).contains(&at) {
            0
        } else {
            u32::from(*byte)
        };
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { 0xedb8_8320 } else { 0 };
        }
    }
    !crc
}
