// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reads from the page cache see what everybody else did to the file, and so does everybody see what is written
//! there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::os::unix::fs::FileExt;

use common::{directory, image, read, run, write};
use virtio_blk_core::disk::{Disk, DiskError, IoBuf, OpKind};
use virtio_blk_disks::{Engine, RawDisk, RawOptions};

const LEN: usize = 1 << 20;
const PAGE: u64 = 4096;

/// A directory on a disk, and one in memory if this host has that.
fn directories() -> impl Iterator<Item = tempfile::TempDir> {
    std::iter::once(directory()).chain(tempfile::tempdir_in("/dev/shm"))
}

/// Runs `body` with disks on files of `LEN` bytes, for each way to read and write.
fn on_each_way(body: fn(&RawDisk, &std::fs::File)) {
    for engine in [Engine::Auto, Engine::Sync, Engine::IoUring] {
        if engine == Engine::IoUring && virtio_blk_disks::raw::io_uring_support().is_err() {
            continue;
        }
        for directory in directories() {
            for mmap in [true, false] {
                let path = image(directory.path(), LEN);
                let options = RawOptions::new(&path).engine(engine).mmap(mmap);
                let disk = RawDisk::open(&options).unwrap();
                let file = std::fs::File::options().read(true).write(true).open(&path);
                body(&disk, &file.unwrap());
            }
        }
    }
}

#[test]
fn changes_of_other_queues_and_other_programs() {
    on_each_way(|disk, file| {
        let mut one = disk.open_queue(4).unwrap();
        let mut other = disk.open_queue(4).unwrap();
        for round in 1..4u8 {
            for _ in 0..3 {
                read(&mut *one, PAGE, 8192).unwrap();
            }
            write(&mut *other, PAGE, vec![round; 4096]).unwrap();
            assert!(read(&mut *one, PAGE, 4096).unwrap() == [round; 4096]);
            file.write_all_at(&[round + 100; 512], PAGE + 512).unwrap();
            let data = read(&mut *one, PAGE, 1024).unwrap();
            assert_eq!(
                (data[511], data[512], data[1023]),
                (round, round + 100, round + 100)
            );
        }
    });
}

#[test]
fn holes_and_zeroes() {
    on_each_way(|disk, _| {
        let mut queue = disk.open_queue(4).unwrap();
        let len = 4 * PAGE;
        let kinds = [
            OpKind::WriteZeroes {
                offset: 0,
                len,
                unmap: true,
                fua: false,
            },
            OpKind::WriteZeroes {
                offset: 0,
                len,
                unmap: false,
                fua: false,
            },
        ];
        for kind in kinds {
            write(&mut *queue, 0, vec![1; len as usize]).unwrap();
            assert!(read(&mut *queue, PAGE, 4096).unwrap() == [1; 4096]);
            assert!(read(&mut *queue, PAGE, 4096).unwrap() == [1; 4096]);
            run(&mut *queue, kind, IoBuf::new()).result.unwrap();
            assert!(read(&mut *queue, PAGE, 4096).unwrap() == [0; 4096]);
        }
        if disk.caps().discard.is_some() {
            write(&mut *queue, 0, vec![1; len as usize]).unwrap();
            let kind = OpKind::Discard { offset: 0, len };
            run(&mut *queue, kind, IoBuf::new()).result.unwrap();
            assert!(read(&mut *queue, PAGE, 4096).unwrap() == [0; 4096]);
        }
    });
}

#[test]
fn a_shrunken_file_gives_errors_and_a_grown_one_its_new_part() {
    on_each_way(|disk, file| {
        let mut queue = disk.open_queue(4).unwrap();
        let last = LEN as u64 - PAGE;
        for _ in 0..3 {
            read(&mut *queue, last, 4096).unwrap();
        }
        file.set_len(PAGE).unwrap();
        for _ in 0..3 {
            let result = read(&mut *queue, last, 4096);
            assert!(matches!(result, Err(DiskError::OutOfRange)), "{result:?}");
            read(&mut *queue, 0, 4096).unwrap();
        }
        disk.refresh().unwrap();
        let result = read(&mut *queue, last, 4096);
        assert!(matches!(result, Err(DiskError::OutOfRange)), "{result:?}");
        file.set_len(2 * LEN as u64).unwrap();
        disk.refresh().unwrap();
        for offset in [last, 2 * LEN as u64 - PAGE] {
            assert!(read(&mut *queue, offset, 4096).unwrap() == [0; 4096]);
            write(&mut *queue, offset, vec![3; 4096]).unwrap();
            assert!(read(&mut *queue, offset, 4096).unwrap() == [3; 4096]);
        }
    });
}
