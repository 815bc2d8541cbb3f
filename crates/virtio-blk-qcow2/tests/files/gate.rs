// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A disk of a fixed size in memory, some of whose operations are held, or fail.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use virtio_blk_core::disk::{Caps, Completion, Disk, DiskError, IoQueue, Op, OpKind, Submit, Wait};
use virtio_blk_disks::MemoryDisk;

/// What becomes of an operation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Pass,
    /// It is executed when the gate is opened.
    Hold,
    /// It is executed, and then said to have failed with EIO.
    Fail,
    /// It is not executed, and fails with EIO.
    Refuse,
}

type Judge = Box<dyn FnMut(&OpKind, usize) -> Fate + Send>;

#[derive(Default)]
struct State {
    judge: Mutex<Option<Judge>>,
    held: AtomicUsize,
    fail_reap: AtomicBool,
    /// What is held is executed, and no more is held.
    let_go: AtomicBool,
    resizes: AtomicUsize,
}

impl State {
    fn fate(&self, op: &Op) -> Fate {
        let mut judge = self.judge.lock().unwrap();
        let fate = (judge.as_mut()).map_or(Fate::Pass, |judge| judge(&op.kind, op.buf.len()));
        match fate {
            Fate::Hold if self.let_go.load(Ordering::SeqCst) => Fate::Pass,
            fate => fate,
        }
    }
}

pub struct Gate {
    inner: MemoryDisk,
    state: Arc<State>,
}

impl Gate {
    /// A disk of `content`.
    pub fn new(content: Vec<u8>) -> Self {
        let inner = MemoryDisk::new(content.len() as u64).unwrap();
        let mut queue = inner.open_queue(1).unwrap();
        crate::common::write(&mut *queue, 0, content).unwrap();
        Self {
            inner,
            state: Arc::default(),
        }
    }

    /// Has `judge` decide on each operation, with the length of its buffer.
    pub fn close(&self, judge: impl FnMut(&OpKind, usize) -> Fate + Send + 'static) {
        *self.state.judge.lock().unwrap() = Some(Box::new(judge));
    }

    /// Lets everything pass.
    pub fn open(&self) {
        *self.state.judge.lock().unwrap() = None;
    }

    /// Lets go of what is held; the judge stays.
    pub fn let_go(&self) {
        self.state.let_go.store(true, Ordering::SeqCst);
    }

    /// How often somebody tried to make it larger.
    pub fn resizes(&self) -> usize {
        self.state.resizes.load(Ordering::SeqCst)
    }

    /// Waits until an operation is held.
    pub fn await_held(&self) {
        while self.state.held.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
    }

    /// Has the next look for finished operations fail.
    pub fn fail_reap(&self) {
        self.state.fail_reap.store(true, Ordering::SeqCst);
    }

    /// What is in it.
    pub fn content(&self) -> Vec<u8> {
        let mut queue = self.inner.open_queue(1).unwrap();
        let len = self.inner.caps().capacity_bytes() as usize;
        crate::common::read(&mut *queue, 0, len).unwrap()
    }
}

impl Disk for Gate {
    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        Ok(Box::new(GateQueue {
            inner: self.inner.open_queue(depth)?,
            state: self.state.clone(),
            held: Vec::new(),
        }))
    }

    fn resize(&self, _: u64) -> Result<(), DiskError> {
        self.state.resizes.fetch_add(1, Ordering::SeqCst);
        Err(DiskError::Unsupported)
    }
}

struct GateQueue {
    inner: Box<dyn IoQueue>,
    state: Arc<State>,
    held: Vec<Op>,
}

impl GateQueue {
    fn execute(&mut self, op: Op) -> Completion {
        match self.inner.submit(op) {
            Submit::Done(completion) => completion,
            _ => panic!("memory does not wait"),
        }
    }
}

impl IoQueue for GateQueue {
    fn submit(&mut self, op: Op) -> Submit {
        match self.state.fate(&op) {
            Fate::Pass => Submit::Done(self.execute(op)),
            Fate::Hold => {
                self.held.push(op);
                self.state.held.fetch_add(1, Ordering::SeqCst);
                Submit::Queued
            }
            Fate::Fail => {
                let mut completion = self.execute(op);
                completion.result = Err(DiskError::from_errno(libc::EIO));
                Submit::Done(completion)
            }
            Fate::Refuse => Submit::Done(op.complete(Err(DiskError::from_errno(libc::EIO)))),
        }
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        if self.state.fail_reap.swap(false, Ordering::SeqCst) {
            return Err(DiskError::from_errno(libc::EIO));
        }
        let before = done.len();
        let is_open = self.state.judge.lock().unwrap().is_none();
        if is_open || self.state.let_go.load(Ordering::SeqCst) {
            for op in std::mem::take(&mut self.held) {
                done.push(self.execute(op));
                self.state.held.fetch_sub(1, Ordering::SeqCst);
            }
        }
        Ok(done.len() - before)
    }

    fn wait(&self) -> Wait<'_> {
        Wait::Poll
    }
}
