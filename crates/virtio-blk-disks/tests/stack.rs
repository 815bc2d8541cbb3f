// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Random stacks of layers against a vector of bytes, while layers come and go.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Act, BLOCK, Rig, act, directory, image, read, write};
use proptest::prelude::*;
use virtio_blk_core::disk::{Disk, IoBuf, OpKind};
use virtio_blk_disks::meter::{MeterOptions, OpClass};
use virtio_blk_disks::stack::{Groups, LayerArg, Stack};
use virtio_blk_disks::verify::VerifyOptions;
use virtio_blk_disks::{Engine, MemoryDisk, RawDisk, RawOptions};

const BLOCKS: u64 = 1024;

/// Layers that neither fail nor take long.
fn stack() -> impl Strategy<Value = Vec<LayerArg>> {
    let texts = [
        "meter",
        "dirty=a",
        "dirty=b/granularity:512",
        "throttle=iops:5000/bandwidth:1G",
        "throttle=write_iops:8000/burst:100000/group:g",
        "fault=seed:7/reorder:on",
        "fault=seed:8/delay:0.002/reorder:on",
    ];
    let all: Vec<LayerArg> = texts.iter().map(|text| text.parse().unwrap()).collect();
    let some = proptest::sample::subsequence(all, 0..=5).prop_shuffle();
    some.prop_filter("one fault layer", |layers| {
        layers.iter().filter(|l| l.name() == "fault").count() < 2
    })
}

/// Any layers, one of which checks the others.
fn checked_stack() -> impl Strategy<Value = Vec<LayerArg>> {
    (stack(), 0_usize..6).prop_map(|(mut layers, at)| {
        layers.insert(at.min(layers.len()), LayerArg::new(VerifyOptions {}));
        layers
    })
}

#[derive(Clone, Debug)]
enum Step {
    Act(Act),
    Change(Vec<LayerArg>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => act(BLOCKS, 16).prop_map(Step::Act),
        1 => stack().prop_map(Step::Change),
    ];
    proptest::collection::vec(step, 1..50)
}

fn run(base: Arc<dyn Disk>, start: &[LayerArg], depth: u16, steps: Vec<Step>) -> Vec<u8> {
    let stack = Stack::live(base, start, Groups::default()).unwrap();
    let mut rig = Rig::new(&*stack.disk(), depth, BLOCK);
    for step in steps {
        match step {
            Step::Act(act) => rig.act(act),
            Step::Change(layers) => stack.change(&layers).unwrap(),
        }
    }
    let content = rig.finish();
    stack.is_settled().unwrap();
    content
}

fn depth() -> impl Strategy<Value = u16> {
    prop_oneof![Just(1), Just(2), Just(32)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, ..ProptestConfig::default() })]

    #[test]
    fn memory(start in stack(), depth in depth(), steps in steps()) {
        let base = Arc::new(MemoryDisk::new(BLOCKS * BLOCK as u64).unwrap());
        run(base, &start, depth, steps);
    }

    #[test]
    fn raw(start in stack(), depth in depth(), steps in steps(), ring in any::<bool>()) {
        let directory = directory();
        let path = image(directory.path(), BLOCKS as usize * BLOCK);
        let engine = if ring && cfg!(feature = "io-uring") { Engine::IoUring } else { Engine::Auto };
        let base = Arc::new(RawDisk::open(&RawOptions::new(&path).engine(engine)).unwrap());
        let content = run(base, &start, depth, steps);
        prop_assert!(std::fs::read(&path).unwrap() == content);
    }

    #[test]
    fn no_stack_lies(layers in checked_stack(), depth in depth(), live in any::<bool>(), acts in proptest::collection::vec(act(BLOCKS, 16), 1..50)) {
        let base = Arc::new(MemoryDisk::new(BLOCKS * BLOCK as u64).unwrap());
        let stack = if live {
            Stack::live(base, &layers, Groups::default())
        } else {
            Stack::fixed(base, &layers, Groups::default())
        };
        let stack = stack.unwrap();
        let mut rig = Rig::new(&*stack.disk(), depth, BLOCK);
        acts.into_iter().for_each(|act| rig.act(act));
        rig.finish();
        prop_assert_eq!(stack.verify().unwrap().mismatch(), None);
    }

    #[test]
    fn failures_leave_what_they_may(
        seed in any::<u64>(),
        above in stack(),
        changes in proptest::collection::vec((0..5_u8, 0..40_u64, 1..12_u64), 1..80),
    ) {
        let base = Arc::new(MemoryDisk::new(64 * BLOCK as u64).unwrap());
        let fault = format!("fault=seed:{seed}/errors:150/torn:150/reorder:on");
        let mut layers: Vec<LayerArg> = vec![fault.parse().unwrap(), LayerArg::new(VerifyOptions {})];
        layers.extend(above.into_iter().filter(|l| !["fault", "meter"].contains(&l.name())));
        layers.push(LayerArg::new(MeterOptions {}));
        let stack = Stack::fixed(base, &layers, Groups::default()).unwrap();
        let mut queue = stack.disk().open_queue(4).unwrap();
        // What each block may hold.
        let mut model = vec![vec![0_u8]; 64];
        let mut counted: HashMap<&str, (u64, u64)> = HashMap::new();
        for (number, (what, at, count)) in (1_u8..).zip(changes) {
            let (offset, len) = (at * BLOCK as u64, count * BLOCK as u64);
            let (kind, class, left) = match what {
                0 | 1 => (OpKind::Write { offset, fua: what == 1 }, OpClass::Write, Some(number)),
                2 => (OpKind::WriteZeroes { offset, len, unmap: false, fua: false }, OpClass::WriteZeroes, Some(0)),
                3 => (OpKind::Discard { offset, len }, OpClass::Discard, Some(0)),
                _ => (OpKind::Read { offset }, OpClass::Read, None),
            };
            let buf = match what {
                0 | 1 | 4 => IoBuf::from_vec(vec![number; len as usize]),
                _ => IoBuf::new(),
            };
            let done = common::run(&mut *queue, kind, buf);
            let (oks, errors) = counted.entry(class.name()).or_default();
            *if done.result.is_ok() { oks } else { errors } += 1;
            let blocks = &mut model[at as usize..(at + count) as usize];
            match (left, done.result) {
                (Some(left), Ok(())) => blocks.fill(vec![left]),
                (Some(left), Err(_)) => blocks.iter_mut().for_each(|block| block.push(left)),
                (None, Ok(())) => {
                    let data = done.buf.to_vec();
                    for (block, found) in blocks.iter_mut().zip(data.chunks(BLOCK)) {
                        prop_assert!(found.iter().all(|byte| *byte == found[0]), "torn inside a block");
                        prop_assert!(block.contains(&found[0]), "{} is none of {block:?}", found[0]);
                        // Nothing changes by itself.
                        *block = vec![found[0]];
                    }
                }
                (None, Err(_)) => {}
            }
        }
        prop_assert_eq!(stack.verify().unwrap().mismatch(), None);
        let total = stack.meter().unwrap().total();
        for class in OpClass::ALL {
            let stats = total.class(class);
            let (oks, errors) = counted.get(class.name()).copied().unwrap_or_default();
            prop_assert_eq!((stats.count(), stats.errors), (oks + errors, errors), "{}", class.name());
        }
    }

    #[test]
    fn each_write_is_in_the_bitmaps(acts in proptest::collection::vec(act(BLOCKS, 16), 1..40), depth in depth()) {
        let base = Arc::new(MemoryDisk::new(BLOCKS * BLOCK as u64).unwrap());
        let layers: Vec<LayerArg> = ["dirty=all/granularity:512", "fault=seed:1/reorder:on"]
            .iter().map(|text| text.parse().unwrap()).collect();
        let stack = Stack::fixed(base, &layers, Groups::default()).unwrap();
        let mut rig = Rig::new(&*stack.disk(), depth, BLOCK);
        let bitmap = stack.dirty("all").unwrap().bitmap("all").unwrap();
        bitmap.clear().unwrap();
        let before = rig.model.clone();
        acts.into_iter().for_each(|act| rig.act(act));
        let after = rig.finish();
        let changes = bitmap.take().changes.ranges;
        for (at, (old, new)) in before.iter().zip(&after).enumerate() {
            let at = at as u64;
            let is_marked = changes.iter().any(|(start, len)| (*start..start + len).contains(&at));
            prop_assert!(old == new || is_marked, "byte {at}");
        }
    }
}

/// Queues at work on threads, each on blocks of its own, while another thread changes the layers.
#[test]
fn layers_come_and_go_under_load() {
    let directory = directory();
    let path = image(directory.path(), 1 << 20);
    let base = Arc::new(RawDisk::open(&RawOptions::new(&path)).unwrap());
    let stack = Stack::live(base, &[], Groups::default()).unwrap();
    let disk = stack.disk();
    let working = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let queues: Vec<_> = (0..3_u64)
            .map(|number| {
                let mut queue = disk.open_queue(8).unwrap();
                scope.spawn(move || {
                    for round in 0..600_u64 {
                        let offset = (round % 20 * 3 + number) * 512;
                        let data = vec![(round * 3 + number) as u8; 512];
                        write(&mut *queue, offset, data.clone()).unwrap();
                        assert!(read(&mut *queue, offset, 512).unwrap() == data);
                    }
                })
            })
            .collect();
        let changer = scope.spawn(|| {
            let stacks = [
                "meter|dirty=a",
                "throttle=iops:20000|meter|fault=seed:1/reorder:on",
                "",
                "dirty=a|throttle=iops:50000/group:g",
            ];
            let mut changes = 0;
            while working.load(Ordering::Relaxed) || changes < stacks.len() {
                let texts = stacks[changes % stacks.len()].split('|');
                let layers: Vec<LayerArg> = (texts.filter(|text| !text.is_empty()))
                    .map(|text| text.parse().unwrap())
                    .collect();
                stack.change(&layers).unwrap();
                stack.is_settled().unwrap();
                changes += 1;
                std::thread::yield_now();
            }
        });
        for queue in queues {
            queue.join().unwrap();
        }
        working.store(false, Ordering::Relaxed);
        changer.join().unwrap();
    });
    assert!(stack.is_settled().unwrap(), "closed queues hold nobody up");
}
