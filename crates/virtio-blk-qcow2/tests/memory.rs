// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an image takes of memory, however large it is and whatever its guest does. A process of its own, whose memory is
//! looked at.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../virtio-blk-disks/tests/common/mod.rs"]
mod common;
mod files;
#[path = "../../virtio-blk-disks/tests/common/qemu.rs"]
mod qemu;

use std::path::Path;

use common::{directory, read, run, write};
use files::path;
use virtio_blk_core::disk::{Disk, IoBuf, OpKind};
use virtio_blk_disks::Engine;
use virtio_blk_qcow2::Qcow2File;

const MIB: u64 = 1 << 20;
/// What the documentation says of an image, and of a queue.
const IMAGE: u64 = 64 * MIB;
const QUEUE: u64 = MIB;

/// Bytes that this process has for itself.
fn own() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let mut words = line.unwrap().split_whitespace();
    words.nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Uses an image of `size` bytes, each of whose slices of tables holds `reach` bytes of the guest.
fn use_image(image: &Path, size: u64, reach: u64) {
    let before = own();
    let setup = Qcow2File::new(image).engine(Engine::Sync);
    let disk = setup.open().unwrap();
    let mut queue = disk.open_queue(1).unwrap();
    // More than are kept in memory.
    let slices = 20_000.min(size / reach);
    for number in 0..slices {
        let at = size / slices * number / reach * reach;
        assert!(read(&mut *queue, at, 512).unwrap() == [0; 512]);
    }
    // Tables that are there, and places that are given back.
    for round in 0..2 {
        for number in 0..1000 {
            let at = size / 1000 * number / 512 * 512;
            write(&mut *queue, at, vec![1; 512]).unwrap();
        }
        for number in (0..1000).step_by(2 - round) {
            let offset = size / 1000 * number / reach * reach;
            let kind = OpKind::Discard { offset, len: reach };
            run(&mut *queue, kind, IoBuf::new()).result.unwrap();
        }
    }
    let used = own().saturating_sub(before);
    assert!(used < IMAGE, "{} MiB for an image", used / MIB);
    let queues: Vec<_> = (0..16).map(|_| disk.open_queue(256).unwrap()).collect();
    let more = own().saturating_sub(before + used);
    assert!(more < 16 * QUEUE, "{} MiB for 16 queues", more / MIB);
    println!(
        "{} MiB for an image of {} GiB, {} KiB for each queue",
        used / MIB,
        size >> 30,
        more >> 14
    );
    drop((queues, queue, disk));
    qemu::check(image);
}

#[test]
fn it_has_a_bound() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    for (setup, size, reach) in [
        ("cluster_size=64k", 16_u64 << 40, 32 * MIB),
        ("cluster_size=512", 64 << 30, 32 << 10),
    ] {
        qemu::create(&image, setup, size as usize);
        use_image(&image, size, reach);
    }
}
