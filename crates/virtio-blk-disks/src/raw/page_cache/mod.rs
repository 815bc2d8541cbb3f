// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reads and writes that are executed inside the call, because the page cache has what they need.
//!
//! Without a system call, where that is possible: the image is mapped, and what is known to be in memory is copied
//! from or to there.
//!
//! Known means that a system call found it there, or put it there, earlier. It may have been evicted since:
//! the copy then waits for the device, which the owner of a queue should not have to do often. So those
//! waits are counted (they are major page faults), and when there are any, everything known is forgotten.

use guarded_mmap::{Mapping, Protection};
use virtio_blk_core::disk::{DiskError, Execute, IoBuf, OpKind};

use super::job::fits_one_call;
use super::medium::Medium;
use super::sys;

/// Most bytes of one read or write that is copied: beyond, the system call no longer matters.
const MAX_COPY: usize = 64 << 10;
/// Bytes per bit of what is known.
const PAGE: u64 = 4096;
/// Bytes of the image in one mapping.
const WINDOW: u64 = 1 << 30;
/// Most mappings of a queue. The page tables of each may grow to 1/512 of it.
const MAX_WINDOWS: usize = 64;
/// After so many copies major faults are counted.
const SAMPLE: u32 = 64;
/// Reads or writes that are not copied after a sample with major faults; doubled with each such sample in a row.
const MIN_PAUSE: u32 = 1 << 10;
/// The longest such pause.
const MAX_PAUSE: u32 = 1 << 20;

/// What a queue tries before it makes a [`Job`](super::job::Job) of an operation: what one system call finishes, or none.
pub(super) struct Inline {
    map: PageCacheMap,
    /// Whether a read may wait for the device.
    wait: bool,
}

impl Inline {
    pub const fn new(wait: bool) -> Self {
        Self {
            map: PageCacheMap::new(),
            wait,
        }
    }

    /// Executes an operation whose bounds were checked, or declines it: it takes more than a call, or the call did
    /// not do it, for a reason that shows when it is made again.
    pub fn execute(&mut self, medium: &Medium, kind: &OpKind, buf: &IoBuf) -> Execute {
        let done = match *kind {
            OpKind::Read { offset } => self.map.read(offset, buf) || self.read(medium, offset, buf),
            OpKind::Write { offset, fua: false } => match self.map.write(medium, offset, buf) {
                Some(Ok(())) => true,
                Some(lost) => return Execute::Done(lost),
                None => self.write(medium, offset, buf),
            },
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
            self.map.note(medium, offset, buf.len());
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
            self.map.note(medium, offset, buf.len());
        }
        done
    }
}

/// A mapped part of the image.
struct Window {
    /// Which part, in units of `WINDOW`.
    number: u64,
    mapping: Mapping,
    /// A bit for each page that was in memory.
    known: Vec<u64>,
}

/// The words and bits of the pages that `len` bytes at `offset` of a window touch.
fn bits(offset: u64, len: usize) -> impl Iterator<Item = (usize, u64)> {
    let last = (offset + len as u64 - 1) / PAGE;
    (offset / PAGE..=last).map(|page| ((page / 64) as usize, 1 << (page % 64)))
}

/// One queue's way to the page cache.
struct PageCacheMap {
    windows: Vec<Window>,
    /// Copies since the last sample.
    copies: u32,
    /// Major faults of the thread at the last sample.
    faults: Option<i64>,
    /// Reads or writes not to copy any more.
    paused: u32,
    pause: u32,
}

impl PageCacheMap {
    pub const fn new() -> Self {
        Self {
            windows: Vec::new(),
            copies: 0,
            faults: None,
            paused: 0,
            pause: MIN_PAUSE,
        }
    }

    /// Where a range of bytes lies: the window's number and the offset in it. `None` for ranges that are
    /// not copied: empty, long, or in two windows.
    #[inline]
    fn place(offset: u64, len: usize) -> Option<(u64, u64)> {
        let inside = offset % WINDOW;
        let fits = len != 0 && len <= MAX_COPY && inside + len as u64 <= WINDOW;
        fits.then_some((offset / WINDOW, inside))
    }

    /// Fills `buf` from `offset` of the image on, if all of that is known to be in memory. `false`: the
    /// buffer's content is undefined, read it by a system call.
    #[inline]
    pub fn read(&mut self, offset: u64, buf: &IoBuf) -> bool {
        self.transfer(offset, buf, |mapped, segment| {
            // SAFETY: `mapped` is in the mapping for all of the segment, which is valid for writes by the
            // buffer's contract. Others may change both at any time, so no reference is made to either. They
            // are different mappings.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    mapped.cast_const(),
                    segment.iov_base.cast(),
                    segment.iov_len,
                );
            }
        })
    }

    /// Writes `buf` at `offset` of the image, if all of that is known to be in memory and stays there. `None`: what
    /// is there is undefined, write it by a system call.
    ///
    /// Only where the page cache is the medium. Elsewhere the first write after each time that a page went to the
    /// device would be a page fault, which finds out there that the device is full.
    ///
    /// # Errors
    /// The data was taken away meanwhile: zeroes may be there in its place.
    #[inline]
    pub fn write(
        &mut self,
        medium: &Medium,
        offset: u64,
        buf: &IoBuf,
    ) -> Option<Result<(), DiskError>> {
        if !medium.in_memory || !buf.is_intact() {
            return None;
        }
        let done = self.transfer(offset, buf, |mapped, segment| {
            // SAFETY: as in `read`, the other way round; the window can be written to (`open`).
            unsafe {
                std::ptr::copy_nonoverlapping(
                    segment.iov_base.cast_const().cast(),
                    mapped,
                    segment.iov_len,
                );
            }
        });
        let lost = || Err(DiskError::from_errno(libc::EFAULT));
        done.then(|| if buf.is_intact() { Ok(()) } else { lost() })
    }

    /// Calls `copy` with each segment and its place in a window. `false`: not all of it was there.
    #[inline]
    fn transfer(&mut self, offset: u64, buf: &IoBuf, copy: impl Fn(*mut u8, &libc::iovec)) -> bool {
        let Some((number, inside)) = Self::place(offset, buf.len()) else {
            return false;
        };
        let Some(index) = self.windows.iter().position(|w| w.number == number) else {
            return false;
        };
        if self.paused != 0 {
            self.paused -= 1;
            return false;
        }
        let window = &self.windows[index];
        let known = |(word, bit)| window.known.get(word).is_some_and(|known| known & bit != 0);
        if !bits(inside, buf.len()).all(known) {
            return false;
        }
        let mut mapped = window.mapping.as_ptr().wrapping_add(inside as usize);
        for segment in buf.segments() {
            copy(mapped, segment);
            mapped = mapped.wrapping_add(segment.iov_len);
        }
        if window.mapping.is_poisoned() {
            // The file became shorter, its device fails, or memory is full: the system call knows.
            self.windows.swap_remove(index);
            return false;
        }
        self.copies += 1;
        if self.copies == SAMPLE {
            self.sample();
        }
        true
    }

    /// Notes that `len` bytes from `offset` on are in memory, as a system call that did not wait has read
    /// or written them.
    #[inline]
    pub fn note(&mut self, medium: &Medium, offset: u64, len: usize) {
        let Some((number, inside)) = Self::place(offset, len) else {
            return;
        };
        let index = self.windows.iter().position(|w| w.number == number);
        let Some(index) = index.or_else(|| self.open(medium, number)) else {
            return;
        };
        let window = &mut self.windows[index];
        for (word, bit) in bits(inside, len) {
            if let Some(known) = window.known.get_mut(word) {
                *known |= bit;
            }
        }
    }

    /// Maps another window. Returns where it is.
    #[cold]
    fn open(&mut self, medium: &Medium, number: u64) -> Option<usize> {
        if !medium.can.map.get() || self.windows.len() == MAX_WINDOWS {
            return None;
        }
        let protection = if medium.in_memory {
            Protection::ReadWrite
        } else {
            Protection::Read
        };
        let start = number.checked_mul(WINDOW)?;
        // What lies beyond the end of the file is there when it grows.
        match Mapping::new(medium.file.file(), start, WINDOW as usize, protection) {
            Ok(mapping) => {
                self.windows.push(Window {
                    number,
                    mapping,
                    known: vec![0; (WINDOW / PAGE / 64) as usize],
                });
                Some(self.windows.len() - 1)
            }
            Err(_) => {
                medium.can.map.disable();
                None
            }
        }
    }

    /// Looks whether copies had to wait for the device, and forgets what is known if so.
    #[cold]
    fn sample(&mut self) {
        self.copies = 0;
        let now = sys::major_faults();
        let before = self.faults.replace(now);
        if before.is_none_or(|before| before == now) {
            self.pause = (self.pause / 2).max(MIN_PAUSE);
            return;
        }
        self.windows.clear();
        self.paused = self.pause;
        self.pause = (self.pause * 2).min(MAX_PAUSE);
    }
}

#[cfg(test)]
mod tests;
