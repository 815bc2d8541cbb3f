// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;

#[test]
fn bases_go_back_and_forth() {
    let split = VqState::Split {
        avail_index: 0xfffe,
    };
    assert_eq!(split.vring_base(), 0xfffe);
    assert_eq!(VqState::from_vring_base(0xfffe, false), Some(split));
    assert_eq!(VqState::from_vring_base(0x1_0000, false), None);
    let packed = VqState::Packed {
        last_avail_counter: true,
        last_avail_idx: 7,
        last_used_counter: false,
        last_used_idx: 5,
    };
    assert_eq!(packed.vring_base(), 0x0005_8007);
    assert_eq!(VqState::from_vring_base(0x0005_8007, true), Some(packed));
}
