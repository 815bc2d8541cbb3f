// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

mod ranges;

use proptest::prelude::*;

use super::*;
use crate::disk::{OpKind, Topology};
use crate::spec::{RangeSegment, SEGMENT_FLAG_UNMAP, SERIAL_SIZE};
use RequestStatus::{IoErr, Unsupp};

const MAX_CAPACITY: u64 = i64::MAX as u64 / SECTOR_SIZE;

/// Everything possible and negotiated.
fn caps(capacity: u64) -> Caps {
    let erase = EraseLimits {
        max_sectors: 100,
        max_segments: 4,
        alignment: 8,
    };
    Caps {
        discard: Some(erase),
        write_zeroes: Some(ZeroLimits {
            max_sectors: 200,
            max_segments: 3,
            may_unmap: true,
        }),
        secure_erase: Some(EraseLimits {
            max_segments: 2,
            ..erase
        }),
        lifetime: true,
        flush: true,
        topology: Topology::default(),
        ..Caps::basic(capacity)
    }
}

fn limits(capacity: u64) -> RequestLimits {
    RequestLimits::new(&caps(capacity), u64::MAX)
}

fn ask(
    kind: RequestType,
    sector: u64,
    readable: u32,
    writable: u32,
    limits: &RequestLimits,
) -> Result<Request, RequestStatus> {
    parse(&RequestHeader { kind, sector }, readable, writable, limits)
}

fn segment(sector: u64, num_sectors: u32, flags: u32) -> RangeSegment {
    RangeSegment {
        sector,
        num_sectors,
        flags,
    }
}

fn ask_ranges(
    kind: RangeKind,
    segments: &[RangeSegment],
    limits: &RequestLimits,
) -> Result<Vec<ByteRange>, RequestStatus> {
    let bytes: Vec<u8> = segments.iter().flat_map(|s| s.to_bytes()).collect();
    let mut out = Vec::new();
    parse_ranges(kind, &bytes, limits, &mut out).map(|()| out)
}

const ERASING: [(RequestType, RangeKind); 3] = [
    (RequestType::Discard, RangeKind::Discard),
    (RequestType::WriteZeroes, RangeKind::WriteZeroes),
    (RequestType::SecureErase, RangeKind::SecureErase),
];

#[test]
fn statuses_have_the_wire_values() {
    assert_eq!(RequestStatus::Ok as u8, 0);
    assert_eq!(RequestStatus::IoErr as u8, 1);
    assert_eq!(RequestStatus::Unsupp as u8, 2);
}

#[test]
fn unknown_types_are_unsupported() {
    let limits = limits(8);
    for kind in [2, 3, 5, 6, 7, 9, 12, 15, 27, u32::MAX] {
        let kind = RequestType::from_wire(kind);
        assert_eq!(ask(kind, 0, 0, 0, &limits), Err(Unsupp), "{kind:?}");
        // Also where everything else is wrong too.
        assert_eq!(ask(kind, u64::MAX, 7, 7, &limits), Err(Unsupp), "{kind:?}");
    }
}

#[test]
fn sector_is_ignored_where_it_means_nothing() {
    let limits = limits(8);
    let far = u64::MAX;
    assert_eq!(
        ask(RequestType::Flush, far, 0, 0, &limits),
        Ok(Request::Flush)
    );
    assert_eq!(
        ask(RequestType::GetId, far, 0, 20, &limits),
        Ok(Request::GetId { len: 20 })
    );
    assert_eq!(
        ask(RequestType::GetLifetime, far, 0, 6, &limits),
        Ok(Request::GetLifetime)
    );
    for (wire, kind) in ERASING {
        assert_eq!(
            ask(wire, far, 16, 0, &limits),
            Ok(Request::Ranges { kind, len: 16 })
        );
    }
}

#[test]
fn lengths_are_whole_sectors() {
    let limits = limits(8);
    for len in [1, 100, 511, 513, 1023, u32::MAX] {
        assert_eq!(
            ask(RequestType::In, 0, 0, len, &limits),
            Err(IoErr),
            "{len}"
        );
        assert_eq!(
            ask(RequestType::Out, 0, len, 0, &limits),
            Err(IoErr),
            "{len}"
        );
    }
    // Nothing to transfer is fine, also right behind the end.
    for sector in [0, 8] {
        assert_eq!(
            ask(RequestType::In, sector, 0, 0, &limits),
            Ok(Request::Read {
                offset: sector * 512,
                len: 0
            })
        );
    }
    assert_eq!(ask(RequestType::In, 9, 0, 0, &limits), Err(IoErr));
}

#[test]
fn each_stream_counts_for_its_own_direction_only() {
    let limits = limits(8);
    // Readable bytes behind a read's header and writable ones before a write's status are no concern.
    assert_eq!(
        ask(RequestType::In, 1, 77, 512, &limits),
        Ok(Request::Read {
            offset: 512,
            len: 512
        })
    );
    assert_eq!(
        ask(RequestType::Out, 1, 512, 77, &limits),
        Ok(Request::Write {
            offset: 512,
            len: 512
        })
    );
}

#[test]
fn transfers_end_within_the_capacity() {
    for (kind, at) in [(RequestType::In, 0), (RequestType::Out, 1)] {
        let go = |capacity, sector, len: u32| {
            let (r, w) = if at == 0 { (0, len) } else { (len, 0) };
            ask(kind, sector, r, w, &limits(capacity)).is_ok()
        };
        assert!(go(8, 7, 512));
        assert!(go(8, 0, 8 * 512));
        assert!(!go(8, 8, 512));
        assert!(!go(8, 7, 1024));
        assert!(!go(8, 1, 8 * 512));
        assert!(!go(0, 0, 512));
        assert!(go(0, 0, 0));
        // The last sector there can be.
        assert!(go(MAX_CAPACITY, MAX_CAPACITY - 1, 512));
        assert!(!go(MAX_CAPACITY, MAX_CAPACITY, 512));
        // Sectors whose byte offset, or whose end, does not fit 64 bits.
        for sector in [
            u64::MAX,
            u64::MAX - 1,
            u64::MAX / 512,
            u64::MAX / 512 + 1,
            1 << 55,
            (1 << 55) + 1,
            1 << 63,
        ] {
            assert!(!go(8, sector, 512), "{sector:#x}");
            assert!(!go(MAX_CAPACITY, sector, 512), "{sector:#x}");
        }
    }
}

#[test]
fn blocks_do_not_change_units_and_are_whole() {
    let mut caps = caps(64);
    caps.align.guest_block = 4096;
    let limits = RequestLimits::new(&caps, u64::MAX);
    let read = |sector, len| ask(RequestType::In, sector, 0, len, &limits);
    assert_eq!(
        read(8, 4096),
        Ok(Request::Read {
            offset: 4096,
            len: 4096
        })
    );
    assert_eq!(
        read(1, 4096),
        Err(IoErr),
        "start is not on a block boundary"
    );
    assert_eq!(read(8, 512), Err(IoErr), "not a whole block");
    assert_eq!(
        ask_ranges(RangeKind::Discard, &[segment(8, 8, 0)], &limits),
        Ok(vec![ByteRange {
            offset: 4096,
            len: 4096,
            unmap: false
        }])
    );
    assert_eq!(
        ask_ranges(RangeKind::Discard, &[segment(8, 7, 0)], &limits),
        Err(IoErr)
    );
    assert_eq!(
        ask_ranges(RangeKind::Discard, &[segment(4, 8, 0)], &limits),
        Err(IoErr)
    );
}

#[test]
fn reserved_is_ignored_and_barrier_is_not_masked() {
    let mut bytes = RequestHeader {
        kind: RequestType::In,
        sector: 3,
    }
    .to_bytes();
    bytes[4..8].fill(0xff);
    let header = RequestHeader::from_bytes(&bytes);
    assert_eq!((header.kind, header.sector), (RequestType::In, 3));
    let barrier = RequestType::from_wire(0x8000_0000);
    assert_eq!(ask(barrier, 0, 0, 512, &limits(8)), Err(Unsupp));
}

#[test]
fn read_only_refuses_every_change_and_nothing_else() {
    let mut caps = caps(8);
    caps.read_only = true;
    // Whether the driver acknowledged RO makes no difference.
    for features in [0, feature::RO, u64::MAX] {
        let limits = RequestLimits::new(&caps, features);
        assert_eq!(ask(RequestType::Out, 0, 512, 0, &limits), Err(IoErr));
        assert_eq!(ask(RequestType::Out, 0, 0, 0, &limits), Err(IoErr));
        for (wire, _) in ERASING {
            assert_eq!(ask(wire, 0, 16, 0, &limits), Err(IoErr), "{wire:?}");
        }
        assert!(ask(RequestType::In, 0, 0, 512, &limits).is_ok());
        assert!(ask(RequestType::Flush, 0, 0, 0, &limits).is_ok());
        assert!(ask(RequestType::GetId, 0, 0, 20, &limits).is_ok());
    }
}

#[test]
fn get_id_takes_any_length_up_to_twenty_bytes() {
    let limits = limits(8);
    for (writable, len) in [(0, 0), (1, 1), (19, 19), (20, 20), (21, 20), (u32::MAX, 20)] {
        assert_eq!(
            ask(RequestType::GetId, 0, 0, writable, &limits),
            Ok(Request::GetId { len })
        );
    }
    assert_eq!(SERIAL_SIZE, 20);
}

#[test]
fn flush_is_served_whether_negotiated_or_not() {
    let mut plain = Caps::basic(8);
    for read_only in [false, true] {
        plain.read_only = read_only;
        let limits = RequestLimits::new(&plain, 0);
        // Also with data, which is nobody's.
        assert_eq!(
            ask(RequestType::Flush, 0, 512, 512, &limits),
            Ok(Request::Flush)
        );
    }
}

#[test]
fn what_was_not_negotiated_is_unsupported() {
    let caps = caps(8);
    let all = u64::MAX;
    for (bit, (wire, kind)) in [
        feature::DISCARD,
        feature::WRITE_ZEROES,
        feature::SECURE_ERASE,
    ]
    .into_iter()
    .zip(ERASING)
    {
        let limits = RequestLimits::new(&caps, all & !bit);
        // Before the framing is looked at.
        for len in [0, 16, 17, u32::MAX] {
            assert_eq!(ask(wire, 0, len, 0, &limits), Err(Unsupp), "{wire:?} {len}");
        }
        assert_eq!(
            ask_ranges(kind, &[segment(0, 1, 0)], &limits),
            Err(Unsupp),
            "{wire:?}"
        );
        // The others are not affected.
        for (other, other_kind) in ERASING {
            let expected = if other == wire {
                Err(Unsupp)
            } else {
                Ok(Request::Ranges {
                    kind: other_kind,
                    len: 16,
                })
            };
            assert_eq!(ask(other, 0, 16, 0, &limits), expected);
        }
    }
    let limits = RequestLimits::new(&caps, all & !feature::LIFETIME);
    assert_eq!(ask(RequestType::GetLifetime, 0, 0, 6, &limits), Err(Unsupp));
    // Nor what the disk lacks, whatever the driver acknowledged.
    let limits = RequestLimits::new(&Caps::basic(8), all);
    for (wire, _) in ERASING {
        assert_eq!(ask(wire, 0, 16, 0, &limits), Err(Unsupp));
    }
    assert_eq!(ask(RequestType::GetLifetime, 0, 0, 6, &limits), Err(Unsupp));
}

#[test]
fn lifetime_needs_its_six_bytes() {
    let limits = limits(8);
    for (writable, expected) in [
        (0, Err(IoErr)),
        (5, Err(IoErr)),
        (6, Ok(Request::GetLifetime)),
        (512, Ok(Request::GetLifetime)),
    ] {
        assert_eq!(
            ask(RequestType::GetLifetime, 0, 0, writable, &limits),
            expected
        );
    }
}

#[test]
fn bigger_requests_than_any_limit_are_served() {
    // No limit on the length but the disk's end: the largest whole number of sectors below 4 GiB.
    let len = u32::MAX - 511;
    assert!(ask(RequestType::In, 0, 0, len, &limits(1 << 24)).is_ok());
    assert!(ask(RequestType::Out, 0, len, 0, &limits(1 << 24)).is_ok());
}

#[test]
fn zone_commands_are_unsupported() {
    for kind in [15, 16, 18, 20, 22, 24, 26] {
        let kind = RequestType::from_wire(kind);
        // Whatever the driver claims to have negotiated.
        assert_eq!(ask(kind, 0, 512, 512, &limits(8)), Err(Unsupp), "{kind:?}");
    }
}

prop_compose! {
    fn any_rules()(
        capacity in prop_oneof![0..=64u64, 0..=MAX_CAPACITY, Just(MAX_CAPACITY)],
        block in 9..=21u32,
        read_only: bool,
        features: u64,
        segments in 1..=u32::MAX,
        sectors in 1..=u32::MAX,
    ) -> RequestLimits {
        let mut caps = caps(capacity);
        caps.align.guest_block = 1 << block;
        caps.read_only = read_only;
        if let Some(limits) = &mut caps.discard {
            limits.max_segments = segments;
            limits.max_sectors = sectors;
        }
        RequestLimits::new(&caps, features)
    }
}

/// Sectors close to every edge.
fn any_sector() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..=70u64,
        any::<u64>(),
        (0..=70u64).prop_map(|d| u64::MAX - d),
        (0..=70u64).prop_map(|d| MAX_CAPACITY - d),
        (0..=70u64).prop_map(|d| (1 << 55) + d),
    ]
}

/// Lengths, half of them whole sectors.
fn any_len() -> impl Strategy<Value = u32> {
    prop_oneof![
        any::<u32>(),
        0..=2048u32,
        (0..=u32::MAX / 512).prop_map(|n| n * 512),
        (0..=300u32).prop_map(|n| n * 512),
    ]
}

proptest! {
    #[test]
    fn whatever_is_accepted_lies_inside_the_disk(
        limits in any_rules(),
        kind in prop_oneof![0..30u32, any::<u32>()],
        sector in any_sector(),
        readable in any_len(),
        writable in any_len(),
    ) {
        let bytes = limits.capacity * 512;
        let header = RequestHeader { kind: RequestType::from_wire(kind), sector };
        match parse(&header, readable, writable, &limits) {
            Ok(Request::Read { offset, len }) => {
                prop_assert!(offset <= bytes && u64::from(len) <= bytes - offset);
                prop_assert_eq!((kind, offset / 512, len), (0, sector, writable));
                prop_assert_eq!((offset | u64::from(len)) % u64::from(limits.block), 0);
            }
            Ok(Request::Write { offset, len }) => {
                prop_assert!(!limits.read_only);
                prop_assert!(offset <= bytes && u64::from(len) <= bytes - offset);
                prop_assert_eq!((kind, offset / 512, len), (1, sector, readable));
                prop_assert_eq!((offset | u64::from(len)) % u64::from(limits.block), 0);
            }
            Ok(Request::Ranges { kind, len }) => {
                prop_assert!(!limits.read_only);
                prop_assert_eq!(len, readable);
                let (segments, _) = kind.limits(&limits).unwrap();
                prop_assert!(len % 16 == 0 && len != 0 && len / 16 <= segments.min(MAX_SEGMENTS));
            }
            Ok(Request::GetId { len }) => prop_assert!(len <= writable && len <= 20),
            Ok(Request::GetLifetime) => prop_assert!(limits.lifetime && writable >= 6),
            Ok(Request::Flush) => prop_assert_eq!(kind, 4),
            Err(status) => prop_assert_ne!(status, RequestStatus::Ok),
        }
    }
}
