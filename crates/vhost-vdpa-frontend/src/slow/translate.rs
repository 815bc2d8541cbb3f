// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Translation of the host address of a buffer to the I/O address at which it is mapped in the device.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use virtio_blk_core::memory::{IotlbTable, Permissions};

use crate::lock;

/// Host memory that a device knows.
#[derive(Clone, Copy, Debug)]
struct HostRange {
    start: usize,
    last: usize,
    iova: u64,
    permissions: Permissions,
}

impl HostRange {
    /// A range of nothing.
    const NONE: Self = Self {
        start: usize::MAX,
        last: 0,
        iova: 0,
        permissions: Permissions::No,
    };

    /// The device's address for `host`, and the bytes from there on in one piece.
    #[inline]
    fn find(&self, host: usize, access: Permissions) -> Option<(u64, usize)> {
        if host < self.start || host > self.last || !self.permissions.allow(access) {
            return None;
        }
        let offset = host - self.start;
        Some((self.iova + offset as u64, self.last - host + 1))
    }
}

/// The ranges of one memory map, by host address. Numbers only: an operation keeps its memory mapped by itself.
#[derive(Debug, Default)]
pub(super) struct Translation(Vec<HostRange>);

impl Translation {
    /// Of `table`. Where the same memory is mapped twice, one of the two is used.
    pub(super) fn new(table: &IotlbTable) -> Self {
        let mut ranges: Vec<HostRange> = table
            .mappings()
            .iter()
            .map(|mapping| {
                let start = mapping.memory().as_ptr() as usize;
                HostRange {
                    start,
                    // A mapping is never empty.
                    last: start + (mapping.memory().len() - 1),
                    iova: mapping.iova(),
                    permissions: mapping.permissions(),
                }
            })
            .collect();
        ranges.sort_unstable_by_key(|range| range.start);
        ranges.dedup_by(|next, kept| next.start <= kept.last);
        Self(ranges)
    }

    /// The device's address for `host`, and the bytes from there on in one piece.
    #[inline]
    pub(super) fn find(&self, host: usize, access: Permissions) -> Option<(u64, usize)> {
        self.range(host)?.find(host, access)
    }

    /// The first range that ends at `host` or behind.
    #[inline]
    fn range(&self, host: usize) -> Option<&HostRange> {
        let index = self.0.partition_point(|range| range.last < host);
        self.0.get(index)
    }
}

/// No generation: nothing is in flight.
const IDLE: u64 = u64::MAX;

/// The present translation, and who still uses an older one.
#[derive(Default)]
pub(super) struct TranslationHistory {
    /// Counts translations; the number of the present one.
    generation: AtomicU64,
    current: Mutex<(u64, Arc<Translation>)>,
    /// For each queue the oldest generation that it has in flight, or [`IDLE`].
    readers: Mutex<Vec<Arc<AtomicU64>>>,
}

impl TranslationHistory {
    /// Makes `translation` the present one. Returns its generation.
    pub(super) fn publish(&self, translation: Translation) -> u64 {
        let mut current = lock(&self.current);
        current.0 += 1;
        current.1 = Arc::new(translation);
        // After this, nothing is submitted with an older one: see `TranslationReader::current`.
        self.generation.store(current.0, Ordering::SeqCst);
        current.0
    }

    /// Whether no request in flight was translated before `generation`.
    pub(super) fn is_past(&self, generation: u64) -> bool {
        lock(&self.readers)
            .iter()
            .all(|oldest| oldest.load(Ordering::SeqCst) >= generation)
    }

    /// A queue's view.
    pub(super) fn view(self: &Arc<Self>) -> TranslationReader {
        let oldest = Arc::new(AtomicU64::new(IDLE));
        lock(&self.readers).push(oldest.clone());
        let (generation, translation) = lock(&self.current).clone();
        TranslationReader {
            all: self.clone(),
            oldest,
            generation,
            translation,
            in_flight: 0,
            older: VecDeque::new(),
            hint: HostRange::NONE,
        }
    }
}

/// One queue's use of the translations.
pub(super) struct TranslationReader {
    all: Arc<TranslationHistory>,
    oldest: Arc<AtomicU64>,
    generation: u64,
    translation: Arc<Translation>,
    /// Requests in flight of the present generation.
    in_flight: u32,
    /// Older generations in flight, oldest first, and how many requests have them.
    older: VecDeque<(u64, u32)>,
    /// The range that was found last.
    hint: HostRange,
}

impl TranslationReader {
    /// Brings the view up to date for a request that is to be translated.
    #[inline]
    pub(super) fn current(&mut self) -> &Translation {
        self.renew();
        &self.translation
    }

    #[inline(always)]
    fn renew(&mut self) {
        if self.in_flight == 0 && self.older.is_empty() {
            // Stored before the load: a thread that publishes another translation either sees this, and waits for us, or
            // published before, and we see that.
            self.oldest.store(self.generation, Ordering::SeqCst);
        }
        if self.all.generation.load(Ordering::SeqCst) != self.generation {
            self.take_over();
        }
    }

    #[cold]
    fn take_over(&mut self) {
        if self.in_flight != 0 {
            self.older.push_back((self.generation, self.in_flight));
            self.in_flight = 0;
        }
        let (generation, translation) = lock(&self.all.current).clone();
        self.generation = generation;
        self.translation = translation;
        self.hint = HostRange::NONE;
        if self.older.is_empty() {
            self.oldest.store(generation, Ordering::SeqCst);
        }
    }

    /// The device's address of `len` bytes at `host`, for a request that counts as in flight now, and the request's
    /// generation. `None`: they are not there in one piece, and nothing counts.
    #[inline(always)]
    pub(super) fn locate(
        &mut self,
        host: usize,
        len: usize,
        access: Permissions,
    ) -> Option<(u64, u64)> {
        self.renew();
        match self.hint.find(host, access) {
            Some((iova, piece)) if len <= piece => Some((iova, self.hold())),
            _ => self.locate_anew(host, len, access),
        }
    }

    #[cold]
    fn locate_anew(&mut self, host: usize, len: usize, access: Permissions) -> Option<(u64, u64)> {
        if let Some(range) = self.translation.range(host)
            && let Some((iova, piece)) = range.find(host, access)
            && len <= piece
        {
            self.hint = *range;
            return Some((iova, self.hold()));
        }
        self.publish_oldest();
        None
    }

    /// Counts the request for which [`TranslationReader::current`] was called last as in flight. Returns its generation.
    #[inline]
    pub(super) const fn hold(&mut self) -> u64 {
        self.in_flight += 1;
        self.generation
    }

    /// A request of `generation` ended.
    #[inline]
    pub(super) fn release(&mut self, generation: u64) {
        if generation != self.generation {
            return self.release_older(generation);
        }
        self.in_flight -= 1;
        if self.in_flight == 0 {
            self.publish_oldest();
        }
    }

    #[cold]
    fn release_older(&mut self, generation: u64) {
        for (found, count) in &mut self.older {
            if *found == generation {
                *count -= 1;
            }
        }
        while self.older.front().is_some_and(|(_, count)| *count == 0) {
            self.older.pop_front();
        }
        self.publish_oldest();
    }

    /// Says which generation is the oldest in flight. Also for a request that was not made after all.
    #[inline]
    pub(super) fn publish_oldest(&self) {
        let oldest = match self.older.front() {
            Some((generation, _)) => *generation,
            None if self.in_flight != 0 => self.generation,
            None => IDLE,
        };
        self.oldest.store(oldest, Ordering::Release);
    }
}

impl Drop for TranslationReader {
    fn drop(&mut self) {
        lock(&self.all.readers).retain(|reader| !Arc::ptr_eq(reader, &self.oldest));
    }
}

#[cfg(test)]
mod tests {
    use virtio_blk_core::memory::{HostMemory, IotlbMapping};

    use super::*;

    fn table(ranges: &[(u64, usize, usize)]) -> IotlbTable {
        let mut table = IotlbTable::new();
        for &(iova, host, len) in ranges {
            // SAFETY: nothing is accessed.
            let memory = unsafe { HostMemory::new(host as *mut u8, len, Arc::new(())) };
            let mapping = IotlbMapping::new(iova, memory, Permissions::ReadWrite);
            table.insert(mapping.unwrap()).unwrap();
        }
        table
    }

    #[test]
    fn host_addresses_become_the_devices() {
        let translation = Translation::new(&table(&[
            (0x10_0000, 0x7000, 0x1000),
            (0, 0x9000, 0x2000),
            (0x20_0000, 0x9800, 0x100),
        ]));
        let find = |host| translation.find(host, Permissions::Read);
        assert_eq!(find(0x7000), Some((0x10_0000, 0x1000)));
        assert_eq!(find(0x7fff), Some((0x10_0fff, 1)));
        assert_eq!(find(0x8000), None);
        assert_eq!(find(0x6fff), None);
        assert_eq!(find(0x9801), Some((0x801, 0x17ff)));
        assert_eq!(find(0xb000), None);
    }

    #[test]
    fn the_publisher_sees_who_is_behind() {
        let all = Arc::new(TranslationHistory::default());
        let (mut a, _b) = (all.view(), all.view());
        assert!(all.is_past(1), "nothing in flight");
        a.current();
        let first = a.hold();
        let next = all.publish(Translation::default());
        assert!(!all.is_past(next));
        a.current();
        let second = a.hold();
        assert_eq!(second, next);
        assert!(!all.is_past(next));
        a.release(first);
        assert!(all.is_past(next));
        let last = all.publish(Translation::default());
        assert!(!all.is_past(last));
        a.release(second);
        assert!(all.is_past(last));
        // Looked at and not used.
        a.current();
        a.publish_oldest();
        assert!(all.is_past(u64::MAX));
    }
}
