// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Every disk against a vector of bytes, through a queue, at several depths.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;

use common::{Act, BLOCK, Layout, Rig, act, directory, image, read, write};
use proptest::prelude::*;
use virtio_blk_core::disk::Disk;
use virtio_blk_disks::{Engine, FaultDisk, FaultPlan, MemoryDisk, RawDisk, RawOptions};

const BLOCKS: u64 = 1024;

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let most = prop_oneof![6 => Just(16_u64), 1 => Just(700)];
    proptest::collection::vec(most.prop_flat_map(|most| act(BLOCKS, most)), 1..60)
}

fn depth() -> impl Strategy<Value = u16> {
    prop_oneof![Just(1), Just(2), Just(32), Just(300)]
}

/// Opens a disk; `None` where the host's file system takes no direct I/O.
fn open(options: &RawOptions, direct: bool) -> Option<RawDisk> {
    match RawDisk::open(&options.clone().direct(direct)) {
        Ok(disk) => Some(disk),
        Err(virtio_blk_disks::raw::OpenError::NoDirect { .. }) if direct => None,
        Err(error) => panic!("{error}"),
    }
}

/// Runs a sequence on a file, and looks at the file afterwards.
fn raw(engine: Engine, direct: bool, discard: bool, depth: u16, acts: Vec<Act>) {
    let directory = directory();
    let path = image(directory.path(), BLOCKS as usize * BLOCK);
    let options = RawOptions::new(&path).engine(engine).discard(discard);
    let Some(disk) = open(&options, direct) else {
        return;
    };
    let block = disk.caps().align.guest_block as usize;
    let scale = (block / BLOCK) as u64;
    let mut rig = Rig::new(&disk, depth, block);
    for act in acts {
        // Blocks may be larger here than where the sequence was made.
        rig.act(match act {
            Act::Read(at, n, layout) => Act::Read(at / scale, n, layout),
            Act::Write(at, n, layout, fua) => Act::Write(at / scale, n, layout, fua),
            Act::Discard(at, n) => Act::Discard(at / scale, n),
            Act::Zero(at, n, unmap, fua) => Act::Zero(at / scale, n, unmap, fua),
            Act::Erase(at, n) => Act::Erase(at / scale, n),
            Act::Flush => Act::Flush,
        });
    }
    let model = rig.finish();
    assert!(std::fs::read(&path).unwrap() == model);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn memory(acts in acts(), depth in depth()) {
        let disk = MemoryDisk::new(BLOCKS * BLOCK as u64).unwrap();
        let mut rig = Rig::new(&disk, depth, BLOCK);
        acts.into_iter().for_each(|act| rig.act(act));
        rig.finish();
    }

    #[test]
    fn memory_late_and_out_of_order(acts in acts(), depth in depth(), seed in any::<u64>()) {
        let inner = Arc::new(MemoryDisk::new(BLOCKS * BLOCK as u64).unwrap());
        let plan = FaultPlan::new(seed).delay_reaps(0..=4).reorder();
        let disk = FaultDisk::new(inner, plan);
        let mut rig = Rig::new(&disk, depth, BLOCK);
        acts.into_iter().for_each(|act| rig.act(act));
        rig.finish();
    }

    #[test]
    fn raw_sync(acts in acts(), depth in depth(), discard in any::<bool>()) {
        raw(Engine::Sync, false, discard, depth, acts);
    }

    #[test]
    fn raw_sync_direct(acts in acts(), depth in depth(), discard in any::<bool>()) {
        raw(Engine::Sync, true, discard, depth, acts);
    }

    #[test]
    fn raw_auto(acts in acts(), depth in depth(), discard in any::<bool>()) {
        raw(Engine::Auto, false, discard, depth, acts);
    }
}

#[cfg(feature = "io-uring")]
mod io_uring {
    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

        #[test]
        fn raw_ring(acts in acts(), depth in depth(), discard in any::<bool>()) {
            raw(Engine::IoUring, false, discard, depth, acts);
        }

        #[test]
        fn raw_ring_direct(acts in acts(), depth in depth(), discard in any::<bool>()) {
            raw(Engine::IoUring, true, discard, depth, acts);
        }

        #[test]
        fn raw_ring_late_and_refusing(
            acts in acts(),
            depth in depth(),
            seed in any::<u64>(),
        ) {
            let directory = directory();
            let path = image(directory.path(), BLOCKS as usize * BLOCK);
            let inner = Arc::new(RawDisk::open(&RawOptions::new(&path).engine(Engine::IoUring)).unwrap());
            let plan = FaultPlan::new(seed).delay_reaps(0..=3).reorder().full_per_mille(200);
            let disk = FaultDisk::new(inner, plan);
            let mut rig = Rig::new(&disk, depth, BLOCK);
            acts.into_iter().for_each(|act| rig.act(act));
            let model = rig.finish();
            prop_assert!(std::fs::read(&path).unwrap() == model);
        }
    }
}

/// Queues of one disk at once, each on blocks of its own that share pages and chunks with the others'.
fn at_once(disk: &dyn Disk) {
    let block = disk.caps().align.guest_block as u64;
    std::thread::scope(|scope| {
        for number in 0..4_u64 {
            let mut queue = disk.open_queue(8).unwrap();
            scope.spawn(move || {
                let layout = Layout {
                    shift: number as usize,
                    piece: 1000,
                };
                for round in 0..40 {
                    let offset = (round % 20 * 4 + number) * block;
                    let data = vec![(round * 4 + number) as u8; block as usize];
                    let kind = virtio_blk_core::disk::OpKind::Write { offset, fua: false };
                    common::run(&mut *queue, kind, layout.buffer(&data))
                        .result
                        .unwrap();
                    assert!(read(&mut *queue, offset, data.len()).unwrap() == data);
                }
            });
        }
    });
}

#[test]
fn queues_work_at_once() {
    at_once(&MemoryDisk::new(1 << 20).unwrap());
    for engine in [Engine::Sync, Engine::Auto, Engine::IoUring] {
        for direct in [false, true] {
            let directory = directory();
            let path = image(directory.path(), 1 << 20);
            let options = RawOptions::new(&path).engine(engine);
            if cfg!(not(feature = "io-uring")) && engine == Engine::IoUring {
                continue;
            }
            if let Some(disk) = open(&options, direct) {
                at_once(&disk);
            }
        }
    }
}

#[test]
fn an_operation_much_longer_than_the_bounce_memory_works() {
    for engine in [Engine::Sync, Engine::Auto] {
        let directory = directory();
        let path = image(directory.path(), 8 << 20);
        let options = RawOptions::new(&path).engine(engine);
        let Some(disk) = open(&options, true) else {
            return;
        };
        let mut queue = disk.open_queue(4).unwrap();
        let data: Vec<u8> = (0..8 << 20).map(|i: u32| (i / 511) as u8).collect();
        let layout = Layout {
            shift: 1,
            piece: 33_333,
        };
        let kind = virtio_blk_core::disk::OpKind::Write {
            offset: 0,
            fua: true,
        };
        common::run(&mut *queue, kind, layout.buffer(&data))
            .result
            .unwrap();
        assert!(std::fs::read(&path).unwrap() == data);
        write(&mut *queue, 0, vec![1; 4096]).unwrap();
    }
}
