// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an image lies on: a file, or another disk.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use virtio_blk_core::disk::{
    Disk, DiskError, IoBuf, IoQueue, Op, OpKind, SECTOR_SIZE, Submit, Token, Wait,
};

use super::stable::Stable;
use crate::raw::{self, HostFile, RawDisk, RawOptions};

/// Most bytes and segments in one call.
const MAX_CALL: usize = 1 << 30;
const MAX_SEGMENTS: usize = 1024;

/// What an image lies on. All calls wait for their end, and all can be made at once.
pub(super) trait Host: fmt::Debug + Send + Sync {
    /// Bytes.
    fn size(&self) -> io::Result<u64>;
    /// Whether what is behind the end can be written, and reads as zeroes then.
    fn grows(&self) -> bool;
    /// Makes it `size` bytes long, if it can.
    fn resize(&self, size: u64) -> io::Result<()>;
    /// Reads; zeroes behind the end.
    fn read(&self, data: &mut [u8], offset: u64) -> io::Result<()>;
    fn write(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Makes a range inside the size zero, giving back space where possible.
    fn zero(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Makes a range a hole, which reads as zeroes. Whether that was possible is the answer.
    fn punch(&self, offset: u64, len: u64) -> bool;
    /// Makes everything stable that was written. After a failure every later call fails, see [`Host::lost`].
    fn sync(&self) -> io::Result<()>;
    /// The `errno` of a sync that failed: what was written before may be lost.
    fn lost(&self) -> Option<i32>;
    /// Fills `len` bytes of a buffer from its byte `done` on; zeroes behind the end.
    fn read_buf(&self, buf: &IoBuf, done: usize, len: usize, offset: u64) -> Result<(), DiskError>;
    /// Writes `len` bytes of a buffer from its byte `done` on.
    fn write_buf(&self, buf: &IoBuf, done: usize, len: usize, offset: u64)
    -> Result<(), DiskError>;
    /// A path for data whose place is known.
    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError>;
    /// See [`IoQueue::release_held`]: for the calls above, until [`Host::hold_again`] was called as often as this.
    fn release_held(&self) {}
    /// Ends one [`Host::release_held`].
    fn hold_again(&self) {}
}

/// A file or a block device.
#[derive(Debug)]
pub(super) struct FileHost {
    file: HostFile,
    /// The same file, for data whose place is known.
    data: RawDisk,
    is_file: bool,
    stable: Stable,
}

impl FileHost {
    /// # Errors
    /// As of [`RawDisk::open`].
    pub fn new(file: File, options: &RawOptions) -> Result<Self, raw::OpenError> {
        let error = |source| raw::OpenError::Io {
            what: "use",
            path: options.path().to_owned(),
            source,
        };
        let data = RawDisk::over(file.try_clone().map_err(error)?, options)?;
        let is_file = file.metadata().map_err(error)?.is_file();
        Ok(Self {
            file: HostFile::new(file, options),
            data,
            is_file,
            stable: Stable::default(),
        })
    }
}

impl Host for FileHost {
    fn size(&self) -> io::Result<u64> {
        raw::file_size(self.file.file())
    }

    fn grows(&self) -> bool {
        self.is_file
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        self.file.set_len(size)
    }

    fn read(&self, mut data: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !data.is_empty() {
            let segment = libc::iovec {
                iov_base: data.as_mut_ptr().cast(),
                iov_len: data.len().min(MAX_CALL),
            };
            // SAFETY: the segment is `data`, which is borrowed for the length of the call.
            let outcome = unsafe { self.file.preadv2(&[segment], offset, 0) };
            if outcome == 0 {
                data.fill(0);
                break;
            }
            let got = moved(outcome)?;
            offset += got as u64;
            data = data.get_mut(got..).unwrap_or_default();
        }
        Ok(())
    }

    fn write(&self, mut data: &[u8], mut offset: u64) -> io::Result<()> {
        while !data.is_empty() {
            let segment = libc::iovec {
                iov_base: data.as_ptr().cast_mut().cast(),
                iov_len: data.len().min(MAX_CALL),
            };
            // SAFETY: the segment is `data`, which is borrowed for the length of the call.
            let outcome = unsafe { self.file.pwritev2(&[segment], offset, 0) };
            if outcome == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            let put = moved(outcome)?;
            offset += put as u64;
            data = data.get(put..).unwrap_or_default();
        }
        Ok(())
    }

    fn zero(&self, mut offset: u64, len: u64) -> io::Result<()> {
        if self.punch(offset, len) {
            return Ok(());
        }
        let (zeroes, end) = ([0; 4096], offset + len);
        while offset < end {
            let len = zeroes.len().min(usize::try_from(end - offset).unwrap_or(0));
            self.write(zeroes.get(..len).unwrap_or_default(), offset)?;
            offset += len as u64;
        }
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> bool {
        let mode = libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE;
        self.file.fallocate(mode, offset, len) == 0
    }

    fn sync(&self) -> io::Result<()> {
        self.stable.make(|| self.data.sync())
    }

    fn lost(&self) -> Option<i32> {
        let data = || self.data.flush_error()?.errno();
        self.stable.lost().or_else(data)
    }

    fn read_buf(
        &self,
        buf: &IoBuf,
        mut done: usize,
        mut len: usize,
        mut offset: u64,
    ) -> Result<(), DiskError> {
        let mut segments = Vec::new();
        while len > 0 {
            segments.clear();
            if buf.window(done, len.min(MAX_CALL), MAX_SEGMENTS, &mut segments) == 0 {
                return Err(DiskError::OutOfRange);
            }
            // SAFETY: the segments are the buffer's, which is borrowed for the length of the call.
            let got = match unsafe { self.file.preadv2(&segments, offset, 0) } {
                0 => {
                    buf.fill(done, len, 0);
                    return Ok(());
                }
                outcome => moved(outcome)?,
            };
            done += got;
            len -= got.min(len);
            offset += got as u64;
        }
        Ok(())
    }

    fn write_buf(
        &self,
        buf: &IoBuf,
        mut done: usize,
        mut len: usize,
        mut offset: u64,
    ) -> Result<(), DiskError> {
        let mut segments = Vec::new();
        while len > 0 {
            segments.clear();
            if buf.window(done, len.min(MAX_CALL), MAX_SEGMENTS, &mut segments) == 0 {
                return Err(DiskError::OutOfRange);
            }
            // SAFETY: as in `read_buf`.
            let put = match unsafe { self.file.pwritev2(&segments, offset, 0) } {
                0 => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                outcome => moved(outcome)?,
            };
            done += put;
            len -= put.min(len);
            offset += put as u64;
        }
        Ok(())
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        self.data.open_queue(depth)
    }
}

/// Bytes moved by a call; none if it was interrupted.
fn moved(outcome: i32) -> io::Result<usize> {
    match usize::try_from(outcome) {
        Ok(count) => Ok(count),
        Err(_) if outcome == -libc::EINTR => Ok(0),
        Err(_) => Err(io::Error::from_raw_os_error(outcome.saturating_neg())),
    }
}

/// Another disk, in blocks of its own.
pub(super) struct DiskHost {
    disk: Arc<dyn Disk>,
    queue: Mutex<Box<dyn IoQueue>>,
    /// Readable while queues of the image stop: then the queue holds nothing back.
    stop: OwnedFd,
    /// How many they are.
    stopping: Mutex<usize>,
    /// The queue was told so, and does not hold anything back ever again.
    spent: AtomicBool,
    stable: Stable,
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

impl DiskHost {
    /// # Errors
    /// The disk's.
    pub fn new(disk: Arc<dyn Disk>) -> Result<Self, DiskError> {
        let queue = Mutex::new(disk.open_queue(1)?);
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Ok(Self {
            disk,
            queue,
            stop: stop.map_err(io::Error::from)?,
            stopping: Mutex::default(),
            spent: AtomicBool::new(false),
            stable: Stable::default(),
        })
    }

    fn queue(&self) -> MutexGuard<'_, Box<dyn IoQueue>> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if *self.stopping() == 0
            && self.spent.load(Ordering::Acquire)
            // Else it continues with the one that holds nothing back.
            && let Ok(new) = self.disk.open_queue(1)
        {
            *queue = new;
            self.spent.store(false, Ordering::Release);
        }
        queue
    }

    fn stopping(&self) -> MutexGuard<'_, usize> {
        self.stopping.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, queue: &mut dyn IoQueue, kind: OpKind, buf: IoBuf) -> io::Result<IoBuf> {
        let op = Op {
            token: Token(0),
            kind,
            buf,
        };
        let mut done = Vec::new();
        match queue.submit(op) {
            Submit::Done(completion) => done.push(completion),
            Submit::Queued => queue.flush_batch().map_err(into_io)?,
            Submit::Full(_) => return Err(io::ErrorKind::ResourceBusy.into()),
        }
        let mut stop = Some(&self.stop);
        while done.is_empty() {
            if wait(queue, stop)? {
                queue.release_held();
                self.spent.store(true, Ordering::Release);
                stop = None;
            }
            queue.reap(&mut done).map_err(into_io)?;
        }
        let Some(completion) = done.pop() else {
            return Err(io::ErrorKind::Other.into());
        };
        completion.result.map_err(into_io)?;
        Ok(completion.buf)
    }

    /// The blocks around a range.
    fn around(&self, offset: u64, len: usize) -> (u64, usize) {
        let block = u64::from(self.disk.caps().align.guest_block);
        let first = offset - offset % block;
        let end = (offset + len as u64).next_multiple_of(block);
        (first, usize::try_from(end - first).unwrap_or(0))
    }
}

fn into_io(error: DiskError) -> io::Error {
    match error {
        DiskError::Io(error) => error,
        DiskError::FlushLost { errno } => io::Error::from_raw_os_error(errno),
        error => io::Error::other(error),
    }
}

impl fmt::Debug for DiskHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DiskHost")
    }
}

impl Host for DiskHost {
    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.caps().capacity * SECTOR_SIZE)
    }

    fn grows(&self) -> bool {
        false
    }

    fn resize(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn read(&self, data: &mut [u8], offset: u64) -> io::Result<()> {
        let size = self.size()?;
        let there = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let (data, beyond) = data.split_at_mut(there.min(data.len()));
        beyond.fill(0);
        if data.is_empty() {
            return Ok(());
        }
        let (first, len) = self.around(offset, data.len());
        let kind = OpKind::Read { offset: first };
        let buf = self.run(&mut **self.queue(), kind, IoBuf::zeroed(len))?;
        let skip = usize::try_from(offset - first).unwrap_or(0);
        buf.copy_out(skip, data);
        Ok(())
    }

    fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let (first, len) = self.around(offset, data.len());
        let mut queue = self.queue();
        let buf = if (first, len) == (offset, data.len()) {
            IoBuf::from_vec(data.to_vec())
        } else {
            let kind = OpKind::Read { offset: first };
            let buf = self.run(&mut **queue, kind, IoBuf::zeroed(len))?;
            buf.copy_in(usize::try_from(offset - first).unwrap_or(0), data);
            buf
        };
        let kind = OpKind::Write {
            offset: first,
            fua: false,
        };
        self.run(&mut **queue, kind, buf).map(drop)
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write(&vec![0; usize::try_from(len).unwrap_or(0)], offset)
    }

    fn punch(&self, offset: u64, len: u64) -> bool {
        self.zero(offset, len).is_ok()
    }

    fn sync(&self) -> io::Result<()> {
        self.stable.make(|| {
            self.run(&mut **self.queue(), OpKind::Flush, IoBuf::new())
                .map(drop)
        })
    }

    fn lost(&self) -> Option<i32> {
        let below = || self.disk.flush_error()?.errno();
        self.stable.lost().or_else(below)
    }

    fn read_buf(&self, buf: &IoBuf, done: usize, len: usize, offset: u64) -> Result<(), DiskError> {
        let mut data = vec![0; len];
        self.read(&mut data, offset)?;
        buf.copy_in(done, &data);
        Ok(())
    }

    fn write_buf(
        &self,
        buf: &IoBuf,
        done: usize,
        len: usize,
        offset: u64,
    ) -> Result<(), DiskError> {
        let mut data = vec![0; len];
        buf.copy_out(done, &mut data);
        Ok(self.write(&data, offset)?)
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        self.disk.open_queue(depth)
    }

    fn release_held(&self) {
        let mut stopping = self.stopping();
        *stopping += 1;
        // Stays readable: later calls need it, too.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
    }

    fn hold_again(&self) {
        let mut stopping = self.stopping();
        *stopping = stopping.saturating_sub(1);
        if *stopping == 0 {
            let mut count = [0; 8];
            let _ = rustix::io::read(&self.stop, &mut count);
        }
    }
}
