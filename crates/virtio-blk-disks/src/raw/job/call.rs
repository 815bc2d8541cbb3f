// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The system calls that operations consist of.

use virtio_blk_core::disk::DiskError;

use crate::raw::sys::Erase;

/// How a file's blocks are given back or zeroed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::raw) enum Mode {
    /// Deallocate; reads as zeroes.
    PunchHole,
    /// Zero, staying allocated.
    ZeroRange,
}

impl Mode {
    /// The flags of `fallocate`.
    pub const fn flags(self) -> i32 {
        libc::FALLOC_FL_KEEP_SIZE
            | match self {
                Self::PunchHole => libc::FALLOC_FL_PUNCH_HOLE,
                Self::ZeroRange => libc::FALLOC_FL_ZERO_RANGE,
            }
    }
}

/// A system call to make.
#[derive(Clone, Copy, Debug)]
pub(in crate::raw) enum Call<'a> {
    /// `preadv2`.
    Read {
        segments: &'a [libc::iovec],
        offset: u64,
    },
    /// `pwritev2`, with `RWF_DSYNC` if so asked.
    Write {
        segments: &'a [libc::iovec],
        offset: u64,
        dsync: bool,
    },
    /// `fdatasync`.
    Sync,
    /// `fallocate`.
    Allocate { mode: Mode, offset: u64, len: u64 },
    /// A discard of a block device, for which only a blocking call exists everywhere.
    Erase { how: Erase, offset: u64, len: u64 },
}

#[cfg(feature = "inject")]
impl Call<'_> {
    /// What a test is told of the call.
    pub fn made(&self) -> crate::inject::Made {
        use crate::inject::{Call as Kind, Made};
        let total = |segments: &[libc::iovec]| segments.iter().map(|s| s.iov_len as u64).sum();
        match *self {
            Self::Read { segments, offset } => Made::new(Kind::Read, offset, total(segments)),
            Self::Write {
                segments,
                offset,
                dsync,
            } => Made {
                stable: dsync,
                ..Made::new(Kind::Write, offset, total(segments))
            },
            Self::Sync => Made::new(Kind::Sync, 0, 0),
            Self::Allocate { offset, len, .. } => Made::new(Kind::Allocate, offset, len),
            Self::Erase { offset, len, .. } => Made::new(Kind::Erase, offset, len),
        }
    }
}

/// What comes next.
#[derive(Debug)]
pub(in crate::raw) enum Step<'a> {
    /// Make this call and give its outcome to [`Job::apply`]. The memory it names stays valid until
    /// then, also if the job is moved.
    Call(Call<'a>),
    /// No aligned memory is free; ask again once another job of the queue has finished.
    Wait,
    /// The operation is over. Asking again is a mistake.
    Done(Result<(), DiskError>),
}
