// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A disk behind synchronous calls on bytes: the buffer of the kernel's simulator.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use virtio_blk_core::disk::{
    Caps, Disk, DiskError, IoBuf, IoQueue, Op, OpKind, SECTOR_SIZE, Submit, Token, Wait,
};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Most bytes of one call.
pub(super) const CHUNK: usize = 64 << 10;

/// A disk. One operation at a time.
pub(super) struct Medium {
    io: Box<dyn IoQueue>,
    caps: Caps,
    /// Where to wait for the disk, if it has a descriptor.
    epoll: Option<Epoll>,
    token: u64,
    /// Reused while lengths stay the same.
    buf: IoBuf,
    /// The disk's queue broke.
    broken: bool,
}

impl Medium {
    pub(super) fn open(disk: &dyn Disk) -> Result<Self, DiskError> {
        let io = disk.open_queue(1)?;
        let epoll = match io.wait() {
            Wait::Fd(fd) => {
                let epoll = Epoll::new()?;
                let event = EpollEvent::new(EventSet::IN, 0);
                epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), event)?;
                Some(epoll)
            }
            Wait::Poll | Wait::Inline => None,
        };
        Ok(Self {
            io,
            caps: disk.caps(),
            epoll,
            token: 0,
            buf: IoBuf::new(),
            broken: false,
        })
    }

    /// Bytes.
    pub(super) const fn capacity(&self) -> u64 {
        self.caps.capacity_bytes()
    }

    /// Fills `data`, at most [`CHUNK`] bytes.
    pub(super) fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), DiskError> {
        let (start, len) = self.blocks(offset, data.len());
        self.take_buf(len);
        self.execute(OpKind::Read { offset: start })?;
        self.buf.copy_out((offset - start) as usize, data);
        Ok(())
    }

    /// Stores `data`, at most [`CHUNK`] bytes.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        let (start, len) = self.blocks(offset, data.len());
        self.take_buf(len);
        if len != data.len() {
            // Parts of blocks: the rest of them stays.
            self.execute(OpKind::Read { offset: start })?;
        }
        self.buf.copy_in((offset - start) as usize, data);
        self.execute(OpKind::Write {
            offset: start,
            fua: false,
        })
    }

    /// Zeroes a range of whole sectors.
    pub(super) fn zero(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        let block = u64::from(self.caps.align.guest_block);
        let whole = (offset | len).is_multiple_of(block);
        let (end, mut at) = (offset + len, offset);
        while at < end {
            let left = end - at;
            let step = match self.caps.write_zeroes.filter(|_| whole) {
                Some(limits) => {
                    let most = u64::from(limits.max_sectors) * SECTOR_SIZE / block * block;
                    let len = left.min(most.max(block));
                    self.buf.clear();
                    self.execute(OpKind::WriteZeroes {
                        offset: at,
                        len,
                        unmap: false,
                        fua: false,
                    })?;
                    len
                }
                None => {
                    let len = left.min(CHUNK as u64);
                    self.write(at, &vec![0; len as usize])?;
                    len
                }
            };
            at += step;
        }
        Ok(())
    }

    /// Makes writes stable, where the disk has a cache.
    pub(super) fn flush(&mut self) -> Result<(), DiskError> {
        if !self.caps.flush {
            return Ok(());
        }
        self.buf.clear();
        self.execute(OpKind::Flush)
    }

    /// The whole blocks that cover a range.
    fn blocks(&self, offset: u64, len: usize) -> (u64, usize) {
        let block = u64::from(self.caps.align.guest_block);
        let start = offset / block * block;
        let end = (offset + len as u64).next_multiple_of(block);
        (start, (end - start) as usize)
    }

    fn take_buf(&mut self, len: usize) {
        if self.buf.len() != len {
            self.buf = IoBuf::zeroed(len);
        }
    }

    /// Executes an operation on `buf`, which is back when it returns.
    fn execute(&mut self, kind: OpKind) -> Result<(), DiskError> {
        if self.broken {
            return Err(DiskError::Cancelled);
        }
        self.token += 1;
        let token = Token(self.token);
        let mut op = Op {
            token,
            kind,
            buf: std::mem::take(&mut self.buf),
        };
        let mut done = Vec::new();
        loop {
            match self.io.execute_or_submit(op) {
                Submit::Done(completion) => {
                    self.buf = completion.buf;
                    return completion.result;
                }
                Submit::Queued => break,
                // It holds something of its own for a moment.
                Submit::Full(back) => op = back,
            }
            self.collect(&mut done)?;
        }
        loop {
            self.collect(&mut done)?;
            let found = done.iter().position(|completion| completion.token == token);
            if let Some(at) = found {
                let completion = done.swap_remove(at);
                self.buf = completion.buf;
                return completion.result;
            }
            self.wait();
        }
    }

    fn collect(
        &mut self,
        done: &mut Vec<virtio_blk_core::disk::Completion>,
    ) -> Result<(), DiskError> {
        let result = self
            .io
            .flush_batch()
            .and_then(|()| self.io.reap(done).map(|_| ()));
        self.broken = result.is_err();
        result
    }

    fn wait(&self) {
        let Some(epoll) = &self.epoll else {
            return std::thread::yield_now();
        };
        let timeout = self.io.deadline().map_or(-1, |at| {
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
            i32::try_from(left.as_millis()).unwrap_or(i32::MAX)
        });
        // A signal ends it early, which does no harm.
        let _ = epoll.wait(timeout, &mut [EpollEvent::default()]);
    }
}
