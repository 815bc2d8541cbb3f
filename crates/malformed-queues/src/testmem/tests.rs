// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::atomic::Ordering;

use vm_memory::{GuestMemory, Permissions};

use super::*;
use virtio_blk_driver::{AccessError, Memory};

const LEN: usize = 16 * PAGE;

#[test]
fn lengths_are_checked() {
    for len in [0, PAGE, 2 * PAGE, LEN + 1] {
        assert!(matches!(single(len), Err(TestMemoryError::Length(l)) if l == len));
        assert!(matches!(gapped(len), Err(TestMemoryError::Length(_))));
        assert!(matches!(
            fragmented(len, 0),
            Err(TestMemoryError::Length(_))
        ));
    }
}

/// Everything that the space allocates is there, in one piece for the driver, and nothing overlaps.
#[test]
fn every_kind_works_up_to_its_edge() {
    on_each_memory!(LEN, |mem, space| {
        let mut taken = 0;
        let mut value = 0_u8;
        let mut pieces = Vec::new();
        while let Ok(addr) = space.take(1000, 8) {
            assert_eq!(addr.0 % 8, 0);
            value = value.wrapping_add(1);
            mem.write_at(addr, &[value; 1000]).unwrap();
            pieces.push((addr, value));
            taken += 1000;
        }
        assert!(taken > LEN - 3 * PAGE, "{taken} bytes");
        for (addr, value) in pieces {
            let mut bytes = [0; 1000];
            mem.read_at(addr, &mut bytes).unwrap();
            assert_eq!(bytes, [value; 1000]);
        }
        assert_eq!(space.take(1000, 8), Err(OutOfSpace(1000)));

        let edge = space.edge();
        assert!(mem.is_mapped(GuestAddress(edge.0 - 8), 8));
        assert!(!mem.is_mapped(GuestAddress(edge.0 - 8), 9));
        assert!(!mem.is_mapped(edge, 1));
        assert!(!mem.is_mapped(GuestAddress(edge.0 + 4095), 1));
        assert!(!mem.is_mapped(space.unmapped(), 1));
    });
}

#[test]
fn accesses_that_wrap_are_errors_everywhere() {
    on_each_memory!(LEN, |mem, space| {
        let _ = &mut space;
        let last = GuestAddress(u64::MAX);
        let wraps = |result: Result<(), AccessError>| {
            assert!(
                matches!(result, Err(AccessError::Wraps { .. })),
                "{result:?}"
            );
        };
        wraps(mem.write_at(last, &[0; 2]));
        wraps(mem.read_at(last, &mut [0; 2]));
        wraps(mem.store_u16(GuestAddress(u64::MAX - 1), 0, Ordering::Relaxed));
        wraps(mem.load_u16(last, Ordering::Relaxed).map(|_| ()));
        assert!(!mem.is_mapped(last, 0x2000));
        // Nothing is always possible, as for a slice.
        mem.write_at(last, &[]).unwrap();
        mem.read_at(last, &mut []).unwrap();
    });
}

#[test]
fn a_gap_is_a_gap() {
    let (mem, mut space) = gapped(LEN).unwrap();
    let first = space.take(1, 1).unwrap();
    let third = LEN / 3 / PAGE * PAGE;
    assert!(mem.is_mapped(first, 2 * third));
    assert!(!mem.is_mapped(first, 2 * third + 1));
    let slices = GuestMemory::get_slices(&mem, first, 2 * third, Permissions::Read).unwrap();
    assert_eq!(slices.count(), 2);
}

#[test]
fn fragments_are_shuffled_by_the_seed() {
    let places = |seed| {
        let (mem, mut space) = fragmented(LEN, seed).unwrap();
        let base = space.take(LEN as u64, 1).unwrap();
        let slices = mem.get_slices(base, LEN, Permissions::ReadWrite).unwrap();
        assert_eq!(slices.map(|slice| slice.unwrap().len()).sum::<usize>(), LEN);
        let at = |page: usize| GuestAddress(base.0 + (page * PAGE) as u64);
        (0..LEN / PAGE)
            .map(|page| mem.iommu().target(at(page)).unwrap().0)
            .collect::<Vec<_>>()
    };
    let first = places(1);
    assert_eq!(first, places(1));
    assert_ne!(first, places(2));
    let adjacent = first.windows(2).filter(|w| w[1] == w[0] + PAGE as u64);
    assert!(adjacent.count() < LEN / PAGE / 2);
    let mut sorted = first;
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), LEN / PAGE);
}

#[test]
fn protection_can_change_at_run_time() {
    let (mem, mut space) = fragmented(LEN, 3).unwrap();
    let base = space.take(3 * PAGE as u64, PAGE as u64).unwrap();
    let second = GuestAddress(base.0 + PAGE as u64);
    let iommu = mem.iommu();

    assert_eq!(iommu.protect(second, 1, Permissions::Read), 1);
    mem.read_at(base, &mut [0; 2 * PAGE]).unwrap();
    assert!(mem.write_at(second, &[1]).is_err());
    assert!(!mem.is_mapped(base, 2 * PAGE));

    let target = iommu.target(second).unwrap();
    assert_eq!(iommu.protect(second, PAGE, Permissions::No), 1);
    assert_eq!(iommu.target(second), None);
    assert!(mem.read_at(second, &mut [0]).is_err());
    mem.write_at(base, &[1; PAGE]).unwrap();
    assert_eq!(iommu.protect(second, PAGE, Permissions::ReadWrite), 0);

    iommu.map_pages([(second, target)]);
    mem.write_at(base, &[1; 3 * PAGE]).unwrap();
}
