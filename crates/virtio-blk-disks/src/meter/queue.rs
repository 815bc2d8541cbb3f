// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One data path that is measured.

use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_blk_core::disk::{
    Completion, DiskError, IoBuf, IoQueue, Op, OpKind, Submit, Token, Wait,
};

use super::recorder::{Ended, OpClass, Recorder};
use crate::in_flight::InFlight;

/// An operation that is being measured.
#[derive(Clone, Copy)]
struct Begun {
    class: OpClass,
    bytes: u64,
    since: Instant,
    queued: Duration,
}

impl Begun {
    fn new(kind: &OpKind, data_len: usize) -> Self {
        Self {
            class: OpClass::of(kind),
            bytes: kind.range(data_len as u64).map_or(0, |(_, len)| len),
            since: Instant::now(),
            queued: Duration::ZERO,
        }
    }
}

/// A data path of a [`super::MeterDisk`].
pub(super) struct MeterQueue {
    recorder: Arc<Recorder>,
    inner: Box<dyn IoQueue>,
    below: InFlight<Begun>,
    /// Operations that the disk underneath had no room for, and since when.
    refused: Vec<(Token, Instant)>,
    limit: usize,
}

impl MeterQueue {
    pub(super) fn new(recorder: Arc<Recorder>, inner: Box<dyn IoQueue>, depth: u16) -> Self {
        let limit = usize::from(depth.max(1));
        Self {
            recorder,
            inner,
            below: InFlight::new(limit),
            refused: Vec::with_capacity(limit),
            limit,
        }
    }

    fn record(&self, begun: &Begun, ok: bool) {
        self.recorder.record(&Ended {
            class: begun.class,
            bytes: begun.bytes,
            ok,
            latency: begun.since.elapsed(),
            queued: begun.queued,
        });
    }

    /// Measures a completion, and gives it its own token again. `None` if the disk underneath invented
    /// it.
    fn end(&mut self, completion: &mut Completion) -> Option<()> {
        let (token, begun) = self.below.remove(completion.token)?;
        // What was cancelled was not done, so it took no time either.
        if !matches!(completion.result, Err(DiskError::Cancelled)) {
            self.record(&begun, completion.result.is_ok());
        }
        completion.token = token;
        Some(())
    }

    /// Counts the time since an operation was first refused.
    fn was_refused(&mut self, token: Token, begun: &mut Begun) {
        let found = (self.refused.iter()).position(|(refused, _)| *refused == token);
        if let Some(index) = found {
            let (_, first) = self.refused.swap_remove(index);
            begun.queued = begun.since.duration_since(first);
            begun.since = first;
        }
    }
}

impl IoQueue for MeterQueue {
    fn submit(&mut self, op: Op) -> Submit {
        let outer = op.token;
        let mut begun = Begun::new(&op.kind, op.buf.len());
        if !self.refused.is_empty() {
            self.was_refused(outer, &mut begun);
        }
        let token = self.below.insert(outer, begun);
        match self.inner.submit(Op { token, ..op }) {
            Submit::Queued => {
                self.recorder.set_depth(self.below.len());
                Submit::Queued
            }
            Submit::Done(mut completion) => {
                completion.token = token;
                self.end(&mut completion);
                Submit::Done(completion)
            }
            Submit::Full(op) => {
                self.below.remove(token);
                // An owner that gives operations up must not make the list grow.
                if self.refused.len() == self.limit {
                    self.refused.clear();
                }
                self.refused.push((outer, begun.since));
                Submit::Full(Op { token: outer, ..op })
            }
        }
    }

    fn execute(&mut self, kind: &OpKind, buf: &IoBuf) -> Option<Result<(), DiskError>> {
        let begun = Begun::new(kind, buf.len());
        let result = self.inner.execute(kind, buf)?;
        self.record(&begun, result.is_ok());
        Some(result)
    }

    fn flush_batch(&mut self) -> Result<(), DiskError> {
        self.inner.flush_batch()
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        let first = done.len();
        let result = self.inner.reap(done);
        let mut at = first;
        while let Some(completion) = done.get_mut(at) {
            match self.end(completion) {
                Some(()) => at += 1,
                None => drop(done.remove(at)),
            }
        }
        if at != first {
            self.recorder.set_depth(self.below.len());
        }
        result.map(|_| at - first)
    }

    fn wait(&self) -> Wait<'_> {
        self.inner.wait()
    }

    fn deadline(&self) -> Option<Instant> {
        self.inner.deadline()
    }

    fn cancel(&mut self, token: Token) {
        if let Some(inner) = self.below.find(token) {
            self.inner.cancel(inner);
        }
    }
}

impl Drop for MeterQueue {
    fn drop(&mut self) {
        self.recorder.set_depth(0);
    }
}
