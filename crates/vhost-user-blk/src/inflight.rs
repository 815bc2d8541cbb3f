// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The in-flight area (vhost-user: "Inflight I/O tracking", split virtqueue): memory that outlives this
//! process and tells its successor which requests were taken and not returned.
//!
//! Layout of a queue's part: a header {u64 features, u16 version, u16 desc_num, u16 last_batch_head,
//! u16 used_idx}, then for each descriptor {u8 inflight, u8\[5\], u16 next, u64 counter}, in native byte
//! order. Parts are aligned to 64 bytes. All of it may have been written by a hostile client.
//!
//! Behind the parts, where the protocol has nothing, we keep the driver's cache mode {u64 magic, u8 mode}: a
//! client tells it only when the driver changes it, so that a restarted server would not know that each
//! write must be stable.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags};
use virtio_blk_core::runner::InFlightLog;
use vm_memory::{AtomicInteger, VolatileMemory};

use crate::shared_file::{Alarm, SharedFile};

const HEADER: usize = 16;
const ENTRY: usize = 16;
const ALIGN: usize = 64;

const VERSION: usize = 8;
const DESC_NUM: usize = 10;
const LAST_BATCH_HEAD: usize = 12;
const USED_IDX: usize = 14;

/// The version of the layout; 0 is an area nobody used yet.
const LAYOUT: u16 = 1;

/// Bytes of our own part behind the queues'.
const TRAILER: usize = 64;
/// What our own part begins with.
const MAGIC: u64 = u64::from_le_bytes(*b"vblk-wce");

/// Bytes of one queue's part.
fn part_size(queue_size: u16) -> usize {
    (HEADER + ENTRY * usize::from(queue_size)).next_multiple_of(ALIGN)
}

/// The area of all queues of a device.
#[derive(Clone, Debug)]
pub(crate) struct InFlightArea {
    region: Arc<SharedFile>,
    queue_size: u16,
    queues: u16,
    /// Where our own part begins; areas of others have none.
    trailer: Option<usize>,
}

impl InFlightArea {
    /// Makes a new area of zeroes. Answers the file to hand to the client and its size in bytes.
    pub(crate) fn create(
        queues: u16,
        queue_size: u16,
        alarm: &Alarm,
    ) -> io::Result<(Self, File, u64)> {
        let size = part_size(queue_size) * usize::from(queues) + TRAILER;
        let fd = rustix::fs::memfd_create(
            "vblk-inflight",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
        )?;
        let file = File::from(fd);
        file.set_len(size as u64)?;
        // Nobody can take the memory away from under our stores.
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let area = Self::open(&file, 0, size as u64, queues, queue_size, alarm)?;
        Ok((area, file, size as u64))
    }

    /// Maps an area that the client kept.
    ///
    /// # Errors
    /// It is too small for what it should hold, or can't be mapped.
    pub(crate) fn open(
        file: &File,
        offset: u64,
        size: u64,
        queues: u16,
        queue_size: u16,
        alarm: &Alarm,
    ) -> io::Result<Self> {
        let needed = part_size(queue_size) * usize::from(queues);
        if queues == 0 || queue_size == 0 || size < needed as u64 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("an in-flight area of {size} bytes for {queues} queues of {queue_size}"),
            ));
        }
        let trailer = (size >= (needed + TRAILER) as u64).then_some(needed);
        let mapped = trailer.map_or(needed, |at| at + TRAILER);
        let region = SharedFile::map(file, offset, mapped as u64, alarm)?;
        Ok(Self {
            trailer,
            region: Arc::new(region),
            queue_size,
            queues,
        })
    }

    /// Keeps the driver's cache mode: 0 write-through, 1 write-back.
    pub(crate) fn keep_cache_mode(&self, mode: u8) {
        if let Some(at) = self.trailer
            && let Ok(kept) = self.region.get_atomic_ref::<AtomicU8>(at + 8)
            && let Ok(magic) = self.region.get_atomic_ref::<AtomicU64>(at)
        {
            kept.store(mode, Ordering::Release);
            magic.store(MAGIC, Ordering::Release);
        }
    }

    /// The cache mode that was kept, if one was.
    pub(crate) fn cache_mode(&self) -> Option<u8> {
        let at = self.trailer?;
        let magic = self.region.get_atomic_ref::<AtomicU64>(at).ok()?;
        let mode = self.region.get_atomic_ref::<AtomicU8>(at + 8).ok()?;
        (magic.load(Ordering::Acquire) == MAGIC).then(|| mode.load(Ordering::Acquire))
    }

    /// The log of queue `index` with `size` descriptors, whose ring shows `used_idx`, and the heads that
    /// were taken and not returned, oldest first.
    ///
    /// # Errors
    /// The area has no such queue, or is of a layout of the future.
    pub(crate) fn queue(
        &self,
        index: u16,
        size: u16,
        used_idx: u16,
    ) -> io::Result<(SplitLog, Vec<u16>)> {
        if index >= self.queues || size > self.queue_size {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "the in-flight area has {} queues of {}, queue {index} has {size} descriptors",
                    self.queues, self.queue_size
                ),
            ));
        }
        let mut log = SplitLog {
            region: self.region.clone(),
            base: part_size(self.queue_size) * usize::from(index),
            size,
            counter: 0,
        };
        let version = log.load::<AtomicU16>(VERSION);
        if version > LAYOUT {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("the in-flight area has layout {version}, {LAYOUT} is understood"),
            ));
        }
        let in_flight = log.recover(used_idx);
        Ok((log, in_flight))
    }
}

/// One queue's log.
#[derive(Debug)]
pub(crate) struct SplitLog {
    region: Arc<SharedFile>,
    base: usize,
    size: u16,
    /// The order of the next request.
    counter: u64,
}

impl SplitLog {
    fn load<T: AtomicInteger>(&self, offset: usize) -> T::V
    where
        T::V: Default,
    {
        // Offsets are inside the area by construction; an absent one reads as untouched.
        self.region
            .get_atomic_ref::<T>(self.base + offset)
            .map(|field| field.load(Ordering::Acquire))
            .unwrap_or_default()
    }

    fn store<T: AtomicInteger>(&self, offset: usize, value: T::V) {
        if let Ok(field) = self.region.get_atomic_ref::<T>(self.base + offset) {
            field.store(value, Ordering::Release);
        }
    }

    fn entry(head: u16) -> usize {
        HEADER + ENTRY * usize::from(head)
    }

    fn in_flight(&self, head: u16) -> bool {
        self.load::<AtomicU8>(Self::entry(head)) != 0
    }

    fn set_in_flight(&self, head: u16, value: bool) {
        self.store::<AtomicU8>(Self::entry(head), u8::from(value));
    }

    fn next(head: u16) -> usize {
        Self::entry(head) + 6
    }

    fn order(head: u16) -> usize {
        Self::entry(head) + 8
    }

    /// Completes a batch that was cut off, and lists what is in flight.
    fn recover(&mut self, used_idx: u16) -> Vec<u16> {
        if self.load::<AtomicU16>(VERSION) == 0 {
            self.store::<AtomicU16>(USED_IDX, used_idx);
            self.store::<AtomicU16>(VERSION, LAYOUT);
        }
        // A guest's next boot may choose another size; the area has room for the largest.
        self.store::<AtomicU16>(DESC_NUM, self.size);
        // A batch is in the used ring and still marked here: the process died between the two.
        let unmarked = used_idx.wrapping_sub(self.load::<AtomicU16>(USED_IDX));
        let mut head = self.load::<AtomicU16>(LAST_BATCH_HEAD);
        for _ in 0..unmarked.min(self.size) {
            if head >= self.size {
                break;
            }
            self.set_in_flight(head, false);
            head = self.load::<AtomicU16>(Self::next(head));
        }
        self.store::<AtomicU16>(USED_IDX, used_idx);
        let mut heads: Vec<(u64, u16)> = (0..self.size)
            .filter(|&head| self.in_flight(head))
            .map(|head| (self.load::<AtomicU64>(Self::order(head)), head))
            .collect();
        heads.sort_unstable();
        self.counter = heads.last().map_or(0, |(order, _)| order.wrapping_add(1));
        heads.into_iter().map(|(_, head)| head).collect()
    }
}

impl InFlightLog for SplitLog {
    fn taken(&mut self, head: u16) {
        if head < self.size {
            self.store::<AtomicU64>(Self::order(head), self.counter);
            self.counter = self.counter.wrapping_add(1);
            self.set_in_flight(head, true);
        }
    }

    fn returning(&mut self, heads: &[u16], _used_idx: u16) {
        // A list from the last head back to the first, for `recover`.
        let mut last = self.load::<AtomicU16>(LAST_BATCH_HEAD);
        for &head in heads.iter().filter(|&&head| head < self.size) {
            self.store::<AtomicU16>(Self::next(head), last);
            last = head;
        }
        self.store::<AtomicU16>(LAST_BATCH_HEAD, last);
    }

    fn returned(&mut self, heads: &[u16], used_idx: u16) {
        for &head in heads.iter().filter(|&&head| head < self.size) {
            self.set_in_flight(head, false);
        }
        self.store::<AtomicU16>(USED_IDX, used_idx);
    }
}

#[cfg(test)]
mod tests;
