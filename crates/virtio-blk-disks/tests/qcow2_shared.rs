// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! qcow2 images between several users: locks, hand-overs, and a disk below that is limited.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "common/images.rs"]
mod images;
#[path = "common/qemu.rs"]
mod qemu;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{BLOCK, directory, read, run, wait, write};
use images::{SIZE, open, path, sizes};
use virtio_blk_core::disk::{
    Caps, Disk, DiskError, Handover, IoBuf, IoQueue, Op, OpKind, Submit, Token,
};
use virtio_blk_disks::throttle::{Limits, Rate};
use virtio_blk_disks::{DiskArg, MemoryDisk, Qcow2Disk, Qcow2Options, ThrottleDisk, ThrottleGroup};

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
    let spec: DiskArg = format!("qcow2:{}", image.display()).parse().unwrap();
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
    let disk = Arc::new(Qcow2Disk::over(below, &Qcow2Options::new(&image)).unwrap());
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
    let spec: DiskArg = text.parse().unwrap();
    assert_eq!(spec.to_string(), text);
    let denied: DiskArg = format!("qcow2:{},lock=handover", image.display())
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
        assert_eq!(active.handover(), Handover::Held(None));
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
    // Another image in its place is not taken for it.
    qemu::create(&image, "cluster_size=64k", 4 * SIZE);
    let error = two[0].activate().unwrap_err().to_string();
    assert!(error.contains("another image"), "{error}");
    assert!(!is_locked() && two[0].open_queue(1).is_err());
}
