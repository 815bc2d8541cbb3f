// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Feature bits as masks: block device bits (virtio 1.4, 5.2.3) and those of ring and transport (6).

/// Most bytes in one segment are in `size_max`.
pub const SIZE_MAX: u64 = 1 << 1;
/// Most data segments in one request are in `seg_max`.
pub const SEG_MAX: u64 = 1 << 2;
/// Disk geometry is in the configuration space.
pub const GEOMETRY: u64 = 1 << 4;
/// The device is read-only.
pub const RO: u64 = 1 << 5;
/// The logical block size is in `blk_size`.
pub const BLK_SIZE: u64 = 1 << 6;
/// There is a flush command, and possibly a volatile write cache.
pub const FLUSH: u64 = 1 << 9;
/// Hints on alignment and I/O size are in the configuration space.
pub const TOPOLOGY: u64 = 1 << 10;
/// The driver can switch between write-back and write-through.
pub const CONFIG_WCE: u64 = 1 << 11;
/// There is more than one queue: `num_queues`.
pub const MQ: u64 = 1 << 12;
/// Discard.
pub const DISCARD: u64 = 1 << 13;
/// Write zeroes.
pub const WRITE_ZEROES: u64 = 1 << 14;
/// Lifetime information.
pub const LIFETIME: u64 = 1 << 15;
/// Secure erase.
pub const SECURE_ERASE: u64 = 1 << 16;
/// Zoned device. Never offered: the zone commands are answered as unsupported.
pub const ZONED: u64 = 1 << 17;

/// Descriptors can point to tables of descriptors.
pub const RING_INDIRECT_DESC: u64 = 1 << 28;
/// Notifications are steered by event indices.
pub const RING_EVENT_IDX: u64 = 1 << 29;
/// vhost-user: the protocol has features of its own (not a virtio bit; never seen by a guest).
pub const VHOST_USER_PROTOCOL_FEATURES: u64 = 1 << 30;
/// The device complies with virtio 1.0 or later.
pub const VERSION_1: u64 = 1 << 32;
/// The device accesses memory through the platform's translation.
pub const ACCESS_PLATFORM: u64 = 1 << 33;
/// Packed virtqueue layout.
pub const RING_PACKED: u64 = 1 << 34;
/// Buffers are used in the order they were made available.
pub const IN_ORDER: u64 = 1 << 35;
/// A single queue can be reset.
pub const RING_RESET: u64 = 1 << 40;

/// The names of the bits of a feature word, lowest bit first; unknown bits as `BIT_n`.
pub fn names(features: u64) -> Vec<String> {
    const NAMES: [(u64, &str); 21] = [
        (SIZE_MAX, "SIZE_MAX"),
        (SEG_MAX, "SEG_MAX"),
        (GEOMETRY, "GEOMETRY"),
        (RO, "RO"),
        (BLK_SIZE, "BLK_SIZE"),
        (FLUSH, "FLUSH"),
        (TOPOLOGY, "TOPOLOGY"),
        (CONFIG_WCE, "CONFIG_WCE"),
        (MQ, "MQ"),
        (DISCARD, "DISCARD"),
        (WRITE_ZEROES, "WRITE_ZEROES"),
        (LIFETIME, "LIFETIME"),
        (SECURE_ERASE, "SECURE_ERASE"),
        (ZONED, "ZONED"),
        (RING_INDIRECT_DESC, "RING_INDIRECT_DESC"),
        (RING_EVENT_IDX, "RING_EVENT_IDX"),
        (VERSION_1, "VERSION_1"),
        (ACCESS_PLATFORM, "ACCESS_PLATFORM"),
        (RING_PACKED, "RING_PACKED"),
        (IN_ORDER, "IN_ORDER"),
        (RING_RESET, "RING_RESET"),
    ];
    (0..u64::BITS)
        .map(|bit| 1u64 << bit)
        .filter(|mask| features & mask != 0)
        .map(|mask| {
            NAMES.iter().find(|(known, _)| *known == mask).map_or_else(
                || format!("BIT_{}", mask.trailing_zeros()),
                |(_, name)| (*name).to_owned(),
            )
        })
        .collect()
}
