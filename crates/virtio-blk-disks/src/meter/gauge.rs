// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is measured.

use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_blk_core::disk::{Completion, DiskError, Execute, IoBuf, IoQueue, Op, OpKind, Token};

use super::recorder::{Ended, OpClass, Recorder};
use crate::observe::Observer;

/// An operation that is being measured.
#[derive(Clone, Copy)]
pub(super) struct Begun {
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

/// Measures one queue of a [`super::MeterDisk`].
pub(super) struct Gauge {
    recorder: Arc<Recorder>,
    /// Operations that the disk underneath had no room for, and since when.
    refused: Vec<(Token, Instant)>,
    limit: usize,
}

impl Gauge {
    pub(super) fn new(recorder: Arc<Recorder>, depth: u16) -> Self {
        let limit = usize::from(depth.max(1));
        Self {
            recorder,
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

impl Observer for Gauge {
    type Noted = Begun;

    fn begin(&mut self, op: &Op) -> Begun {
        let mut begun = Begun::new(&op.kind, op.buf.len());
        if !self.refused.is_empty() {
            self.was_refused(op.token, &mut begun);
        }
        begun
    }

    fn end(&mut self, begun: Begun, completion: &mut Completion) {
        // What was cancelled was not done, so it took no time either.
        if !matches!(completion.result, Err(DiskError::Cancelled)) {
            self.record(&begun, completion.result.is_ok());
        }
    }

    fn refused(&mut self, begun: Begun, token: Token) {
        // An owner that gives operations up must not make the list grow.
        if self.refused.len() == self.limit {
            self.refused.clear();
        }
        self.refused.push((token, begun.since));
    }

    const EXECUTES: bool = true;

    fn execute(&mut self, inner: &mut dyn IoQueue, kind: &OpKind, buf: &IoBuf) -> Execute {
        let begun = Begun::new(kind, buf.len());
        let executed = inner.execute(kind, buf, None);
        if let Execute::Done(result) = &executed {
            self.record(&begun, result.is_ok());
        }
        executed
    }

    fn depth(&mut self, depth: usize) {
        self.recorder.set_depth(depth);
    }
}
