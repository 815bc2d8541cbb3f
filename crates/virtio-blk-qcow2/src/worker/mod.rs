// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A thread that executes operations and waits for the disk meanwhile: what a queue can't finish inside a call.

mod copy;
mod erase;
mod read;
mod write;

use std::sync::Arc;

use virtio_blk_core::disk::{DiskError, IoBuf, Op, OpKind};

use crate::desk::{Commit, Then, Update};
use crate::epoch::Path;
use crate::image::Image;
use crate::inflate::Inflater;
use crate::job::Job;
use crate::keeper::is_fua;
use crate::lane::Lane;
use crate::pool::Line;

/// A worker's own paths and state.
pub struct Worker {
    image: Arc<Image>,
    line: Arc<Line>,
    lane: Lane,
    /// The external data file, if there is one.
    data: Option<Lane>,
    /// The backing file, if there is one.
    below: Option<Lane>,
    path: Arc<Path>,
    inflater: Inflater,
    /// Where a cluster is put together; empty until the first one.
    room: IoBuf,
}

impl Worker {
    /// # Errors
    /// The disks'.
    pub fn new(image: Arc<Image>, line: Arc<Line>) -> Result<Self, DiskError> {
        Ok(Self {
            lane: image.base.medium.lane()?,
            data: image.external_lane()?,
            below: (image.backing.as_ref())
                .map(|(backing, _)| backing.lane())
                .transpose()?,
            path: image.epochs.path(),
            inflater: Inflater::new(image.compression),
            room: IoBuf::new(),
            image,
            line,
        })
    }

    /// What the thread does until there is no more work.
    pub fn run(mut self) {
        while let Some(job) = self.line.next() {
            if job.is_unwanted() && job.done == 0 {
                job.finish(Err(DiskError::Cancelled));
                continue;
            }
            self.execute(job);
        }
    }

    fn execute(&mut self, mut job: Job) {
        let kind = job.op().kind;
        if kind.is_write()
            && let Err(error) = self.image.base.begin_changes(&mut self.lane)
        {
            return job.finish(Err(error));
        }
        let mut updates = Vec::new();
        let result = match kind {
            OpKind::Read { offset } => {
                let result = self.read(offset, &job.op().buf);
                return job.finish(result);
            }
            OpKind::Flush => {
                job.last = true;
                Ok(Some(job))
            }
            OpKind::Write { offset, .. } => self.write(job, offset, &mut updates),
            OpKind::Discard { offset, len } => {
                self.erase(job, offset, len, erase::How::Discard, &mut updates)
            }
            OpKind::WriteZeroes {
                offset, len, unmap, ..
            } => self.erase(job, offset, len, erase::How::Zero { unmap }, &mut updates),
            _ => Err((job, DiskError::Unsupported)),
        };
        let then = match result {
            Ok(None) => return,
            Ok(Some(mut job)) => {
                let done = job.last;
                if !done && updates.is_empty() {
                    // Nothing holds it up: others had their turn.
                    self.line.put(job);
                    return;
                }
                if done && updates.is_empty() && !is_fua(&kind) && kind != OpKind::Flush {
                    return job.finish(Ok(()));
                }
                // With updates, a second barrier makes these stable.
                job.last = updates.is_empty();
                if done {
                    Then::Finish(job, Ok(()))
                } else {
                    Then::Resume(job)
                }
            }
            Err((job, error)) if updates.is_empty() => return job.finish(Err(error)),
            Err((job, error)) => Then::Finish(job, Err(error)),
        };
        self.image.desk.commit(Commit { updates, then });
    }

    /// The path to the guest's data.
    fn data(&mut self) -> &mut Lane {
        self.data.as_mut().unwrap_or(&mut self.lane)
    }
}

/// What a step of a longer operation returns: the job, with `last` set if all of it is done; nothing, if it waits
/// elsewhere; or the error that it failed with.
type Step = Result<Option<Job>, (Job, DiskError)>;

/// What is written.
#[derive(Clone, Copy)]
enum Source<'a> {
    /// Bytes of a buffer, from this one on.
    Buffer(&'a IoBuf, usize),
    /// Zeroes.
    Zeroes,
}

impl Source<'_> {
    /// The source from byte `at` on.
    const fn from(self, at: usize) -> Self {
        match self {
            Self::Buffer(buf, first) => Self::Buffer(buf, first + at),
            Self::Zeroes => Self::Zeroes,
        }
    }
}

/// Puts an operation's updates and its end together.
type Updates = Vec<Update>;

/// The buffer of an operation that writes, taken apart from it.
const fn source(op: &Op) -> Source<'_> {
    match op.kind {
        OpKind::Write { .. } => Source::Buffer(&op.buf, 0),
        _ => Source::Zeroes,
    }
}
