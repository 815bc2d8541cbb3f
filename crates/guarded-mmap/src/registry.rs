// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The mappings of the process, where a signal handler can find them.
//!
//! Slots come in blocks that are never freed, so a handler can walk them at any time. A slot's content is
//! guarded by a sequence number. A handler may pass over a slot that changes while it looks: it looks for
//! the mapping that its thread is touching, which nobody may unmap at that time.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, PoisonError};

/// Slots per block.
const BLOCK: usize = 64;

/// After so many replaced pages a mapping is replaced as a whole.
const MAX_REPLACED: usize = 64;

/// A mapped range.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Area {
    /// First address, a multiple of `page`.
    pub(crate) start: usize,
    /// Bytes, a multiple of `page`.
    pub(crate) len: usize,
    /// Bytes.
    pub(crate) page: usize,
    /// `PROT_…`.
    pub(crate) protection: i32,
}

impl Area {
    pub(crate) fn pointer(&self) -> *mut c_void {
        std::ptr::with_exposed_provenance_mut(self.start)
    }
}

/// The place of one mapping.
#[derive(Debug)]
pub(crate) struct Slot {
    /// Odd while the fields change.
    sequence: AtomicUsize,
    start: AtomicUsize,
    /// 0: free.
    len: AtomicUsize,
    page: AtomicUsize,
    protection: AtomicI32,
    alarm: AtomicI32,
    poisoned: AtomicBool,
    replaced: AtomicUsize,
}

/// No descriptor.
pub(crate) const NONE: i32 = -1;

impl Slot {
    const fn new() -> Self {
        Self {
            sequence: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            page: AtomicUsize::new(0),
            protection: AtomicI32::new(0),
            alarm: AtomicI32::new(NONE),
            poisoned: AtomicBool::new(false),
            replaced: AtomicUsize::new(0),
        }
    }

    #[inline]
    pub(crate) fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Relaxed)
    }

    pub(crate) fn set_poisoned(&self) {
        self.poisoned.store(true, Ordering::SeqCst);
    }

    pub(crate) fn set_alarm(&self, fd: i32) {
        self.alarm.store(fd, Ordering::Release);
    }

    /// Changes the fields. Only with the lock on the free slots.
    fn set(&self, area: &Area) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence
            .store(sequence.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(area.start, Ordering::Relaxed);
        self.len.store(area.len, Ordering::Relaxed);
        self.page.store(area.page, Ordering::Relaxed);
        self.protection.store(area.protection, Ordering::Relaxed);
        self.alarm.store(NONE, Ordering::Relaxed);
        self.poisoned.store(false, Ordering::Relaxed);
        self.replaced.store(0, Ordering::Relaxed);
        self.sequence
            .store(sequence.wrapping_add(2), Ordering::Release);
    }

    /// The slot's range, if it holds `address` and does not change meanwhile.
    fn holding(&self, address: usize) -> Option<Area> {
        let before = self.sequence.load(Ordering::Acquire);
        let area = Area {
            start: self.start.load(Ordering::Relaxed),
            len: self.len.load(Ordering::Relaxed),
            page: self.page.load(Ordering::Relaxed),
            protection: self.protection.load(Ordering::Relaxed),
        };
        fence(Ordering::Acquire);
        let stable = before.is_multiple_of(2) && before == self.sequence.load(Ordering::Relaxed);
        let inside = address.wrapping_sub(area.start) < area.len;
        (stable && inside).then_some(area)
    }

    /// Flags the mapping and puts zeroes where `address` is. Returns whether the access can be repeated.
    /// Only async-signal-safe calls.
    fn poison(&self, area: &Area, address: usize) -> bool {
        let first = !self.poisoned.swap(true, Ordering::SeqCst);
        let page = Area {
            start: address & !(area.page - 1),
            len: area.page,
            ..*area
        };
        let few = self.replaced.fetch_add(1, Ordering::Relaxed) < MAX_REPLACED;
        let repaired = few && zero(&page) || zero(area);
        let alarm = self.alarm.load(Ordering::Acquire);
        if first && alarm != NONE {
            let one = 1u64;
            // SAFETY: eight readable bytes. The descriptor belongs to the mapping that is being touched.
            unsafe { libc::write(alarm, (&raw const one).cast(), 8) };
        }
        repaired
    }
}

/// Maps private zeroes in place of a range.
fn zero(area: &Area) -> bool {
    // SAFETY: the range is a part of a mapping of ours that is alive, as it is being touched; nobody relies
    // on what it holds but through raw accesses that expect any content.
    let base = unsafe {
        libc::mmap(
            area.pointer(),
            area.len,
            area.protection,
            libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    base != libc::MAP_FAILED
}

struct Block {
    slots: [Slot; BLOCK],
    next: *mut Block,
}

/// The newest block. Blocks are never changed, but for their slots, nor freed.
static BLOCKS: AtomicPtr<Block> = AtomicPtr::new(null_mut());

static FREE: Mutex<Vec<&'static Slot>> = Mutex::new(Vec::new());

/// Notes a mapping.
pub(crate) fn register(area: &Area) -> &'static Slot {
    let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
    let slot = match free.pop() {
        Some(slot) => slot,
        None => {
            let block: &'static Block = Box::leak(Box::new(Block {
                slots: [const { Slot::new() }; BLOCK],
                next: BLOCKS.load(Ordering::Relaxed),
            }));
            BLOCKS.store(std::ptr::from_ref(block).cast_mut(), Ordering::Release);
            let [first, rest @ ..] = &block.slots;
            free.extend(rest);
            first
        }
    };
    slot.set(area);
    slot
}

/// Removes a mapping. To be called before it is unmapped: its addresses may be reused then.
pub(crate) fn unregister(slot: &'static Slot) {
    let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
    slot.set(&Area {
        start: 0,
        len: 0,
        page: 0,
        protection: 0,
    });
    free.push(slot);
}

/// Handles a missing page at `address`. Returns `false` if it is in no mapping, or nothing can be done.
/// Async-signal-safe.
pub(crate) fn repair(address: usize) -> bool {
    let mut block = BLOCKS.load(Ordering::Acquire);
    // SAFETY: a block that was published stays as it is, for good.
    while let Some(present) = unsafe { block.as_ref() } {
        for slot in &present.slots {
            if let Some(area) = slot.holding(address) {
                return slot.poison(&area, address);
            }
        }
        block = present.next;
    }
    false
}
