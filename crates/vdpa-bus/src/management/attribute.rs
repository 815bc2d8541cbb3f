// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Numbers of the family's commands and attributes (`include/uapi/linux/vdpa.h`).

/// The family's name.
pub const FAMILY: &str = "vdpa";
/// Its version.
pub const VERSION: u8 = 1;

/// `enum vdpa_command`.
pub mod command {
    pub const MGMTDEV_NEW: u8 = 1;
    pub const MGMTDEV_GET: u8 = 2;
    pub const DEV_NEW: u8 = 3;
    pub const DEV_DEL: u8 = 4;
    pub const DEV_GET: u8 = 5;
    pub const DEV_CONFIG_GET: u8 = 6;
    pub const DEV_VSTATS_GET: u8 = 7;
    pub const DEV_ATTR_SET: u8 = 8;
}

/// `enum vdpa_attr`.
pub mod attr {
    pub const MGMTDEV_BUS_NAME: u16 = 1;
    pub const MGMTDEV_DEV_NAME: u16 = 2;
    pub const MGMTDEV_SUPPORTED_CLASSES: u16 = 3;
    pub const DEV_NAME: u16 = 4;
    pub const DEV_ID: u16 = 5;
    pub const DEV_VENDOR_ID: u16 = 6;
    pub const DEV_MAX_VQS: u16 = 7;
    pub const DEV_MAX_VQ_SIZE: u16 = 8;
    pub const DEV_MIN_VQ_SIZE: u16 = 9;
    pub const NET_CFG_MACADDR: u16 = 10;
    pub const NET_STATUS: u16 = 11;
    pub const NET_CFG_MAX_VQP: u16 = 12;
    pub const NET_CFG_MTU: u16 = 13;
    pub const DEV_NEGOTIATED_FEATURES: u16 = 14;
    pub const MGMTDEV_MAX_VQS: u16 = 15;
    pub const MGMTDEV_SUPPORTED_FEATURES: u16 = 16;
    pub const DEV_QUEUE_INDEX: u16 = 17;
    pub const DEV_VENDOR_ATTR_NAME: u16 = 18;
    pub const DEV_VENDOR_ATTR_VALUE: u16 = 19;
    pub const DEV_FEATURES: u16 = 20;
    pub const BLK_CFG_CAPACITY: u16 = 21;
    pub const BLK_CFG_SIZE_MAX: u16 = 22;
    pub const BLK_CFG_BLK_SIZE: u16 = 23;
    pub const BLK_CFG_SEG_MAX: u16 = 24;
    pub const BLK_CFG_NUM_QUEUES: u16 = 25;
    pub const BLK_CFG_PHY_BLK_EXP: u16 = 26;
    pub const BLK_CFG_ALIGN_OFFSET: u16 = 27;
    pub const BLK_CFG_MIN_IO_SIZE: u16 = 28;
    pub const BLK_CFG_OPT_IO_SIZE: u16 = 29;
    pub const BLK_CFG_MAX_DISCARD_SEC: u16 = 30;
    pub const BLK_CFG_MAX_DISCARD_SEG: u16 = 31;
    pub const BLK_CFG_DISCARD_SEC_ALIGN: u16 = 32;
    pub const BLK_CFG_MAX_WRITE_ZEROES_SEC: u16 = 33;
    pub const BLK_CFG_MAX_WRITE_ZEROES_SEG: u16 = 34;
    pub const BLK_READ_ONLY: u16 = 35;
    pub const BLK_FLUSH: u16 = 36;
}

/// The controller, which knows the number of each family (`include/uapi/linux/genetlink.h`).
pub mod control {
    pub const FAMILY: u16 = 0x10;
    pub const VERSION: u8 = 2;
    pub const GETFAMILY: u8 = 3;
    pub const ATTR_FAMILY_ID: u16 = 1;
    pub const ATTR_FAMILY_NAME: u16 = 2;
}

/// `enum nlmsgerr_attrs` (`include/uapi/linux/netlink.h`): the text of an extended acknowledgement.
pub const NLMSGERR_ATTR_MSG: u16 = 1;
