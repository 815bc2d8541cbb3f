// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::config::Config;
use super::*;

#[test]
fn config_fields_sit_where_the_specification_puts_them() {
    let config = Config {
        capacity: 0x0102_0304_0506_0708,
        size_max: 0x1112_1314,
        seg_max: 0x2122_2324,
        cylinders: 0x3132,
        heads: 0x41,
        sectors: 0x42,
        blk_size: 0x5152_5354,
        physical_block_exp: 0x61,
        alignment_offset: 0x62,
        min_io_size: 0x6364,
        opt_io_size: 0x7172_7374,
        writeback: 1,
        num_queues: 0x8182,
        max_discard_sectors: 0x9192_9394,
        max_discard_seg: 0xa1a2_a3a4,
        discard_sector_alignment: 0xb1b2_b3b4,
        max_write_zeroes_sectors: 0xc1c2_c3c4,
        max_write_zeroes_seg: 0xd1d2_d3d4,
        write_zeroes_may_unmap: 1,
        max_secure_erase_sectors: 0xe1e2_e3e4,
        max_secure_erase_seg: 0xf1f2_f3f4,
        secure_erase_sector_alignment: 0x0a0b_0c0d,
    };
    let bytes = config.to_bytes();
    assert_eq!(bytes[..8], [8, 7, 6, 5, 4, 3, 2, 1]);
    assert_eq!(bytes[34..36], [0x82, 0x81]);
    assert_eq!(bytes[68..72], [0x0d, 0x0c, 0x0b, 0x0a]);
    for reserved in [33, 57, 58, 59].into_iter().chain(72..96) {
        assert_eq!(bytes[reserved], 0, "byte {reserved}");
    }
    assert_eq!(Config::from_bytes(&bytes), config);
}

#[test]
fn no_bit_of_the_type_is_masked() {
    for value in 0..64 {
        assert_eq!(RequestType::from_wire(value).to_wire(), value);
        let barrier = value | 0x8000_0000;
        assert_eq!(
            RequestType::from_wire(barrier),
            RequestType::Unknown(barrier)
        );
    }
}

#[test]
fn header_and_segment_round_trip() {
    let header = RequestHeader {
        kind: RequestType::WriteZeroes,
        sector: 0x0102_0304_0506_0708,
    };
    assert_eq!(RequestHeader::from_bytes(&header.to_bytes()), header);
    let segment = RangeSegment {
        sector: 1 << 40,
        num_sectors: 77,
        flags: 3,
    };
    assert_eq!(RangeSegment::from_bytes(&segment.to_bytes()), segment);
}

#[test]
fn feature_names() {
    assert_eq!(
        feature::names(feature::RO | feature::VERSION_1 | 1 << 63),
        ["RO", "VERSION_1", "BIT_63"]
    );
}
