// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Discard, write-zeroes and secure-erase segments.

use super::*;

#[test]
fn segments_come_whole_and_not_too_many() {
    let limits = limits(8);
    for (wire, kind) in ERASING {
        let (most, _) = kind.limits(&limits).unwrap();
        for len in [0, 1, 15, 17, 31, 16 * most + 1, 16 * (most + 1), u32::MAX] {
            assert_eq!(ask(wire, 0, len, 0, &limits), Err(IoErr), "{wire:?} {len}");
        }
        for count in 1..=most {
            let len = 16 * count;
            assert_eq!(
                ask(wire, 0, len, 0, &limits),
                Ok(Request::Ranges { kind, len })
            );
        }
    }
}

#[test]
fn what_is_copied_is_bounded_whatever_the_disk_allows() {
    let mut caps = caps(8);
    if let Some(limits) = &mut caps.discard {
        limits.max_segments = u32::MAX;
    }
    let limits = RequestLimits::new(&caps, u64::MAX);
    let go = |segments: u32| ask(RequestType::Discard, 0, 16 * segments, 0, &limits);
    assert!(go(MAX_SEGMENTS).is_ok());
    assert_eq!(go(MAX_SEGMENTS + 1), Err(IoErr));
}

#[test]
fn unknown_flags_are_unsupported() {
    let limits = limits(8);
    for (_, kind) in ERASING {
        for bit in 0..32 {
            let flags = 1 << bit;
            let known = kind == RangeKind::WriteZeroes && flags == SEGMENT_FLAG_UNMAP;
            let got = ask_ranges(kind, &[segment(0, 1, 0), segment(1, 1, flags)], &limits);
            if known {
                assert!(got.is_ok_and(|ranges| !ranges[0].unmap && ranges[1].unmap));
            } else {
                assert_eq!(got, Err(Unsupp), "{kind:?} {flags:#x}");
            }
        }
    }
}

#[test]
fn all_segments_are_checked_and_flags_outrank_ranges() {
    let limits = limits(8);
    for (_, kind) in ERASING {
        // A good one before a bad one does not count.
        assert_eq!(
            ask_ranges(kind, &[segment(0, 1, 0), segment(8, 1, 0)], &limits),
            Err(IoErr)
        );
        // Framing, then flags, then range, wherever they are.
        for order in [
            [segment(8, 1, 0), segment(0, 1, 2)],
            [segment(0, 1, 2), segment(8, 1, 0)],
            [segment(0, u32::MAX, 0), segment(0, 1, 2)],
        ] {
            assert_eq!(ask_ranges(kind, &order, &limits), Err(Unsupp));
        }
        let mut bytes = segment(0, 1, 2).to_bytes().to_vec();
        bytes.push(0);
        assert_eq!(
            parse_ranges(kind, &bytes, &limits, &mut Vec::new()),
            Err(IoErr)
        );
    }
}

#[test]
fn ranges_past_the_end_fail_without_overflow() {
    let limits = limits(8);
    for (_, kind) in ERASING {
        for (sector, count) in [
            (u64::MAX, 1),
            (u64::MAX, 0),
            (u64::MAX - 99, 100),
            (1 << 55, 1),
            ((1 << 55) + 1, 1),
            (8, 1),
            (7, 2),
            (9, 0),
        ] {
            assert_eq!(
                ask_ranges(kind, &[segment(sector, count, 0)], &limits),
                Err(IoErr),
                "{kind:?} {sector:#x} {count}"
            );
        }
    }
}

#[test]
fn limits_are_per_segment_and_empty_segments_succeed() {
    let limits = limits(1000);
    for (_, kind) in ERASING {
        let (_, most) = kind.limits(&limits).unwrap();
        let fits = segment(0, most, 0);
        // Together beyond the limit of one.
        let ranges = ask_ranges(kind, &[fits, fits], &limits).unwrap();
        assert_eq!(ranges[1].len, u64::from(most) * 512);
        assert_eq!(
            ask_ranges(kind, &[segment(0, most + 1, 0)], &limits),
            Err(IoErr)
        );
        // Right behind the end too.
        let empty = ask_ranges(kind, &[segment(0, 0, 0), segment(1000, 0, 0)], &limits).unwrap();
        assert!(empty.iter().all(|range| range.len == 0));
    }
}

#[test]
fn discard_and_write_zeroes_become_their_operations() {
    let range = ByteRange {
        offset: 512,
        len: 1024,
        unmap: true,
    };
    let (offset, len) = (512, 1024);
    assert_eq!(
        range.op(RangeKind::Discard, true),
        OpKind::Discard { offset, len }
    );
    assert_eq!(
        range.op(RangeKind::SecureErase, true),
        OpKind::SecureErase { offset, len }
    );
    for fua in [false, true] {
        assert_eq!(
            range.op(RangeKind::WriteZeroes, fua),
            OpKind::WriteZeroes {
                offset,
                len,
                unmap: true,
                fua
            }
        );
    }
}

proptest! {
    #[test]
    fn whatever_ranges_are_accepted_lie_inside_the_disk(
        limits in any_rules(),
        which in 0..3usize,
        segments in prop::collection::vec(
            (any_sector(), prop_oneof![0..=300u32, any::<u32>()], prop_oneof![4 => Just(0), 1 => 0..4u32]),
            0..5,
        ),
        tail in prop_oneof![9 => Just(0usize), 1 => 1..16usize],
    ) {
        let kind = ERASING[which].1;
        let list: Vec<_> = segments.iter().map(|&(s, n, f)| segment(s, n, f)).collect();
        let mut bytes: Vec<u8> = list.iter().flat_map(|s| s.to_bytes()).collect();
        bytes.resize(bytes.len() + tail, 0);
        let mut out = Vec::new();
        if parse_ranges(kind, &bytes, &limits, &mut out).is_ok() {
            prop_assert_eq!(tail, 0);
            prop_assert_eq!(out.len(), list.len());
            let disk = limits.capacity * 512;
            let (_, most) = kind.limits(&limits).unwrap();
            for (range, segment) in out.iter().zip(&list) {
                prop_assert!(range.offset <= disk && range.len <= disk - range.offset);
                prop_assert!(segment.num_sectors <= most);
                prop_assert_eq!(range.offset / 512, segment.sector);
                prop_assert_eq!(range.len, u64::from(segment.num_sectors) * 512);
                prop_assert_eq!(range.unmap, segment.flags == SEGMENT_FLAG_UNMAP);
                prop_assert!(kind == RangeKind::WriteZeroes || segment.flags == 0);
            }
        }
    }
}
