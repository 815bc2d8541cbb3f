// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The engine of plain system calls: every operation is finished when `submit` returns.

use std::sync::Arc;

use virtio_blk_core::disk::{
    Completion, DiskError, Execute, IoBuf, IoQueue, Op, OpKind, Submit, Token, Wait,
};

use crate::raw::bounce::Pool;
use crate::raw::host_file::HostFile;
use crate::raw::job::{Call, Job, Step};
use crate::raw::medium::Medium;
use crate::raw::page_cache::Inline;

/// A data path of plain system calls.
pub(super) struct SyncQueue {
    medium: Arc<Medium>,
    /// What flushes go through.
    flush: Option<HostFile>,
    pool: Pool,
    inline: Inline,
}

impl SyncQueue {
    pub fn new(medium: Arc<Medium>) -> Self {
        // One job at a time needs one chunk.
        let pool = Pool::new(medium.bounce_align(), 1);
        Self {
            flush: medium.durability.open(&medium.file),
            medium,
            pool,
            inline: Inline::new(true),
        }
    }
}

/// Makes one call, waiting for its end. `flush`: what the caller flushes through.
pub(super) fn call(medium: &Medium, flush: Option<&HostFile>, call: Call<'_>) -> i32 {
    match call {
        // SAFETY: the job keeps the segments valid until it is told the outcome.
        Call::Read { segments, offset } => unsafe { medium.file.preadv2(segments, offset, 0) },
        Call::Write {
            segments,
            offset,
            dsync,
        } => {
            let flags = if dsync { libc::RWF_DSYNC } else { 0 };
            // SAFETY: as above.
            unsafe { medium.file.pwritev2(segments, offset, flags) }
        }
        Call::Sync => match flush {
            Some(file) => file.fdatasync(),
            None => medium.durability.sync(&medium.file),
        },
        Call::Allocate { mode, offset, len } => medium.file.fallocate(mode.flags(), offset, len),
        Call::Erase { how, offset, len } => medium.file.erase(how, offset, len),
    }
}

impl IoQueue for SyncQueue {
    fn submit(&mut self, op: Op) -> Submit {
        if let Err(error) = self.medium.check_bounds(&op.kind, op.buf.len()) {
            return Submit::Done(op.complete(Err(error)));
        }
        let mut job = Job::new(op, &self.medium);
        let result = loop {
            let outcome = match job.step(&self.medium, &mut self.pool) {
                Step::Call(next) => call(&self.medium, self.flush.as_ref(), next),
                Step::Done(result) => break result,
                // Cannot be: the only chunk is free between jobs.
                Step::Wait => break Err(DiskError::from_errno(libc::ENOMEM)),
            };
            job.apply(&self.medium, outcome);
        };
        job.release(&mut self.pool);
        Submit::Done(job.op.complete(result))
    }

    fn execute(&mut self, kind: &OpKind, buf: &IoBuf, _token: Option<Token>) -> Execute {
        if let Err(error) = self.medium.check_bounds(kind, buf.len()) {
            return Execute::Done(Err(error));
        }
        self.inline.execute(&self.medium, kind, buf)
    }

    fn reap(&mut self, _done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        Ok(0)
    }

    fn wait(&self) -> Wait<'_> {
        Wait::Inline
    }
}
