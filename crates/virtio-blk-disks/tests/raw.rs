// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a raw disk promises beyond storing bytes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use common::{directory, image, read, run, write};
use virtio_blk_core::disk::{Disk, DiskError, DiskEvent, IoBuf, OpKind};
use virtio_blk_disks::raw::OpenError;
use virtio_blk_disks::{Engine, RawDisk, RawOptions};

const MIB: usize = 1 << 20;

/// The engines of this build.
fn engines() -> impl Iterator<Item = Engine> {
    let all = [Engine::Sync, Engine::Auto, Engine::IoUring];
    all.into_iter()
        .filter(|engine| cfg!(feature = "io-uring") || *engine != Engine::IoUring)
}

fn open(options: &RawOptions) -> RawDisk {
    RawDisk::open(options).unwrap_or_else(|error| panic!("{error}"))
}

/// The message of an error that must be.
fn refusal(options: &RawOptions) -> String {
    match RawDisk::open(options) {
        Ok(_) => panic!("opened"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_missing_file_is_named_and_keeps_its_kind() {
    let options = RawOptions::new("/nonexistent/disk.img");
    let message = refusal(&options);
    assert!(message.contains("/nonexistent/disk.img"), "{message}");
    let error = DiskError::from(RawDisk::open(&options).unwrap_err());
    assert!(matches!(error, DiskError::Io(error) if error.kind() == io::ErrorKind::NotFound));
}

#[test]
fn what_is_no_disk_is_refused_without_waiting() {
    let directory = directory();
    let pipe = directory.path().join("pipe");
    let name = std::ffi::CString::new(pipe.to_str().unwrap()).unwrap();
    // SAFETY: the path is terminated.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    for (path, found) in [
        (directory.path(), "a directory"),
        (Path::new("/dev/null"), "a character device"),
        (&pipe, "a pipe"),
    ] {
        let message = refusal(&RawOptions::new(path).read_only(true));
        assert!(message.contains(found), "{message}");
        assert!(message.contains(path.to_str().unwrap()), "{message}");
    }
}

#[test]
fn a_size_that_is_no_multiple_is_refused_with_the_cure() {
    let directory = directory();
    let path = image(directory.path(), 1000);
    let message = refusal(&RawOptions::new(&path));
    let cure = format!("truncate -s %512 {}", path.display());
    assert!(message.contains(&cure), "{message}");
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(1024)
        .unwrap();
    assert_eq!(open(&RawOptions::new(&path)).caps().capacity, 2);
    // 1024 bytes make no whole block of 4096.
    let message = refusal(&RawOptions::new(&path).block_size(Some(4096)));
    assert!(message.contains("%4096"), "{message}");
}

#[test]
fn an_empty_file_is_a_disk_without_sectors() {
    let directory = directory();
    let path = image(directory.path(), 0);
    for engine in engines() {
        let disk = open(&RawOptions::new(&path).engine(engine));
        assert_eq!(disk.caps().capacity, 0);
        disk.caps().validate().unwrap();
        let mut queue = disk.open_queue(1).unwrap();
        assert!(matches!(
            read(&mut *queue, 0, 512),
            Err(DiskError::OutOfRange)
        ));
        run(&mut *queue, OpKind::Flush, IoBuf::new())
            .result
            .unwrap();
    }
}

#[test]
fn locks_keep_writers_apart_and_readers_together() {
    let directory = directory();
    let path = image(directory.path(), 4096);
    let writer = RawOptions::new(&path);
    let reader = RawOptions::new(&path).read_only(true);

    let first = open(&writer);
    for options in [&writer, &reader] {
        let error = RawDisk::open(options).unwrap_err();
        assert!(matches!(error, OpenError::Locked { .. }), "{error}");
        let message = error.to_string();
        for part in ["fuser", "lsof", "lock=off", path.to_str().unwrap()] {
            assert!(message.contains(part), "{message}");
        }
    }
    open(&writer.clone().lock(false));
    drop(first);

    let (_one, _two) = (open(&reader), open(&reader));
    assert!(RawDisk::open(&writer).is_err());
}

#[test]
fn an_image_can_be_opened_again_at_once() {
    let directory = directory();
    let path = image(directory.path(), MIB);
    for _ in 0..20 {
        for engine in engines() {
            let disk = open(&RawOptions::new(&path).engine(engine));
            let mut queue = disk.open_queue(32).unwrap();
            write(&mut *queue, 0, vec![1; 4096]).unwrap();
            // The queue keeps the file open on its own.
            drop(disk);
            write(&mut *queue, 0, vec![1; 4096]).unwrap();
        }
    }
}

#[test]
fn read_only_changes_nothing_and_still_flushes() {
    let directory = directory();
    let path = image(directory.path(), MIB);
    for engine in engines() {
        let disk = open(&RawOptions::new(&path).read_only(true).engine(engine));
        let caps = disk.caps();
        assert!(caps.read_only && caps.flush);
        assert!(caps.discard.is_none() && caps.write_zeroes.is_none());
        let mut queue = disk.open_queue(1).unwrap();
        assert!(matches!(
            write(&mut *queue, 0, vec![0; 512]),
            Err(DiskError::ReadOnly)
        ));
        let zero = OpKind::WriteZeroes {
            offset: 0,
            len: 512,
            unmap: true,
            fua: false,
        };
        let result = run(&mut *queue, zero, IoBuf::new()).result;
        assert!(matches!(result, Err(DiskError::ReadOnly)));
        run(&mut *queue, OpKind::Flush, IoBuf::new())
            .result
            .unwrap();
        assert_eq!(read(&mut *queue, 0, 512).unwrap(), [1; 512]);
    }
}

#[test]
fn a_file_that_shrank_gives_errors_not_old_data() {
    for engine in engines() {
        for direct in [false, true] {
            let directory = directory();
            let path = image(directory.path(), MIB);
            let options = RawOptions::new(&path).engine(engine).direct(direct);
            let disk = match RawDisk::open(&options) {
                Err(OpenError::NoDirect { .. }) => continue,
                result => result.unwrap(),
            };
            let mut queue = disk.open_queue(4).unwrap();
            let len = read(&mut *queue, 0, MIB).unwrap().len();
            assert_eq!(len, MIB);
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(8192 + 700).unwrap();
            for (offset, len) in [(8192, 4096), (4096, 8192), (0, MIB), (65_536, 4096)] {
                let result = read(&mut *queue, offset, len);
                assert!(
                    matches!(result, Err(DiskError::OutOfRange)),
                    "{engine:?} {direct} {offset} {len}"
                );
            }
            assert!(read(&mut *queue, 4096, 4096).is_ok());
        }
    }
}

#[test]
fn refresh_finds_a_new_size_and_tells() {
    let directory = directory();
    let path = image(directory.path(), MIB);
    let disk = open(&RawOptions::new(&path));
    let events = Arc::new(Mutex::new(Vec::new()));
    let log = events.clone();
    disk.listen(Arc::new(move |event| log.lock().unwrap().push(event)));
    let mut queue = disk.open_queue(1).unwrap();
    disk.refresh().unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(2 * MIB as u64).unwrap();
    assert!(read(&mut *queue, MIB as u64, 512).is_err());
    disk.refresh().unwrap();
    disk.refresh().unwrap();
    assert_eq!(disk.caps().capacity, 4096);
    assert_eq!(read(&mut *queue, MIB as u64, 512).unwrap(), [0; 512]);
    assert_eq!(
        *events.lock().unwrap(),
        [DiskEvent::Resized { capacity: 4096 }]
    );
    // A size that can't be is not taken over.
    file.set_len(1000).unwrap();
    let error = disk.refresh().unwrap_err().to_string();
    assert!(error.contains("truncate"), "{error}");
    assert_eq!(disk.caps().capacity, 4096);
}

#[test]
fn discard_gives_space_back_and_can_be_switched_off() {
    for engine in engines() {
        let directory = directory();
        let path = image(directory.path(), 4 * MIB);
        File::open(&path).unwrap().sync_all().unwrap();
        let allocated = || std::fs::metadata(&path).unwrap().blocks();
        let options = RawOptions::new(&path).engine(engine);
        let before = allocated();

        let disk = open(&options.clone().discard(false));
        let caps = disk.caps();
        assert!(caps.discard.is_none());
        assert!(!caps.write_zeroes.unwrap().may_unmap);
        let mut queue = disk.open_queue(1).unwrap();
        let len = 2 * MIB as u64;
        let discard = OpKind::Discard { offset: 0, len };
        let result = run(&mut *queue, discard, IoBuf::new()).result;
        assert!(matches!(result, Err(DiskError::Unsupported)));
        let zero = |unmap| OpKind::WriteZeroes {
            offset: 0,
            len,
            unmap,
            fua: true,
        };
        run(&mut *queue, zero(true), IoBuf::new()).result.unwrap();
        assert!(allocated() >= before);
        assert!(read(&mut *queue, 0, 2 * MIB).unwrap() == vec![0; 2 * MIB]);
        drop((queue, disk));

        let disk = open(&options);
        let Some(limits) = disk.caps().discard else {
            assert!(!disk.caps().write_zeroes.unwrap().may_unmap);
            continue;
        };
        assert!(limits.max_segments > 1);
        let mut queue = disk.open_queue(1).unwrap();
        run(&mut *queue, discard, IoBuf::new()).result.unwrap();
        assert!(allocated() < before);
        let rest = OpKind::WriteZeroes {
            offset: len,
            len,
            unmap: true,
            fua: true,
        };
        run(&mut *queue, rest, IoBuf::new()).result.unwrap();
        assert!(allocated() < before / 2);
        assert!(read(&mut *queue, 0, 4 * MIB).unwrap() == vec![0; 4 * MIB]);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 4 * MIB as u64);
    }
}

#[test]
fn zeroing_works_in_memory_file_systems_too() {
    // tmpfs punches holes, but zeroes no ranges.
    let Ok(directory) = tempfile::tempdir_in("/dev/shm") else {
        return;
    };
    let path = image(directory.path(), 4 * MIB);
    for engine in engines() {
        let disk = open(&RawOptions::new(&path).engine(engine));
        let mut queue = disk.open_queue(1).unwrap();
        for (offset, unmap) in [(0, false), (2 * MIB as u64, true)] {
            write(&mut *queue, offset, vec![3; 2 * MIB]).unwrap();
            let zero = OpKind::WriteZeroes {
                offset: offset + 512,
                len: 2 * MIB as u64 - 512,
                unmap,
                fua: true,
            };
            run(&mut *queue, zero, IoBuf::new()).result.unwrap();
            let content = read(&mut *queue, offset, 2 * MIB).unwrap();
            assert!(content[..512] == [3; 512] && content[512..].iter().all(|byte| *byte == 0));
        }
        if engine == Engine::Auto {
            assert_eq!(disk.engine(), Engine::Sync);
        }
    }
}

#[test]
fn direct_io_advertises_what_the_host_needs() {
    let directory = directory();
    let path = image(directory.path(), MIB);
    let disk = match RawDisk::open(&RawOptions::new(&path).direct(true)) {
        Err(OpenError::NoDirect { .. }) => return,
        result => result.unwrap(),
    };
    let align = disk.caps().align;
    assert!(align.host_offset >= 512 && align.guest_block >= align.host_offset);
    drop(disk);
    let buffered = open(&RawOptions::new(&path)).caps().align;
    assert_eq!((buffered.guest_block, buffered.host_offset), (512, 1));
    let large = open(&RawOptions::new(&path).block_size(Some(65_536)).direct(true));
    assert_eq!(large.caps().align.guest_block, 65_536);
    large.caps().validate().unwrap();
}

#[test]
fn operations_that_are_no_whole_blocks_are_refused() {
    let directory = directory();
    let path = image(directory.path(), MIB);
    for engine in engines() {
        let disk = open(&RawOptions::new(&path).block_size(Some(4096)).engine(engine));
        let mut queue = disk.open_queue(1).unwrap();
        for (offset, len) in [(512, 4096), (0, 512), (1, 4095)] {
            let result = read(&mut *queue, offset, len);
            assert!(matches!(result, Err(DiskError::Misaligned)));
        }
        let erase = OpKind::SecureErase {
            offset: 0,
            len: 4096,
        };
        let result = run(&mut *queue, erase, IoBuf::new()).result;
        assert!(matches!(result, Err(DiskError::Unsupported)));
        let result = run(&mut *queue, OpKind::Lifetime, IoBuf::zeroed(8)).result;
        assert!(matches!(result, Err(DiskError::Unsupported)));
    }
}
