// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A disk that watches whether writes are made stable as negotiated.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use virtio_blk_core::disk::{
    Caps, Completion, Disk, DiskError, DiskListener, Execute, IoBuf, IoQueue, Op, OpKind, Submit,
    Token, Wait,
};
use virtio_blk_disks::MemoryDisk;

/// What a write must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stability {
    /// The mode changed while writes were under way.
    Any,
    /// Stable before it completes.
    Stable,
    /// Left to flushes.
    Cached,
}

/// A memory disk, watched.
pub struct Spy {
    pub disk: MemoryDisk,
    /// Executes inside the call where it can.
    pub short: bool,
    wanted: Arc<AtomicU8>,
}

impl Spy {
    pub fn new(disk: MemoryDisk, short: bool) -> Self {
        Self {
            disk,
            short,
            wanted: Arc::default(),
        }
    }

    /// From now on writes must be like this.
    pub fn expect(&self, wanted: Stability) {
        self.wanted.store(wanted as u8, Ordering::Relaxed);
    }
}

impl Disk for Spy {
    fn caps(&self) -> Caps {
        self.disk.caps()
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        Ok(Box::new(SpyQueue {
            inner: self.disk.open_queue(depth)?,
            short: self.short,
            wanted: self.wanted.clone(),
        }))
    }

    fn listen(&self, listener: DiskListener) {
        self.disk.listen(listener);
    }
}

struct SpyQueue {
    inner: Box<dyn IoQueue>,
    short: bool,
    wanted: Arc<AtomicU8>,
}

impl SpyQueue {
    fn check(&self, kind: &OpKind) {
        if let OpKind::Write { fua, .. } | OpKind::WriteZeroes { fua, .. } = kind {
            let wanted = self.wanted.load(Ordering::Relaxed);
            let other = if *fua {
                Stability::Cached
            } else {
                Stability::Stable
            };
            assert_ne!(wanted, other as u8, "{kind:?}");
        }
    }
}

impl IoQueue for SpyQueue {
    fn submit(&mut self, op: Op) -> Submit {
        self.check(&op.kind);
        self.inner.submit(op)
    }

    fn execute(&mut self, kind: &OpKind, buf: &IoBuf, token: Option<Token>) -> Execute {
        if !self.short {
            return Execute::Declined;
        }
        self.check(kind);
        self.inner.execute(kind, buf, token)
    }

    fn flush_batch(&mut self) -> Result<(), DiskError> {
        self.inner.flush_batch()
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        self.inner.reap(done)
    }

    fn wait(&self) -> Wait<'_> {
        self.inner.wait()
    }

    fn cancel(&mut self, token: Token) {
        self.inner.cancel(token);
    }
}
