// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a queue that holds operations back has for its owner, beside what the disk underneath finishes by itself.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use virtio_blk_core::disk::{Completion, DiskError, IoQueue, Op, Submit, Wait};

/// Ends of operations, and how the owner learns of them.
pub(crate) struct Outbox {
    /// Finished without the disk underneath, or inside its `submit`.
    done: Vec<Completion>,
    /// Operations that were held back went down since the last flush.
    unflushed: bool,
    waiting: Waiting,
}

impl Outbox {
    /// For a layer over `inner`.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub(crate) fn over(inner: &dyn IoQueue) -> Result<Self, DiskError> {
        Ok(Self {
            done: Vec::new(),
            unflushed: false,
            waiting: Waiting::over(inner)?,
        })
    }

    /// An operation has ended.
    pub(crate) fn push(&mut self, completion: Completion) {
        self.done.push(completion);
    }

    /// An operation that was held back went down, with this outcome. Returns it if there was no room.
    pub(crate) fn went_down(&mut self, outcome: Submit) -> Option<Op> {
        match outcome {
            Submit::Full(op) => return Some(op),
            Submit::Queued => self.unflushed = true,
            Submit::Done(completion) => self.done.push(completion),
        }
        None
    }

    /// Whether `reap` has nothing if nothing is held back: the disk underneath never has.
    pub(crate) const fn is_idle(&self) -> bool {
        self.waiting.is_inline() && self.done.is_empty()
    }

    /// Whether `reap` should be called at once, whatever the disk underneath has.
    pub(crate) const fn is_due(&self) -> bool {
        !self.done.is_empty() || self.unflushed
    }

    /// [`IoQueue::flush_batch`].
    pub(crate) fn flush_batch(&mut self, inner: &mut dyn IoQueue) -> Result<(), DiskError> {
        self.unflushed = false;
        inner.flush_batch()
    }

    /// The end of [`IoQueue::reap`], which began when `into` had `before` completions and reaped the disk underneath with
    /// this outcome.
    ///
    /// # Errors
    /// As of [`IoQueue::reap`]. What is in `into` is valid.
    pub(crate) fn hand_out(
        &mut self,
        inner: &mut dyn IoQueue,
        into: &mut Vec<Completion>,
        before: usize,
        reaped: Result<(), DiskError>,
    ) -> Result<usize, DiskError> {
        into.append(&mut self.done);
        reaped?;
        if self.unflushed {
            self.flush_batch(inner)?;
        }
        Ok(into.len() - before)
    }

    /// [`IoQueue::wait`].
    pub(crate) fn wait<'a>(&'a self, inner: &'a dyn IoQueue) -> Wait<'a> {
        self.waiting.wait(inner)
    }
}

/// How the owner waits, where operations are held back until a [`IoQueue::deadline`].
enum Waiting {
    /// As for the disk underneath.
    Inner,
    /// The disk underneath is never waited for: a descriptor that never fires, as the layer itself has deadlines.
    Never(OwnedFd),
}

impl Waiting {
    /// For a layer over `inner`.
    ///
    /// # Errors
    /// There is no descriptor left.
    fn over(inner: &dyn IoQueue) -> Result<Self, DiskError> {
        Ok(match inner.wait() {
            Wait::Fd(_) | Wait::Poll => Self::Inner,
            Wait::Inline => {
                Self::Never(eventfd(0, EventfdFlags::CLOEXEC).map_err(io::Error::from)?)
            }
        })
    }

    /// What [`IoQueue::wait`] returns.
    fn wait<'a>(&'a self, inner: &'a dyn IoQueue) -> Wait<'a> {
        match self {
            Self::Inner => inner.wait(),
            Self::Never(fd) => Wait::Fd(fd.as_fd()),
        }
    }

    /// Whether the disk underneath finishes everything inside `submit`.
    const fn is_inline(&self) -> bool {
        matches!(self, Self::Never(_))
    }
}
