// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::os::unix::fs::symlink;

use super::*;
use crate::raw::sys::BlockInfo;

#[test]
fn sysfs_of_a_disk_and_of_its_partition() {
    let base = tempfile::tempdir().unwrap();
    let disk = base.path().join("devices/vdx");
    std::fs::create_dir_all(disk.join("queue")).unwrap();
    std::fs::create_dir_all(disk.join("vdx1")).unwrap();
    std::fs::write(disk.join("queue/discard_max_bytes"), "1073741824\n").unwrap();
    std::fs::write(disk.join("queue/discard_granularity"), "4096\n").unwrap();
    let numbers = base.path().join("block");
    std::fs::create_dir(&numbers).unwrap();
    symlink("../devices/vdx", numbers.join("253:16")).unwrap();
    symlink("../devices/vdx/vdx1", numbers.join("253:17")).unwrap();
    for minor in [16, 17] {
        let queue = BlockQueue::read(&numbers, libc::makedev(253, minor));
        assert_eq!(queue.discard_max, 1 << 30, "{minor}");
        let limits = queue.discard_limits().unwrap();
        assert_eq!(limits.alignment, 8);
        assert!(limits.max_sectors > 0 && limits.max_segments > 1);
    }
    // A device that sysfs does not know can't discard.
    let queue = BlockQueue::read(&numbers, libc::makedev(1, 1));
    assert_eq!(queue, BlockQueue::default());
    assert_eq!(queue.discard_limits(), None);
}

#[test]
fn nonsense_in_sysfs_means_no_discard() {
    let base = tempfile::tempdir().unwrap();
    let queue = base.path().join("1:2/queue");
    std::fs::create_dir_all(&queue).unwrap();
    std::fs::write(queue.join("discard_max_bytes"), "plenty").unwrap();
    let read = BlockQueue::read(base.path(), libc::makedev(1, 2));
    assert_eq!(read.discard_limits(), None);
}

#[test]
fn topology_of_a_device() {
    let info = BlockInfo {
        size: 1 << 30,
        logical: 512,
        physical: 4096,
        io_min: 4096,
        io_opt: 1 << 20,
        align_offset: 1024,
    };
    let topology = block::topology(512, &info);
    assert_eq!(topology.physical_block_exp, 3);
    assert_eq!(topology.alignment_offset, 2);
    assert_eq!(topology.min_io_size, 8);
    assert_eq!(topology.opt_io_size, 2048);
    // A guest block above the physical one.
    let topology = block::topology(8192, &info);
    assert_eq!(topology.physical_block_exp, 0);
    assert_eq!(topology.min_io_size, 1);
    // What old or strange drivers say must not make the capabilities invalid.
    let topology = block::topology(512, &BlockInfo::default());
    assert_eq!((topology.physical_block_exp, topology.min_io_size), (0, 1));
}

#[test]
fn topology_of_a_file() {
    assert_eq!(file_topology(512, 4096).physical_block_exp, 3);
    assert_eq!(file_topology(4096, 4096).physical_block_exp, 0);
    for preferred in [0, 1000, 1 << 20, u64::MAX] {
        assert_eq!(file_topology(512, preferred).physical_block_exp, 0);
    }
}

#[test]
fn the_block_size_is_what_was_asked_for_or_a_clear_error() {
    let path = Path::new("/disk.img");
    assert_eq!(choose_block(None, 4096, path).unwrap(), 4096);
    assert_eq!(choose_block(Some(4096), 512, path).unwrap(), 4096);
    let small = choose_block(Some(512), 4096, path).unwrap_err().to_string();
    for part in ["/disk.img", "block=512", "block=4096", "direct=off"] {
        assert!(small.contains(part), "{small}");
    }
    for block in [0, 256, 513, 1 << 22] {
        let error = choose_block(Some(block), 512, path).unwrap_err();
        assert!(error.to_string().contains("power of two"), "{error}");
    }
}

#[test]
fn odd_sizes_are_refused_for_files_and_cut_for_devices() {
    let path = Path::new("/disk.img");
    let error = usable_size(1000, 512, Rest::Refuse, path)
        .unwrap_err()
        .to_string();
    for part in ["truncate -s %512 /disk.img", "readonly=on"] {
        assert!(error.contains(part), "{error}");
    }
    let bytes = |found, block, rest| usable_size(found, block, rest, path).unwrap().bytes;
    assert_eq!(bytes(1000, 512, Rest::Cut), 512);
    assert_eq!(bytes(1000, 512, Rest::Pad), 1024);
    for rest in [Rest::Cut, Rest::Pad, Rest::Refuse] {
        assert_eq!((bytes(0, 4096, rest), bytes(8192, 4096, rest)), (0, 8192));
    }
}
