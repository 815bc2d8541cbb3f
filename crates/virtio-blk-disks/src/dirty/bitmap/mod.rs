// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which blocks were changed.

mod content;
mod runs;
mod saved;
mod stored;

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, Weak};

use virtio_blk_core::disk::StoredBitmap;

use super::changes::{Changes, Generation, Take, TakeToken, ranges};
use super::error::BitmapError;
use super::format::{Marks, Unseen, words_for};
use super::persist::Persist;
use super::words::{BITS, mask};
pub use runs::Run;

/// A bit for each block of a disk: whether it was written, zeroed or discarded since the marks were last taken for
/// good. All methods may be called from any thread while writes continue.
///
/// A bitmap that can't know what changed before it was started is *incomplete*: then everything counts as changed
/// until its marks were taken once, or loaded. What a disk grows by counts as changed.
pub struct DirtyBitmap {
    granularity: u64,
    /// Bytes of the disk that have bits. What lies behind counts as changed.
    tracked: AtomicU64,
    /// Bytes of the disk, as last noted.
    size: AtomicU64,
    /// The bits of the size that the disk had first.
    words: Box<[AtomicU64]>,
    /// Those of what it has grown by.
    more: RwLock<Vec<AtomicU64>>,
    state: Mutex<State>,
    /// The file that goes along with it.
    file: OnceLock<Weak<Persist>>,
    /// The disk's own bitmap that goes along with it.
    stored: OnceLock<Arc<dyn StoredBitmap>>,
}

struct State {
    id: u64,
    /// Takes that were committed, and new starts.
    generation: u64,
    /// Takes so far.
    takes: u64,
    /// Why everything counts as changed.
    incomplete: Option<&'static str>,
    /// Others may change the disk, which nobody marks.
    unseen: Option<Unseen>,
    taken: Option<Taken>,
}

/// Why everything counts as changed in such a time, and after it.
const UNSEEN: &str = "its disk is not in use, and others may change it";
const CHANGED: &str = "its disk was not in use for a while, and others may have changed it";

/// Marks that somebody has, but may give back.
struct Taken {
    token: TakeToken,
    words: Vec<u64>,
    incomplete: Option<&'static str>,
}

impl DirtyBitmap {
    /// A clean bitmap for a disk of `size` bytes in blocks of `granularity` bytes: it has everything that
    /// changes from now on.
    ///
    /// # Errors
    /// The granularity is not a power of two of at least 512, or there would be more than 2^33 blocks.
    pub fn new(size: u64, granularity: u64) -> Result<Self, BitmapError> {
        let words = words_for(size, granularity)?;
        Ok(Self {
            granularity,
            tracked: AtomicU64::new(size),
            size: AtomicU64::new(size),
            words: std::iter::repeat_with(AtomicU64::default)
                .take(words)
                .collect(),
            more: RwLock::default(),
            state: Mutex::new(State {
                id: RandomState::new().build_hasher().finish(),
                generation: 0,
                // Beside an id that a restart keeps, so that a token of before names no take of after it.
                takes: RandomState::new().build_hasher().finish(),
                incomplete: None,
                unseen: None,
                taken: None,
            }),
            file: OnceLock::new(),
            stored: OnceLock::new(),
        })
    }

    /// A bitmap that knows nothing of what changed before, for the reason `why`.
    ///
    /// # Errors
    /// As for [`DirtyBitmap::new`].
    pub fn incomplete(size: u64, granularity: u64, why: &'static str) -> Result<Self, BitmapError> {
        let this = Self::new(size, granularity)?;
        this.state().incomplete = Some(why);
        Ok(this)
    }

    /// With marks that were kept.
    pub(super) fn from_marks(marks: &Marks) -> Result<Self, BitmapError> {
        let this = Self::new(marks.size, marks.granularity)?;
        let mut marks = marks.clone();
        marks.trim();
        for (word, bits) in this.words.iter().zip(&marks.words) {
            word.store(*bits, Ordering::Relaxed);
        }
        let mut state = this.state();
        state.id = marks.generation.id;
        state.generation = marks.generation.number;
        state.incomplete = marks.incomplete;
        state.unseen = marks.unseen;
        drop(state);
        Ok(this)
    }

    /// From now on everything but marks is written to this file at once.
    pub(super) fn keep_in(&self, file: &Arc<Persist>) {
        let _ = self.file.set(Arc::downgrade(file));
    }

    /// From now on the disk's own bitmap has no more marks than this one, in flight ones apart. It has the same blocks.
    pub(super) fn go_with(&self, stored: Arc<dyn StoredBitmap>) {
        let _ = self.stored.set(stored);
    }

    /// Has the file and the disk's own bitmap follow. The lock of the state is not held.
    fn settle(&self) -> Result<(), BitmapError> {
        if let Some(stored) = self.stored.get()
            && self.is_incomplete().is_none()
        {
            self.follow(&**stored);
        }
        self.file().map_or(Ok(()), |file| file.settle())
    }

    fn file(&self) -> Option<Arc<Persist>> {
        self.file.get().and_then(Weak::upgrade)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn more(&self) -> RwLockReadGuard<'_, Vec<AtomicU64>> {
        self.more.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of a block.
    pub fn granularity(&self) -> u64 {
        self.granularity
    }

    /// Bytes of the disk, as last noted.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Marks the blocks of `len` bytes from `offset` on. To be called after the change: a mark that is set
    /// before it may be taken before the change is there.
    #[inline]
    pub fn mark(&self, offset: u64, len: u64) {
        let Some(last) = len.checked_sub(1).map(|span| offset.saturating_add(span)) else {
            return;
        };
        let tracked = self.tracked.load(Ordering::Acquire);
        if offset >= tracked {
            // It counts as changed anyway.
            return;
        }
        let first = offset / self.granularity;
        let last = last.min(tracked - 1) / self.granularity;
        for index in first / BITS..=last / BITS {
            let mask = mask(index, first, last);
            let at = usize::try_from(index).unwrap_or(usize::MAX);
            match self.words.get(at) {
                // Never skipped, although the bit is often set: only the exchange orders the change before
                // a `take` that finds the bit.
                Some(word) => {
                    word.fetch_or(mask, Ordering::Release);
                }
                None => self.mark_grown(at, mask),
            }
        }
    }

    /// Marks where the disk has grown.
    #[cold]
    fn mark_grown(&self, at: usize, mask: u64) {
        let more = self.more();
        if let Some(word) = at.checked_sub(self.words.len()).and_then(|at| more.get(at)) {
            word.fetch_or(mask, Ordering::Release);
        }
    }

    /// Takes note of the size of the disk. What it has grown by is marked.
    pub fn resize(&self, size: u64) {
        self.set_size(size);
        if let Some(file) = self.file() {
            file.resized(size);
        }
    }

    fn set_size(&self, size: u64) {
        let _state = self.state();
        let tracked = self.tracked.load(Ordering::Acquire);
        self.size.store(size, Ordering::Release);
        if size <= tracked {
            // Should it grow again, what it had before is gone.
            self.tracked.store(size, Ordering::Release);
            return;
        }
        // A disk for which there are no bits continues as changed from there on.
        let Ok(words) = words_for(size, self.granularity) else {
            return;
        };
        let mut more = self.more.write().unwrap_or_else(PoisonError::into_inner);
        let missing = words.saturating_sub(self.words.len() + more.len());
        if more.try_reserve_exact(missing).is_err() {
            return;
        }
        more.extend(std::iter::repeat_with(AtomicU64::default).take(missing));
        let (first, last) = (tracked / self.granularity, (size - 1) / self.granularity);
        for index in first / BITS..=last / BITS {
            let at = usize::try_from(index).unwrap_or(usize::MAX);
            let word = match self.words.get(at) {
                Some(word) => Some(word),
                None => more.get(at - self.words.len()),
            };
            if let Some(word) = word {
                word.fetch_or(mask(index, first, last), Ordering::Release);
            }
        }
        self.tracked.store(size, Ordering::Release);
    }

    /// The words one by one.
    fn each_word(&self, mut f: impl FnMut(&AtomicU64)) {
        self.words.iter().for_each(&mut f);
        self.more().iter().for_each(f);
    }

    /// What is marked, taken or not.
    fn marked(&self, state: &State) -> Vec<u64> {
        let mut words = Vec::new();
        self.each_word(|word| words.push(word.load(Ordering::Acquire)));
        if let Some(taken) = &state.taken {
            for (word, bits) in words.iter_mut().zip(&taken.words) {
                *word |= bits;
            }
        }
        words
    }

    fn describe(&self, state: &State, words: &[u64], incomplete: Option<&'static str>) -> Changes {
        let (size, tracked) = (self.size(), self.tracked.load(Ordering::Acquire));
        let all = incomplete.is_some();
        let mut ranges = match all {
            true => Vec::new(),
            false => ranges(words, self.granularity, tracked),
        };
        let from = if all { 0 } else { tracked };
        if size > from {
            match ranges.last_mut() {
                Some((start, len)) if *start + *len == from => *len = size - *start,
                _ => ranges.push((from, size - from)),
            }
        }
        Changes {
            ranges,
            incomplete,
            generation: Generation {
                id: state.id,
                number: state.generation,
            },
            size,
        }
    }

    /// Bytes in blocks that count as changed.
    pub fn dirty_bytes(&self) -> u64 {
        let state = self.state();
        let (size, tracked) = (self.size(), self.tracked.load(Ordering::Acquire));
        if Self::why(&state).is_some() {
            return size;
        }
        let words = self.marked(&state);
        let blocks: u64 = words.iter().map(|word| u64::from(word.count_ones())).sum();
        let untracked = size.saturating_sub(tracked);
        blocks
            .saturating_mul(self.granularity)
            .saturating_add(untracked)
            .min(size)
    }

    fn why(state: &State) -> Option<&'static str> {
        let taken = state.taken.as_ref().and_then(|taken| taken.incomplete);
        let unseen = state.unseen.map(|_| UNSEEN);
        state.incomplete.or(taken).or(unseen)
    }

    /// Why everything counts as changed. `None`: the marks are all there is.
    pub fn is_incomplete(&self) -> Option<&'static str> {
        Self::why(&self.state())
    }

    /// The marks that somebody has taken and neither committed nor given back.
    pub fn pending(&self) -> Option<TakeToken> {
        self.state().taken.as_ref().map(|taken| taken.token)
    }

    /// What is marked, including what was taken and not committed.
    pub fn changes(&self) -> Changes {
        let state = self.state();
        self.describe(&state, &self.marked(&state), Self::why(&state))
    }

    /// Takes all marks. They are forgotten with [`DirtyBitmap::commit`], once they were used (the copy is made and
    /// stable), and come back with [`DirtyBitmap::abort`]: so does what was taken before and not committed, which is
    /// part of this take.
    ///
    /// A read after that sees each change whose mark was taken. A change that happens meanwhile is marked for the next
    /// time.
    pub fn take(&self) -> Take {
        let mut state = self.state();
        self.give_back(&mut state);
        let mut words = Vec::new();
        self.each_word(|word| words.push(word.swap(0, Ordering::AcqRel)));
        let why = Self::why(&state);
        let incomplete = state.incomplete.take();
        state.takes = state.takes.wrapping_add(1);
        let token = TakeToken {
            id: state.id,
            number: state.takes,
        };
        let changes = self.describe(&state, &words, why);
        state.taken = Some(Taken {
            token,
            words,
            incomplete,
        });
        Take { token, changes }
    }

    fn give_back(&self, state: &mut State) {
        let Some(taken) = state.taken.take() else {
            return;
        };
        let mut bits = taken.words.iter();
        self.each_word(|word| {
            word.fetch_or(bits.next().copied().unwrap_or(0), Ordering::Release);
        });
        state.incomplete = state.incomplete.or(taken.incomplete);
    }

    fn is_taken(state: &State, token: TakeToken) -> Result<(), BitmapError> {
        let known = state
            .taken
            .as_ref()
            .is_some_and(|taken| taken.token == token);
        known.then_some(()).ok_or(BitmapError::Token(token))
    }

    /// Forgets what was taken: from now on the bitmap says what changed since that take.
    ///
    /// # Errors
    /// [`BitmapError::Token`]: nothing is forgotten. [`BitmapError::Io`]: it is, but the bitmap's file could not be
    /// written, so that after a restart more may be marked.
    pub fn commit(&self, token: TakeToken) -> Result<Generation, BitmapError> {
        let generation = {
            let mut state = self.state();
            Self::is_taken(&state, token)?;
            state.taken = None;
            state.generation += 1;
            Generation {
                id: state.id,
                number: state.generation,
            }
        };
        self.settle()?;
        Ok(generation)
    }

    /// Gives back what was taken: it is marked as if nobody had taken it.
    ///
    /// # Errors
    /// [`BitmapError::Token`].
    pub fn abort(&self, token: TakeToken) -> Result<(), BitmapError> {
        let mut state = self.state();
        Self::is_taken(&state, token)?;
        self.give_back(&mut state);
        Ok(())
    }

    /// Starts anew: forgets all marks, also those that were taken, and has everything that changes from now
    /// on.
    ///
    /// # Errors
    /// As for [`DirtyBitmap::commit`].
    pub fn clear(&self) -> Result<(), BitmapError> {
        {
            let mut state = self.state();
            self.each_word(|word| {
                word.swap(0, Ordering::AcqRel);
            });
            state.taken = None;
            state.incomplete = None;
            state.generation += 1;
        }
        self.settle()
    }

    /// Everything counts as changed from now on, for the reason `why`.
    ///
    /// # Errors
    /// The bitmap's file could not be told.
    pub fn doubt(&self, why: &'static str) -> Result<(), BitmapError> {
        self.state().incomplete = Some(why);
        if let Some(stored) = self.stored.get() {
            stored.mark(0, u64::MAX);
        }
        self.settle()
    }

    /// The word of a number, taken or not.
    pub(super) fn word(&self, index: u64) -> u64 {
        let at = usize::try_from(index).unwrap_or(usize::MAX);
        let state = self.state();
        let live = self
            .words
            .get(at)
            .map_or(0, |word| word.load(Ordering::Acquire));
        let taken = state.taken.as_ref().and_then(|taken| taken.words.get(at));
        live | taken.copied().unwrap_or(0)
    }
}

impl fmt::Debug for DirtyBitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirtyBitmap")
            .field("granularity", &self.granularity)
            .field("size", &self.size())
            .field("dirty_bytes", &self.dirty_bytes())
            .finish_non_exhaustive()
    }
}
