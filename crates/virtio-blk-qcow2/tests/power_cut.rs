// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Power cuts under a qcow2 image: whatever part of the unflushed writes to the file below arrives, the image
//! is sound and holds what was promised to the guest.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../virtio-blk-disks/tests/common/mod.rs"]
mod common;
mod files;
#[path = "../../virtio-blk-disks/tests/common/qemu.rs"]
mod qemu;

use std::path::Path;
use std::sync::Arc;

use fastrand::Rng;

use common::{directory, read, run, write};
use files::Setup;
use virtio_blk_core::disk::{Disk, IoBuf, OpKind};
use virtio_blk_disks::MemoryDisk;
use virtio_blk_disks::power_cut::{Content, Cut, Moment, PowerCutDisk};
use virtio_blk_qcow2::{Qcow2Disk, Repair, check};

/// Bytes of the guest's disk, and of the disk that the image lies on.
const GUEST: usize = 256 << 10;
const HOST: usize = 1 << 20;
const SECTOR: usize = 512;

fn memory(content: &[u8]) -> Arc<MemoryDisk> {
    let disk = Arc::new(MemoryDisk::new(content.len() as u64).unwrap());
    write(&mut *disk.open_queue(1).unwrap(), 0, content.to_vec()).unwrap();
    disk
}

/// A moment of the disk below, and what the guest may expect then.
struct Step {
    below: Moment,
    guest: Moment,
}

/// Random operations one after the other. The last event below of each, and the guest's events around.
fn load(
    guest: &PowerCutDisk<Qcow2Disk>,
    below: &PowerCutDisk,
    rng: &mut Rng,
    erases: bool,
) -> Vec<Step> {
    let mut queue = guest.open_queue(4).unwrap();
    let mut steps = Vec::new();
    for turn in 0..160_u64 {
        let begun = guest.now() + 1;
        let sectors = match rng.u64(..8) {
            0 => 1 + rng.u64(..64),
            _ => 1 + rng.u64(..9),
        };
        let len = sectors * SECTOR as u64;
        let mut offset = rng.u64(..(GUEST as u64 - len) / SECTOR as u64) * SECTOR as u64;
        // A part of the disk only, so that clusters are used again.
        if turn % 3 != 0 {
            offset %= 64 << 10;
        }
        // Whole clusters now and then.
        let (mut offset, len) = match rng.u64(..3) {
            0 => (offset & !4095, len.next_multiple_of(4096).min(64 << 10)),
            _ => (offset, len),
        };
        offset = offset.min(GUEST as u64 - len);
        let fua = rng.u64(..8) == 0;
        let (kind, buf) = match rng.u64(..16) {
            // Half of the changes give clusters up.
            choice if erases && choice > 8 => (
                OpKind::Discard {
                    offset: offset & !511,
                    len,
                },
                IoBuf::new(),
            ),
            0..=1 => (OpKind::Flush, IoBuf::new()),
            2 => (
                OpKind::Discard {
                    offset,
                    len: len * 4 % (128 << 10),
                },
                IoBuf::new(),
            ),
            3..=4 => (
                OpKind::WriteZeroes {
                    offset,
                    len,
                    unmap: rng.u64(..2) == 0,
                    fua,
                },
                IoBuf::new(),
            ),
            _ => {
                let data = (0..len).map(|at| (turn + at / SECTOR as u64 * 31) as u8 | 1);
                (
                    OpKind::Write { offset, fua },
                    IoBuf::from_vec(data.collect()),
                )
            }
        };
        if matches!(kind, OpKind::Discard { offset, len } if offset + len > GUEST as u64 || len == 0)
        {
            continue;
        }
        let first = below.now();
        run(&mut *queue, kind, buf).result.unwrap();
        // Before the end of the operation, the guest has no answer.
        steps.extend((first..below.now()).map(|below| Step {
            below,
            guest: begun,
        }));
        steps.push(Step {
            below: below.now(),
            guest: guest.now(),
        });
    }
    steps
}

/// The disk below after a cut: each sector has one of its possible contents, the newest with a chance of
/// `percent`.
fn leave(cut: &Cut, original: &[u8], percent: u64, rng: &mut Rng) -> Vec<u8> {
    let mut left = original.to_vec();
    for (sector, choice) in cut.sectors() {
        let count = choice.contents.len() + usize::from(choice.original);
        let newest = choice.contents.len() - 1;
        let index = if rng.u64(..100) < percent {
            newest
        } else {
            rng.u64(..count as u64) as usize
        };
        // The image grows.
        let end = (sector as usize + 1) * SECTOR;
        left.resize(left.len().max(end), 0);
        let place = &mut left[sector as usize * SECTOR..][..SECTOR];
        match choice.contents.get(index) {
            Some(Content::Data(data)) => place.copy_from_slice(data),
            Some(Content::Zero | Content::Any) => place.fill(0),
            None => {}
        }
    }
    left
}

struct Case {
    seed: u64,
    setup: &'static str,
    backing: bool,
    /// The image is used before; a snapshot, so that data is copied.
    snapshot: bool,
    /// Mostly discards, and allocations in what they gave up.
    erases: bool,
    /// States that are tried; every so many of them by QEMU, too.
    states: usize,
    by_qemu: usize,
}

fn play(case: &Case) {
    let directory = directory();
    let path = directory.path().join("disk.qcow2");
    let name = path.to_str().unwrap();
    let mut content = vec![0; GUEST];
    if case.backing {
        content
            .iter_mut()
            .enumerate()
            .for_each(|(at, byte)| *byte = (at / 97) as u8);
        std::fs::write(directory.path().join("base.img"), &content).unwrap();
        let options = format!("{},backing_file=base.img,backing_fmt=raw", case.setup);
        qemu::create(&path, &options, GUEST);
    } else {
        qemu::create(&path, case.setup, GUEST);
    }
    if case.snapshot {
        let disk = Setup::open(&Setup::new(&path)).unwrap();
        let half = vec![0xaa; GUEST / 2];
        write(&mut *disk.open_queue(1).unwrap(), 0, half).unwrap();
        content[..GUEST / 2].fill(0xaa);
        drop(disk);
        qemu::ok(&["snapshot", "-q", "-c", "before", name]);
    }
    let mut original = std::fs::read(&path).unwrap();
    original.resize(HOST, 0);
    let options = Setup::new(&path).backing(case.backing);

    let below = Arc::new(PowerCutDisk::<dyn Disk>::new(memory(&original)));
    let image = Setup::over(below.clone(), &options).unwrap();
    let guest = PowerCutDisk::new(Arc::new(image));
    let mut rng = Rng::with_seed(case.seed);
    let steps = load(&guest, &below, &mut rng, case.erases);

    let states = if files::long() {
        case.states
    } else {
        case.states / 3
    };
    for state in 0..states {
        // At first the most is new: tables, and counts.
        let among = if state % 3 == 0 { 50 } else { steps.len() };
        let step = &steps[rng.u64(..among as u64) as usize];
        let percent = [0, 50, 90, 100][state % 4];
        let left = leave(&below.cut(step.below), &original, percent, &mut rng);
        let about = format!("seed {}, {}, event {}", case.seed, case.setup, step.below);
        let disk =
            Setup::over(memory(&left), &options).unwrap_or_else(|error| panic!("{about}: {error}"));
        let found = read(&mut *disk.open_queue(1).unwrap(), 0, GUEST)
            .unwrap_or_else(|error| panic!("{about}: {error}"));
        let part = |from: &[u8], at: u64, into: &mut [u8]| {
            into.copy_from_slice(&from[at as usize..][..into.len()]);
        };
        let legal = guest.cut(step.guest).check(
            |at, sector| part(&found, at, sector),
            |at, sector| part(&content, at, sector),
        );
        assert!(legal.is_ok(), "{about}: {legal:?}");
        // What was never written to.
        let changed = guest.cut(step.guest);
        for at in (0..GUEST as u64 / 512).filter(|at| changed.sector(*at).is_none()) {
            let range = at as usize * SECTOR..(at as usize + 1) * SECTOR;
            assert!(
                found[range.clone()] == content[range],
                "{about}: sector {at}"
            );
        }
        // What is left, before anybody opened it.
        let name = Path::new("left");
        let disk: Arc<dyn Disk> = memory(&left);
        let sound = check(&disk, name, Repair::Nothing, &mut |_, _| ()).unwrap();
        assert_eq!(sound.corruptions, 0, "{about}: {:?}", sound.told);
        if state % case.by_qemu == 0 {
            let copy = directory.path().join("copy.qcow2");
            std::fs::write(&copy, &left).unwrap();
            qemu::check_after_crash(&copy);
            qemu::compare(&copy, &found);
        }
    }
}

#[test]
fn new_images_survive_power_cuts() {
    for (seed, setup) in (1..).zip(["cluster_size=4k", "cluster_size=512,refcount_bits=64"]) {
        play(&Case {
            seed,
            setup,
            backing: false,
            snapshot: false,
            erases: false,
            states: 300,
            by_qemu: 10,
        });
    }
}

#[test]
fn images_over_others_survive_power_cuts() {
    play(&Case {
        seed: 3,
        setup: "cluster_size=4k",
        backing: true,
        snapshot: false,
        erases: false,
        states: 300,
        by_qemu: 10,
    });
}

#[test]
fn images_with_subclusters_survive_power_cuts() {
    for (seed, backing) in [(11, true), (12, false)] {
        play(&Case {
            seed,
            setup: "cluster_size=16k,extended_l2=on",
            backing,
            snapshot: false,
            erases: false,
            states: 200,
            by_qemu: 10,
        });
    }
}

#[test]
fn images_with_snapshots_survive_power_cuts() {
    play(&Case {
        seed: 4,
        setup: "cluster_size=4k",
        backing: false,
        snapshot: true,
        erases: false,
        states: 300,
        by_qemu: 10,
    });
}

#[test]
fn images_of_much_discarded_survive_power_cuts() {
    for (seed, setup, backing) in [
        (5, "cluster_size=512", false),
        (6, "cluster_size=512,refcount_bits=64", true),
    ] {
        play(&Case {
            seed,
            setup,
            backing,
            snapshot: false,
            erases: true,
            states: 120,
            by_qemu: 15,
        });
    }
}
