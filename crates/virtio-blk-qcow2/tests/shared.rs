// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Images that several use: locks, hand-overs, and disks below them that are shared or limited.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../virtio-blk-disks/tests/common/mod.rs"]
mod common;
mod files;
#[path = "../../virtio-blk-disks/tests/common/qemu.rs"]
mod qemu;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{BLOCK, directory, read, run, wait, write};
use files::{SIZE, Setup, path, sizes};
use virtio_blk_core::disk::{
    Caps, Disk, DiskError, Handover, IoBuf, IoQueue, Op, OpKind, Submit, Token,
};
use virtio_blk_disks::disk_arg::{DiskKind, DiskKinds};
use virtio_blk_disks::throttle::{Limits, Rate};
use virtio_blk_disks::{
    DiskArg, Lock, MemoryDisk, RawDisk, RawOptions, ThrottleDisk, ThrottleGroup,
};
use virtio_blk_qcow2::Qcow2File;

fn parse(text: &str) -> DiskArg {
    DiskKinds::new(&[DiskKind::of::<Qcow2File>()])
        .parse(text)
        .unwrap()
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
    let alone = Qcow2File::new(&image);
    let disk = alone.open().unwrap();
    refused();
    drop(disk);
    // A reader shares it: on both sides, directly and as a backing file.
    let reader = alone.clone().read_only(true).open().unwrap();
    let above = Qcow2File::new(&over).backing(true).open().unwrap();
    qemu::ok(&["info", name]);
    qemu::ok(&["check", "-q", name]);
    assert!(alone.open().is_err());
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
    for options in [alone.clone(), alone.clone().read_only(true)] {
        let error = options.open().unwrap_err().to_string();
        assert!(error.contains("locked"), "{error}");
    }
    drop(writer.stdin.take());
    writer.wait().unwrap();
    drop(alone.open().unwrap());
}

#[test]
fn an_image_in_use_is_locked() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    qemu::create(&image, "cluster_size=64k", SIZE);
    let spec = parse(&format!("qcow2:{}", image.display()));
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
    let options = Setup::new(&image);
    let over = || Setup::over(below.clone(), &options).unwrap();
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
        // A flush that somebody asked for is still on its way: the last queue lets go of the image.
        let mut flush = active.open_queue(1).unwrap();
        drop(queue);
        active.deactivate().unwrap();
        assert!(active.open_queue(1).is_err());
        assert!(active.resize(4 * SIZE as u64).is_err());
        run(&mut *flush, OpKind::Flush, IoBuf::new())
            .result
            .unwrap();
        drop(flush);
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

/// While a queue is open, layers above must not take the image for one that stays.
#[test]
fn an_image_that_its_last_queue_lets_go_of_counts_as_released() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    qemu::create(&image, "cluster_size=64k", SIZE);
    let below = || {
        let options = RawOptions::new(&image).lock(Lock::Handover).extend(true);
        Arc::new(RawDisk::open(&options).unwrap())
    };
    let held = below();
    held.activate().unwrap();
    let disk = Setup::over(held.clone(), &Setup::new(&image)).unwrap();
    disk.activate().unwrap();
    assert!(matches!(disk.handover(), Handover::Held(_)));
    let flush = disk.open_queue(1).unwrap();
    disk.deactivate().unwrap();
    assert!(matches!(held.handover(), Handover::Held(_)));
    assert_eq!(disk.handover(), Handover::Released(None));
    drop(flush);
    assert!(matches!(held.handover(), Handover::Released(_)));
    assert_eq!(disk.handover(), held.handover());
    // Somebody else has it in between.
    let other = below();
    other.activate().unwrap();
    other.deactivate().unwrap();
    disk.activate().unwrap();
    assert!(matches!(disk.handover(), Handover::Held(_)));
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
    let disk = Setup::over(Arc::new(throttle), &Setup::new(&image)).unwrap();
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
    // Its successor is held back again.
    drop(queue);
    limit(10);
    let begun = Instant::now();
    write(&mut *disk.open_queue(4).unwrap(), 1 << 18, vec![3; 8192]).unwrap();
    let time = begun.elapsed();
    assert!(time > Duration::from_millis(150), "{time:?}");
}

/// A disk in memory that takes its time to let go.
struct Slow {
    memory: MemoryDisk,
    begun: Sender<()>,
    may_end: Mutex<Receiver<()>>,
}

impl Disk for Slow {
    fn caps(&self) -> Caps {
        self.memory.caps()
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        self.memory.open_queue(depth)
    }

    fn deactivate(&self) -> Result<(), DiskError> {
        self.begun.send(()).unwrap();
        // The test may have ended.
        let _ = self.may_end.lock().unwrap().recv();
        Ok(())
    }
}

/// Statistics and other queues do not wait for storage that hangs while the image is let go of.
#[test]
fn an_image_that_is_let_go_of_slowly_tells_of_itself() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    qemu::create(&image, "cluster_size=4k", SIZE);
    let mut bytes = std::fs::read(&image).unwrap();
    bytes.resize(64 << 20, 0);
    let ((begun, beginning), (end, may_end)) = (channel(), channel());
    let memory = MemoryDisk::new(bytes.len() as u64).unwrap();
    write(&mut *memory.open_queue(1).unwrap(), 0, bytes).unwrap();
    let below = Arc::new(Slow {
        memory,
        begun,
        may_end: Mutex::new(may_end),
    });
    let disk = Arc::new(Setup::over(below, &Setup::new(&image)).unwrap());
    for by_queue in [false, true] {
        disk.activate().unwrap();
        let queue = by_queue.then(|| disk.open_queue(1).unwrap());
        let leaving = disk.clone();
        let left = std::thread::spawn(move || {
            leaving.deactivate().unwrap();
            drop(queue);
        });
        beginning.recv().unwrap();
        let (asking, (answer, answered)) = (disk.clone(), channel());
        std::thread::spawn(move || {
            let is_open = asking.open_queue(1).is_ok();
            answer.send((is_open, asking.flush_error().is_some(), asking.handover()))
        });
        let answered = answered.recv_timeout(Duration::from_secs(20));
        assert_eq!(answered, Ok((false, false, Handover::Never)));
        assert!(!left.is_finished());
        end.send(()).unwrap();
        left.join().unwrap();
    }
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
    let spec = parse(&text);
    assert_eq!(spec.to_string(), text);
    let denied = parse(&format!("qcow2:{},lock=handover", image.display()));
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
        assert!(matches!(active.handover(), Handover::Held(Some(_))));
        if turn == 0 {
            assert!(is_locked());
            let error = other.activate().unwrap_err().to_string();
            assert!(
                error.contains("locked") && error.contains("this process"),
                "{error}"
            );
        }
        // The other one waits for it, also for the queue of a flush.
        let flush = active.open_queue(1).unwrap();
        drop(queue);
        active.deactivate().unwrap();
        assert!(is_locked());
        assert_eq!(active.handover(), Handover::Released(None));
        if turn == 3 {
            // It is needed again before that.
            active.activate().unwrap();
            read(&mut *active.open_queue(1).unwrap(), 0, 512).unwrap();
            active.deactivate().unwrap();
        }
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| other.activate());
            drop(flush);
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
    // The file tells whether somebody wrote in between.
    for other_writes in [true, false] {
        let left = two[0].handover();
        two[1].activate().unwrap();
        let mut queue = two[1].open_queue(1).unwrap();
        if other_writes {
            write(&mut *queue, 0, vec![9; 512]).unwrap();
        }
        drop(queue);
        two[1].deactivate().unwrap();
        two[0].activate().unwrap();
        let Handover::Held(Some(found)) = two[0].handover() else {
            panic!("no stamp");
        };
        assert_eq!(left != Handover::Released(Some(found)), other_writes);
        two[0].deactivate().unwrap();
    }
    // Another image in its place is not taken for it.
    qemu::create(&image, "cluster_size=64k", 4 * SIZE);
    let error = two[0].activate().unwrap_err().to_string();
    assert!(error.contains("another image"), "{error}");
    assert!(!is_locked() && two[0].open_queue(1).is_err());
}

/// Who changes data in a file of its own leaves the image's file as it was.
#[test]
fn an_image_with_a_data_file_never_proves_that_nobody_wrote() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    let setup = format!("data_file={}", path(&directory, "data").display());
    qemu::create(&image, &setup, SIZE);
    let image = Qcow2File::new(&image).backing(true).lock(Lock::Handover);
    let disk = image.open().unwrap();
    for _ in 0..2 {
        assert_eq!(disk.handover(), Handover::Released(None));
        disk.activate().unwrap();
        assert_eq!(disk.handover(), Handover::Held(None));
        write(&mut *disk.open_queue(1).unwrap(), 0, vec![1; 512]).unwrap();
        disk.deactivate().unwrap();
    }
}

/// A disk in memory that has something done when it is let go of.
struct LetGo(MemoryDisk, Box<dyn Fn() + Send + Sync>);

impl Disk for LetGo {
    fn caps(&self) -> Caps {
        self.0.caps()
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        self.0.open_queue(depth)
    }

    fn deactivate(&self) -> Result<(), DiskError> {
        self.1();
        Ok(())
    }
}

/// Who takes over the image opens its data file at once.
#[test]
fn a_data_file_is_let_go_of_before_its_image() {
    let directory = directory();
    let (image, data) = (path(&directory, "disk.qcow2"), path(&directory, "data"));
    qemu::create(&image, &format!("data_file={}", data.display()), SIZE);
    let mut bytes = std::fs::read(&image).unwrap();
    bytes.resize(4 << 20, 0);
    let memory = MemoryDisk::new(bytes.len() as u64).unwrap();
    write(&mut *memory.open_queue(1).unwrap(), 0, bytes).unwrap();
    let (told, results) = channel();
    let next = move || {
        let opened = RawDisk::open(&RawOptions::new(&data).lock(Lock::On));
        told.send(opened.map(drop).map_err(|error| error.to_string()))
            .unwrap();
    };
    let below = Arc::new(LetGo(memory, Box::new(next)));
    let disk = Setup::over(below, &Setup::new(&image).backing(true)).unwrap();
    disk.deactivate().unwrap();
    assert_eq!(results.recv().unwrap(), Ok(()));
    disk.activate().unwrap();
    let queue = disk.open_queue(1).unwrap();
    disk.deactivate().unwrap();
    drop(queue);
    assert_eq!(results.recv().unwrap(), Ok(()));
}
