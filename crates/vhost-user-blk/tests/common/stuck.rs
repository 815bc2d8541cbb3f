// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A disk that does not finish.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use virtio_blk_core::disk::{
    Caps, Completion, Disk, DiskError, DiskListener, IoQueue, Op, Submit, Wait,
};
use virtio_blk_core::testdisk::TestDisk;

#[derive(Default)]
struct Gate {
    closed: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn pass(&self) {
        let closed = self.closed.lock().unwrap();
        drop(self.changed.wait_while(closed, |closed| *closed).unwrap());
    }

    fn close(&self, closed: bool) {
        *self.closed.lock().unwrap() = closed;
        self.changed.notify_all();
    }
}

/// Where a [`StuckDisk`] is stuck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// In the kernel: operations are taken, and never come back; they can't be cancelled.
    Completion,
    /// In `submit`.
    Submit,
}

/// A disk that finishes nothing while a test wants that, and keeps the buffers that it has.
#[derive(Clone)]
pub struct StuckDisk {
    inner: TestDisk,
    at: At,
    gate: Arc<Gate>,
    active: Arc<AtomicBool>,
}

impl StuckDisk {
    /// `inner` completes operations at the next `flush_batch`.
    pub fn new(inner: TestDisk, at: At) -> Self {
        Self {
            inner,
            at,
            gate: Arc::default(),
            active: Arc::default(),
        }
    }

    /// Whether a server has taken it into use and not left it.
    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }

    pub fn close(&self) {
        self.gate.close(true);
    }

    pub fn open(&self) {
        self.gate.close(false);
    }
}

impl Disk for StuckDisk {
    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        Ok(Box::new(StuckQueue {
            inner: Some(self.inner.open_queue(depth)?),
            at: self.at,
            gate: self.gate.clone(),
        }))
    }

    fn activate(&self) -> Result<(), DiskError> {
        assert!(!self.active.swap(true, Ordering::AcqRel));
        Ok(())
    }

    fn deactivate(&self) -> Result<(), DiskError> {
        assert!(self.active.swap(false, Ordering::AcqRel));
        Ok(())
    }

    fn listen(&self, listener: DiskListener) {
        self.inner.listen(listener);
    }
}

struct StuckQueue {
    inner: Option<Box<dyn IoQueue>>,
    at: At,
    gate: Arc<Gate>,
}

impl StuckQueue {
    fn inner(&mut self) -> &mut dyn IoQueue {
        self.inner.as_mut().unwrap().as_mut()
    }
}

impl IoQueue for StuckQueue {
    fn submit(&mut self, op: Op) -> Submit {
        if self.at == At::Submit {
            self.gate.pass();
        }
        self.inner().submit(op)
    }

    fn flush_batch(&mut self) -> Result<(), DiskError> {
        self.inner().flush_batch()
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        if self.at == At::Completion && *self.gate.closed.lock().unwrap() {
            return Ok(0);
        }
        self.inner().reap(done)
    }

    fn wait(&self) -> Wait<'_> {
        self.inner.as_ref().unwrap().wait()
    }
}

impl Drop for StuckQueue {
    /// The kernel has the buffers for as long.
    fn drop(&mut self) {
        self.gate.pass();
        self.inner = None;
    }
}
