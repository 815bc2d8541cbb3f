// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Each system call on a qcow2 image fails in turn, once or for good: whatever was acknowledged and flushed is there
//! after reopening, unless an error was reported at or before that flush.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../virtio-blk-disks/tests/common/mod.rs"]
mod common;
mod files;
#[path = "../../virtio-blk-disks/tests/common/qemu.rs"]
mod qemu;

use std::path::{Path, PathBuf};

use common::{directory, read, run, wait, write};
use files::Setup;
use virtio_blk_core::disk::{Completion, Disk, IoBuf, IoQueue, Op, OpKind, Submit, Token};
use virtio_blk_disks::Engine;
use virtio_blk_disks::inject::{Call, Injector, Keep, Plan};

const SECTOR: usize = 512;
/// Bytes of the guest's disk: several L2 tables with clusters of 512 bytes.
const SIZE: usize = 128 << 10;

/// What a sector may hold. Its values are bytes that fill it; those of the first image are given by its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Value {
    Original,
    Byte(u8),
}

/// The values of a sector that a reader may find, oldest first, and whether they were acknowledged.
type History = Vec<(Value, bool)>;

/// What was promised to the guest.
struct Promise {
    sectors: Vec<History>,
    /// A flush failed.
    lost: bool,
}

impl Promise {
    fn new() -> Self {
        Self {
            sectors: vec![vec![(Value::Original, true)]; SIZE / SECTOR],
            lost: false,
        }
    }

    fn changed(&mut self, offset: u64, len: u64, value: u8, acknowledged: bool) {
        let sectors = offset as usize / SECTOR..(offset + len) as usize / SECTOR;
        for history in &mut self.sectors[sectors] {
            history.push((Value::Byte(value), acknowledged));
        }
    }

    /// What was acknowledged is stable.
    fn flushed(&mut self) {
        for history in &mut self.sectors {
            let last = history.iter().rposition(|(_, acknowledged)| *acknowledged);
            history.drain(..last.unwrap());
        }
    }

    /// Whether a disk may hold this. After a power cut (`cut`), what was not flushed may be missing.
    fn check(&self, original: &[u8], found: &[u8], cut: bool) -> Result<(), String> {
        for (number, (sector, history)) in found.chunks(SECTOR).zip(&self.sectors).enumerate() {
            let first = history.iter().rposition(|(_, acknowledged)| *acknowledged);
            let first = if cut { 0 } else { first.unwrap() };
            let legal = history[first..].iter().any(|(value, _)| match value {
                Value::Original => sector == &original[number * SECTOR..][..SECTOR],
                Value::Byte(byte) => sector.iter().all(|found| found == byte),
            });
            if !legal {
                let (found, legal) = (&sector[..4], &history[first..]);
                return Err(format!(
                    "sector {number} is {found:x?}, not one of {legal:?}"
                ));
            }
        }
        Ok(())
    }
}

/// One thing that the guest does. Offsets and lengths in sectors.
#[derive(Clone, Copy)]
enum Act {
    Write(u64, u64),
    Stable(u64, u64),
    Discard(u64, u64),
    Zero(u64, u64, bool),
    Read(u64, u64),
    Flush,
}

/// New clusters, whole and in part, in several tables; clusters that are given up and used again; barriers.
const SCRIPT: [Act; 26] = [
    Act::Write(3, 2),
    Act::Write(64, 16),
    Act::Flush,
    Act::Write(8, 8),
    Act::Write(16, 8),
    Act::Read(0, 32),
    Act::Discard(64, 16),
    Act::Write(72, 1),
    Act::Flush,
    Act::Write(130, 20),
    Act::Zero(8, 8, true),
    Act::Write(9, 1),
    Act::Stable(200, 3),
    Act::Discard(0, 192),
    Act::Write(40, 70),
    Act::Zero(200, 8, false),
    Act::Flush,
    Act::Write(202, 2),
    Act::Write(40, 8),
    Act::Discard(40, 32),
    Act::Write(150, 40),
    Act::Flush,
    Act::Write(3, 1),
    Act::Read(0, 256),
    Act::Zero(128, 16, true),
    Act::Write(129, 9),
];

/// A change, its place in bytes, and the value that it leaves.
struct Change {
    kind: OpKind,
    offset: u64,
    len: u64,
    value: u8,
}

impl Act {
    fn change(self, turn: usize) -> Option<Change> {
        let place = |at: u64, n: u64| (at * SECTOR as u64, n * SECTOR as u64);
        let ((offset, len), fua) = match self {
            Self::Write(at, n) | Self::Discard(at, n) | Self::Zero(at, n, _) => {
                (place(at, n), false)
            }
            Self::Stable(at, n) => (place(at, n), true),
            Self::Read(..) | Self::Flush => return None,
        };
        let (kind, value) = match self {
            Self::Discard(..) => (OpKind::Discard { offset, len }, 0),
            Self::Zero(_, _, unmap) => {
                let kind = OpKind::WriteZeroes {
                    offset,
                    len,
                    unmap,
                    fua,
                };
                (kind, 0)
            }
            _ => (OpKind::Write { offset, fua }, turn as u8 + 1),
        };
        Some(Change {
            kind,
            offset,
            len,
            value,
        })
    }
}

impl Change {
    fn op(&self, token: u64) -> Op {
        let data = matches!(self.kind, OpKind::Write { .. });
        let buf = vec![self.value; if data { self.len as usize } else { 0 }];
        Op {
            token: Token(token),
            kind: self.kind,
            buf: IoBuf::from_vec(buf),
        }
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.offset < other.offset + other.len && other.offset < self.offset + self.len
    }
}

/// A guest with two queues.
struct Guest<'a> {
    queues: [Box<dyn IoQueue>; 2],
    original: &'a [u8],
    promise: Promise,
    failures: usize,
}

impl<'a> Guest<'a> {
    fn new(disk: &dyn Disk, original: &'a [u8]) -> Self {
        let queue = || disk.open_queue(32).unwrap();
        Self {
            queues: [queue(), queue()],
            original,
            promise: Promise::new(),
            failures: 0,
        }
    }

    /// Runs operations at once, every other one on the second queue. Whether each succeeded is the answer.
    fn run(&mut self, ops: Vec<Op>) -> Vec<bool> {
        let mut results = vec![None; ops.len()];
        let mut note = |completion: Completion| {
            let place: &mut Option<bool> = &mut results[completion.token.0 as usize];
            assert!(place.replace(completion.result.is_ok()).is_none());
        };
        let mut flight = [0; 2];
        for (number, op) in ops.into_iter().enumerate() {
            match self.queues[number % 2].submit(op) {
                Submit::Done(completion) => note(completion),
                Submit::Queued => flight[number % 2] += 1,
                Submit::Full(_) => panic!("full"),
            }
        }
        for (queue, flight) in self.queues.iter_mut().zip(&mut flight) {
            queue.flush_batch().unwrap();
            let mut done = Vec::new();
            while *flight > 0 {
                if queue.reap(&mut done).unwrap() == 0 {
                    wait(&**queue);
                }
                *flight -= done.len();
                done.drain(..).for_each(&mut note);
            }
        }
        results.into_iter().map(Option::unwrap).collect()
    }

    fn change(&mut self, changes: &mut Vec<Change>) {
        let ops = (0..).zip(&*changes).map(|(token, change)| change.op(token));
        let results = self.run(ops.collect());
        for (change, acknowledged) in changes.drain(..).zip(results) {
            let Change {
                offset, len, value, ..
            } = change;
            self.promise.changed(offset, len, value, acknowledged);
            self.failures += usize::from(!acknowledged);
        }
    }

    /// Flushes on both queues at once.
    fn flush(&mut self) {
        let flush = |token| Op {
            token: Token(token),
            kind: OpKind::Flush,
            buf: IoBuf::new(),
        };
        let results = self.run(vec![flush(0), flush(1)]);
        if results.contains(&true) {
            assert!(!self.promise.lost, "a flush succeeds after one that failed");
            self.promise.flushed();
        }
        let failed = results.iter().filter(|result| !**result).count();
        self.promise.lost |= failed > 0;
        self.failures += failed;
    }

    /// Does all of the script, whatever fails. If `at_once`, what does not overlap.
    fn play(&mut self, at_once: bool) {
        let mut changes: Vec<Change> = Vec::new();
        for (turn, act) in SCRIPT.iter().enumerate() {
            if let Some(change) = act.change(turn) {
                if !at_once || changes.iter().any(|other| other.overlaps(&change)) {
                    self.change(&mut changes);
                }
                changes.push(change);
                continue;
            }
            self.change(&mut changes);
            match *act {
                Act::Read(at, n) => {
                    let (offset, len) = (at * SECTOR as u64, n as usize * SECTOR);
                    match read(&mut *self.queues[0], offset, len) {
                        Ok(found) if len == SIZE => {
                            self.promise.check(self.original, &found, false).unwrap();
                        }
                        Ok(_) => {}
                        Err(_) => self.failures += 1,
                    }
                }
                _ => self.flush(),
            }
        }
        self.change(&mut changes);
    }
}

struct Case {
    setup: &'static str,
    backing: bool,
    compressed: bool,
    /// Every so many calls are failed in turn.
    step: usize,
}

impl Case {
    /// Makes the image, and what it holds.
    fn make(&self, directory: &Path) -> (PathBuf, Vec<u8>) {
        let path = directory.join("first.qcow2");
        if !self.backing && !self.compressed {
            qemu::create(&path, self.setup, SIZE);
            return (path, vec![0; SIZE]);
        }
        let content: Vec<u8> = (0..SIZE).map(|at| (at / 511) as u8 | 0x80).collect();
        let base = directory.join("base.img");
        std::fs::write(&base, &content).unwrap();
        if self.backing {
            let options = format!("{},backing_file=base.img,backing_fmt=raw", self.setup);
            qemu::create(&path, &options, SIZE);
        } else {
            let (base, path) = (base.to_str().unwrap(), path.to_str().unwrap());
            qemu::ok(&[
                "convert", "-q", "-c", "-f", "raw", "-O", "qcow2", "-o", self.setup, base, path,
            ]);
        }
        (path, content)
    }

    fn run(&self) {
        const KINDS: [Call; 5] = [
            Call::Read,
            Call::Write,
            Call::Sync,
            Call::Allocate,
            Call::Resize,
        ];
        let directory = directory();
        let (first, original) = self.make(directory.path());
        let path = directory.path().join("disk.qcow2");
        let options = Setup::new(&path).backing(self.backing).engine(Engine::Sync);
        // How many calls there are.
        let injector = Injector::new();
        std::fs::copy(&first, &path).unwrap();
        let disk = Setup::open(&options.clone().inject(&injector)).unwrap();
        let before: u64 = KINDS.iter().map(|kind| injector.calls(*kind)).sum();
        let mut guest = Guest::new(&disk, &original);
        guest.play(false);
        assert_eq!(guest.failures, 0);
        drop((guest, disk));
        qemu::check(&path);
        let calls: u64 = KINDS.iter().map(|kind| injector.calls(*kind)).sum();
        let calls = calls - before;
        assert!(calls > 60, "{calls}");
        let (mut runs, mut told, mut frozen) = (0, 0, 0);
        for nth in (1..=calls).step_by(self.step) {
            for (turn, (errno, for_good, kinds)) in [
                (libc::EIO, false, &KINDS[..]),
                (libc::ENOSPC, false, &KINDS[1..]),
                (libc::EIO, true, &KINDS[..]),
                (
                    libc::ENOSPC,
                    true,
                    &[Call::Write, Call::Allocate, Call::Resize],
                ),
                (libc::EIO, false, &[Call::Completion]),
                (libc::EIO, false, &[Call::WriteBack]),
            ]
            .into_iter()
            .enumerate()
            {
                // Each of them at a third of the places.
                if !(nth as usize / self.step + turn).is_multiple_of(3) {
                    continue;
                }
                std::fs::copy(&first, &path).unwrap();
                let injector = Injector::new();
                injector.track(&path).unwrap();
                let at_once = runs % 2 == 1;
                let engine = if at_once { Engine::Auto } else { Engine::Sync };
                let setup = options.clone().engine(engine).inject(&injector);
                let disk = Setup::open(&setup).unwrap();
                let plan = Plan::new(nth, kinds, errno);
                injector.arm(if for_good { plan.for_good() } else { plan });
                let about = format!(
                    "{}: call {nth} of {calls} ({kinds:?}) fails with {errno}, for good: {for_good}, at once: {at_once}",
                    self.setup
                );
                let mut guest = Guest::new(&disk, &original);
                guest.play(at_once);
                let Guest {
                    queues,
                    promise,
                    failures,
                    ..
                } = guest;
                told += usize::from(failures > 0);
                if let Some(error) = disk.flush_error() {
                    frozen += 1;
                    assert!(failures > 0, "{about}: {error}");
                }
                drop((queues, disk));
                injector.disarm();
                let sampled = runs % 16 == 0;
                let keep = match runs / 2 % 4 {
                    0 => None,
                    1 => Some(Keep::Nothing),
                    2 => Some(Keep::Everything),
                    _ => Some(Keep::Some(nth)),
                };
                runs += 1;
                if let Some(keep) = keep {
                    injector.cut(keep).unwrap();
                }
                let disk = Setup::open(&options)
                    .unwrap_or_else(|error| panic!("{about}, {keep:?}: {error}"));
                let found = read(&mut *disk.open_queue(1).unwrap(), 0, SIZE)
                    .unwrap_or_else(|error| panic!("{about}, {keep:?}: {error}"));
                drop(disk);
                promise
                    .check(&original, &found, keep.is_some())
                    .unwrap_or_else(|error| panic!("{about}, {keep:?}: {error}"));
                if sampled {
                    qemu::check_after_crash(&path);
                }
            }
        }
        println!(
            "{}: {runs} runs over {calls} calls, {told} with failures told, {frozen} frozen",
            self.setup
        );
        assert!(runs > 60 && told > runs / 4 && frozen > runs / 10);
    }
}

/// The disk has its old size or the new one, and all its content.
#[test]
fn images_that_grow() {
    let directory = directory();
    let (first, path) = (
        directory.path().join("first.qcow2"),
        directory.path().join("disk.qcow2"),
    );
    qemu::create(&first, "cluster_size=512", SIZE);
    let disk = Setup::open(&Setup::new(&first)).unwrap();
    write(&mut *disk.open_queue(1).unwrap(), 0, vec![7; SIZE]).unwrap();
    drop(disk);
    let options = Setup::new(&path).engine(Engine::Sync);
    let kinds = [Call::Read, Call::Write, Call::Sync];
    // In the second case the L1 table is more than a refcount block counts.
    for new in [16 * SIZE as u64, 600 << 20] {
        let (mut failed, mut nth) = (0, 0);
        loop {
            nth += 1;
            std::fs::copy(&first, &path).unwrap();
            let injector = Injector::new();
            injector.track(&path).unwrap();
            let disk = Setup::open(&options.clone().inject(&injector)).unwrap();
            injector.arm(Plan::new(nth, &kinds, libc::EIO));
            let grown = disk.resize(new);
            let mut queue = disk.open_queue(1).unwrap();
            let flushed = run(&mut *queue, OpKind::Flush, IoBuf::new()).result;
            let reported = disk.caps().capacity_bytes();
            assert_eq!(reported, if grown.is_ok() { new } else { SIZE as u64 });
            drop((queue, disk));
            let struck = injector.struck() > 0;
            injector.disarm();
            let keep = [Keep::Nothing, Keep::Everything, Keep::Some(nth)][nth as usize % 3];
            injector.cut(keep).unwrap();
            let disk = Setup::open(&options).unwrap();
            let size = disk.caps().capacity_bytes();
            assert!(size == new || size == SIZE as u64 && grown.is_err());
            let mut queue = disk.open_queue(1).unwrap();
            let found = read(&mut *queue, 0, SIZE).unwrap();
            assert!(found == vec![7; SIZE], "call {nth}, {keep:?}");
            if size == new {
                for at in [SIZE as u64, new - SIZE as u64] {
                    let found = read(&mut *queue, at, SIZE).unwrap();
                    assert!(found == vec![0; SIZE], "call {nth}, {keep:?}");
                }
            }
            drop((queue, disk));
            qemu::check_after_crash(&path);
            if !struck {
                grown.unwrap();
                flushed.unwrap();
                break;
            }
            failed += usize::from(grown.is_err());
        }
        assert!(failed > 1, "{failed}");
    }
}

#[test]
fn new_images() {
    Case {
        setup: "cluster_size=4k",
        backing: false,
        compressed: false,
        step: 2,
    }
    .run();
}

#[test]
fn images_of_the_smallest_clusters() {
    Case {
        setup: "cluster_size=512,refcount_bits=64",
        backing: false,
        compressed: false,
        step: 5,
    }
    .run();
}

#[test]
fn images_over_others() {
    Case {
        setup: "cluster_size=4k",
        backing: true,
        compressed: false,
        step: 2,
    }
    .run();
}

#[test]
fn compressed_images() {
    Case {
        setup: "cluster_size=4k",
        backing: false,
        compressed: true,
        step: 2,
    }
    .run();
}
