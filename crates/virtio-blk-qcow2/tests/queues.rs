// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Images in use: several queues, space that is given back and used again, snapshots, limits of the host.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../virtio-blk-disks/tests/common/mod.rs"]
mod common;
mod files;
#[path = "../../virtio-blk-disks/tests/common/qemu.rs"]
mod qemu;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{BLOCK, directory, read, run, wait, write};
use files::{SIZE, Setup, open, path};
use virtio_blk_core::disk::{Disk, DiskError, IoBuf, Op, OpKind, Submit, Token};
use virtio_blk_disks::{Engine, VerifyDisk};

#[test]
fn images_of_version_2_have_no_discard() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    qemu::create(&image, "compat=0.10", SIZE);
    let disk = open(&image);
    assert_eq!(
        (disk.caps().discard, disk.caps().write_zeroes),
        (None, None)
    );
    let mut queue = disk.open_queue(4).unwrap();
    write(&mut *queue, 512, vec![7; 512]).unwrap();
    let discard = OpKind::Discard {
        offset: 0,
        len: 512,
    };
    let result = run(&mut *queue, discard, IoBuf::new()).result;
    assert!(matches!(result, Err(DiskError::Unsupported)), "{result:?}");
    drop((queue, disk));
    qemu::check(&image);
    let mut model = vec![0; SIZE];
    model[512..1024].fill(7);
    qemu::compare(&image, &model);
}

#[test]
fn internal_snapshots_keep_their_content() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    qemu::create(&image, "cluster_size=4k", SIZE);
    let all = |value| vec![value; SIZE];
    let disk = open(&image);
    write(&mut *disk.open_queue(1).unwrap(), 0, all(1)).unwrap();
    drop(disk);
    let name = image.to_str().unwrap();
    qemu::ok(&["snapshot", "-q", "-c", "before", name]);
    let disk = open(&image);
    let mut queue = disk.open_queue(1).unwrap();
    for at in (0..SIZE).step_by(BLOCK * 3) {
        write(&mut *queue, at as u64, vec![2; BLOCK]).unwrap();
    }
    let discard = OpKind::Discard {
        offset: 0,
        len: 64 << 10,
    };
    run(&mut *queue, discard, IoBuf::new()).result.unwrap();
    drop((queue, disk));
    qemu::check(&image);
    qemu::ok(&["snapshot", "-q", "-a", "before", name]);
    qemu::compare(&image, &all(1));
}

#[test]
fn queues_at_once_keep_to_themselves() {
    const QUEUES: usize = 4;
    const SHARE: usize = 4 << 20;
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    // Small tables, so that they are thrown out of the library's cache.
    qemu::create(&image, "cluster_size=1k", QUEUES * SHARE);
    let disk: Arc<dyn Disk> = Arc::new(open(&image));
    let disk = VerifyDisk::new(disk);
    let shared = &disk;
    let model: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..QUEUES)
            .map(|number| {
                let mut queue = shared.open_queue(32).unwrap();
                scope.spawn(move || {
                    let mut model = vec![0; SHARE];
                    let mut random = number as u64 + 1;
                    let mut flight = 0;
                    let mut done = Vec::new();
                    for turn in 0..3000_u64 {
                        random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
                        let len = BLOCK * (1 + (random >> 60) as usize);
                        // Nothing overlaps what is in flight: 32 operations, each in a part of its own.
                        let part = SHARE / 32;
                        let at = turn as usize % 32 * part
                            + (random >> 33) as usize % (part - len) / BLOCK * BLOCK;
                        let offset = (number * SHARE + at) as u64;
                        let (kind, buf) = match random >> 40 & 15 {
                            0 => (OpKind::Flush, IoBuf::new()),
                            1 => (
                                OpKind::WriteZeroes {
                                    offset,
                                    len: len as u64,
                                    unmap: true,
                                    fua: false,
                                },
                                IoBuf::new(),
                            ),
                            _ => (
                                OpKind::Write {
                                    offset,
                                    fua: random >> 45 & 63 == 0,
                                },
                                IoBuf::from_vec(vec![turn as u8 | 1; len]),
                            ),
                        };
                        match kind {
                            OpKind::Write { .. } => model[at..at + len].fill(turn as u8 | 1),
                            OpKind::WriteZeroes { .. } => model[at..at + len].fill(0),
                            _ => {}
                        }
                        while flight > 0 && turn.is_multiple_of(32) {
                            queue.flush_batch().unwrap();
                            if queue.reap(&mut done).unwrap() == 0 {
                                wait(&*queue);
                            }
                            for completion in done.drain(..) {
                                completion.result.unwrap();
                                flight -= 1;
                            }
                        }
                        match queue.submit(Op {
                            token: Token(turn),
                            kind,
                            buf,
                        }) {
                            Submit::Done(completion) => completion.result.unwrap(),
                            Submit::Queued => flight += 1,
                            Submit::Full(_) => panic!("full"),
                        }
                    }
                    while flight > 0 {
                        queue.flush_batch().unwrap();
                        wait(&*queue);
                        flight -= queue.reap(&mut done).unwrap();
                    }
                    done.into_iter().for_each(|c| c.result.unwrap());
                    drop(queue);
                    let mut queue = shared.open_queue(1).unwrap();
                    let offset = (number * SHARE) as u64;
                    assert!(read(&mut *queue, offset, SHARE).unwrap() == model);
                    model
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    drop(disk);
    qemu::check(&image);
    qemu::compare(&image, &model.concat());
}

/// Everything that can be in flight when a queue goes away: with the file's queue, with the threads, and
/// one that waits for the others.
#[test]
fn a_queue_can_go_away_at_any_time() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    qemu::create(&image, "cluster_size=4k", 16 << 20);
    for engine in [Engine::Sync, Engine::Auto, Engine::IoUring] {
        let options = Setup::new(&image).engine(engine);
        let disk = match Setup::open(&options) {
            Ok(disk) => disk,
            Err(error) => {
                let no_ring = virtio_blk_disks::raw::io_uring_support().is_err();
                assert!(engine == Engine::IoUring && no_ring, "{error}");
                continue;
            }
        };
        for round in 0..40_u64 {
            let mut queue = disk.open_queue(64).unwrap();
            for token in 0..64 {
                let offset = (token * 7 + round) % 256 * 4096;
                let (kind, buf) = match token % 4 {
                    0 => (OpKind::Discard { offset, len: 8192 }, IoBuf::new()),
                    1 => (OpKind::Read { offset }, IoBuf::zeroed(4096)),
                    _ => (OpKind::Write { offset, fua: false }, IoBuf::zeroed(4096)),
                };
                let token = Token(token);
                drop(queue.submit(Op { token, kind, buf }));
                if token.0.is_multiple_of(9) {
                    queue.flush_batch().unwrap();
                }
            }
        }
        drop(disk);
        qemu::check(&image);
    }
}

#[test]
fn a_flush_puts_everything_in_the_file() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    qemu::create(&image, "cluster_size=64k", SIZE);
    let disk = open(&image);
    let mut queue = disk.open_queue(4).unwrap();
    write(&mut *queue, 4096, vec![9; 4096]).unwrap();
    run(&mut *queue, OpKind::Flush, IoBuf::new())
        .result
        .unwrap();
    // The file as it is now, while the disk still has its caches and counts some clusters ahead.
    let copy = path(&directory, "copy.qcow2");
    std::fs::copy(&image, &copy).unwrap();
    let mut model = vec![0; SIZE];
    model[4096..8192].fill(9);
    qemu::check_after_crash(&copy);
    qemu::compare(&copy, &model);
    // The same for one write that is stable by itself.
    let kind = OpKind::Write {
        offset: 256 << 10,
        fua: true,
    };
    run(&mut *queue, kind, IoBuf::from_vec(vec![8; 512]))
        .result
        .unwrap();
    std::fs::copy(&image, &copy).unwrap();
    model[256 << 10..(256 << 10) + 512].fill(8);
    qemu::check_after_crash(&copy);
    qemu::compare(&copy, &model);
    drop((queue, disk));
    qemu::check(&image);
}

#[test]
fn discards_give_space_back() {
    use std::os::unix::fs::MetadataExt;
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    qemu::create(&image, "cluster_size=64k", 8 << 20);
    let disk = open(&image);
    let mut queue = disk.open_queue(4).unwrap();
    write(&mut *queue, 0, vec![9; 8 << 20]).unwrap();
    run(&mut *queue, OpKind::Flush, IoBuf::new())
        .result
        .unwrap();
    let full = std::fs::metadata(&image).unwrap().blocks();
    let discard = OpKind::Discard {
        offset: 0,
        len: 7 << 20,
    };
    run(&mut *queue, discard, IoBuf::new()).result.unwrap();
    run(&mut *queue, OpKind::Flush, IoBuf::new())
        .result
        .unwrap();
    // That is done when it is stable that nothing refers to it, on another thread. The file system may need some blocks
    // to know of the hole.
    let blocks = || std::fs::metadata(&image).unwrap().blocks();
    let patience = Instant::now() + Duration::from_secs(10);
    while full < blocks() + (7 << 20) / 512 - 64 {
        assert!(Instant::now() < patience, "{full} {}", blocks());
        std::thread::yield_now();
    }
    // And is used again.
    write(&mut *queue, 0, vec![8; 7 << 20]).unwrap();
    drop((queue, disk));
    assert!(blocks() * 512 < 9 << 20);
    qemu::check(&image);
}

/// Enough for a new refcount table, bigger and elsewhere: what held the old one becomes data.
#[test]
fn refcount_tables_grow() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    let size = 6 << 20;
    qemu::create(&image, "cluster_size=512,refcount_bits=64", size);
    let disk = open(&image);
    let mut queue = disk.open_queue(8).unwrap();
    let mut model = vec![0; size];
    for (turn, at) in (0..size).step_by(60 << 10).enumerate() {
        let len = (60 << 10).min(size - at);
        let data = vec![turn as u8 | 1; len];
        model[at..at + len].copy_from_slice(&data);
        write(&mut *queue, at as u64, data).unwrap();
    }
    assert!(read(&mut *queue, 0, size).unwrap() == model);
    drop((queue, disk));
    qemu::check(&image);
    qemu::compare(&image, &model);
}

/// Set for the process that the next test starts.
const LIMITED: &str = "VBLK_TEST_LIMITED";

/// Most bytes of a file in it.
const LIMIT: u64 = 2 << 20;

/// The host takes no more. A limit on the length of files, in a process of its own, stands for a full disk.
#[test]
fn a_full_disk_gives_errors_and_loses_nothing() {
    let size = 8 << 20;
    if let Ok(image) = std::env::var(LIMITED) {
        return fill(Path::new(&image), size);
    }
    let directory = directory();
    for cluster in ["4k", "64k"] {
        let image = path(&directory, "disk.qcow2");
        qemu::create(&image, &format!("cluster_size={cluster}"), size);
        let program = std::env::current_exe().unwrap();
        // A shell sets the limit, in KiB, and ignores its signal, as who serves images under a limit must do.
        let script = format!(
            "trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"",
            LIMIT >> 10
        );
        let output = std::process::Command::new("bash")
            .args(["-c", &script])
            .arg(program)
            .args(["--exact", "a_full_disk_gives_errors_and_loses_nothing"])
            .env(LIMITED, &image)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{cluster}: {text}");
        qemu::check(&image);
        qemu::compare(&image, &expected(&image.with_extension("taken"), size));
    }
}

/// What a disk holds of which the file at `path` says how many blocks were taken.
fn expected(path: &Path, size: usize) -> Vec<u8> {
    let taken: usize = std::fs::read_to_string(path).unwrap().parse().unwrap();
    (0..size)
        .map(|at| {
            if at / 4096 < taken {
                (at / 4096) as u8 | 1
            } else {
                0
            }
        })
        .collect()
}

/// Writes until the host takes no more, and on.
fn fill(image: &Path, size: usize) {
    let disk = open(image);
    let mut queue = disk.open_queue(8).unwrap();
    let mut taken = 0;
    for block in 0..size / 4096 {
        let data = vec![block as u8 | 1; 4096];
        match write(&mut *queue, block as u64 * 4096, data) {
            Ok(()) => taken = block + 1,
            Err(error) => {
                assert!(matches!(error, DiskError::Io(_)), "{error}");
                break;
            }
        }
    }
    assert!(taken > 100 && taken < size / 4096, "{taken}");
    // Nothing of what was taken is lost, neither for reads, nor for a flush or a discard and another write.
    let model = |block: usize| vec![block as u8 | 1; 4096];
    for block in 0..taken {
        let offset = block as u64 * 4096;
        assert!(
            read(&mut *queue, offset, 4096).unwrap() == model(block),
            "{block}"
        );
    }
    run(&mut *queue, OpKind::Flush, IoBuf::new())
        .result
        .unwrap();
    let discard = OpKind::Discard {
        offset: 0,
        len: 128 << 10,
    };
    run(&mut *queue, discard, IoBuf::new()).result.unwrap();
    for block in 0..32 {
        write(&mut *queue, block as u64 * 4096, model(block)).unwrap();
    }
    run(&mut *queue, OpKind::Flush, IoBuf::new())
        .result
        .unwrap();
    std::fs::write(image.with_extension("taken"), taken.to_string()).unwrap();
}

/// Data that was written to a cluster behind the file's end does not come back once the cluster is zeroed.
#[test]
fn clusters_behind_the_end_of_the_file() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    for (unmap, discard) in [(false, true), (true, true), (true, false)] {
        qemu::create(&image, "cluster_size=64k", SIZE);
        write(&mut *open(&image).open_queue(1).unwrap(), 0, vec![1; 65536]).unwrap();
        let bytes = std::fs::read(&image).unwrap();
        let entry = |at: u64| {
            let bytes = bytes[at as usize..][..8].try_into().unwrap();
            u64::from_be_bytes(bytes) & 0x00ff_ffff_ffff_fe00
        };
        let place = entry(entry(entry(40)));
        let file = std::fs::File::options().write(true).open(&image).unwrap();
        file.set_len(place).unwrap();
        let options = Setup::new(&image).discard(discard);
        let disk = Setup::open(&options).unwrap();
        let mut queue = disk.open_queue(1).unwrap();
        assert!(read(&mut *queue, 0, 65536).unwrap() == [0; 65536]);
        write(&mut *queue, 0, vec![0xaa; 65536]).unwrap();
        let kind = OpKind::WriteZeroes {
            offset: 0,
            len: 65536,
            unmap,
            fua: true,
        };
        run(&mut *queue, kind, IoBuf::new()).result.unwrap();
        write(&mut *queue, 4096, vec![0xbb; 512]).unwrap();
        let mut model = vec![0; SIZE];
        model[4096..4608].fill(0xbb);
        assert!(
            read(&mut *queue, 0, SIZE).unwrap() == model,
            "{unmap} {discard}"
        );
        drop((queue, disk));
        qemu::check(&image);
        qemu::compare(&image, &model);
    }
}
