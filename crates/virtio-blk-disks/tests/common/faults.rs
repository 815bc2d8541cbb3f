// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A rig that fails each system call of a run in turn, and then looks whether a promise was broken.
//!
//! A script of writes, stable writes, zeroes, discards, flushes and reads runs on two queues of a disk, several
//! operations at a time. It is run once to count the calls, and then again and again, with each of them failed, by
//! kind and with each error, once or for good. After each run the host loses its page cache, and the disk is opened anew:
//! no sector that was acknowledged and flushed may be wrong, whatever else failed.
#![allow(dead_code)] // Each test binary uses a part of it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use virtio_blk_core::disk::{Completion, Disk, IoBuf, IoQueue, Op, OpKind, Submit, Token};
use virtio_blk_disks::inject::{Call, Injector, Keep, Plan};

use super::{directory, read, run as run_one, wait};

/// Bytes in a block of the script, which suits direct I/O.
const BLOCK: usize = 4096;
/// Blocks of the disk.
const BLOCKS: u64 = 16;
/// Bytes that hold one value.
const SECTOR: usize = 512;
/// Operations of a run.
const OPERATIONS: u64 = 40;
/// Operations in flight at a time, on both queues together.
const DEPTH: usize = 5;
/// What a sector holds before the run: this and its number.
const ORIGINAL: u32 = 1 << 30;
/// What a sector holds that is zero.
const ZERO: u32 = 0;
/// Kinds of calls that are failed.
const KINDS: [Call; 7] = [
    Call::Read,
    Call::Write,
    Call::Sync,
    Call::Allocate,
    Call::Reopen,
    Call::Completion,
    Call::WriteBack,
];

/// A way to open a disk on an image.
pub trait Subject {
    /// Makes an image of the content.
    fn prepare(&self, directory: &Path, content: &[u8]);

    /// The file whose page cache gets lost.
    fn file(&self, directory: &Path) -> PathBuf;

    /// Opens the disk, with its calls failed or, to look at what is left, without. `None`: it could not be opened,
    /// because a call failed.
    fn open(&self, directory: &Path, injector: Option<&Injector>) -> Option<Arc<dyn Disk>>;
}

/// What an operation was to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// This value.
    Value(u32),
    /// Zeroes, or what was there.
    Discard,
}

/// An operation that changes something.
#[derive(Debug)]
struct Change {
    effect: Effect,
    sectors: std::ops::Range<usize>,
    /// When it completed well.
    ended: Option<u64>,
}

/// What is known of a disk's content.
struct Model {
    changes: Vec<Change>,
    /// For each sector the change that it holds for certain, by number: 0 is the original content.
    promised: Vec<usize>,
    clock: u64,
    /// When the first flush failed.
    failed: Option<u64>,
}

fn fill(value: u32, len: usize) -> Vec<u8> {
    value.to_le_bytes().repeat(len / 4)
}

/// The value of a sector.
fn value(sector: &[u8]) -> Option<u32> {
    let (first, _) = sector.split_first_chunk::<4>()?;
    let whole = sector.chunks(4).all(|word| word == first);
    whole.then(|| u32::from_le_bytes(*first))
}

impl Model {
    fn new() -> Self {
        let sectors = BLOCKS as usize * BLOCK / SECTOR;
        Self {
            changes: Vec::new(),
            promised: vec![0; sectors],
            clock: 0,
            failed: None,
        }
    }

    fn content() -> Vec<u8> {
        let sectors = (BLOCKS as usize * BLOCK / SECTOR) as u32;
        (0..sectors)
            .flat_map(|sector| fill(ORIGINAL + sector, SECTOR))
            .collect()
    }

    /// The last change of a sector that had ended by `time`, of those that leave something for certain.
    fn settled(&self, sector: usize, time: u64) -> usize {
        let counts = |change: &&(usize, &Change)| {
            change.1.sectors.contains(&sector)
                && change.1.effect != Effect::Discard
                && change.1.ended.is_some_and(|ended| ended <= time)
        };
        let numbered: Vec<_> = self.changes.iter().enumerate().collect();
        let last = numbered.iter().rev().find(counts);
        last.map_or(0, |(number, _)| number + 1)
    }

    /// Whether a sector may hold a value, if it holds at least the change `from`.
    fn allows(&self, sector: usize, from: usize, found: u32) -> bool {
        let original = from == 0 && found == ORIGINAL + sector as u32;
        let leaves = |change: &Change| match change.effect {
            Effect::Value(value) => found == value,
            Effect::Discard => found == ZERO,
        };
        let later = self.changes.iter().skip(from.saturating_sub(1));
        original
            || later
                .filter(|change| change.sectors.contains(&sector))
                .any(leaves)
    }

    /// A flush that was submitted at `asked` succeeded.
    fn flushed(&mut self, asked: u64) {
        for sector in 0..self.promised.len() {
            self.promised[sector] = self.promised[sector].max(self.settled(sector, asked));
        }
    }

    /// Checks what is read of a quiet disk, or of what is left of it.
    fn check(&self, data: &[u8], first: usize, live: bool, story: &str) {
        for (index, data) in data.chunks(SECTOR).enumerate() {
            let sector = first + index;
            let found = value(data).unwrap_or_else(|| panic!("{story}: sector {sector} is torn"));
            let from = if live {
                self.settled(sector, self.clock)
            } else {
                self.promised[sector]
            };
            assert!(
                self.allows(sector, from, found),
                "{story}: sector {sector} holds {found:#x}, though change {from} is certain: {:?}",
                self.changes
            );
        }
    }
}

/// What is in flight.
struct Asked {
    kind: OpKind,
    sectors: std::ops::Range<usize>,
    change: Option<usize>,
    at: u64,
}

/// One run of the script.
struct Run<'a> {
    story: &'a str,
    model: Model,
    asked: HashMap<Token, Asked>,
    queues: Vec<Box<dyn IoQueue>>,
    done: Vec<Completion>,
}

impl Run<'_> {
    fn collect(&mut self) {
        for queue in &mut self.queues {
            // A queue that breaks has told so.
            let _ = queue.flush_batch();
            let _ = queue.reap(&mut self.done);
        }
        for completion in std::mem::take(&mut self.done) {
            self.completed(completion);
        }
    }

    fn completed(&mut self, completion: Completion) {
        let asked = self.asked.remove(&completion.token).expect("once only");
        self.model.clock += 1;
        let (clock, good) = (self.model.clock, completion.result.is_ok());
        if good && let Some(number) = asked.change {
            self.model.changes[number].ended = Some(clock);
        }
        match asked.kind {
            OpKind::Flush if good => {
                let forgot = self.model.failed.is_some_and(|failed| failed <= asked.at);
                assert!(!forgot, "{}: a failed flush was forgotten", self.story);
                self.model.flushed(asked.at);
            }
            OpKind::Flush => {
                self.model.failed.get_or_insert(clock);
            }
            OpKind::Write { fua: true, .. } | OpKind::WriteZeroes { fua: true, .. } if good => {
                let number = asked.change.expect("a change") + 1;
                for sector in asked.sectors {
                    let promised = &mut self.model.promised[sector];
                    *promised = number.max(*promised);
                }
            }
            OpKind::Read { .. } if good => {
                let data = completion.buf.to_vec();
                self.model
                    .check(&data, asked.sectors.start, true, self.story);
            }
            _ => {}
        }
    }

    fn drain(&mut self) {
        while !self.asked.is_empty() {
            let before = self.asked.len();
            self.collect();
            if self.asked.len() == before {
                self.queues.iter().for_each(|queue| {
                    if self.asked.is_empty() {
                        wait(&**queue);
                    }
                });
                std::thread::yield_now();
            }
        }
    }

    /// Does the step of this number.
    fn step(&mut self, number: u64, random: u64) {
        let first = random % BLOCKS;
        let count = (random >> 8) % 3 + 1;
        let count = count.min(BLOCKS - first);
        let (offset, len) = (first * BLOCK as u64, count * BLOCK as u64);
        let fua = random >> 16 & 3 == 0;
        let unmap = random >> 18 & 1 == 0;
        let kind = match (random >> 24) % 10 {
            0..=3 => OpKind::Write { offset, fua },
            4 => OpKind::Read { offset },
            5 => OpKind::Discard { offset, len },
            6 | 7 => OpKind::WriteZeroes {
                offset,
                len,
                unmap,
                fua,
            },
            _ => OpKind::Flush,
        };
        let per_block = BLOCK / SECTOR;
        let sectors = if kind == OpKind::Flush {
            0..0
        } else {
            first as usize * per_block..(first + count) as usize * per_block
        };
        let overlaps =
            |other: &Asked| other.sectors.start < sectors.end && sectors.start < other.sectors.end;
        if self.asked.len() == DEPTH || self.asked.values().any(overlaps) {
            self.drain();
        }
        let tag = number as u32 + 1;
        let (effect, buf) = match kind {
            OpKind::Write { .. } => {
                let data = fill(tag, len as usize);
                (Some(Effect::Value(tag)), IoBuf::from_vec(data))
            }
            OpKind::WriteZeroes { .. } => (Some(Effect::Value(ZERO)), IoBuf::new()),
            OpKind::Discard { .. } => (Some(Effect::Discard), IoBuf::new()),
            OpKind::Read { .. } => (None, IoBuf::zeroed(len as usize)),
            _ => (None, IoBuf::new()),
        };
        let change = effect.map(|effect| {
            self.model.changes.push(Change {
                effect,
                sectors: sectors.clone(),
                ended: None,
            });
            self.model.changes.len() - 1
        });
        let token = Token(number);
        let asked = Asked {
            kind,
            sectors,
            change,
            at: self.model.clock,
        };
        self.asked.insert(token, asked);
        let queue = &mut self.queues[(random >> 32 & 1) as usize];
        match queue.submit(Op { token, kind, buf }) {
            Submit::Queued => {}
            Submit::Done(completion) => self.completed(completion),
            Submit::Full(_) => panic!("{}: full", self.story),
        }
        if random >> 40 & 1 == 0 {
            self.collect();
        }
    }
}

/// One run with a plan; then the cut, and a look at what is left. Returns the injector, which has counted.
fn run(
    subject: &dyn Subject,
    place: &Path,
    plan: Option<Plan>,
    seed: u64,
    keep: Keep,
    story: &str,
) -> Injector {
    subject.prepare(place, &Model::content());
    let injector = Injector::new();
    injector.track(&subject.file(place)).unwrap();
    if let Some(plan) = plan {
        injector.arm(plan);
    }
    let mut run = Run {
        story,
        model: Model::new(),
        asked: HashMap::new(),
        queues: Vec::new(),
        done: Vec::new(),
    };
    if let Some(disk) = subject.open(place, Some(&injector)) {
        let open = |_| disk.open_queue(16).ok();
        run.queues = (0..2).filter_map(open).collect();
        if run.queues.len() == 2 {
            let mut random = seed;
            for number in 0..OPERATIONS {
                random = random
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                // The high bits are the random ones.
                run.step(number, random.rotate_left(24));
            }
            run.drain();
        }
        if disk.flush_error().is_some() {
            for (number, queue) in run.queues.iter_mut().enumerate() {
                let result = run_one(&mut **queue, OpKind::Flush, IoBuf::new()).result;
                assert!(
                    result.is_err(),
                    "{story}: queue {number} forgot a failed flush"
                );
            }
        }
        injector.disarm();
        run.queues.clear();
        drop(disk);
    }
    injector.cut(keep).unwrap();
    let disk = subject.open(place, None);
    let disk = disk.unwrap_or_else(|| panic!("{story}: can't be opened"));
    let mut queue = disk.open_queue(1).unwrap();
    let data = read(&mut *queue, 0, BLOCKS as usize * BLOCK).unwrap();
    run.model.check(&data, 0, false, story);
    injector
}

/// Fails every call of the script in turn, or one in `step`. Returns the number of runs.
pub fn fail_each_call(subject: &dyn Subject, name: &str, seed: u64, step: u64) -> u64 {
    let directory = directory();
    let place = directory.path();
    let quiet = run(subject, place, None, seed, Keep::Nothing, name);
    let mut runs = 0;
    for kind in KINDS {
        let calls = quiet.calls(kind);
        for nth in (1 + seed % step..=calls).step_by(step as usize) {
            // Both errors, and each of the two ways, for every call.
            for (errno, odd) in [(libc::EIO, 0), (libc::ENOSPC, 1)] {
                let for_good = (nth / step + odd).is_multiple_of(2);
                let plan = Plan::new(nth, &[kind], errno);
                let plan = if for_good { plan.for_good() } else { plan };
                runs += 1;
                let keep = match runs % 3 {
                    0 => Keep::Nothing,
                    1 => Keep::Everything,
                    _ => Keep::Some(runs),
                };
                let story = format!(
                    "{name}, seed {seed}: {kind:?} {nth} of {calls} fails with {errno}, for good: {for_good}, {keep:?}"
                );
                run(subject, place, Some(plan), seed, keep, &story);
            }
        }
    }
    assert!(runs > 100 / step, "{name}: {runs}");
    runs
}
