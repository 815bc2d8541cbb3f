// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The numbers and layouts of the kernel's `linux/vduse.h`, versions 0 and 1 of the interface. All structures
//! are native endian and the same on every 64-bit architecture.

/// Where the kernel's structures hold a device's name.
pub(crate) const NAME_SIZE: usize = 256;
/// Bytes of a message and of a response.
pub(crate) const MESSAGE_SIZE: usize = 152;
/// Bytes of `struct vduse_dev_config` before the configuration space.
pub(crate) const CONFIG_HEADER: usize = 336;

/// The virtio device ID of block devices.
pub(crate) const ID_BLOCK: u32 = 2;

/// `VDUSE_F_QUEUE_READY`: messages say when a queue is enabled and disabled (Linux 7.3).
pub const F_QUEUE_READY: u64 = 1 << 0;
/// `VDUSE_F_SUSPEND`: a message asks to suspend (Linux 7.3).
pub const F_SUSPEND: u64 = 1 << 1;

/// The direction bits of an ioctl number, as on x86, Arm and RISC-V.
const WRITE: u32 = 1;
const READ: u32 = 2;

const fn request(direction: u32, number: u32, size: usize) -> u32 {
    direction << 30 | (size as u32) << 16 | 0x81 << 8 | number
}

pub(crate) const GET_API_VERSION: u32 = request(READ, 0x00, 8);
pub(crate) const SET_API_VERSION: u32 = request(WRITE, 0x01, 8);
pub(crate) const CREATE_DEV: u32 = request(WRITE, 0x02, CONFIG_HEADER);
pub(crate) const DESTROY_DEV: u32 = request(WRITE, 0x03, NAME_SIZE);
pub(crate) const GET_FEATURES: u32 = request(READ, 0x04, 8);
pub(crate) const SET_FEATURES: u32 = request(WRITE, 0x05, 8);
pub(crate) const IOTLB_GET_FD: u32 = request(READ | WRITE, 0x10, size_of::<IotlbEntry>());
pub(crate) const DEV_GET_FEATURES: u32 = request(READ, 0x11, 8);
pub(crate) const DEV_SET_CONFIG: u32 = request(WRITE, 0x12, 8);
pub(crate) const DEV_INJECT_CONFIG_IRQ: u32 = request(0, 0x13, 0);
pub(crate) const VQ_SETUP: u32 = request(WRITE, 0x14, size_of::<VqConfig>());
pub(crate) const VQ_GET_INFO: u32 = request(READ | WRITE, 0x15, size_of::<RawVqInfo>());
pub(crate) const VQ_SETUP_KICKFD: u32 = request(WRITE, 0x16, size_of::<VqEventFd>());
pub(crate) const VQ_INJECT_IRQ: u32 = request(WRITE, 0x17, 4);
pub(crate) const IOTLB_GET_INFO: u32 = request(READ | WRITE, 0x1a, size_of::<IovaInfo>());

/// `struct vduse_iotlb_entry`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct IotlbEntry {
    pub(crate) offset: u64,
    pub(crate) start: u64,
    pub(crate) last: u64,
    pub(crate) perm: u8,
    pub(crate) reserved: [u8; 7],
}

/// Bits of `IotlbEntry::perm`.
pub(crate) const ACCESS_READ: u8 = 1;
pub(crate) const ACCESS_WRITE: u8 = 2;

/// `struct vduse_iova_info`, with the address space of version 1.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct IovaInfo {
    pub(crate) start: u64,
    pub(crate) last: u64,
    pub(crate) capability: u64,
    pub(crate) asid: u32,
    pub(crate) reserved: [u32; 5],
}

/// `VDUSE_IOVA_CAP_UMEM`, a bit of `IovaInfo::capability`.
pub(crate) const IOVA_CAP_UMEM: u64 = 1;

/// `struct vduse_vq_config`, with the group of version 1.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct VqConfig {
    pub(crate) index: u32,
    pub(crate) max_size: u16,
    pub(crate) reserved1: u16,
    pub(crate) group: u32,
    pub(crate) reserved2: [u16; 10],
}

/// `struct vduse_vq_info`. `state` is that of a split or of a packed queue.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct RawVqInfo {
    pub(crate) index: u32,
    pub(crate) num: u32,
    pub(crate) descriptor: u64,
    pub(crate) driver: u64,
    pub(crate) device: u64,
    pub(crate) state: [u16; 4],
    pub(crate) ready: u8,
    pub(crate) reserved: [u8; 7],
}

/// `struct vduse_vq_eventfd`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct VqEventFd {
    pub(crate) index: u32,
    pub(crate) fd: i32,
}

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use super::*;

    /// From kernel.md 1.2: what the kernel's header gives on x86-64 and aarch64.
    #[test]
    fn numbers_are_the_kernels() {
        for (name, ours, kernels) in [
            ("GET_API_VERSION", GET_API_VERSION, 0x8008_8100),
            ("SET_API_VERSION", SET_API_VERSION, 0x4008_8101),
            ("CREATE_DEV", CREATE_DEV, 0x4150_8102),
            ("DESTROY_DEV", DESTROY_DEV, 0x4100_8103),
            ("GET_FEATURES", GET_FEATURES, 0x8008_8104),
            ("SET_FEATURES", SET_FEATURES, 0x4008_8105),
            ("IOTLB_GET_FD", IOTLB_GET_FD, 0xc020_8110),
            ("DEV_GET_FEATURES", DEV_GET_FEATURES, 0x8008_8111),
            ("DEV_SET_CONFIG", DEV_SET_CONFIG, 0x4008_8112),
            ("DEV_INJECT_CONFIG_IRQ", DEV_INJECT_CONFIG_IRQ, 0x0000_8113),
            ("VQ_SETUP", VQ_SETUP, 0x4020_8114),
            ("VQ_GET_INFO", VQ_GET_INFO, 0xc030_8115),
            ("VQ_SETUP_KICKFD", VQ_SETUP_KICKFD, 0x4008_8116),
            ("VQ_INJECT_IRQ", VQ_INJECT_IRQ, 0x4004_8117),
            ("IOTLB_GET_INFO", IOTLB_GET_INFO, 0xc030_811a),
        ] {
            assert_eq!(ours, kernels, "{name}");
        }
    }

    #[test]
    fn fields_are_where_the_kernel_has_them() {
        assert_eq!(size_of::<IotlbEntry>(), 32);
        assert_eq!(offset_of!(IotlbEntry, perm), 24);
        assert_eq!(size_of::<IovaInfo>(), 48);
        assert_eq!(offset_of!(IovaInfo, capability), 16);
        assert_eq!(offset_of!(IovaInfo, asid), 24);
        assert_eq!(size_of::<VqConfig>(), 32);
        assert_eq!(offset_of!(VqConfig, max_size), 4);
        assert_eq!(offset_of!(VqConfig, group), 8);
        assert_eq!(size_of::<RawVqInfo>(), 48);
        assert_eq!(offset_of!(RawVqInfo, descriptor), 8);
        assert_eq!(offset_of!(RawVqInfo, state), 32);
        assert_eq!(offset_of!(RawVqInfo, ready), 40);
        assert_eq!(size_of::<VqEventFd>(), 8);
    }
}
