// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The two ways into a queue of the slow path: requests of one segment are taken where they are offered, all else is
//! submitted as operations.

use std::collections::HashMap;
use std::time::Instant;

use virtio_blk_core::disk::{
    Completion, Disk, DiskError, Execute, IoBuf, IoQueue, Op, Submit, Token, Wait,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Everything is submitted: the general path.
    Submitted,
    /// What is submitted is offered to `execute` before, as a runner does.
    Offered,
}

/// Calls `test` for each way.
pub fn on_both_ways(test: impl Fn(Way)) {
    test(Way::Submitted);
    test(Way::Offered);
}

impl Way {
    pub fn open(self, disk: &dyn Disk, depth: u16) -> Box<dyn IoQueue> {
        let inner = disk.open_queue(depth).unwrap();
        match self {
            Self::Submitted => inner,
            Self::Offered => Box::new(Offering {
                inner,
                kept: HashMap::new(),
            }),
        }
    }
}

/// Offers what is submitted. A buffer that it keeps comes back with its completion.
struct Offering {
    inner: Box<dyn IoQueue>,
    kept: HashMap<Token, IoBuf>,
}

impl IoQueue for Offering {
    fn submit(&mut self, op: Op) -> Submit {
        match self.inner.execute(&op.kind, &op.buf, Some(op.token)) {
            Execute::Taken => {
                let known = self.kept.insert(op.token, op.buf);
                assert!(known.is_none(), "{:?} is in flight", op.token);
                Submit::Queued
            }
            Execute::Done(result) => Submit::Done(op.complete(result)),
            _ => self.inner.submit(op),
        }
    }

    fn flush_batch(&mut self) -> Result<(), DiskError> {
        self.inner.flush_batch()
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        let before = done.len();
        let count = self.inner.reap(done)?;
        for completion in &mut done[before..] {
            if let Some(buf) = self.kept.remove(&completion.token) {
                assert!(completion.buf.is_empty(), "the buffer was not given");
                completion.buf = buf;
            }
        }
        Ok(count)
    }

    fn wait(&self) -> Wait<'_> {
        self.inner.wait()
    }

    fn deadline(&self) -> Option<Instant> {
        self.inner.deadline()
    }

    fn cancel(&mut self, token: Token) {
        self.inner.cancel(token);
    }
}
