// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A queue of a disk.

use std::sync::Arc;
use std::time::Instant;

use virtio_blk_core::disk::{
    Bounds, Completion, DiskError, IoQueue, Op, OpKind, SECTOR_SIZE, Submit, Wait,
};

use crate::flight;
use crate::image::Image;
use crate::inbox::{Ended, Inbox};
use crate::stall::{Stall, Word};

/// A queue of a disk: operations go to librbd at once, and come back through an inbox.
pub(crate) struct RbdQueue {
    image: Arc<Image>,
    inbox: Arc<Inbox>,
    /// Places that no operation has.
    free: Vec<usize>,
    /// Operations that were given to librbd, ever.
    given: u64,
    /// Taken from the inbox and being looked at; kept for its memory.
    taken: Vec<Ended>,
    stall: Stall,
}

impl RbdQueue {
    /// A queue for `depth` operations at a time.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub(crate) fn open(image: Arc<Image>, depth: u16) -> Result<Self, DiskError> {
        let depth = usize::from(depth.max(1));
        Ok(Self {
            image,
            inbox: Arc::new(Inbox::new(depth)?),
            free: (0..depth).rev().collect(),
            given: 0,
            taken: Vec::with_capacity(depth),
            stall: Stall::new(depth),
        })
    }

    /// Checks an operation whose buffer holds `len` bytes. Returns whether there is anything to do.
    fn admit(&self, kind: &OpKind, len: usize) -> Result<bool, DiskError> {
        let shape = self.image.shape();
        let bounds = Bounds {
            capacity: self.image.size().capacity() * SECTOR_SIZE,
            block: SECTOR_SIZE as u32,
            read_only: shape.read_only,
        };
        bounds.check(kind, len)?;
        match kind {
            OpKind::Flush => Ok(!shape.read_only),
            OpKind::Read { .. } | OpKind::Write { .. } => Ok(len != 0),
            OpKind::Discard { len, .. } => Ok(*len != 0),
            OpKind::WriteZeroes { len, .. } if shape.write_zeroes => Ok(*len != 0),
            _ => Err(DiskError::Unsupported),
        }
    }

    fn say(&self, word: &Word) {
        let name = &self.image.target().name;
        match word {
            Word::Waiting(count, time) => log::warn!(
                "{name}: the cluster does not respond to {count} operation{}, the oldest waits for {} s: `ceph status` \
                 shows what is wrong with it",
                if *count == 1 { "" } else { "s" },
                time.as_secs()
            ),
            Word::Over(time) => {
                log::warn!("{name}: nothing waits any more, after {} s", time.as_secs());
            }
        }
    }
}

impl IoQueue for RbdQueue {
    fn submit(&mut self, op: Op) -> Submit {
        match self.admit(&op.kind, op.buf.len()) {
            Ok(true) => {}
            Ok(false) => return Submit::Done(op.complete(Ok(()))),
            Err(error) => return Submit::Done(op.complete(Err(error))),
        }
        let Some(place) = self.free.pop() else {
            return Submit::Full(op);
        };
        // SAFETY: this queue keeps the image, and waits when it is dropped until everything that it has given has
        // ended.
        let started = unsafe { flight::start(op, place, self.image.target(), &self.inbox) };
        match started {
            Ok(()) => {
                self.given += 1;
                self.stall.begin(place, Instant::now());
                Submit::Queued
            }
            Err(completion) => {
                self.free.push(place);
                Submit::Done(*completion)
            }
        }
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        let mut taken = std::mem::take(&mut self.taken);
        self.inbox.take(&mut taken);
        let count = taken.len();
        for ended in taken.drain(..) {
            self.free.push(ended.place);
            self.stall.end(ended.place);
            done.push(ended.completion);
        }
        self.taken = taken;
        if self.stall.deadline().is_some() {
            let now = Instant::now();
            self.stall.hurry(now);
            if let Some(word) = self.stall.look(now) {
                self.say(&word);
            }
        }
        Ok(count)
    }

    fn wait(&self) -> Wait<'_> {
        Wait::Fd(self.inbox.as_fd())
    }

    fn deadline(&self) -> Option<Instant> {
        self.stall.deadline()
    }
}

impl Drop for RbdQueue {
    /// Waits until librbd has ended everything: it has no way to cancel.
    fn drop(&mut self) {
        self.inbox.wait_for(self.given);
    }
}
