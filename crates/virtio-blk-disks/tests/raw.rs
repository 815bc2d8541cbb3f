// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a raw disk promises beyond storing bytes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use common::{directory, image, read, run, write};
use virtio_blk_core::disk::{Disk, DiskError, DiskEvent, IoBuf, OpKind};
use virtio_blk_disks::inject::{Call, Injector};
use virtio_blk_disks::raw::OpenError;
use virtio_blk_disks::{Engine, Lock, RawDisk, RawOptions};

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
fn a_missing_file_is_named_with_the_reason() {
    let options = RawOptions::new("/nonexistent/disk.img");
    let message = refusal(&options);
    assert!(
        message.contains("open /nonexistent/disk.img: No such file"),
        "{message}"
    );
    let error = DiskError::from(RawDisk::open(&options).unwrap_err());
    assert_eq!(
        error.to_string(),
        message,
        "nothing stands before the reason"
    );
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

/// When a file was read and changed, and how much room it takes.
fn looks(path: &Path) -> ([i64; 6], u64) {
    let about = std::fs::metadata(path).unwrap();
    let times = [
        about.atime(),
        about.atime_nsec(),
        about.mtime(),
        about.mtime_nsec(),
        about.ctime(),
        about.ctime_nsec(),
    ];
    (times, about.blocks())
}

#[test]
fn a_look_changes_nothing_and_says_what_a_writable_disk_would_offer() {
    let directory = directory();
    let path = image(directory.path(), MIB);
    for (engine, direct) in engines().flat_map(|engine| [(engine, false), (engine, true)]) {
        let options = RawOptions::new(&path).engine(engine).direct(direct);
        let used = match RawDisk::open(&options) {
            Err(OpenError::NoDirect { .. }) => continue,
            result => result.unwrap(),
        };
        let original = std::fs::read(&path).unwrap();
        // Long ago, so that the next read counts with `relatime` too.
        let long_ago = std::fs::FileTimes::new().set_accessed(std::time::UNIX_EPOCH);
        File::open(&path).unwrap().set_times(long_ago).unwrap();
        let before = looks(&path);
        // The server's lock is no obstacle.
        let disk = open(&options.clone().inspect(true));
        assert_eq!(disk.caps(), used.caps());
        let mut queue = disk.open_queue(4).unwrap();
        let changes = [
            OpKind::Write {
                offset: 0,
                fua: true,
            },
            OpKind::Discard {
                offset: 0,
                len: 512,
            },
            OpKind::WriteZeroes {
                offset: 0,
                len: 512,
                unmap: true,
                fua: true,
            },
        ];
        for kind in changes {
            let len = if kind == changes[0] { 512 } else { 0 };
            let result = run(&mut *queue, kind, IoBuf::zeroed(len)).result;
            assert!(matches!(result, Err(DiskError::ReadOnly)), "{kind:?}");
        }
        assert!(matches!(
            disk.resize(2 * MIB as u64),
            Err(DiskError::ReadOnly)
        ));
        run(&mut *queue, OpKind::Flush, IoBuf::new())
            .result
            .unwrap();
        let content = read(&mut *queue, 0, MIB).unwrap();
        assert!(content == original);
        assert_eq!(looks(&path), before);
        drop((queue, disk));

        // It holds no lock either.
        drop(used);
        let disk = open(&options.clone().inspect(true));
        open(&options);
        drop(disk);
    }
}

#[test]
fn a_file_that_is_being_written_is_looked_at_and_opened_without_harm() {
    use std::io::Write;
    use std::sync::atomic::{AtomicBool, Ordering};

    let directory = directory();
    let path = directory.path().join("disk.img");
    let ended = AtomicBool::new(false);
    let total = 24 * MIB;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = File::create(&path).unwrap();
            for number in 0..total / 65_536 {
                file.write_all(&[number as u8 | 1; 65_536]).unwrap();
            }
            ended.store(true, Ordering::Release);
        });
        let mut opened = 0;
        while !ended.load(Ordering::Acquire) || opened < 20 {
            for options in [
                RawOptions::new(&path).inspect(true),
                RawOptions::new(&path),
                RawOptions::new(&path).direct(true),
            ] {
                opened += usize::from(RawDisk::open(&options).is_ok());
            }
        }
    });
    let content = std::fs::read(&path).unwrap();
    assert_eq!(content.len(), total);
    for (number, part) in content.chunks(65_536).enumerate() {
        assert!(
            part.iter().all(|byte| *byte == number as u8 | 1),
            "{number}"
        );
    }
}

#[test]
fn opening_a_disk_leaves_the_file_as_it_is() {
    let directory = directory();
    let path = image(directory.path(), MIB);
    for direct in [false, true] {
        let original = std::fs::read(&path).unwrap();
        let before = looks(&path);
        let Ok(disk) = RawDisk::open(&RawOptions::new(&path).direct(direct)) else {
            continue;
        };
        let _queue = disk.open_queue(4).unwrap();
        let after = looks(&path);
        // Asking for alignments may read; that is all.
        assert_eq!((&after.0[2..], after.1), (&before.0[2..], before.1));
        assert!(std::fs::read(&path).unwrap() == original);
    }
}

#[test]
fn a_last_block_that_is_not_whole_is_read_with_zeroes_behind_it() {
    for (engine, direct) in engines().flat_map(|engine| [(engine, false), (engine, true)]) {
        let directory = directory();
        for (size, block, capacity) in [
            (MIB + 100, None, MIB + 512),
            (MIB + 512, Some(4096), MIB + 4096),
            (MIB + 5000, Some(65_536), MIB + 65_536),
            (100, Some(4096), 4096),
        ] {
            let path = image(directory.path(), size);
            let mut expected = std::fs::read(&path).unwrap();
            let options = RawOptions::new(&path)
                .engine(engine)
                .direct(direct)
                .block_size(block)
                .read_only(true);
            let disk = match RawDisk::open(&options) {
                Err(OpenError::NoDirect { .. }) => continue,
                result => result.unwrap(),
            };
            let unit = disk.caps().align.guest_block as usize;
            let capacity = capacity.next_multiple_of(unit);
            assert_eq!(disk.caps().capacity_bytes(), capacity as u64);
            expected.resize(capacity, 0);
            let mut queue = disk.open_queue(4).unwrap();
            for _ in 0..3 {
                assert!(read(&mut *queue, 0, capacity).unwrap() == expected);
                let last = capacity - unit;
                let found = read(&mut *queue, last as u64, unit).unwrap();
                assert!(found == expected[last..], "{engine:?} {direct} {size}");
            }
            let beyond = read(&mut *queue, capacity as u64, unit);
            assert!(matches!(beyond, Err(DiskError::OutOfRange)));
            // What is cut off is no zeroes.
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(size as u64 - 50).unwrap();
            let last = (capacity - unit) as u64;
            let cut = read(&mut *queue, last, unit);
            assert!(matches!(cut, Err(DiskError::OutOfRange)), "{cut:?}");
            disk.refresh().unwrap();
            let mut now = std::fs::read(&path).unwrap();
            now.resize(disk.caps().capacity_bytes() as usize, 0);
            assert!(read(&mut *queue, 0, now.len()).unwrap() == now);
        }
    }
}

#[test]
fn a_disk_grows_through_its_own_descriptor() {
    let directory = directory();
    for engine in engines() {
        let path = image(directory.path(), MIB);
        let disk = open(&RawOptions::new(&path).engine(engine).block_size(Some(4096)));
        let events = Arc::new(Mutex::new(Vec::new()));
        let log = events.clone();
        disk.listen(Arc::new(move |event| log.lock().unwrap().push(event)));
        let mut queue = disk.open_queue(4).unwrap();
        // Another file has the name.
        let moved = directory.path().join("moved.img");
        std::fs::rename(&path, &moved).unwrap();
        let other = image(directory.path(), 4096);
        for (bytes, why) in [(MIB - 4096, "lose"), (MIB + 512, "multiple")] {
            let error = disk.resize(bytes as u64).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        disk.resize(2 * MIB as u64).unwrap();
        assert_eq!(std::fs::metadata(&moved).unwrap().len(), 2 * MIB as u64);
        assert_eq!(std::fs::metadata(&other).unwrap().len(), 4096);
        assert_eq!(
            *events.lock().unwrap(),
            [DiskEvent::Resized { capacity: 4096 }]
        );
        let last = 2 * MIB as u64 - 4096;
        write(&mut *queue, last, vec![5; 4096]).unwrap();
        assert_eq!(read(&mut *queue, last, 4096).unwrap(), [5; 4096]);
        drop((queue, disk));
        let disk = open(&RawOptions::new(&moved).read_only(true));
        assert!(matches!(
            disk.resize(4 * MIB as u64),
            Err(DiskError::ReadOnly)
        ));
    }
}

#[test]
fn a_file_that_ends_within_a_block_is_made_longer_where_that_is_wanted() {
    let directory = directory();
    let path = image(directory.path(), 1300);
    let options = RawOptions::new(&path);
    assert!(RawDisk::open(&options).is_err());
    let looked_at = RawDisk::open(&options.clone().extend(true).inspect(true));
    assert!(looked_at.is_err());
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 1300);
    let disk = RawDisk::open(&options.extend(true)).unwrap();
    assert_eq!(disk.caps().capacity, 3);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 1536);
    // Somebody else made it longer.
    std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(1537)
        .unwrap();
    disk.refresh().unwrap();
    assert_eq!(disk.caps().capacity, 4);
    let mut queue = disk.open_queue(1).unwrap();
    let tail = read(&mut *queue, 1024, 1024).unwrap();
    assert_eq!(tail[276..], [0; 748]);
}

/// A file that somebody else has may grow at that moment: it is made longer only by who has its lock, and by a call
/// that can't cut anything off.
#[test]
fn a_file_that_others_may_have_is_not_made_longer() {
    let directory = directory();
    let path = image(directory.path(), 1300);
    let size = || std::fs::metadata(&path).unwrap().len();
    let injector = Injector::new();
    let options = RawOptions::new(&path)
        .lock(Lock::Handover)
        .extend(true)
        .inject(&injector);
    let disk = RawDisk::open(&options).unwrap();
    disk.refresh().unwrap();
    assert_eq!((disk.caps().capacity, size()), (3, 1300));
    disk.activate().unwrap();
    assert_eq!((disk.caps().capacity, size()), (3, 1536));
    let mut queue = disk.open_queue(1).unwrap();
    write(&mut *queue, 1024, vec![1; 512]).unwrap();
    assert_eq!(read(&mut *queue, 1024, 512).unwrap(), [1; 512]);
    drop(queue);
    disk.deactivate().unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(1537).unwrap();
    disk.refresh().unwrap();
    assert_eq!((disk.caps().capacity, size()), (4, 1537));
    disk.activate().unwrap();
    assert_eq!((disk.caps().capacity, size()), (4, 2048));
    assert_eq!(injector.calls(Call::Resize), 0);
}
