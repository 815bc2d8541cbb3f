// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The data path of layers that hold operations back.

use std::time::Instant;

use virtio_blk_core::disk::{
    Completion, DiskError, Execute, IoBuf, IoQueue, Op, OpKind, Submit, Token, Wait,
};

use crate::outbox::Outbox;

/// The queue of the disk underneath, and what goes to the owner beside it.
pub(crate) struct Lower {
    pub(crate) queue: Box<dyn IoQueue>,
    pub(crate) outbox: Outbox,
}

/// What a layer holds back, and for how long.
pub(crate) trait Holder: Send {
    /// [`IoQueue::submit`].
    fn submit(&mut self, lower: &mut Lower, op: Op) -> Submit;

    /// [`IoQueue::execute`]. A layer that follows operations by token passes no token on.
    fn execute(
        &mut self,
        lower: &mut Lower,
        kind: &OpKind,
        buf: &IoBuf,
        token: Option<Token>,
    ) -> Execute;

    /// Whether nothing is held back.
    fn is_empty(&self) -> bool;

    /// Takes over what the disk underneath has completed: to `done`, or into the outbox.
    ///
    /// # Errors
    /// That of [`IoQueue::reap`] underneath.
    fn collect(&mut self, lower: &mut Lower, done: &mut Vec<Completion>) -> Result<(), DiskError>;

    /// Submits what need not be held back any longer, as far as there is room underneath.
    fn release(&mut self, lower: &mut Lower);

    /// When [`Holder::release`] is to be called at the latest, while something is held back.
    fn deadline(&self) -> Instant;

    /// An instant that has come, by the clock of [`Holder::deadline`].
    fn now(&self) -> Instant {
        Instant::now()
    }

    /// [`IoQueue::release_held`].
    fn release_held(&mut self, lower: &mut Lower);

    /// [`IoQueue::cancel`].
    fn cancel(&mut self, lower: &mut Lower, token: Token);
}

/// A data path that may hold operations back.
pub(crate) struct HoldingQueue<H> {
    /// Dropped before the queue underneath.
    holder: H,
    lower: Lower,
}

impl<H: Holder> HoldingQueue<H> {
    /// Over a queue of the disk underneath.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub(crate) fn new(holder: H, queue: Box<dyn IoQueue>) -> Result<Self, DiskError> {
        let outbox = Outbox::over(&*queue)?;
        Ok(Self {
            holder,
            lower: Lower { queue, outbox },
        })
    }
}

impl<H: Holder> IoQueue for HoldingQueue<H> {
    fn submit(&mut self, op: Op) -> Submit {
        self.holder.submit(&mut self.lower, op)
    }

    fn execute(&mut self, kind: &OpKind, buf: &IoBuf, token: Option<Token>) -> Execute {
        self.holder.execute(&mut self.lower, kind, buf, token)
    }

    fn flush_batch(&mut self) -> Result<(), DiskError> {
        self.lower.outbox.flush_batch(&mut *self.lower.queue)
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        if self.holder.is_empty() && self.lower.outbox.is_idle() {
            return Ok(0);
        }
        let before = done.len();
        // First what the disk has finished: then there is room for more.
        let reaped = self.holder.collect(&mut self.lower, done);
        self.holder.release(&mut self.lower);
        let Lower { queue, outbox } = &mut self.lower;
        outbox.hand_out(&mut **queue, done, before, reaped)
    }

    fn wait(&self) -> Wait<'_> {
        self.lower.outbox.wait(&*self.lower.queue)
    }

    fn deadline(&self) -> Option<Instant> {
        let own = if self.lower.outbox.is_due() {
            Some(self.holder.now())
        } else if self.holder.is_empty() {
            None
        } else {
            Some(self.holder.deadline())
        };
        [own, self.lower.queue.deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    fn release_held(&mut self) {
        self.holder.release_held(&mut self.lower);
    }

    fn cancel(&mut self, token: Token) {
        self.holder.cancel(&mut self.lower, token);
    }
}
