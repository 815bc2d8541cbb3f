// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One operation as a series of system calls.
//!
//! The state machine both engines share: [`Job::step`] says which call comes next, the engine makes it
//! and tells the outcome to [`Job::apply`], until `step` returns [`Step::Done`]. Short transfers,
//! `EINTR`, fall-backs and copies for alignment are all decided here, so that they can be tested
//! without a kernel and are the same on every engine.

mod call;

use std::ops::ControlFlow;

use virtio_blk_core::disk::{DiskError, IoBuf, Op, OpKind};

use super::bounce::{Chunk, Pool};
use super::medium::Medium;
use super::sys::Erase;
pub(super) use call::{Call, Mode, Step};

/// Most segments in one call: the kernel's `UIO_MAXIOV`.
const MAX_SEGMENTS: usize = 1024;
/// Most bytes in one call. Below the kernel's own limit, and a multiple of every alignment.
const MAX_CALL: usize = 1 << 30;
/// Segments of one call that writes zeroes, all over the same chunk.
const ZERO_SEGMENTS: usize = 16;
/// How often in a row a call may return "try again" before the operation fails.
const MAX_RETRIES: u32 = 128;
/// After how many of these the call is to be made by the engine's thread itself.
#[cfg(feature = "io-uring")]
const MAX_TRIES_ELSEWHERE: u32 = 3;

/// Where a job is.
#[derive(Debug)]
enum Stage {
    /// Moving the buffer's bytes.
    Transfer,
    /// Writing zeroes from our own memory.
    Zeroes,
    /// Zeroing by `fallocate`.
    Allocate(Mode),
    /// Discarding by `fallocate`.
    Punch,
    /// Discarding by a call for block devices.
    Erase(Erase),
    /// Making it stable.
    Sync,
    /// Over.
    Done(Result<(), DiskError>),
}

/// Whether one call can move a buffer as it is; an empty one needs none.
pub(super) fn fits_one_call(medium: &Medium, buf: &IoBuf) -> bool {
    let segments = buf.segments();
    !segments.is_empty()
        && segments.len() <= MAX_SEGMENTS
        && buf.len() <= MAX_CALL
        && medium.takes(segments)
}

/// One operation on its way.
#[derive(Debug)]
pub(super) struct Job {
    /// The operation, returned when the job is over.
    pub op: Op,
    /// The owner no longer wants it.
    pub cancelled: bool,
    stage: Stage,
    /// First byte on the medium, bytes, bytes that are finished.
    offset: u64,
    len: u64,
    done: u64,
    /// Success means that something is stable.
    fua: bool,
    /// A final `fdatasync` is owed.
    sync_after: bool,
    /// A write that was to make itself stable failed so: the write, or what makes it stable?
    doubt: Option<i32>,
    /// The call being made: bytes, through `chunk` or not, with `RWF_DSYNC` or not.
    asked: usize,
    bounced: bool,
    dsync: bool,
    retries: u32,
    segments: Vec<libc::iovec>,
    chunk: Option<Chunk>,
}

// SAFETY: the segments point into `op.buf`, which may be sent, into `chunk`, which belongs to the job, or
// into the medium's zeroes, which are shared and never written.
unsafe impl Send for Job {}

impl Job {
    /// A job for an operation that was allowed by [`Medium::check_bounds`].
    pub fn new(op: Op, medium: &Medium) -> Self {
        let (offset, len) = op.kind.range(op.buf.len() as u64).unwrap_or((0, 0));
        let (stage, fua) = match op.kind {
            OpKind::Read { .. } => (Stage::Transfer, false),
            OpKind::Write { fua, .. } => (Stage::Transfer, fua),
            OpKind::WriteZeroes { unmap, fua, .. } => (Self::zeroing(medium, unmap), fua),
            OpKind::Discard { .. } if medium.is_block_device() => {
                (Stage::Erase(Erase::Discard), false)
            }
            // Nobody promised that it has an effect.
            OpKind::Discard { .. } if !medium.can.punch.get() => (Stage::Done(Ok(())), false),
            OpKind::Discard { .. } => (Stage::Punch, false),
            OpKind::SecureErase { .. } => (Stage::Erase(Erase::Secure), false),
            // Nothing was written.
            OpKind::Flush if !medium.is_writable() => (Stage::Done(Ok(())), false),
            OpKind::Flush => (Stage::Sync, true),
            _ => (Stage::Done(Err(DiskError::Unsupported)), false),
        };
        let stage = match stage {
            Stage::Sync | Stage::Done(_) => stage,
            _ if len == 0 => Stage::Done(Ok(())),
            stage => stage,
        };
        // After a failed flush nothing can be promised to be stable any more.
        let lost = match stage {
            Stage::Done(_) => None,
            _ if fua => medium.durability.check().err(),
            _ => None,
        };
        let stage = lost.map_or(stage, |lost| Stage::Done(Err(lost)));
        Self {
            op,
            cancelled: false,
            stage,
            offset,
            len,
            done: 0,
            fua,
            sync_after: false,
            doubt: None,
            asked: 0,
            bounced: false,
            dsync: false,
            retries: 0,
            segments: Vec::new(),
            chunk: None,
        }
    }

    /// The best way to zero that is not known to fail.
    fn zeroing(medium: &Medium, unmap: bool) -> Stage {
        if unmap && medium.can.punch.get() {
            Stage::Allocate(Mode::PunchHole)
        } else if medium.can.zero_range.get() {
            Stage::Allocate(Mode::ZeroRange)
        } else {
            Stage::Zeroes
        }
    }

    /// The result, if the job is over.
    pub fn result(&mut self) -> Option<Result<(), DiskError>> {
        match &mut self.stage {
            Stage::Done(result) => Some(std::mem::replace(result, Ok(()))),
            _ => None,
        }
    }

    /// Gives the aligned memory back, if the job holds any.
    pub fn release(&mut self, pool: &mut Pool) {
        if let Some(chunk) = self.chunk.take() {
            pool.give(chunk);
        }
    }

    /// What comes next.
    pub fn step(&mut self, medium: &Medium, pool: &mut Pool) -> Step<'_> {
        if let Some(result) = self.result() {
            return Step::Done(result);
        }
        if self.cancelled {
            return Step::Done(Err(DiskError::Cancelled));
        }
        let at = self.offset + self.done;
        match &self.stage {
            Stage::Done(_) => Step::Done(Ok(())),
            Stage::Sync => Step::Call(Call::Sync),
            Stage::Allocate(mode) => Step::Call(Call::Allocate {
                mode: *mode,
                offset: self.offset,
                len: self.len,
            }),
            Stage::Punch => Step::Call(Call::Allocate {
                mode: Mode::PunchHole,
                offset: self.offset,
                len: self.len,
            }),
            Stage::Erase(how) => Step::Call(Call::Erase {
                how: *how,
                offset: self.offset,
                len: self.len,
            }),
            Stage::Zeroes => match self.aim_zeroes(medium) {
                Ok(()) => self.write_call(medium, at, false),
                Err(error) => Step::Done(Err(error)),
            },
            Stage::Transfer => match self.aim(medium, pool) {
                ControlFlow::Break(step) => step,
                ControlFlow::Continue(whole) => match self.op.kind {
                    OpKind::Read { .. } => Step::Call(Call::Read {
                        segments: self.aimed(whole),
                        offset: at,
                    }),
                    _ => self.write_call(medium, at, whole),
                },
            },
        }
    }

    /// The segments of the call: the operation's own, or those in `segments`.
    fn aimed(&self, whole: bool) -> &[libc::iovec] {
        if whole {
            self.op.buf.segments()
        } else {
            &self.segments
        }
    }

    fn write_call(&mut self, medium: &Medium, at: u64, whole: bool) -> Step<'_> {
        // One call that covers the rest makes itself stable; several are cheaper with one sync at the
        // end.
        let last = self.asked as u64 == self.len - self.done;
        self.dsync = self.fua && last && !self.sync_after && medium.can_dsync();
        self.sync_after |= self.fua && !self.dsync;
        Step::Call(Call::Write {
            dsync: self.dsync,
            segments: self.aimed(whole),
            offset: at,
        })
    }

    /// Chooses the memory of the next transfer. `Continue(true)`: all of the operation's own segments;
    /// `Continue(false)`: those in `segments`.
    fn aim(&mut self, medium: &Medium, pool: &mut Pool) -> ControlFlow<Step<'static>, bool> {
        let own = self.op.buf.segments();
        let whole = self.done == 0 && own.len() <= MAX_SEGMENTS && self.op.buf.len() <= MAX_CALL;
        self.bounced = false;
        if whole {
            self.asked = self.op.buf.len();
        } else {
            self.segments.clear();
            self.asked = self.op.buf.window(
                self.done as usize,
                MAX_CALL,
                MAX_SEGMENTS,
                &mut self.segments,
            );
        }
        if medium.takes(self.aimed(whole)) {
            return ControlFlow::Continue(whole);
        }
        if self.chunk.is_none() {
            match pool.take() {
                Ok(Some(chunk)) => self.chunk = Some(chunk),
                Ok(None) => return ControlFlow::Break(Step::Wait),
                Err(error) => return ControlFlow::Break(Step::Done(Err(error))),
            }
        }
        let Some(chunk) = &mut self.chunk else {
            return ControlFlow::Break(Step::Wait);
        };
        self.bounced = true;
        self.asked = chunk.len().min(self.op.buf.len() - self.done as usize);
        if self.op.kind.is_write() {
            self.op
                .buf
                .copy_out(self.done as usize, chunk.bytes(self.asked));
            if !self.op.buf.is_intact() {
                // What was copied may be zeroes in place of the data.
                let lost = DiskError::from_errno(libc::EFAULT);
                return ControlFlow::Break(Step::Done(Err(lost)));
            }
        }
        self.segments.clear();
        self.segments.push(chunk.segment(self.asked));
        ControlFlow::Continue(false)
    }

    /// Points the next transfer at zeroes.
    fn aim_zeroes(&mut self, medium: &Medium) -> Result<(), DiskError> {
        let zeroes = medium.zeroes()?;
        let rest = self.len - self.done;
        self.segments.clear();
        self.asked = 0;
        while self.segments.len() < ZERO_SEGMENTS && (self.asked as u64) < rest {
            let left = usize::try_from(rest - self.asked as u64).unwrap_or(usize::MAX);
            let segment = zeroes.segment(left);
            self.asked += segment.iov_len;
            self.segments.push(segment);
        }
        Ok(())
    }

    /// Takes the outcome of the last call: a count or 0, or a negated `errno`.
    pub fn apply(&mut self, medium: &Medium, outcome: i32) {
        if outcome < 0 {
            return self.apply_error(medium, -outcome);
        }
        self.retries = 0;
        match &self.stage {
            Stage::Transfer | Stage::Zeroes => self.advance(medium, outcome as usize),
            Stage::Allocate(_) if self.fua => self.stage = Stage::Sync,
            _ => self.stage = Stage::Done(self.success(medium)),
        }
    }

    /// The result after all calls have succeeded.
    fn success(&self, medium: &Medium) -> Result<(), DiskError> {
        if self.fua {
            // A flush that failed meanwhile may have been about this one's data.
            medium.durability.check()?;
        }
        Ok(())
    }

    /// Whether the call is to be made by the engine's own thread, because nobody else makes it: a kernel without
    /// threads for io_uring (`pids.max`, `RLIMIT_NPROC`) returns `EAGAIN` or `ECANCELED` each time.
    #[cfg(feature = "io-uring")]
    pub const fn is_urgent(&self) -> bool {
        self.retries >= MAX_TRIES_ELSEWHERE
    }

    /// The file ended after `count` bytes, within its last block: zeroes are what the rest reads as.
    fn pad(&mut self, count: usize) {
        self.bring(count);
        let read = self.done as usize + count;
        self.op
            .buf
            .fill(read, (self.len as usize).saturating_sub(read), 0);
        self.stage = Stage::Done(Ok(()));
    }

    /// Gives the buffer what was read in its place.
    fn bring(&mut self, count: usize) {
        if self.bounced
            && !self.op.kind.is_write()
            && let Some(chunk) = &mut self.chunk
        {
            self.op.buf.copy_in(self.done as usize, chunk.bytes(count));
        }
    }

    /// `count` bytes were moved.
    fn advance(&mut self, medium: &Medium, count: usize) {
        let count = count.min(self.asked);
        if matches!(self.op.kind, OpKind::Read { .. })
            && medium.ends_at(self.offset + self.done + count as u64)
        {
            return self.pad(count);
        }
        let rest = self.len - self.done;
        // A direct transfer continues at an aligned offset; what lies beyond is moved again. The end of a
        // file that shrank shows as no progress.
        let progress = if count as u64 == rest {
            rest
        } else {
            count as u64 & !(u64::from(medium.host_offset()) - 1)
        };
        if progress == 0 {
            self.stage = Stage::Done(Err(if self.op.kind.is_write() {
                DiskError::from_errno(libc::EIO)
            } else {
                DiskError::OutOfRange
            }));
            return;
        }
        self.bring(progress as usize);
        self.done += progress;
        if self.done == self.len {
            if let Some(errno) = self.doubt {
                // The data could be written, so it was the rest that failed, and may fail others' data.
                medium.durability.note(errno);
                self.stage = Stage::Done(Err(DiskError::from_errno(errno)));
            } else if self.sync_after {
                self.stage = Stage::Sync;
            } else {
                self.stage = Stage::Done(self.success(medium));
            }
        }
    }

    fn apply_error(&mut self, medium: &Medium, errno: i32) {
        if self.cancelled && matches!(errno, libc::ECANCELED | libc::EINTR) {
            self.stage = Stage::Done(Err(DiskError::Cancelled));
            return;
        }
        // ECANCELED that nobody asked for: the thread that submitted to an io_uring is gone.
        if matches!(errno, libc::EINTR | libc::EAGAIN | libc::ECANCELED)
            && self.retries < MAX_RETRIES
        {
            self.retries += 1;
            return;
        }
        let unsupported = matches!(
            errno,
            libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV | libc::EINVAL | libc::ENOTTY
        );
        match &self.stage {
            // Written once more and without: that tells which of the two fails. A sync that follows tells by itself
            // of a lack of space.
            Stage::Transfer | Stage::Zeroes if self.dsync => {
                match errno {
                    libc::EOPNOTSUPP => medium.can.dsync.disable(),
                    libc::ENOSPC | libc::EDQUOT | libc::EFBIG => {}
                    _ => self.doubt = Some(errno),
                }
                self.sync_after = true;
            }
            Stage::Sync if !matches!(errno, libc::EINTR | libc::EAGAIN | libc::ECANCELED) => {
                medium.durability.note(errno);
                self.stage = Stage::Done(Err(DiskError::from_errno(errno)));
            }
            Stage::Allocate(Mode::PunchHole) if unsupported => {
                medium.can.punch.disable();
                self.stage = Self::zeroing(medium, false);
            }
            Stage::Allocate(Mode::ZeroRange) if unsupported => {
                medium.can.zero_range.disable();
                self.stage = Stage::Zeroes;
            }
            Stage::Punch if unsupported => {
                medium.can.punch.disable();
                self.stage = Stage::Done(Ok(()));
            }
            Stage::Erase(_) if unsupported => {
                self.stage = Stage::Done(Err(DiskError::Unsupported));
            }
            _ => self.stage = Stage::Done(Err(DiskError::from_errno(errno))),
        }
    }
}

#[cfg(test)]
mod tests;
