// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! qcow2 images against a vector of bytes, with QEMU's `qemu-img` as the judge of what is in the file.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "common/qemu.rs"]
mod qemu;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Act, BLOCK, Rig, act, directory, read, run, wait, write};
use proptest::prelude::*;
use virtio_blk_core::disk::{Disk, DiskError, DiskEvent, IoBuf, Op, OpKind, Submit, Token};
use virtio_blk_disks::throttle::{Limits, Rate};
use virtio_blk_disks::{
    DiskSpec, Engine, MemoryDisk, Qcow2Disk, Qcow2Options, ThrottleDisk, ThrottleGroup, VerifyDisk,
};

const BLOCKS: u64 = 1024;
const SIZE: usize = BLOCKS as usize * BLOCK;

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let most = prop_oneof![6 => Just(16_u64), 1 => Just(700)];
    proptest::collection::vec(most.prop_flat_map(|most| act(BLOCKS, most)), 1..60)
}

fn path(directory: &tempfile::TempDir, name: &str) -> PathBuf {
    directory.path().join(name)
}

fn open(path: &Path) -> Qcow2Disk {
    Qcow2Disk::open(&Qcow2Options::new(path)).unwrap()
}

/// Runs a sequence on an image that holds what `model` says, then has QEMU look at it.
fn play(options: &Qcow2Options, depth: u16, acts: Vec<Act>, model: Option<Vec<u8>>) {
    let disk = Qcow2Disk::open(options).unwrap();
    let mut rig = Rig::new(&disk, depth, BLOCK);
    if let Some(model) = model {
        assert!(rig.model == model);
    }
    acts.into_iter().for_each(|act| rig.act(act));
    let model = rig.finish();
    drop(disk);
    qemu::check(options.path());
    qemu::compare(options.path(), &model);
}

fn engine() -> impl Strategy<Value = Engine> {
    prop_oneof![Just(Engine::Auto), Just(Engine::Sync)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn new_images(
        acts in acts(),
        depth in prop_oneof![Just(1_u16), Just(2), Just(32)],
        engine in engine(),
        cluster in prop_oneof![Just("512"), Just("4k"), Just("64k"), Just("2M")],
        refcounts in prop_oneof![Just(1), Just(16), Just(64)],
        discard in any::<bool>(),
    ) {
        let directory = directory();
        let image = path(&directory, "disk.qcow2");
        qemu::create(&image, &format!("cluster_size={cluster},refcount_bits={refcounts}"), SIZE);
        play(&Qcow2Options::new(&image).engine(engine).discard(discard), depth, acts, None);
    }

    #[test]
    fn images_over_others(
        acts in acts(),
        short in any::<bool>(),
        compressed in any::<bool>(),
        cluster in prop_oneof![Just("4k"), Just("64k")],
    ) {
        let directory = directory();
        let (base, image) = (path(&directory, "base.img"), path(&directory, "disk.qcow2"));
        // A backing file may be shorter: behind its end there are zeroes.
        let len = if short { SIZE / 2 + BLOCK } else { SIZE };
        let mut model: Vec<u8> = (0..len).map(|i| (i / 700) as u8).collect();
        std::fs::write(&base, &model).unwrap();
        model.resize(SIZE, 0);
        let options = format!("cluster_size={cluster}");
        let mut setup = Qcow2Options::new(&image);
        if compressed {
            let (base, image) = (base.to_str().unwrap(), image.to_str().unwrap());
            qemu::ok(&["convert", "-q", "-c", "-f", "raw", "-O", "qcow2", "-o", &options, base, image]);
            qemu::ok(&["resize", "-q", image, &SIZE.to_string()]);
        } else {
            let options = format!("{options},backing_file=base.img,backing_fmt=raw");
            qemu::create(&image, &options, SIZE);
            setup = setup.backing(true);
        }
        play(&setup, 8, acts, Some(model.clone()));
        prop_assert!(std::fs::read(&base).unwrap() == model[..len] || compressed);
    }
}

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
                                OpKind::Discard {
                                    offset,
                                    len: len as u64,
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
                            OpKind::Discard { .. } => model[at..at + len].fill(0),
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
        let options = Qcow2Options::new(&image).engine(engine);
        let disk = match Qcow2Disk::open(&options) {
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
    let sparse = std::fs::metadata(&image).unwrap().blocks();
    assert!(full - sparse >= (7 << 20) / 512, "{full} {sparse}");
    // And is used again.
    write(&mut *queue, 0, vec![8; 7 << 20]).unwrap();
    drop((queue, disk));
    assert!(std::fs::metadata(&image).unwrap().len() < 9 << 20);
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

/// In both directions, and readers beside readers.
#[test]
fn locks_are_those_of_qemu() {
    let directory = directory();
    let (image, over) = (
        path(&directory, "disk.qcow2"),
        path(&directory, "over.qcow2"),
    );
    qemu::create(&image, "cluster_size=64k", SIZE);
    let name = image.to_str().unwrap();
    let backing = "backing_file=disk.qcow2,backing_fmt=qcow2";
    qemu::create(&over, backing, SIZE);
    let refused = || {
        let output = qemu::run(&["info", name]);
        assert!(!output.status.success(), "{output:?}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("lock"), "{text}");
    };
    let disk = open(&image);
    refused();
    drop(disk);
    // Whoever reads shares it: on both sides, directly and as a backing file.
    let alone = Qcow2Options::new(&image);
    let reader = Qcow2Disk::open(&alone.clone().read_only(true)).unwrap();
    let above = Qcow2Disk::open(&Qcow2Options::new(&over).backing(true)).unwrap();
    qemu::ok(&["info", name]);
    qemu::ok(&["check", "-q", name]);
    assert!(Qcow2Disk::open(&alone).is_err());
    let io = |args: &[&str]| {
        let output = std::process::Command::new("qemu-io").args(args).output();
        let output = output.expect("qemu-io is in the package of qemu-img");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let text = io(&["-f", "qcow2", "-c", "write 0 512", name]);
    assert!(text.contains("lock"), "{text}");
    drop((reader, above));
    // While QEMU writes, nobody of us gets it.
    let mut writer = std::process::Command::new("qemu-io")
        .args(["-f", "qcow2", name])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut prompt = [0; 8];
    std::io::Read::read_exact(writer.stdout.as_mut().unwrap(), &mut prompt).unwrap();
    for options in [alone.clone(), alone.read_only(true)] {
        let error = Qcow2Disk::open(&options).unwrap_err().to_string();
        assert!(error.contains("locked"), "{error}");
    }
    drop(writer.stdin.take());
    writer.wait().unwrap();
    drop(open(&image));
}

#[test]
fn an_image_in_use_is_locked() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    qemu::create(&image, "cluster_size=64k", SIZE);
    let spec: DiskSpec = format!("qcow2:{}", image.display()).parse().unwrap();
    let disk = spec.open(false).unwrap();
    let error = spec.open(false).err().unwrap().to_string();
    assert!(error.contains("locked"), "{error}");
    let queue = disk.open_queue(1).unwrap();
    drop(disk);
    assert!(spec.open(true).is_err(), "a queue still has it");
    spec.clone().unlocked().open(true).unwrap();
    drop(queue);
    let first = spec.open(true).unwrap();
    let second = spec.open(true).unwrap();
    assert!(first.caps().read_only && second.caps().read_only);
    let mut queue = first.open_queue(1).unwrap();
    let result = write(&mut *queue, 0, vec![0; 512]);
    assert!(matches!(result, Err(DiskError::ReadOnly)));
}

/// The image's bitmaps as QEMU lists them, and what it says about them.
fn bitmaps(image: &Path) -> (bool, String) {
    let output = qemu::run(&["info", "--output=json", image.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stdout);
    let warning = String::from_utf8_lossy(&output.stderr).into_owned();
    (text.contains("\"b0\""), warning)
}

#[test]
fn persistent_bitmaps_stay_true_until_the_first_write() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    let changes: [(&str, OpKind, usize); 3] = [
        (
            "a write",
            OpKind::Write {
                offset: 0,
                fua: false,
            },
            512,
        ),
        (
            "a discard",
            OpKind::Discard {
                offset: 64 << 10,
                len: 64 << 10,
            },
            0,
        ),
        (
            "a write-zeroes",
            OpKind::WriteZeroes {
                offset: 64 << 10,
                len: 512,
                unmap: false,
                fua: false,
            },
            0,
        ),
    ];
    for (what, kind, len) in changes {
        qemu::create(&image, "cluster_size=64k", SIZE);
        // Something that is there, and known to a queue after a read.
        write(
            &mut *open(&image).open_queue(1).unwrap(),
            0,
            vec![5; 128 << 10],
        )
        .unwrap();
        qemu::ok(&["bitmap", "--add", image.to_str().unwrap(), "b0"]);
        let (there, _) = bitmaps(&image);
        assert!(there);
        let before = (
            std::fs::read(&image).unwrap(),
            std::fs::metadata(&image).unwrap().modified().unwrap(),
        );
        let same = || {
            let content = std::fs::read(&image).unwrap();
            let time = std::fs::metadata(&image).unwrap().modified().unwrap();
            (content, time) == before
        };
        let options = Qcow2Options::new(&image);
        let served = open(&image);
        let look = DiskSpec::Qcow2(options.clone()).for_inspection();
        let look = look.open(false).unwrap();
        assert_eq!(look.caps(), served.caps(), "beside one that is served");
        let mut queue = look.open_queue(4).unwrap();
        assert!(read(&mut *queue, 0, 512).unwrap() == [5; 512]);
        run(&mut *queue, OpKind::Flush, IoBuf::new())
            .result
            .unwrap();
        let refused = run(&mut *queue, kind, IoBuf::from_vec(vec![6; len])).result;
        assert!(matches!(refused, Err(DiskError::ReadOnly)));
        assert!(matches!(look.resize(1 << 30), Err(DiskError::ReadOnly)));
        drop((queue, look));
        assert_eq!(served.persistent_bitmaps(), 1);
        let mut queue = served.open_queue(4).unwrap();
        for _ in 0..2 {
            assert!(read(&mut *queue, 0, 128 << 10).unwrap() == vec![5; 128 << 10]);
            run(&mut *queue, OpKind::Flush, IoBuf::new())
                .result
                .unwrap();
        }
        assert!(same(), "{what}");
        drop((queue, served));
        assert!(same(), "{what}");
        let (there, warning) = bitmaps(&image);
        assert!(there && warning.is_empty(), "{warning}");

        let served = open(&image);
        let mut queue = served.open_queue(4).unwrap();
        read(&mut *queue, 0, 4096).unwrap();
        run(&mut *queue, kind, IoBuf::from_vec(vec![6; len]))
            .result
            .unwrap();
        assert_eq!(served.persistent_bitmaps(), 0);
        drop((queue, served));
        let (there, warning) = bitmaps(&image);
        assert!(!there && warning.contains("inconsistent"), "{warning}");
        // What the bitmaps lay in is lost, nothing else.
        qemu::check_after_crash(&image);
        qemu::ok(&["check", "-q", "-r", "leaks", image.to_str().unwrap()]);
        qemu::check(&image);
    }
}

/// The sizes that a disk's listeners are told, in bytes.
fn sizes(disk: &Qcow2Disk) -> Arc<Mutex<Vec<u64>>> {
    let all = Arc::new(Mutex::new(Vec::new()));
    let told = all.clone();
    disk.listen(Arc::new(move |event| match event {
        DiskEvent::Resized { capacity } => told.lock().unwrap().push(capacity * 512),
        other => panic!("{other:?}"),
    }));
    all
}

#[test]
fn an_image_grows_while_it_is_in_use() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    for (setup, snapshot) in [
        ("cluster_size=512", false),
        ("cluster_size=4k", true),
        ("cluster_size=64k", false),
        ("cluster_size=2M", true),
        ("cluster_size=64k,compat=0.10", false),
    ] {
        // No whole number of clusters.
        let mut model = vec![0; SIZE - 512];
        qemu::create(&image, setup, model.len());
        if snapshot {
            qemu::ok(&["snapshot", "-q", "-c", "before", image.to_str().unwrap()]);
        }
        let disk = open(&image);
        let told = sizes(&disk);
        let mut queue = disk.open_queue(4).unwrap();
        let put = |queue: &mut dyn virtio_blk_core::disk::IoQueue, model: &mut [u8], at, len| {
            write(queue, at as u64, vec![7; len]).unwrap();
            model[at..at + len].fill(7);
        };
        put(&mut *queue, &mut model, SIZE - 4096 - 512, 4096);
        for size in [SIZE + 512, 3 * SIZE, 3 * SIZE, 40 * SIZE] {
            disk.resize(size as u64).unwrap();
            assert_eq!(disk.caps().capacity_bytes(), size as u64);
            let before = model.len();
            model.resize(size, 0);
            // A queue that was open before.
            let end = before.min(size - 8192);
            let found = read(&mut *queue, end as u64, 8192).unwrap();
            assert!(found == model[end..end + 8192], "{setup}");
            let (offset, fua) = (size as u64 - 512, true);
            run(
                &mut *queue,
                OpKind::Write { offset, fua },
                IoBuf::from_vec(vec![9; 512]),
            )
            .result
            .unwrap();
            model[size - 512..].fill(9);
            put(&mut *queue, &mut model, end, 4096);
        }
        assert_eq!(
            *told.lock().unwrap(),
            [SIZE + 512, 3 * SIZE, 40 * SIZE].map(|size| size as u64)
        );
        for (bytes, part) in [(SIZE as u64, "smaller"), (40 * SIZE as u64 + 7, "512")] {
            let error = disk.resize(bytes).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let error = disk.resize(!511).unwrap_err();
        assert!(disk.flush_error().is_none(), "{error}");
        put(&mut *queue, &mut model, 0, 4096);
        drop((queue, disk));
        qemu::check(&image);
        qemu::compare(&image, &model);
    }
    let disk = Qcow2Disk::open(&Qcow2Options::new(&image).read_only(true)).unwrap();
    assert!(matches!(disk.resize(1 << 40), Err(DiskError::ReadOnly)));
}

/// What a backing file holds behind the image's end would show.
#[test]
fn an_image_over_a_larger_one_does_not_grow() {
    let directory = directory();
    let (base, image) = (path(&directory, "base.img"), path(&directory, "disk.qcow2"));
    std::fs::write(&base, vec![7; 2 * SIZE]).unwrap();
    let setup = "backing_file=base.img,backing_fmt=raw";
    for (size, grows) in [(SIZE, false), (2 * SIZE, true)] {
        qemu::create(&image, setup, size);
        let disk = Qcow2Disk::open(&Qcow2Options::new(&image).backing(true)).unwrap();
        let result = disk.resize(3 * SIZE as u64);
        if grows {
            result.unwrap();
            let mut queue = disk.open_queue(1).unwrap();
            let found = read(&mut *queue, 2 * SIZE as u64 - 512, 1024).unwrap();
            assert!(found == [[7; 512], [0; 512]].concat());
        } else {
            let error = result.unwrap_err().to_string();
            assert!(error.contains("backing file"), "{error}");
            assert_eq!(disk.caps().capacity_bytes(), size as u64);
        }
    }
}

/// What another one wrote while the disk was not active is there afterwards; and the other way round.
#[test]
fn an_image_is_handed_over() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    qemu::create(&image, "cluster_size=4k", SIZE);
    let mut bytes = std::fs::read(&image).unwrap();
    bytes.resize(64 << 20, 0);
    let below: Arc<dyn Disk> = Arc::new(MemoryDisk::new(bytes.len() as u64).unwrap());
    write(&mut *below.open_queue(1).unwrap(), 0, bytes).unwrap();
    let options = Qcow2Options::new(&image);
    let over = || Qcow2Disk::over(below.clone(), &options).unwrap();
    let (one, two) = (over(), over());
    two.deactivate().unwrap();
    let told = sizes(&two);
    let message = two.open_queue(1).err().unwrap().to_string();
    assert!(message.contains("must be activated"), "{message}");
    assert!(two.resize(1 << 30).is_err());
    let mut model = vec![0; SIZE];
    for turn in 0..4_usize {
        let (active, other) = if turn % 2 == 0 {
            (&one, &two)
        } else {
            (&two, &one)
        };
        active.activate().unwrap();
        active.activate().unwrap();
        assert_eq!(active.caps().capacity_bytes(), model.len() as u64);
        let mut queue = active.open_queue(4).unwrap();
        assert!(
            read(&mut *queue, 0, model.len()).unwrap() == model,
            "{turn}"
        );
        let at = turn * 3000 / 512 * 512;
        write(&mut *queue, at as u64, vec![turn as u8 + 1; 8192]).unwrap();
        model[at..at + 8192].fill(turn as u8 + 1);
        let offset = SIZE as u64 - 16384;
        let len = 16384;
        let kind = OpKind::Discard { offset, len };
        run(&mut *queue, kind, IoBuf::new()).result.unwrap();
        if turn == 2 {
            active.resize(2 * SIZE as u64).unwrap();
            model.resize(2 * SIZE, 0);
        }
        let message = active.deactivate().unwrap_err().to_string();
        assert!(message.contains("a queue"), "{message}");
        drop(queue);
        active.deactivate().unwrap();
        active.deactivate().unwrap();
        assert!(other.flush_error().is_none());
    }
    assert_eq!(*told.lock().unwrap(), [2 * SIZE as u64]);
    drop((one, two));
    let size = below.caps().capacity_bytes() as usize;
    let left = read(&mut *below.open_queue(1).unwrap(), 0, size).unwrap();
    std::fs::write(&image, left).unwrap();
    qemu::check(&image);
    qemu::compare(&image, &model);
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
        let options = Qcow2Options::new(&image).discard(discard);
        let disk = Qcow2Disk::open(&options).unwrap();
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

/// Tables are read and written at the pace that the disk below is given, and at once when the queue is about to stop.
#[test]
fn a_limited_disk_below_is_waited_for_and_let_go() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    qemu::create(&image, "cluster_size=4k", SIZE);
    let mut bytes = std::fs::read(&image).unwrap();
    bytes.resize(64 << 20, 0);
    let below: Arc<dyn Disk> = Arc::new(MemoryDisk::new(bytes.len() as u64).unwrap());
    write(&mut *below.open_queue(1).unwrap(), 0, bytes).unwrap();
    let group = ThrottleGroup::new(Limits::default()).unwrap();
    let limit = |iops| {
        let iops = Some(Rate::new(iops));
        group
            .set_limits(Limits {
                iops,
                ..Limits::default()
            })
            .unwrap();
    };
    let throttle = ThrottleDisk::<dyn Disk>::new(below, group.clone());
    let disk = Qcow2Disk::over(Arc::new(throttle), &Qcow2Options::new(&image)).unwrap();
    let mut queue = disk.open_queue(4).unwrap();
    limit(300);
    write(&mut *queue, 0, vec![1; 8192]).unwrap();
    assert!(read(&mut *queue, 0, 8192).unwrap() == [1; 8192]);
    limit(1);
    let begun = Instant::now();
    for token in 0..4 {
        let op = Op {
            token: Token(token),
            kind: OpKind::Write {
                offset: 16384 * (token + 1),
                fua: false,
            },
            buf: IoBuf::from_vec(vec![2; 8192]),
        };
        assert!(matches!(queue.submit(op), Submit::Queued));
    }
    queue.flush_batch().unwrap();
    queue.release_held();
    let mut done = Vec::new();
    while done.len() < 4 {
        wait(&*queue);
        queue.reap(&mut done).unwrap();
    }
    assert!(done.iter().all(|completion| completion.result.is_ok()));
    // At the limit it is more than a second for each.
    let time = begun.elapsed();
    assert!(time < Duration::from_secs(4), "{time:?}");
}

/// With `lock=handover`, two servers of one file: each has it alone, and sees what the other wrote.
#[test]
fn the_lock_of_an_image_goes_with_its_use() {
    let directory = directory();
    let (base, image) = (path(&directory, "base.img"), path(&directory, "disk.qcow2"));
    let mut model = vec![3; SIZE];
    std::fs::write(&base, &model).unwrap();
    let setup = "cluster_size=4k,backing_file=base.img,backing_fmt=raw";
    qemu::create(&image, setup, SIZE);
    let text = format!("qcow2:{},lock=handover,backing=allow", image.display());
    let spec: DiskSpec = text.parse().unwrap();
    assert_eq!(spec.to_string(), text);
    let denied: DiskSpec = format!("qcow2:{},lock=handover", image.display())
        .parse()
        .unwrap();
    let error = denied.open(false).err().unwrap().to_string();
    assert!(error.contains("backing=allow"), "{error}");
    let two = [spec.open(false).unwrap(), spec.open(false).unwrap()];
    let name = image.to_str().unwrap();
    let is_locked = || !qemu::run(&["info", name]).status.success();
    assert!(!is_locked());
    for turn in 0..4_usize {
        let (active, other) = (&two[turn % 2], &two[1 - turn % 2]);
        assert!(active.open_queue(1).is_err(), "not active");
        active.activate().unwrap();
        let mut queue = active.open_queue(4).unwrap();
        assert_eq!(active.caps().capacity_bytes(), model.len() as u64);
        assert!(
            read(&mut *queue, 0, model.len()).unwrap() == model,
            "{turn}"
        );
        let at = turn * 5 * BLOCK;
        write(&mut *queue, at as u64, vec![turn as u8 + 10; 8192]).unwrap();
        model[at..at + 8192].fill(turn as u8 + 10);
        if turn == 1 {
            active.resize(2 * SIZE as u64).unwrap();
            model.resize(2 * SIZE, 0);
        }
        let message = active.deactivate().unwrap_err().to_string();
        assert!(message.contains("a queue"), "{message}");
        drop(queue);
        if turn == 0 {
            assert!(is_locked());
            let error = other.activate().unwrap_err().to_string();
            assert!(
                error.contains("locked") && error.contains("this process"),
                "{error}"
            );
        }
        // The other one waits for it.
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| other.activate());
            active.deactivate().unwrap();
            waiting.join().unwrap().unwrap();
        });
        assert!(
            read(&mut *other.open_queue(1).unwrap(), at as u64, 512).unwrap()
                == [turn as u8 + 10; 512]
        );
        other.deactivate().unwrap();
    }
    assert!(!is_locked());
    qemu::check(&image);
    qemu::compare(&image, &model);
    // Another image in its place is not taken for it.
    qemu::create(&image, "cluster_size=64k", 4 * SIZE);
    let error = two[0].activate().unwrap_err().to_string();
    assert!(error.contains("another image"), "{error}");
    assert!(!is_locked() && two[0].open_queue(1).is_err());
}
