// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fs::File;
use std::os::unix::fs::FileExt;

use virtio_blk_core::disk::{Allocation, Disk, DiskError, Extent};

use crate::{RawDisk, RawOptions};

const MIB: u64 = 1 << 20;

fn data(len: u64) -> Extent {
    Extent {
        len,
        allocation: Allocation::Data,
    }
}

fn hole(len: u64) -> Extent {
    Extent {
        len,
        allocation: Allocation::Hole,
    }
}

#[test]
fn data_and_holes_of_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    let file = File::create(&path).unwrap();
    file.set_len(8 * MIB).unwrap();
    file.write_all_at(&[1; 1 << 20], MIB).unwrap();
    file.write_all_at(&[1; 1 << 20], 4 * MIB).unwrap();
    let disk = RawDisk::open(&RawOptions::new(&path)).unwrap();
    let all = [
        hole(MIB),
        data(MIB),
        hole(2 * MIB),
        data(MIB),
        hole(3 * MIB),
    ];
    assert_eq!(disk.extents(0..8 * MIB, 99).unwrap(), all);
    assert_eq!(disk.extents(0..8 * MIB, 2).unwrap(), all[..2]);
    assert_eq!(disk.extents(0..8 * MIB, 1).unwrap(), all[..1]);
    assert_eq!(disk.extents(0..512, 9).unwrap(), [hole(512)]);
    assert_eq!(
        disk.extents(MIB + 512..2 * MIB + 512, 9).unwrap(),
        [data(MIB - 512), hole(512)]
    );
    assert_eq!(disk.extents(7 * MIB..8 * MIB, 9).unwrap(), [hole(MIB)]);
    let beyond = disk.extents(7 * MIB..8 * MIB + 512, 9);
    assert!(matches!(beyond, Err(DiskError::OutOfRange)), "{beyond:?}");
}

#[test]
fn extents_end_where_blocks_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    let file = File::create(&path).unwrap();
    file.set_len(8 * MIB).unwrap();
    // Data that ends and begins within a block of this disk, whatever blocks the file system has.
    file.write_all_at(&[1; 512], MIB + (64 << 10) - 4096)
        .unwrap();
    file.write_all_at(&[1; 512], 3 * MIB + (32 << 10)).unwrap();
    let disk = RawDisk::open(&RawOptions::new(&path).block_size(Some(64 << 10))).unwrap();
    let block = 64 << 10;
    let extents = disk.extents(0..8 * MIB, 99).unwrap();
    assert_eq!(
        extents,
        [
            hole(MIB),
            data(block),
            hole(2 * MIB - block),
            data(block),
            hole(5 * MIB - block),
        ]
    );
}
