// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Backend features: what a device and its bus can do beyond what virtio negotiates. Masks, not bit
//! numbers (`include/uapi/linux/vhost_types.h`).

/// IOTLB messages carry an address space (`VHOST_BACKEND_F_IOTLB_MSG_V2`).
pub const IOTLB_MSG_V2: u64 = 1 << 1;
/// Changes of a map can be made in batches (`VHOST_BACKEND_F_IOTLB_BATCH`).
pub const IOTLB_BATCH: u64 = 1 << 2;
/// The device has several address spaces (`VHOST_BACKEND_F_IOTLB_ASID`).
pub const IOTLB_ASID: u64 = 1 << 3;
/// [`crate::VdpaDevice::suspend`] works (`VHOST_BACKEND_F_SUSPEND`).
pub const SUSPEND: u64 = 1 << 4;
/// [`crate::VdpaDevice::resume`] works (`VHOST_BACKEND_F_RESUME`).
pub const RESUME: u64 = 1 << 5;
/// Queues may be made ready after DRIVER_OK (`VHOST_BACKEND_F_ENABLE_AFTER_DRIVER_OK`).
pub const ENABLE_AFTER_DRIVER_OK: u64 = 1 << 6;
/// Descriptor tables may lie in another address space than buffers (`VHOST_BACKEND_F_DESC_ASID`).
pub const DESC_ASID: u64 = 1 << 7;
/// Maps survive a reset (`VHOST_BACKEND_F_IOTLB_PERSIST`).
pub const IOTLB_PERSIST: u64 = 1 << 8;
