// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;

const STANDARD: Geometry = Geometry {
    cluster_bits: 16,
    refcount_order: 4,
    extended: false,
};
const EXTENDED: Geometry = Geometry {
    extended: true,
    ..STANDARD
};

#[test]
fn standard_entries_say_where_a_cluster_is() {
    let place = |word| Entry { word, bits: 0 }.place(STANDARD, 0, false);
    assert_eq!(place(0), Place::Below);
    assert_eq!(place(1), Place::Zero);
    assert_eq!(place(0x50001), Place::Zero);
    assert_eq!(place(COPIED | 0x50000), Place::Data(0x50000));
    assert_eq!(place(0x50000), Place::Data(0x50000));
    assert_eq!(place(COMPRESSED | 0x123), Place::Compressed);
    assert_eq!(Entry::data(STANDARD, 0x70000).word, COPIED | 0x70000);
    assert_eq!(Entry::zero(STANDARD).word, 1);
}

#[test]
fn a_data_file_has_a_cluster_at_0() {
    let entry = Entry {
        word: COPIED,
        bits: 0,
    };
    assert_eq!(entry.place(STANDARD, 0, true), Place::Data(0));
    assert_eq!(entry.place(STANDARD, 0, false), Place::Below);
    assert_eq!(entry.clusters(STANDARD, true), None);
}

#[test]
fn subclusters_are_each_for_themselves() {
    let entry = Entry::BELOW
        .with_zeroes(0b110)
        .with_data(EXTENDED, 0x90000, 0b1010);
    assert_eq!(entry.place(EXTENDED, 0, false), Place::Below);
    assert_eq!(entry.place(EXTENDED, 1, false), Place::Data(0x90800));
    assert_eq!(entry.place(EXTENDED, 2, false), Place::Zero);
    assert_eq!(entry.place(EXTENDED, 3, false), Place::Data(0x91800));
    assert_eq!(entry.fault(EXTENDED, 3), None);
    assert_eq!(
        Entry::zero(EXTENDED).place(EXTENDED, 31, false),
        Place::Zero
    );
    let all = Entry::data(EXTENDED, 0x90000);
    assert_eq!(
        all.place(EXTENDED, 31, false),
        Place::Data(0x90000 + 31 * 2048)
    );
}

#[test]
fn compressed_data_is_found_with_its_length() {
    // Clusters of 64 KiB: 54 bits of place, 8 bits of further sectors.
    let word = COMPRESSED | 2 << 54 | 0x1_ff03;
    let entry = Entry { word, bits: 0 };
    let expected = Compressed {
        offset: 0x1_ff03,
        len: 3 * 512 - 0x103,
    };
    assert_eq!(entry.compressed(STANDARD), expected);
    assert_eq!(entry.clusters(STANDARD, false), Some((1, 2)));
    let clusters_of_512 = Geometry {
        cluster_bits: 9,
        ..STANDARD
    };
    let word = COMPRESSED | 1 << 61 | 512;
    let entry = Entry { word, bits: 0 };
    assert_eq!(
        entry.compressed(clusters_of_512),
        Compressed {
            offset: 512,
            len: 1024
        }
    );
}

#[test]
fn impossible_entries_are_named() {
    let entry = |word, bits| Entry { word, bits };
    for (entry, geometry, version) in [
        (entry(COMPRESSED | COPIED, 0), STANDARD, 3),
        (entry(COMPRESSED, 1), EXTENDED, 3),
        (entry(0x200, 0), STANDARD, 3),
        (entry(0x10000, 1 | 1 << 32), EXTENDED, 3),
        (entry(0, 1), EXTENDED, 3),
        (entry(1, 0), EXTENDED, 3),
        (entry(1, 0), STANDARD, 2),
    ] {
        assert!(entry.fault(geometry, version).is_some(), "{entry:x?}");
    }
    assert_eq!(entry(COPIED | 0x10000, 0).fault(STANDARD, 2), None);
}
