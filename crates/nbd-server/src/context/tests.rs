// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;

fn extents(list: &[(u64, Allocation)]) -> Vec<Extent> {
    let extent = |&(len, allocation): &(u64, Allocation)| Extent { len, allocation };
    list.iter().map(extent).collect()
}

#[test]
fn bounds_are_those_of_blocks_and_data_wins() {
    use Allocation::{Data, Hole};
    let end = 8192;
    for (found, wanted) in [
        (vec![(8192, Data)], vec![(8192, Data)]),
        (vec![(8192, Hole)], vec![(8192, Hole)]),
        (
            vec![(1000, Data), (7192, Hole)],
            vec![(1024, Data), (7168, Hole)],
        ),
        (
            vec![(1000, Hole), (7192, Data)],
            vec![(512, Hole), (7680, Data)],
        ),
        // Both within one block.
        (
            vec![(1000, Hole), (10, Data), (7182, Hole)],
            vec![(512, Hole), (512, Data), (7168, Hole)],
        ),
        // A hole within a block.
        (
            vec![(1000, Data), (10, Hole), (7182, Data)],
            vec![(8192, Data)],
        ),
        (vec![], vec![(8192, Data)]),
        // A disk that tells of more than it was asked for.
        (vec![(1 << 40, Hole)], vec![(8192, Hole)]),
    ] {
        let got = whole_blocks(extents(&found), 0..end, 512, 99);
        assert_eq!(got, extents(&wanted), "{found:?}");
    }
    let few = whole_blocks(extents(&[(512, Hole), (512, Data)]), 0..end, 512, 1);
    assert_eq!(few, extents(&[(512, Hole)]));
}

#[test]
fn queries_of_a_list() {
    let bitmap = Context::Bitmap("b".to_owned());
    for query in ["qemu:", "qemu:dirty-bitmap:", "qemu:dirty-bitmap:b"] {
        assert!(bitmap.is_listed(query), "{query}");
        assert!(!Context::Allocation.is_listed(query), "{query}");
    }
    for query in [
        "",
        "q",
        "qemu",
        "qemu:dirty-bitmap",
        "base:",
        "base:allocation",
    ] {
        assert!(!bitmap.is_listed(query), "{query}");
    }
    assert!(Context::Allocation.is_listed("base:"));
}
