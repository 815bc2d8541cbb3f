// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Operations that one system call finishes, or none: what most are.

use virtio_blk_core::disk::{Execute, IoBuf, OpKind};

use crate::raw::job::fits_one_call;
use crate::raw::medium::Medium;
use crate::raw::page_cache_map::PageCacheMap;

/// What a queue tries before it makes a [`Job`](crate::raw::job::Job) of an operation.
pub(super) struct Inline {
    page_cache: PageCacheMap,
    /// Whether a read may wait for the device.
    wait: bool,
}

impl Inline {
    pub const fn new(wait: bool) -> Self {
        Self {
            page_cache: PageCacheMap::new(),
            wait,
        }
    }

    /// Executes an operation whose bounds were checked, or declines it: it takes more than a call, or the call did
    /// not do it, for a reason that shows when it is made again.
    pub fn execute(&mut self, medium: &Medium, kind: &OpKind, buf: &IoBuf) -> Execute {
        let done = match *kind {
            OpKind::Read { offset } => {
                self.page_cache.read(offset, buf) || self.read(medium, offset, buf)
            }
            OpKind::Write { offset, fua: false } => {
                match self.page_cache.write(medium, offset, buf) {
                    Some(Ok(())) => true,
                    Some(lost) => return Execute::Done(lost),
                    None => self.write(medium, offset, buf),
                }
            }
            _ => return Execute::Declined,
        };
        match done {
            true => Execute::Done(Ok(())),
            false => Execute::Declined,
        }
    }

    fn read(&mut self, medium: &Medium, offset: u64, buf: &IoBuf) -> bool {
        if !fits_one_call(medium, buf) {
            return false;
        }
        let flags = match self.wait {
            true => 0,
            #[cfg(feature = "io-uring")]
            false if medium.can.nowait.get() => libc::RWF_NOWAIT,
            false => return false,
        };
        // SAFETY: the buffer's segments are valid while it is borrowed.
        let outcome = unsafe { medium.file.preadv2(buf.segments(), offset, flags) };
        #[cfg(feature = "io-uring")]
        if flags != 0 && outcome == -libc::EOPNOTSUPP {
            medium.can.nowait.disable();
        }
        let done = usize::try_from(outcome) == Ok(buf.len());
        // Where nothing was written there may be a hole, which takes memory when it is touched.
        if done && !medium.in_memory {
            self.page_cache.note(medium, offset, buf.len());
        }
        done
    }

    fn write(&mut self, medium: &Medium, offset: u64, buf: &IoBuf) -> bool {
        if !fits_one_call(medium, buf) {
            return false;
        }
        // SAFETY: as above.
        let outcome = unsafe { medium.file.pwritev2(buf.segments(), offset, 0) };
        let done = usize::try_from(outcome) == Ok(buf.len());
        if done {
            self.page_cache.note(medium, offset, buf.len());
        }
        done
    }
}
