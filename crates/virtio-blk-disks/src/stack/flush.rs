// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A flush that is waited for.

use std::io;

use rustix::event::{PollFd, PollFlags, poll};
use virtio_blk_core::disk::{Disk, DiskError, IoBuf, Op, OpKind, Submit, Token, Wait};

/// Makes everything stable that completed before the call.
pub(super) fn flush(disk: &dyn Disk) -> Result<(), DiskError> {
    let mut queue = disk.open_queue(1)?;
    let op = Op {
        token: Token(0),
        kind: OpKind::Flush,
        buf: IoBuf::new(),
    };
    match queue.submit(op) {
        Submit::Done(completion) => return completion.result,
        Submit::Full(_) => {
            let full = "a queue that was just opened has no room";
            return Err(io::Error::other(full).into());
        }
        Submit::Queued => queue.flush_batch()?,
    }
    let mut done = Vec::new();
    loop {
        queue.reap(&mut done)?;
        if let Some(completion) = done.pop() {
            return completion.result;
        }
        match queue.wait() {
            Wait::Fd(fd) => {
                let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
                match poll(&mut fds, None) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(io::Error::from(error).into()),
                }
            }
            Wait::Poll | Wait::Inline => std::thread::yield_now(),
        }
    }
}
