// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What crosses the border to the kernel: request numbers and structures of `include/uapi/linux/vhost.h` and
//! `vhost_types.h`, as the bytes they are. Numbers and layouts are the same on x86-64 and aarch64.

/// The direction bits of a request number.
const NONE: u32 = 0;
const WRITE: u32 = 1;
const READ: u32 = 2;

/// `_IOC(direction, 0xAF, number, size)`.
const fn request(direction: u32, number: u8, size: usize) -> u32 {
    direction << 30 | (size as u32) << 16 | 0xaf << 8 | number as u32
}

/// Bytes of `struct vhost_vring_state` and `struct vhost_vring_file`.
const PAIR: usize = 8;

pub(crate) const SET_OWNER: u32 = request(NONE, 0x01, 0);
pub(crate) const GET_FEATURES: u32 = request(READ, 0x00, 8);
pub(crate) const SET_FEATURES: u32 = request(WRITE, 0x00, 8);
pub(crate) const SET_VRING_NUM: u32 = request(WRITE, 0x10, PAIR);
pub(crate) const SET_VRING_ADDR: u32 = request(WRITE, 0x11, 40);
pub(crate) const SET_VRING_BASE: u32 = request(WRITE, 0x12, PAIR);
pub(crate) const GET_VRING_BASE: u32 = request(READ | WRITE, 0x12, PAIR);
pub(crate) const SET_VRING_KICK: u32 = request(WRITE, 0x20, PAIR);
pub(crate) const SET_VRING_CALL: u32 = request(WRITE, 0x21, PAIR);
pub(crate) const SET_VRING_ERR: u32 = request(WRITE, 0x22, PAIR);
pub(crate) const SET_BACKEND_FEATURES: u32 = request(WRITE, 0x25, 8);
pub(crate) const GET_BACKEND_FEATURES: u32 = request(READ, 0x26, 8);
pub(crate) const GET_DEVICE_ID: u32 = request(READ, 0x70, 4);
pub(crate) const GET_STATUS: u32 = request(READ, 0x71, 1);
pub(crate) const SET_STATUS: u32 = request(WRITE, 0x72, 1);
pub(crate) const GET_CONFIG: u32 = request(READ, 0x73, 8);
pub(crate) const SET_CONFIG: u32 = request(WRITE, 0x74, 8);
pub(crate) const SET_VRING_ENABLE: u32 = request(WRITE, 0x75, PAIR);
pub(crate) const GET_VRING_NUM: u32 = request(READ, 0x76, 2);
pub(crate) const SET_CONFIG_CALL: u32 = request(WRITE, 0x77, 4);
pub(crate) const GET_IOVA_RANGE: u32 = request(READ, 0x78, 16);
pub(crate) const GET_CONFIG_SIZE: u32 = request(READ, 0x79, 4);
pub(crate) const GET_AS_NUM: u32 = request(READ, 0x7a, 4);
pub(crate) const GET_VRING_GROUP: u32 = request(READ | WRITE, 0x7b, PAIR);
pub(crate) const SET_GROUP_ASID: u32 = request(WRITE, 0x7c, PAIR);
pub(crate) const SUSPEND: u32 = request(NONE, 0x7d, 0);
pub(crate) const RESUME: u32 = request(NONE, 0x7e, 0);
pub(crate) const GET_VRING_DESC_GROUP: u32 = request(READ | WRITE, 0x7f, PAIR);
pub(crate) const GET_VQS_COUNT: u32 = request(READ, 0x80, 4);
pub(crate) const GET_GROUP_NUM: u32 = request(READ, 0x81, 4);
pub(crate) const GET_VRING_SIZE: u32 = request(READ | WRITE, 0x82, PAIR);

/// Bytes of `struct vhost_msg_v2`, and of `struct vhost_msg`.
pub(crate) const MESSAGE_SIZE: usize = 72;
const MESSAGE: u32 = 1;
const MESSAGE_V2: u32 = 2;

/// What an IOTLB message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Iotlb {
    /// Map `size` bytes of this process from `uaddr` on at `iova`.
    Update {
        iova: u64,
        size: u64,
        uaddr: u64,
        permissions: u8,
    },
    /// Remove what overlaps `size` bytes from `iova` on.
    Invalidate { iova: u64, size: u64 },
    /// A batch begins.
    BatchBegin,
    /// The batch takes effect.
    BatchEnd,
}

/// The device may read there.
pub(crate) const ACCESS_READ: u8 = 1;
/// The device may write there.
pub(crate) const ACCESS_WRITE: u8 = 2;

impl Iotlb {
    /// As `write` takes it. Version 2, with an address space, where that was negotiated.
    pub(crate) fn to_bytes(self, v2: bool, asid: u32) -> [u8; MESSAGE_SIZE] {
        let (iova, size, uaddr, permissions, kind) = match self {
            Self::Update {
                iova,
                size,
                uaddr,
                permissions,
            } => (iova, size, uaddr, permissions, 2),
            Self::Invalidate { iova, size } => (iova, size, 0, 0, 3),
            Self::BatchBegin => (0, 0, 0, 0, 5),
            Self::BatchEnd => (0, 0, 0, 0, 6),
        };
        let mut bytes = [0; MESSAGE_SIZE];
        let mut put = |offset: usize, field: &[u8]| {
            bytes[offset..offset + field.len()].copy_from_slice(field);
        };
        if v2 {
            put(0, &MESSAGE_V2.to_ne_bytes());
            put(4, &asid.to_ne_bytes());
        } else {
            put(0, &MESSAGE.to_ne_bytes());
        }
        put(8, &iova.to_ne_bytes());
        put(16, &size.to_ne_bytes());
        put(24, &uaddr.to_ne_bytes());
        put(32, &[permissions, kind]);
        bytes
    }
}

/// Two 32-bit fields: `struct vhost_vring_state`, `struct vhost_vring_file` (a descriptor is -1 for none).
pub(crate) fn pair(index: u32, value: u32) -> [u8; PAIR] {
    let [a, b, c, d] = index.to_ne_bytes();
    let [e, f, g, h] = value.to_ne_bytes();
    [a, b, c, d, e, f, g, h]
}

/// The second field of a [`pair`].
pub(crate) fn second(pair: [u8; PAIR]) -> u32 {
    let [_, _, _, _, a, b, c, d] = pair;
    u32::from_ne_bytes([a, b, c, d])
}

/// `struct vhost_vring_addr`: index, flags, descriptor table, used ring, available ring, log.
pub(crate) fn vring_addr(index: u32, address: vdpa_bus::VqAddress) -> [u8; 40] {
    let mut bytes = [0; 40];
    let mut put = |offset: usize, field: &[u8]| {
        bytes[offset..offset + field.len()].copy_from_slice(field);
    };
    put(0, &index.to_ne_bytes());
    put(8, &address.desc.to_ne_bytes());
    put(16, &address.device.to_ne_bytes());
    put(24, &address.driver.to_ne_bytes());
    bytes
}

/// `struct vhost_vdpa_config` with `data` behind its header of [`CONFIG_HEADER`] bytes.
pub(crate) fn config(offset: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = pair(offset, data.len() as u32).to_vec();
    bytes.extend_from_slice(data);
    bytes
}

/// Bytes of `struct vhost_vdpa_config` before the content.
pub(crate) const CONFIG_HEADER: usize = 8;
