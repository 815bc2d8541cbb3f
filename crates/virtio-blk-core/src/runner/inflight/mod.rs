// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The in-flight area of split queues: memory that outlives this process and tells its successor which
//! requests were taken and not returned. The layout is that of vhost-user's "Inflight I/O tracking".
//!
//! Layout of a queue's part: a header {u64 features, u16 version, u16 desc_num, u16 last_batch_head,
//! u16 used_idx}, then for each descriptor {u8 inflight, u8\[5\], u16 next, u64 counter}, in native byte
//! order. Parts are aligned to 64 bytes. All of it may have been written by somebody hostile.
//!
//! Behind the parts, where the protocol has nothing, we keep
//! - the driver's cache mode {u64 magic, u8 mode}: a client tells it only when the driver changes it, so that
//!   a restarted server would not know that each write must be stable; and
//! - what the guest was told about the device ([`GuestAbi`]), which a restarted server must keep to: at 16 a
//!   u64 that says which of two places holds it (0: none), and from 64 on the places, of
//!   [`GuestAbi::MAX_BYTES`] each. A new record is written to the place that is not in use and then chosen
//!   with one store, so that a process which dies on the way leaves the old one; and
//! - behind that, parts for rings larger than the area was asked for, of the same layout. QEMU asks for an area
//!   with the queue size that it offers to the operating system, and firmware may make a larger ring. The
//!   protocol's description of an area has no other size than the one asked for, so how large these rings may
//!   be follows from the area's length.

mod log;

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use vm_memory::{AtomicInteger, VolatileMemory, VolatileSlice};

#[cfg(any(test, feature = "internals"))]
use super::InFlightLog;
use crate::guest_abi::{AbiError, GuestAbi};
use crate::memory::HostMemory;
use crate::ring::MAX_QUEUE_SIZE;
pub(super) use log::SplitLog;

const HEADER: usize = 16;
const ENTRY: usize = 16;
const ALIGN: usize = 64;

const VERSION: usize = 8;
const DESC_NUM: usize = 10;
const LAST_BATCH_HEAD: usize = 12;
const USED_IDX: usize = 14;

/// The version of the layout.
const LAYOUT: u16 = 1;
/// In its place: nobody used the area yet, or what it says counts for nothing.
const UNUSED: u16 = 0;

/// Bytes of our own part behind the queues'.
const TRAILER: usize = CACHE_MODE + 2 * GuestAbi::MAX_BYTES;
/// Bytes of the part of it that older versions have too.
const CACHE_MODE: usize = 64;
/// Which of the places holds a record: 0, or its number.
const CHOSEN: usize = 16;
/// What our own part begins with.
const MAGIC: u64 = u64::from_le_bytes(*b"vblk-wce");

/// Bytes of one queue's part.
fn part_size(queue_size: u16) -> usize {
    (HEADER + ENTRY * usize::from(queue_size)).next_multiple_of(ALIGN)
}

/// Why an in-flight area can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InFlightError {
    /// It does not hold what it should.
    #[error("an in-flight area of {bytes} bytes for {queues} queues of {queue_size}")]
    Size {
        /// Its bytes.
        bytes: usize,
        /// The queues it should be for.
        queues: u16,
        /// Descriptors of each of them.
        queue_size: u16,
    },
    /// It does not begin at a multiple of 8 in memory.
    #[error("an in-flight area at an odd address")]
    Alignment,
    /// It has no such queue.
    #[error(
        "the in-flight area has {queues} queues of {queue_size}, queue {index} has {size} descriptors"
    )]
    Queue {
        /// The queues it has.
        queues: u16,
        /// The most descriptors of each of them.
        queue_size: u16,
        /// The queue asked for.
        index: u16,
        /// Its descriptors.
        size: u16,
    },
    /// Written by code that knows more.
    #[error("the in-flight area has layout {0}, {LAYOUT} is understood")]
    Layout(u16),
}

/// The field at `offset`; `None` outside the memory, or where it is misaligned.
fn field<T: AtomicInteger>(memory: &HostMemory, offset: usize) -> Option<&T> {
    // SAFETY: `HostMemory` is mapped for reading and writing as long as it is borrowed here, and nobody
    // has a reference into it other than to atomics.
    let slice: VolatileSlice<'_> = unsafe { VolatileSlice::new(memory.as_ptr(), memory.len()) };
    let field = slice.get_atomic_ref::<T>(offset).ok()?;
    // SAFETY: checked to be inside and aligned by `get_atomic_ref`; the slice above lives shorter than
    // the memory.
    Some(unsafe { &*std::ptr::from_ref(field) })
}

/// The area of all queues of a device. Clones are handles to the same memory.
#[derive(Clone, Debug)]
pub struct InFlightArea {
    memory: HostMemory,
    queue_size: u16,
    queues: u16,
    /// Where our own part begins; areas of others have none.
    trailer: Option<usize>,
    /// Where the places for a [`GuestAbi`] begin; areas of older versions have none.
    places: Option<usize>,
    /// Where the parts for larger rings begin, and the most descriptors of such a ring.
    larger: Option<(usize, u16)>,
}

/// A part of an area that belongs to one queue.
#[derive(Clone, Copy)]
struct Part {
    base: usize,
    /// The most descriptors that it has room for.
    capacity: u16,
}

impl InFlightArea {
    /// Bytes that an area for `queues` queues of up to `queue_size` descriptors takes, with our own part.
    pub fn bytes(queues: u16, queue_size: u16) -> usize {
        Self::least_bytes(queues, queue_size) + TRAILER
    }

    /// Bytes that an area takes that has room for rings of up to `largest` descriptors, too, although it is
    /// asked for with `queue_size`, a smaller one.
    pub fn bytes_for_larger(queues: u16, queue_size: u16, largest: u16) -> usize {
        let parts = if largest > queue_size {
            Self::least_bytes(queues, largest)
        } else {
            0
        };
        Self::bytes(queues, queue_size) + parts
    }

    /// The most descriptors of a ring for which `bytes` have room, if that is more than `queue_size`.
    fn larger(queues: u16, queue_size: u16, bytes: usize) -> Option<u16> {
        let sizes = std::iter::successors(Some(MAX_QUEUE_SIZE), |size| Some(size / 2));
        sizes
            .take_while(|size| *size > queue_size)
            .find(|size| Self::bytes_for_larger(queues, queue_size, *size) <= bytes)
    }

    /// Bytes that an area for `queues` queues of `queue_size` uses of `bytes`: without what is too little for
    /// anything.
    pub fn used_bytes(queues: u16, queue_size: u16, bytes: usize) -> usize {
        let largest = Self::larger(queues, queue_size, bytes).unwrap_or(0);
        bytes.min(Self::bytes_for_larger(queues, queue_size, largest))
    }

    /// Bytes that an area must have at least: without our own part.
    pub fn least_bytes(queues: u16, queue_size: u16) -> usize {
        part_size(queue_size) * usize::from(queues)
    }

    /// Takes memory that is full of zeroes, or that an earlier owner left. An area without our own part, or
    /// with that of an older version, is accepted: what it has no room for is not kept then.
    ///
    /// # Errors
    /// The memory is too small for what it should hold, or misaligned.
    pub fn new(memory: HostMemory, queues: u16, queue_size: u16) -> Result<Self, InFlightError> {
        let needed = Self::least_bytes(queues, queue_size);
        let bytes = memory.len();
        if queues == 0 || queue_size == 0 || bytes < needed {
            return Err(InFlightError::Size {
                bytes,
                queues,
                queue_size,
            });
        }
        if !(memory.as_ptr() as usize).is_multiple_of(align_of::<u64>()) {
            return Err(InFlightError::Alignment);
        }
        Ok(Self {
            trailer: (bytes >= needed + CACHE_MODE).then_some(needed),
            places: (bytes >= needed + TRAILER).then_some(needed + CACHE_MODE),
            larger: Self::larger(queues, queue_size, bytes).map(|size| (needed + TRAILER, size)),
            memory,
            queue_size,
            queues,
        })
    }

    /// Keeps the driver's cache mode: 0 write-through, 1 write-back.
    pub fn keep_cache_mode(&self, mode: u8) {
        if let Some(at) = self.trailer
            && let Some(kept) = field::<AtomicU8>(&self.memory, at + 8)
            && let Some(magic) = field::<AtomicU64>(&self.memory, at)
        {
            kept.store(mode, Ordering::Release);
            magic.store(MAGIC, Ordering::Release);
        }
    }

    /// The cache mode that was kept, if one was.
    pub fn cache_mode(&self) -> Option<u8> {
        let at = self.trailer?;
        let magic = field::<AtomicU64>(&self.memory, at)?;
        let mode = field::<AtomicU8>(&self.memory, at + 8)?;
        (magic.load(Ordering::Acquire) == MAGIC).then(|| mode.load(Ordering::Acquire))
    }

    /// Keeps what the guest was told, for the next owner of the area: to be called once queues start, and
    /// whenever it changes. If this process dies in the call, what was kept before is still there. Nothing
    /// is kept in an area without room for it.
    pub fn keep_guest_abi(&self, abi: &GuestAbi) {
        for (offset, value) in self.abi_stores(&abi.to_bytes()) {
            if let Some(field) = field::<AtomicU64>(&self.memory, offset) {
                field.store(value, Ordering::Release);
            }
        }
    }

    /// What the guest was told, if an earlier owner kept it; with the cache mode that was kept last. The
    /// bytes may be hostile: pass them on to nothing but [`Device::adopt`](crate::device::Device::adopt).
    ///
    /// # Errors
    /// The record is damaged, or of a newer version: a server must not start with this area.
    pub fn guest_abi(&self) -> Result<Option<GuestAbi>, AbiError> {
        let Some(place) = self.chosen_place()? else {
            return Ok(None);
        };
        let mut bytes = [0; GuestAbi::MAX_BYTES];
        for (offset, word) in (place..).step_by(8).zip(bytes.as_chunks_mut::<8>().0) {
            *word = self.load_word(offset).to_ne_bytes();
        }
        let mut abi = GuestAbi::from_bytes(&bytes)?;
        if let Some(mode) = self.cache_mode() {
            abi.writeback = mode != 0;
        }
        Ok(Some(abi))
    }

    /// The place that holds a record.
    fn chosen_place(&self) -> Result<Option<usize>, AbiError> {
        let (Some(trailer), Some(places)) = (self.trailer, self.places) else {
            return Ok(None);
        };
        match self.load_word(trailer + CHOSEN) {
            0 => Ok(None),
            1 => Ok(Some(places)),
            2 => Ok(Some(places + GuestAbi::MAX_BYTES)),
            _ => Err(AbiError::Malformed("it is in a place that is not there")),
        }
    }

    /// The stores that keep a record, as offset and value, in the order in which they must become visible.
    fn abi_stores(&self, bytes: &[u8]) -> impl Iterator<Item = (usize, u64)> {
        let base = self.trailer.zip(self.places);
        let base = base.filter(|_| bytes.len() <= GuestAbi::MAX_BYTES);
        let unused = base.map(|(trailer, places)| match self.chosen_place() {
            Ok(Some(place)) if place == places => {
                (places + GuestAbi::MAX_BYTES, (trailer + CHOSEN, 2))
            }
            _ => (places, (trailer + CHOSEN, 1)),
        });
        let words = bytes.chunks(8).map(|chunk| {
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(chunk) {
                *to = *from;
            }
            u64::from_ne_bytes(word)
        });
        unused.into_iter().flat_map(move |(place, choose)| {
            (place..).step_by(8).zip(words.clone()).chain([choose])
        })
    }

    /// A word of our own part; an absent one reads as untouched.
    fn load_word(&self, offset: usize) -> u64 {
        field::<AtomicU64>(&self.memory, offset).map_or(0, |field| field.load(Ordering::Acquire))
    }

    /// Forgets what queue `index` had in flight: to be called when a queue's requests are discarded (a reset,
    /// a ring at other addresses), as nobody waits for them any more. The first store says so for all of them,
    /// so that a process that dies on the way leaves all or none. The queue is stopped, and its log dropped.
    ///
    /// # Errors
    /// The area has no such queue.
    pub fn discard(&self, index: u16) -> Result<(), InFlightError> {
        let parts = self.parts(index).ok_or_else(|| self.no_queue(index, 0))?;
        for part in parts.into_iter().flatten() {
            self.forget(part);
        }
        Ok(())
    }

    fn no_queue(&self, index: u16, size: u16) -> InFlightError {
        InFlightError::Queue {
            queues: self.queues,
            queue_size: self.larger.map_or(self.queue_size, |(_, size)| size),
            index,
            size,
        }
    }

    /// The parts of a queue: for rings of the size asked for, and for larger ones. `None`: there is no such queue.
    fn parts(&self, index: u16) -> Option<[Option<Part>; 2]> {
        let part = |start, capacity| Part {
            base: start + part_size(capacity) * usize::from(index),
            capacity,
        };
        (index < self.queues).then(|| {
            [
                Some(part(0, self.queue_size)),
                self.larger.map(|(start, size)| part(start, size)),
            ]
        })
    }

    /// Whether a part may name something.
    fn is_used(&self, part: Part) -> bool {
        let version = field::<AtomicU16>(&self.memory, part.base + VERSION);
        version.is_some_and(|version| version.load(Ordering::Acquire) != UNUSED)
    }

    /// Says of a part that it names nothing, if it does.
    fn forget(&self, part: Part) {
        let Some(version) = field::<AtomicU16>(&self.memory, part.base + VERSION) else {
            return;
        };
        if version.swap(UNUSED, Ordering::AcqRel) == UNUSED {
            return;
        }
        for head in 0..part.capacity {
            let taken = field::<AtomicU8>(&self.memory, part.base + SplitLog::entry(head));
            if let Some(taken) = taken {
                taken.store(0, Ordering::Release);
            }
        }
    }

    /// The log of queue `index` with `size` descriptors, whose ring shows `used_idx`, and the heads that
    /// were taken and not returned, oldest first.
    ///
    /// # Errors
    /// The area has no such queue, or is of a layout of the future.
    #[cfg(any(test, feature = "internals"))]
    pub fn queue(
        &self,
        index: u16,
        size: u16,
        used_idx: u16,
    ) -> Result<(Box<dyn InFlightLog>, Vec<u16>), InFlightError> {
        let (log, in_flight) = self.split_log(index, size, used_idx)?;
        Ok((Box::new(log), in_flight))
    }

    pub(super) fn split_log(
        &self,
        index: u16,
        size: u16,
        used_idx: u16,
    ) -> Result<(SplitLog, Vec<u16>), InFlightError> {
        let parts = self.parts(index).into_iter().flatten().flatten();
        let mut parts = parts.skip_while(|part| part.capacity < size);
        let part = parts.next().ok_or_else(|| self.no_queue(index, size))?;
        let mut log = SplitLog {
            memory: self.memory.clone(),
            base: part.base,
            size,
            capacity: part.capacity,
            counter: 0,
        };
        let version = log.load::<AtomicU16>(VERSION);
        if version > LAYOUT {
            return Err(InFlightError::Layout(version));
        }
        // The ring has this size now: what the other part names is of a ring that is no more.
        for other in self.parts(index).into_iter().flatten().flatten() {
            if other.base == part.base {
                continue;
            }
            // We leave one of them in use at most. An older version, which does not know the part for larger rings, ran a
            // smaller one since that was used. Before the other part says no more that it did.
            if other.capacity < part.capacity && self.is_used(other) {
                self.forget(part);
            }
            self.forget(other);
        }
        let in_flight = log.recover(used_idx);
        Ok((log, in_flight))
    }
}

#[cfg(test)]
mod tests;
