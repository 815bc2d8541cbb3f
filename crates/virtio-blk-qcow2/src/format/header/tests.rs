// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::super::put;
use super::*;

const FILE: u64 = 5 << 16;

/// A header of version 3 for a disk of 1 MiB.
fn header() -> Vec<u8> {
    let mut bytes = vec![0; 1 << 16];
    for (at, value) in [
        (0, MAGIC),
        (4, 3),
        (20, 16),
        (36, 1),
        (56, 1),
        (96, 4),
        (100, 112),
    ] {
        put(&mut bytes, at, &u32::to_be_bytes(value));
    }
    for (at, value) in [(24, 1 << 20), (40, 3 << 16), (48, 1 << 16)] {
        put(&mut bytes, at, &u64::to_be_bytes(value));
    }
    bytes
}

fn with(at: usize, value: &[u8]) -> Result<Header, FormatError> {
    let mut bytes = header();
    put(&mut bytes, at, value);
    Header::parse(&bytes, FILE)
}

#[test]
fn a_plain_header_is_read() {
    let header = Header::parse(&header(), FILE).unwrap();
    assert_eq!((header.version, header.size), (3, 1 << 20));
    assert_eq!(header.geometry.cluster(), 1 << 16);
    assert_eq!(
        header.l1,
        Table {
            offset: 3 << 16,
            len: 8
        }
    );
    assert_eq!(header.backing, None);
    assert!(!header.dirty);
}

#[test]
fn every_impossible_value_is_refused() {
    let damaged = |result: Result<Header, FormatError>, what: &str| {
        assert!(
            matches!(&result, Err(FormatError::Damaged(text)) if text.contains(what)),
            "{result:?}"
        );
    };
    assert_eq!(with(0, &[0]), Err(FormatError::Magic));
    assert!(matches!(with(7, &[4]), Err(FormatError::Unsupported(_))));
    for bits in [0, 8, 22, 255] {
        damaged(with(23, &[bits]), "cluster size");
    }
    damaged(with(99, &[7]), "refcounts");
    damaged(with(103, &[103]), "length");
    damaged(with(103, &[105]), "length");
    damaged(with(36, &[1]), "L1 table");
    damaged(with(46, &[1]), "L1 table");
    damaged(with(43, &[9]), "L1 table");
    damaged(with(56, &[1]), "refcount table");
    damaged(with(59, &[0]), "no refcount table");
    damaged(with(24, &[1]), "too small");
    damaged(with(24, &[255; 8]), "too small");
    damaged(with(60, &[0, 1, 0, 1]), "snapshots");
    damaged(with(60, &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7]), "snapshots");
    damaged(with(8, &[0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 9]), "name");
    damaged(with(8, &[0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 9]), "name");
    damaged(with(8, &[0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 9, 0]), "name");
    damaged(with(79, &[incompatible::COMPRESSION as u8]), "compression");
    damaged(with(104, &[1]), "compression");
    // An extension that reaches beyond the cluster.
    damaged(with(112, &[1, 1, 1, 1, 0, 1, 0, 0]), "cut off");
    assert_eq!(with(79, &[2]), Err(FormatError::Marked("corrupt")));
    assert!(matches!(
        with(79, &[0x80]),
        Err(FormatError::Unsupported(_))
    ));
    assert!(matches!(with(35, &[2]), Err(FormatError::Unsupported(text)) if text.contains("LUKS")));
    assert!(with(79, &[1]).unwrap().dirty);
}

#[test]
fn cut_headers_are_refused_and_never_read_beyond() {
    let bytes = header();
    for len in 0..LEN_3 {
        assert!(Header::parse(&bytes[..len], FILE).is_err(), "{len}");
    }
    assert!(Header::parse(&bytes[..LEN_3], FILE).is_ok());
}

#[test]
fn extensions_and_the_backing_file_are_found() {
    let mut bytes = header();
    put(&mut bytes, 112, &[0xe2, 0x79, 0x2a, 0xca, 0, 0, 0, 3]);
    put(&mut bytes, 120, b"raw");
    put(&mut bytes, 128, &[0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0]);
    put(&mut bytes, 8, &[0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 8]);
    put(&mut bytes, 256, b"base.img");
    let header = Header::parse(&bytes, FILE).unwrap();
    assert_eq!(header.backing.as_deref(), Some("base.img"));
    assert_eq!(header.extensions.backing_format.as_deref(), Some("raw"));
    put(&mut bytes, 256, &[0xff]);
    assert!(Header::parse(&bytes, FILE).is_err());
}
