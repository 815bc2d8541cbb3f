// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The data path of layers that watch operations go down and come back, and leave them as they are.

use std::time::Instant;

use virtio_blk_core::disk::{
    Completion, DiskError, Execute, IoBuf, IoQueue, Op, OpKind, Submit, Token, Wait,
};

use crate::in_flight::InFlight;

/// What a layer does about operations. Each call of [`Observer::begin`] is followed by one call of `end`, `refused` or
/// `dropped`.
pub(crate) trait Observer: Send {
    /// What is remembered of an operation while the disk underneath has it.
    type Noted: Send;

    /// Whether an operation with so much data may go down.
    ///
    /// # Errors
    /// What it completes with instead.
    fn check(&self, kind: &OpKind, data_len: usize) -> Result<(), DiskError> {
        let _ = (kind, data_len);
        Ok(())
    }

    /// An operation is about to go down.
    fn begin(&mut self, op: &Op) -> Self::Noted;

    /// It has ended. The completion already has its own token again.
    fn end(&mut self, noted: Self::Noted, completion: &mut Completion);

    /// The disk underneath had no room for it.
    fn refused(&mut self, noted: Self::Noted, token: Token) {
        let _ = (noted, token);
    }

    /// The queue was dropped while the disk underneath had it, and can't have an effect any more.
    fn dropped(&mut self, noted: Self::Noted) {
        let _ = noted;
    }

    /// Whether [`Observer::execute`] asks the disk underneath.
    const EXECUTES: bool = false;

    /// Has `inner` execute an operation inside the call, with no token, so that it is not taken.
    fn execute(&mut self, inner: &mut dyn IoQueue, kind: &OpKind, buf: &IoBuf) -> Execute {
        let _ = (inner, kind, buf);
        Execute::Declined
    }

    /// How many operations the disk underneath has, after that changed.
    fn depth(&mut self, depth: usize) {
        let _ = depth;
    }
}

/// What the layer knows; told of what is left when it is dropped.
struct Below<O: Observer> {
    observer: O,
    noted: InFlight<O::Noted>,
}

impl<O: Observer> Below<O> {
    /// Tells of an end, and gives the completion its own token again. `None` if the disk underneath
    /// invented it.
    fn end(&mut self, completion: &mut Completion) -> Option<()> {
        let (token, noted) = self.noted.remove(completion.token)?;
        completion.token = token;
        self.observer.end(noted, completion);
        Some(())
    }
}

impl<O: Observer> Drop for Below<O> {
    fn drop(&mut self) {
        for noted in self.noted.drain() {
            self.observer.dropped(noted);
        }
        self.observer.depth(0);
    }
}

/// A data path whose operations are observed.
pub(crate) struct ObservedQueue<O: Observer> {
    inner: Box<dyn IoQueue>,
    /// Dropped last: when the disk underneath is done with all buffers.
    below: Below<O>,
}

impl<O: Observer> ObservedQueue<O> {
    /// Over a queue for `depth` operations.
    pub(crate) fn new(observer: O, inner: Box<dyn IoQueue>, depth: u16) -> Self {
        Self {
            inner,
            below: Below {
                observer,
                noted: InFlight::new(usize::from(depth.max(1))),
            },
        }
    }
}

impl<O: Observer> IoQueue for ObservedQueue<O> {
    fn submit(&mut self, op: Op) -> Submit {
        let Below { observer, noted } = &mut self.below;
        if let Err(error) = observer.check(&op.kind, op.buf.len()) {
            return Submit::Done(op.complete(Err(error)));
        }
        let outer = op.token;
        let token = noted.insert(outer, observer.begin(&op));
        let op = Op { token, ..op };
        let submitted = match O::EXECUTES {
            true => self.inner.submit(op),
            false => self.inner.execute_or_submit(op),
        };
        match submitted {
            Submit::Queued => {
                observer.depth(noted.len());
                Submit::Queued
            }
            Submit::Done(mut completion) => {
                completion.token = token;
                self.below.end(&mut completion);
                Submit::Done(completion)
            }
            Submit::Full(op) => {
                if let Some((_, noted)) = noted.remove(token) {
                    observer.refused(noted, outer);
                }
                Submit::Full(Op { token: outer, ..op })
            }
        }
    }

    fn execute(&mut self, kind: &OpKind, buf: &IoBuf, _token: Option<Token>) -> Execute {
        self.below.observer.execute(self.inner.as_mut(), kind, buf)
    }

    fn flush_batch(&mut self) -> Result<(), DiskError> {
        self.inner.flush_batch()
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        let first = done.len();
        let result = self.inner.reap(done);
        let mut at = first;
        while let Some(completion) = done.get_mut(at) {
            match self.below.end(completion) {
                Some(()) => at += 1,
                None => drop(done.remove(at)),
            }
        }
        if at != first {
            self.below.observer.depth(self.below.noted.len());
        }
        result.map(|_| at - first)
    }

    fn wait(&self) -> Wait<'_> {
        self.inner.wait()
    }

    fn deadline(&self) -> Option<Instant> {
        self.inner.deadline()
    }

    fn release_held(&mut self) {
        self.inner.release_held();
    }

    fn cancel(&mut self, token: Token) {
        if let Some(inner) = self.below.noted.find(token) {
            self.inner.cancel(inner);
        }
    }
}
