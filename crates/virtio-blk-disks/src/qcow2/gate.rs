// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who may use a mapping of the image, and who may change one.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// Somebody changes mappings, or waits to do so.
const CLOSED: usize = 1 << (usize::BITS - 1);

/// Lets many use the mapping of clusters to places in the file at once, or one change it.
///
/// A place that was looked up inside the gate, and written without a copy, stays the right one until its
/// user leaves. Costs its users two atomic operations.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// Users, and `CLOSED`.
    state: AtomicUsize,
    /// How often mappings were changed.
    generation: AtomicU64,
    lock: Mutex<()>,
    changed: Condvar,
    /// Held by the one who changes.
    turn: Mutex<()>,
}

impl Gate {
    /// Enters as a user, if nobody changes mappings now.
    #[inline]
    pub fn try_enter(&self) -> bool {
        if self.state.fetch_add(1, Ordering::Acquire) & CLOSED == 0 {
            return true;
        }
        self.leave();
        false
    }

    /// Enters as a user, waiting for changes to end.
    pub fn enter(&self) {
        while !self.try_enter() {
            let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            while self.state.load(Ordering::Acquire) & CLOSED != 0 {
                guard = self
                    .changed
                    .wait(guard)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// A user leaves.
    #[inline]
    pub fn leave(&self) {
        if self.state.fetch_sub(1, Ordering::Release) & CLOSED != 0 {
            self.wake();
        }
    }

    /// The number of changes so far. It holds while the asker is inside.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Everything that was looked up is out of date. Does not wait for those who use it.
    pub fn forget(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Runs `f` alone, after all users have left. `f` must not panic.
    pub fn change<T>(&self, f: impl FnOnce() -> T) -> T {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.state.fetch_or(CLOSED, Ordering::AcqRel);
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while self.state.load(Ordering::Acquire) != CLOSED {
            guard = self
                .changed
                .wait(guard)
                .unwrap_or_else(PoisonError::into_inner);
        }
        drop(guard);
        let result = f();
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.state.fetch_and(!CLOSED, Ordering::Release);
        self.wake();
        result
    }

    #[cold]
    fn wake(&self) {
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }
}
