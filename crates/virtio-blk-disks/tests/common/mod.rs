// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the tests of all disks share: running operations on a queue, and a model to compare with.
#![allow(dead_code)] // Each test binary uses a part of it.

pub mod faults;
pub mod times;

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use proptest::prelude::*;
use virtio_blk_core::disk::{
    Caps, Completion, Disk, DiskError, IoBuf, IoQueue, Op, OpKind, Submit, Token, Wait,
};

pub const BLOCK: usize = 512;

/// A directory whose file system takes direct I/O, if this host has one.
pub fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A file of `len` bytes, none of which is zero by accident.
pub fn image(directory: &Path, len: usize) -> PathBuf {
    let path = directory.join("disk.img");
    let content: Vec<u8> = (0..len).map(|i| (i / 512) as u8 | 1).collect();
    std::fs::write(&path, content).unwrap();
    path
}

/// Waits, until its deadline or else without limit, until `reap` may have something. Returns whether there was a way to
/// wait.
pub fn wait(queue: &dyn IoQueue) -> bool {
    let Wait::Fd(fd) = queue.wait() else {
        return false;
    };
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let left = |at: Instant| at.saturating_duration_since(Instant::now()).as_millis() as i32 + 1;
    let timeout = queue.deadline().map_or(-1, left);
    // SAFETY: one valid entry.
    unsafe { libc::poll(&raw mut poll, 1, timeout) };
    true
}

/// Whether the queue's descriptor polls readable right now.
pub fn is_readable(queue: &dyn IoQueue) -> bool {
    let Wait::Fd(fd) = queue.wait() else {
        panic!("the queue has no descriptor");
    };
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid entry.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
}

/// Runs one operation on an otherwise idle queue.
pub fn run(queue: &mut dyn IoQueue, kind: OpKind, buf: IoBuf) -> Completion {
    let token = Token(0xF00D);
    let mut done = Vec::new();
    match queue.submit(Op { token, kind, buf }) {
        Submit::Done(completion) => return completion,
        Submit::Full(_) => panic!("an idle queue is full"),
        Submit::Queued => queue.flush_batch().unwrap(),
    }
    while queue.reap(&mut done).unwrap() == 0 {
        wait(queue);
    }
    let completion = done.pop().unwrap();
    assert!(done.is_empty());
    assert_eq!(completion.token, token);
    completion
}

pub fn read(queue: &mut dyn IoQueue, offset: u64, len: usize) -> Result<Vec<u8>, DiskError> {
    let buf = IoBuf::from_vec(vec![0xEE; len]);
    let completion = run(queue, OpKind::Read { offset }, buf);
    completion.result.map(|()| completion.buf.to_vec())
}

pub fn write(queue: &mut dyn IoQueue, offset: u64, data: Vec<u8>) -> Result<(), DiskError> {
    let kind = OpKind::Write { offset, fua: false };
    run(queue, kind, IoBuf::from_vec(data)).result
}

/// How a buffer lies in memory.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Bytes from a page's start.
    pub shift: usize,
    /// Bytes in a segment.
    pub piece: usize,
}

impl Layout {
    /// A buffer of `data`, in pieces with gaps between them.
    pub fn buffer(self, data: &[u8]) -> IoBuf {
        let pieces = data.len().div_ceil(self.piece);
        // Gaps keep the alignment of what follows.
        let gap = 4096;
        let memory = Arc::new(vec![0_u8; data.len() + pieces * gap + self.shift + 4096]);
        let start = memory.as_ptr().align_offset(4096) + self.shift;
        let base = memory.as_ptr().cast_mut();
        let mut buf = IoBuf::new();
        buf.set_keep(memory);
        let mut at = start;
        for piece in data.chunks(self.piece) {
            // SAFETY: inside the vector, which is only reached through the buffer.
            unsafe { buf.push(base.add(at), piece.len()) };
            at += piece.len() + gap;
        }
        assert_eq!(buf.copy_in(0, data), data.len());
        buf
    }
}

/// One thing to do. Offsets and lengths in blocks.
#[derive(Clone, Debug)]
pub enum Act {
    Read(u64, u64, Layout),
    Write(u64, u64, Layout, bool),
    Flush,
    Discard(u64, u64),
    Zero(u64, u64, bool, bool),
    Erase(u64, u64),
}

/// Anything to do on a disk of `blocks` blocks. Ranges beyond its end are among them.
pub fn act(blocks: u64, most: u64) -> impl Strategy<Value = Act> {
    let range = (0..blocks, 0..=most);
    let layout = (
        prop_oneof![4 => Just(0_usize), 1 => Just(512), 1 => Just(7)],
        prop_oneof![Just(usize::MAX), Just(4096), Just(512), Just(1000)],
    )
        .prop_map(|(shift, piece)| Layout {
            shift,
            piece: piece.min(1 << 30),
        });
    prop_oneof![
        8 => (range.clone(), layout.clone()).prop_map(|((a, n), l)| Act::Read(a, n, l)),
        8 => (range.clone(), layout, any::<bool>()).prop_map(|((a, n), l, f)| Act::Write(a, n, l, f)),
        1 => Just(Act::Flush),
        2 => range.clone().prop_map(|(a, n)| Act::Discard(a, n)),
        3 => (range.clone(), any::<(bool, bool)>()).prop_map(|((a, n), (u, f))| Act::Zero(a, n, u, f)),
        1 => range.prop_map(|(a, n)| Act::Erase(a, n)),
    ]
}

/// What an operation in flight must end with.
struct Expected {
    range: std::ops::Range<usize>,
    changes: bool,
    /// The bytes a read must bring.
    data: Option<Vec<u8>>,
}

/// A queue beside a model of its disk.
///
/// Overlapping operations are kept from being in flight together, because their order is not defined.
pub struct Rig {
    queue: Box<dyn IoQueue>,
    caps: Caps,
    block: usize,
    pub model: Vec<u8>,
    in_flight: HashMap<Token, Expected>,
    next: u64,
    /// Refusals seen.
    pub full: usize,
}

impl Rig {
    pub fn new(disk: &dyn Disk, depth: u16, block: usize) -> Self {
        let mut queue = disk.open_queue(depth).unwrap();
        let len = disk.caps().capacity_bytes() as usize;
        let model = read(&mut *queue, 0, len).unwrap();
        Self {
            queue,
            caps: disk.caps(),
            block,
            model,
            in_flight: HashMap::new(),
            next: 0,
            full: 0,
        }
    }

    fn check(&mut self, completion: Completion) {
        let expected = self
            .in_flight
            .remove(&completion.token)
            .expect("completed twice, or never submitted");
        completion.result.unwrap();
        if let Some(data) = expected.data {
            assert!(completion.buf.to_vec() == data, "{:?}", expected.range);
        }
    }

    fn reap(&mut self) {
        let mut done = Vec::new();
        let count = self.queue.reap(&mut done).unwrap();
        assert_eq!(count, done.len());
        if count == 0 {
            wait(&*self.queue);
        }
        for completion in done {
            self.check(completion);
        }
    }

    pub fn drain(&mut self) {
        self.queue.flush_batch().unwrap();
        while !self.in_flight.is_empty() {
            self.reap();
        }
    }

    /// Does one thing, to the model at once and to the disk sooner or later.
    pub fn act(&mut self, act: Act) {
        let place = |at: u64, n: u64| {
            let start = at as usize * self.block;
            start..start + n as usize * self.block
        };
        let fill = self.next as u8 | 1;
        let (kind, range, buf) = match act {
            Act::Read(at, n, layout) => {
                let range = place(at, n);
                let buf = layout.buffer(&vec![0xEE; range.len()]);
                let offset = range.start as u64;
                (OpKind::Read { offset }, range, buf)
            }
            Act::Write(at, n, layout, fua) => {
                let range = place(at, n);
                let data: Vec<u8> = range.clone().map(|i| fill ^ (i / 100) as u8).collect();
                let buf = layout.buffer(&data);
                let offset = range.start as u64;
                (OpKind::Write { offset, fua }, range, buf)
            }
            Act::Flush => (OpKind::Flush, 0..0, IoBuf::new()),
            Act::Discard(at, n) => {
                let range = place(at, n);
                let (offset, len) = (range.start as u64, range.len() as u64);
                (OpKind::Discard { offset, len }, range, IoBuf::new())
            }
            Act::Zero(at, n, unmap, fua) => {
                let range = place(at, n);
                let kind = OpKind::WriteZeroes {
                    offset: range.start as u64,
                    len: range.len() as u64,
                    unmap,
                    fua,
                };
                (kind, range, IoBuf::new())
            }
            Act::Erase(at, n) => {
                let range = place(at, n);
                let (offset, len) = (range.start as u64, range.len() as u64);
                (OpKind::SecureErase { offset, len }, range, IoBuf::new())
            }
        };
        let changes = kind.is_write();
        let offered = match kind {
            OpKind::Discard { .. } => self.caps.discard.is_some(),
            OpKind::WriteZeroes { .. } => self.caps.write_zeroes.is_some(),
            OpKind::SecureErase { .. } => self.caps.secure_erase.is_some(),
            _ => true,
        };
        if range.end > self.model.len() || !offered {
            self.drain();
            let result = run(&mut *self.queue, kind, buf).result;
            if range.end > self.model.len() {
                assert!(matches!(result, Err(DiskError::OutOfRange)), "{result:?}");
            } else {
                assert!(matches!(result, Err(DiskError::Unsupported)), "{result:?}");
            }
            return;
        }
        let collides = |other: &Expected| {
            (changes || other.changes)
                && range.start < other.range.end
                && other.range.start < range.end
        };
        if self.in_flight.values().any(collides) {
            self.drain();
        }
        self.next += 1;
        let token = Token(self.next);
        let mut op = Op { token, kind, buf };
        let answer = loop {
            match self.queue.submit(op) {
                Submit::Full(back) => {
                    assert_eq!(back.token, token);
                    assert!(!self.in_flight.is_empty(), "an empty queue is full");
                    self.full += 1;
                    self.queue.flush_batch().unwrap();
                    self.reap();
                    op = back;
                }
                other => break other,
            }
        };
        let data = match kind {
            OpKind::Read { .. } => Some(self.model[range.clone()].to_vec()),
            OpKind::Write { .. } => {
                for i in range.clone() {
                    self.model[i] = fill_at(self.next, i);
                }
                None
            }
            // All disks here read as zeroes after a discard.
            _ => {
                self.model[range.clone()].fill(0);
                None
            }
        };
        let expected = Expected {
            range,
            changes,
            data,
        };
        self.in_flight.insert(token, expected);
        if let Submit::Done(completion) = answer {
            self.check(completion);
        }
        if self.next.is_multiple_of(3) {
            self.queue.flush_batch().unwrap();
        }
    }

    /// Compares the whole disk with the model.
    pub fn finish(mut self) -> Vec<u8> {
        self.drain();
        let content = read(&mut *self.queue, 0, self.model.len()).unwrap();
        assert!(content == self.model);
        self.model
    }
}

/// The byte a write stores at `i`.
fn fill_at(number: u64, i: usize) -> u8 {
    ((number - 1) as u8 | 1) ^ (i / 100) as u8
}
