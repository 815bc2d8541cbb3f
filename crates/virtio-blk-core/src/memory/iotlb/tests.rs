// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::memory::GuestMap;

const PAGE: usize = 4096;

/// `pages` pages of host memory, each filled with its number.
fn host(pages: usize) -> HostMemory {
    let memory =
        Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), pages * PAGE)]).unwrap());
    for page in 0..pages {
        let at = GuestAddress((page * PAGE) as u64);
        memory.write_slice(&[page as u8; PAGE], at).unwrap();
    }
    HostMemory::of_map(&memory).remove(0).1
}

fn mapping(iova: u64, memory: &HostMemory, page: usize, permissions: Permissions) -> IotlbMapping {
    IotlbMapping::new(iova, memory.slice(page * PAGE, PAGE).unwrap(), permissions).unwrap()
}

/// The lengths of the pieces, or nothing if the range is refused.
fn pieces(map: &GuestMap<Iotlb>, addr: u64, len: usize, access: Permissions) -> Option<Vec<usize>> {
    let mut found = Vec::new();
    map.translate(addr, len, access, |_, len| found.push(len))
        .ok()
        .map(|()| found)
}

#[test]
fn ranges_end_at_2_to_the_64_and_never_wrap() {
    let memory = host(2);
    let top = u64::MAX - PAGE as u64 + 1;
    let mut table = IotlbTable::new();
    table
        .insert(mapping(top, &memory, 1, Permissions::ReadWrite))
        .unwrap();
    table
        .insert(mapping(0, &memory, 0, Permissions::ReadWrite))
        .unwrap();
    assert_eq!(
        IotlbMapping::new(top + 1, memory.slice(0, PAGE).unwrap(), Permissions::Read).err(),
        Some(IotlbError::Wraps {
            iova: top + 1,
            len: PAGE as u64
        })
    );
    let map = GuestMap::new(Iotlb::new(table));
    assert_eq!(map.read_array::<4>(u64::MAX - 3), Ok([1; 4]));
    assert!(map.read_array::<4>(u64::MAX - 2).is_err());
    assert_eq!(map.read_array::<4>(0), Ok([0; 4]));
    let refused = pieces(&map, top, usize::MAX, Permissions::Read);
    assert_eq!(refused, None);
}

#[test]
fn permissions_hold_also_after_a_lookup_that_was_allowed() {
    let memory = host(3);
    let mut table = IotlbTable::new();
    let kinds = [
        Permissions::Read,
        Permissions::ReadWrite,
        Permissions::Write,
    ];
    for (page, permissions) in kinds.into_iter().enumerate() {
        let iova = 0x1000 + (page * PAGE) as u64;
        table
            .insert(mapping(iova, &memory, page, permissions))
            .unwrap();
    }
    let map = GuestMap::new(Iotlb::new(table.clone()));
    for _ in 0..2 {
        assert_eq!(
            pieces(&map, 0x1ff0, 32, Permissions::Read),
            Some(vec![16, 16])
        );
        assert_eq!(pieces(&map, 0x1ff0, 32, Permissions::Write), None);
        assert_eq!(pieces(&map, 0x1ff0, 16, Permissions::Write), None);
        assert_eq!(
            pieces(&map, 0x2ff0, 32, Permissions::Write),
            Some(vec![16, 16])
        );
        assert_eq!(pieces(&map, 0x3000, 1, Permissions::Read), None);
        assert_eq!(pieces(&map, 0x4000, 1, Permissions::Write), None);
    }
    // As vm-memory's users see it.
    assert!(table.check_range(GuestAddress(0x1ff0), 32, Permissions::Read));
    assert!(!table.check_range(GuestAddress(0x1ff0), 32, Permissions::Write));
    assert!(!table.check_range(GuestAddress(u64::MAX), 2, Permissions::Read));
    assert!(table.check_range(GuestAddress(0), 0, Permissions::ReadWrite));
    assert_eq!(
        table.read_obj::<[u8; 4]>(GuestAddress(0x1ffe)).unwrap(),
        [0, 0, 1, 1]
    );
}

#[test]
fn overlaps_are_refused_and_removal_takes_whole_mappings() {
    let memory = host(4);
    let mut table = IotlbTable::new();
    table
        .insert(mapping(0x4000, &memory, 0, Permissions::Read))
        .unwrap();
    for iova in [0x3001, 0x4000, 0x4fff] {
        let error = table.insert(mapping(iova, &memory, 1, Permissions::Read));
        assert!(
            matches!(error, Err(IotlbError::Overlaps { .. })),
            "{iova:#x}"
        );
    }
    for iova in [0x3000, 0x5000] {
        table
            .insert(mapping(iova, &memory, 1, Permissions::Read))
            .unwrap();
    }
    assert_eq!(table.find(0x3fff, 0x4000).len(), 2);
    assert_eq!(table.remove(0x6000, u64::MAX), 0);
    assert_eq!(table.remove(0x5000, 0x4000), 0);
    assert_eq!(table.remove(0x4fff, 0x5000), 2);
    assert_eq!(table.remove(0, u64::MAX), 1);
    assert!(table.mappings().is_empty());
}

#[test]
fn an_exchanged_table_is_seen_and_the_old_one_lives_as_long_as_it_is_used() {
    let memory = host(2);
    let mut table = IotlbTable::new();
    table
        .insert(mapping(0, &memory, 0, Permissions::ReadWrite))
        .unwrap();
    let iotlb = Iotlb::new(table);
    let mut map = GuestMap::new(iotlb.clone());
    let (keep, weak) = (map.keep().clone(), Arc::downgrade(memory.keep()));
    drop(memory);
    assert_eq!(map.read_array::<1>(0), Ok([0]));
    assert!(!map.is_stale());
    IotlbTable::new().publish(&iotlb);
    assert!(map.is_stale());
    assert_eq!(map.read_array::<1>(0), Ok([0]));
    map.renew();
    assert!(map.read_array::<1>(0).is_err());
    assert!(weak.upgrade().is_some(), "in flight");
    drop(keep);
    assert!(weak.upgrade().is_none());
}

#[test]
fn nothing_is_not_mapped() {
    let memory = host(1);
    assert_eq!(
        IotlbMapping::new(5, memory.slice(0, 0).unwrap(), Permissions::Read).err(),
        Some(IotlbError::Empty(5))
    );
    assert_eq!(
        IotlbMapping::new(5, memory.clone(), Permissions::No).err(),
        Some(IotlbError::Empty(5))
    );
    assert!(memory.slice(1, PAGE).is_none());
    assert!(memory.slice(usize::MAX, 2).is_none());
}

proptest! {
    /// Against a map from page to page.
    #[test]
    fn lookups_agree_with_a_page_table(
        pages in proptest::collection::btree_map(0_u64..24, (0_usize..24, 1_u8..4), 0..20),
        ranges in proptest::collection::vec((0_u64..26 * PAGE as u64, 1_usize..4 * PAGE, 1_u8..4), 1..40),
    ) {
        let permissions = |bits| match bits {
            1 => Permissions::Read,
            2 => Permissions::Write,
            _ => Permissions::ReadWrite,
        };
        let memory = host(24);
        let mut table = IotlbTable::new();
        for (&at, &(page, bits)) in &pages {
            table.insert(mapping(at * PAGE as u64, &memory, page, permissions(bits))).unwrap();
        }
        let map = GuestMap::new(Iotlb::new(table.clone()));
        for (addr, len, bits) in ranges {
            let expected: Option<Vec<usize>> = (addr..addr + len as u64)
                .map(|byte| {
                    let (page, allowed) = pages.get(&(byte / PAGE as u64))?;
                    (allowed & bits == bits).then(|| page * PAGE + byte as usize % PAGE)
                })
                .collect();
            let mut found = Vec::new();
            let result = map.translate(addr, len, permissions(bits), |base, len| {
                let offset = base as usize - memory.as_ptr() as usize;
                found.extend(offset..offset + len);
            });
            prop_assert_eq!(result.is_ok(), expected.is_some());
            if let Some(expected) = expected {
                prop_assert_eq!(found, expected);
            }
            prop_assert_eq!(
                table.check_range(GuestAddress(addr), len, permissions(bits)),
                result.is_ok()
            );
        }
    }
}
