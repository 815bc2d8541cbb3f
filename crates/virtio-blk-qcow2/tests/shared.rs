// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Images that lie on another disk, which others may use in turn.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../virtio-blk-disks/tests/common/mod.rs"]
mod common;
mod files;
#[path = "../../virtio-blk-disks/tests/common/qemu.rs"]
mod qemu;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{directory, read, run, wait, write};
use files::{SIZE, Setup, path, sizes};
use virtio_blk_core::disk::{Disk, Handover, IoBuf, Op, OpKind, Submit, Token};
use virtio_blk_disks::throttle::{Limits, Rate};
use virtio_blk_disks::{Lock, MemoryDisk, RawDisk, RawOptions, ThrottleDisk, ThrottleGroup};

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
