// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;

#[test]
fn layout_has_the_sizes_of_the_specification() {
    // Size, table, available ring, used ring, all three with padding: by hand from virtio 1.4, 2.7.2.
    for (size, desc, avail, used, total) in [
        (1, 16, 8, 14, 38),
        (2, 32, 10, 22, 66),
        (16, 256, 38, 134, 430),
        (256, 4096, 518, 2054, 6670),
        (32768, 524_288, 65_542, 262_150, 851_982),
    ] {
        assert_eq!(SplitLayout::desc_len(size), desc);
        assert_eq!(SplitLayout::avail_len(size), avail);
        assert_eq!(SplitLayout::used_len(size), used);
        assert_eq!(SplitLayout::footprint(size), total, "size {size}");
    }
}

#[test]
fn contiguous_areas_are_aligned_tight_and_apart() {
    for exponent in 0..=15 {
        let size = 1 << exponent;
        let base = GuestAddress(0x7_0010);
        let layout = SplitLayout::contiguous(size, base).unwrap();
        assert_eq!(layout.size(), size);
        assert_eq!(layout.desc(), base);
        assert_eq!(layout.avail().0, base.0 + SplitLayout::desc_len(size));
        let avail_end = layout.avail().0 + SplitLayout::avail_len(size);
        assert!(layout.used().0 >= avail_end && layout.used().0 < avail_end + 4);
        assert!(layout.used().0.is_multiple_of(4));
        // The last field of each area is inside the footprint, at its very end.
        assert_eq!(layout.used_event().0 + 2, avail_end);
        assert_eq!(
            layout.avail_event().0 + 2,
            base.0 + SplitLayout::footprint(size)
        );
        // Entries wrap.
        assert_eq!(layout.avail_at(size), layout.avail_at(0));
        assert_eq!(
            layout.used_at(size.wrapping_sub(1)).0 + 8,
            layout.avail_event().0
        );
    }
}

#[test]
fn bad_layouts_are_refused() {
    for size in [0, 3, 6, 255, 32769, 65535] {
        assert_eq!(
            SplitLayout::contiguous(size, GuestAddress(0)),
            Err(LayoutError::Size(size))
        );
    }
    let at = |d, a, u| SplitLayout::new(16, GuestAddress(d), GuestAddress(a), GuestAddress(u));
    assert!(at(0x1000, 0x2000, 0x3000).is_ok());
    for (addresses, area, addr, align) in [
        ((0x1008, 0x2000, 0x3000), "descriptor table", 0x1008, 16),
        ((0x1000, 0x2001, 0x3000), "available ring", 0x2001, 2),
        ((0x1000, 0x2000, 0x3002), "used ring", 0x3002, 4),
    ] {
        let result = at(addresses.0, addresses.1, addresses.2);
        assert_eq!(result, Err(LayoutError::Misaligned { area, addr, align }));
    }
    for (d, a, u, area) in [
        (u64::MAX - 15, 0x2000, 0x3000, "descriptor table"),
        (0x1000, u64::MAX - 3, 0x3000, "available ring"),
        (0x1000, 0x2000, u64::MAX - 7, "used ring"),
    ] {
        assert!(matches!(at(d, a, u), Err(LayoutError::Wraps { area: got, .. }) if got == area));
    }
    // 256, 38 and 134 bytes: one byte too close, then just apart.
    let overlap = |a, b| Err(LayoutError::Overlap(a, b));
    let (desc, avail, used) = ("descriptor table", "available ring", "used ring");
    assert_eq!(at(0x1000, 0x10fe, 0x3000), overlap(desc, avail));
    assert!(at(0x1000, 0x1100, 0x3000).is_ok());
    assert_eq!(at(0x1000, 0x2000, 0x10fc), overlap(desc, used));
    assert_eq!(at(0x1000, 0x2000, 0x2024), overlap(avail, used));
    assert!(at(0x1000, 0x2000, 0x2028).is_ok());
    assert_eq!(at(0x1000, 0x2084, 0x2000), overlap(avail, used));
    let base = GuestAddress(u64::MAX - 255 - 15);
    assert!(matches!(
        SplitLayout::contiguous(16, base),
        Err(LayoutError::Wraps { .. })
    ));
}
