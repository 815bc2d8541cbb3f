// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A path to a disk whose calls wait for their end: what threads use.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_blk_core::disk::{
    Completion, DiskError, IoBuf, IoQueue, Op, OpKind, Submit, Token, Wait,
};

use crate::medium::{Medium, MetaIo};
use crate::sync::lock;

/// Most bytes of zeroes that are written in one call.
const MAX_ZEROES: usize = 1 << 20;

/// A path to a disk, for one operation at a time.
pub struct Lane {
    medium: Arc<Medium>,
    queue: Box<dyn IoQueue>,
    done: Vec<Completion>,
    /// The last operation's token.
    token: u64,
    /// Nothing is held back below any more.
    stopped: bool,
}

impl Lane {
    /// # Errors
    /// The disk's.
    pub(crate) fn new(medium: Arc<Medium>) -> Result<Self, DiskError> {
        Ok(Self {
            queue: medium.disk().open_queue(1)?,
            medium,
            done: Vec::new(),
            token: 0,
            stopped: false,
        })
    }

    /// Executes an operation and hands its buffer back.
    ///
    /// # Errors
    /// The disk's.
    pub fn run(&mut self, kind: OpKind, buf: IoBuf) -> Result<IoBuf, DiskError> {
        if let Some(result) = self.queue.execute(&kind, &buf, None).done() {
            return result.map(|()| buf);
        }
        self.token += 1;
        let token = Token(self.token);
        match self.queue.submit(Op { token, kind, buf }) {
            Submit::Done(completion) => self.done.push(completion),
            Submit::Queued => self.queue.flush_batch()?,
            Submit::Full(_) => return Err(io::Error::from(io::ErrorKind::ResourceBusy).into()),
        }
        loop {
            // If the wait for an operation failed, it may come back beside a later one.
            for completion in self.done.drain(..) {
                if completion.token == token {
                    completion.result?;
                    return Ok(completion.buf);
                }
            }
            let stop = (!self.stopped).then_some(&self.medium.stop);
            if wait(&*self.queue, stop)? {
                self.queue.release_held();
                self.stopped = true;
            }
            self.queue.reap(&mut self.done)?;
        }
    }

    /// Reads; zeroes behind the end.
    ///
    /// # Errors
    /// The disk's.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), DiskError> {
        let len = self.medium.len();
        let there = usize::try_from(len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let (data, beyond) = data.split_at_mut(there.min(data.len()));
        beyond.fill(0);
        if data.is_empty() {
            return Ok(());
        }
        let (first, len) = self.around(offset, data.len());
        let buf = self.run(OpKind::Read { offset: first }, IoBuf::zeroed(len))?;
        buf.copy_out((offset - first) as usize, data);
        Ok(())
    }

    /// Writes. A part of a block is exchanged in it.
    ///
    /// # Errors
    /// The disk's.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        if data.is_empty() {
            return Ok(());
        }
        let (first, len) = self.around(offset, data.len());
        let kind = OpKind::Write {
            offset: first,
            fua: false,
        };
        if (first, len) == (offset, data.len()) {
            return self.run(kind, IoBuf::from_vec(data.to_vec())).map(drop);
        }
        let medium = self.medium.clone();
        let _alone = lock(&medium.partial);
        let buf = self.run(OpKind::Read { offset: first }, IoBuf::zeroed(len))?;
        buf.copy_in((offset - first) as usize, data);
        self.run(kind, buf).map(drop)
    }

    /// Fills `len` bytes of a buffer from its byte `at` on; zeroes behind the end.
    ///
    /// # Errors
    /// The disk's.
    pub fn read_into(
        &mut self,
        offset: u64,
        buf: &IoBuf,
        at: usize,
        len: usize,
    ) -> Result<(), DiskError> {
        let size = self.medium.len();
        let there = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let there = there.min(len);
        buf.fill(at + there, len - there, 0);
        if there == 0 {
            return Ok(());
        }
        if !self.is_whole(offset, there) {
            let mut data = vec![0; there];
            self.read(offset, &mut data)?;
            buf.copy_in(at, &data);
            return Ok(());
        }
        self.run(OpKind::Read { offset }, buf.part(at, there))
            .map(drop)
    }

    /// Writes `len` bytes of a buffer from its byte `at` on. A part of a block is exchanged in it.
    ///
    /// # Errors
    /// The disk's.
    pub fn write_from(
        &mut self,
        offset: u64,
        buf: &IoBuf,
        at: usize,
        len: usize,
    ) -> Result<(), DiskError> {
        if !self.is_whole(offset, len) {
            return self.write(offset, &buf.part(at, len).to_vec());
        }
        let kind = OpKind::Write { offset, fua: false };
        self.run(kind, buf.part(at, len)).map(drop)
    }

    /// Makes a range of whole blocks read as zeroes, giving back space if `unmap` and where that is possible.
    ///
    /// # Errors
    /// The disk's.
    pub fn zero(&mut self, mut offset: u64, len: u64, unmap: bool) -> Result<(), DiskError> {
        let end = offset + len;
        if let Some(limits) = self.medium.disk().caps().write_zeroes {
            let most = u64::from(limits.max_sectors) * 512;
            let most = (most - most % self.medium.block() as u64).max(self.medium.block() as u64);
            while offset < end {
                let len = most.min(end - offset);
                let kind = OpKind::WriteZeroes {
                    offset,
                    len,
                    unmap: unmap && limits.may_unmap,
                    fua: false,
                };
                self.run(kind, IoBuf::new())?;
                offset += len;
            }
            return Ok(());
        }
        let zeroes = IoBuf::zeroed(usize::try_from(len).unwrap_or(MAX_ZEROES).min(MAX_ZEROES));
        while offset < end {
            let len = zeroes.len().min((end - offset) as usize);
            self.write_from(offset, &zeroes, 0, len)?;
            offset += len as u64;
        }
        Ok(())
    }

    /// Makes everything stable that was written on any path.
    ///
    /// # Errors
    /// The disk's.
    pub fn flush(&mut self) -> Result<(), DiskError> {
        self.run(OpKind::Flush, IoBuf::new()).map(drop)
    }

    /// The blocks around a range.
    fn around(&self, offset: u64, len: usize) -> (u64, usize) {
        let block = self.medium.block() as u64;
        let first = offset - offset % block;
        let end = (offset + len as u64).next_multiple_of(block);
        (first, (end - first) as usize)
    }

    fn is_whole(&self, offset: u64, len: usize) -> bool {
        self.around(offset, len) == (offset, len)
    }
}

impl MetaIo for Lane {
    fn put(&mut self, offset: u64, data: &[u8]) -> Option<Result<(), DiskError>> {
        Some(self.write(offset, data))
    }

    fn may_wait(&self) -> bool {
        true
    }
}

/// A buffer of `len` zeroes at the beginning of a page, as direct I/O takes it.
pub fn aligned(len: usize) -> IoBuf {
    const PAGE: usize = 4096;
    let room = IoBuf::zeroed(len + PAGE);
    let base = (room.segments().first()).map_or(0, |segment| segment.iov_base as usize);
    room.part(base.next_multiple_of(PAGE) - base, len)
}

/// Waits until the queue may have something, or has to let go of what it holds. Whether it has to is the answer.
fn wait(queue: &dyn IoQueue, stop: Option<&OwnedFd>) -> io::Result<bool> {
    let Wait::Fd(fd) = queue.wait() else {
        return Ok(false);
    };
    let mut fds = vec![PollFd::new(&fd, PollFlags::IN)];
    fds.extend(stop.map(|stop| PollFd::new(stop, PollFlags::IN)));
    let left = queue
        .deadline()
        .map(|at| at.saturating_duration_since(Instant::now()));
    let timeout = left.and_then(|left| Timespec::try_from(left).ok());
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(fds.get(1).is_some_and(|stop| !stop.revents().is_empty()))
}
