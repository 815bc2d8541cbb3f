// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! When nobody uses any more what nobody can find any more.
//!
//! An operation finds a place in the file and then uses it, without a lock. A discard takes the place from the tables;
//! the cluster must not get another meaning before the operations that found it are over. So each path counts its
//! operations, in one of two counters, and [`Epochs::turn`] changes which one: when the old one is at zero on every path,
//! all operations that began before are over.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::sync::lock;

/// The operations of one path. Only its owner changes it.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Path {
    counts: [AtomicU32; 2],
}

/// An operation's counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn(bool);

/// All paths.
#[derive(Debug, Default)]
pub struct Epochs {
    /// The lowest bit says which counter new operations use.
    now: AtomicU64,
    paths: Mutex<Vec<Arc<Path>>>,
}

impl Epochs {
    /// Another path.
    pub fn path(&self) -> Arc<Path> {
        let path = Arc::new(Path::default());
        let mut paths = lock(&self.paths);
        paths.retain(|path| Arc::strong_count(path) > 1);
        paths.push(path.clone());
        path
    }

    /// Begins an operation: it looks for its places only now.
    #[inline]
    pub fn enter(&self, path: &Path) -> Turn {
        loop {
            let turn = self.now.load(Ordering::SeqCst) & 1;
            let [even, odd] = &path.counts;
            let count = if turn == 0 { even } else { odd };
            count.fetch_add(1, Ordering::SeqCst);
            if self.now.load(Ordering::SeqCst) & 1 == turn {
                return Turn(turn != 0);
            }
            count.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Begins a turn: when [`Epochs::is_over`] says so of its number, everything that began before is over. `None`: the
    /// turn before is not over.
    pub fn turn(&self) -> Option<u64> {
        let now = self.now.load(Ordering::SeqCst);
        if !self.is_empty(now & 1 == 0) {
            return None;
        }
        self.now.store(now + 1, Ordering::SeqCst);
        Some(now)
    }

    /// Whether all operations are over that began before turn number `turn`.
    pub fn is_over(&self, turn: u64) -> bool {
        self.now.load(Ordering::SeqCst) > turn + 1 || self.is_empty(turn & 1 != 0)
    }

    /// Whether a counter is at zero on every path.
    fn is_empty(&self, odd: bool) -> bool {
        let mut paths = lock(&self.paths);
        // A queue that dropped its path has released everything before.
        paths.retain(|path| Arc::strong_count(path) > 1);
        paths
            .iter()
            .all(|path| path.count(odd).load(Ordering::SeqCst) == 0)
    }
}

impl Path {
    fn count(&self, odd: bool) -> &AtomicU32 {
        let [even, other] = &self.counts;
        if odd { other } else { even }
    }

    /// Ends an operation.
    #[inline]
    pub fn leave(&self, turn: Turn) {
        let count = self.count(turn.0);
        // Nobody else changes it.
        count.store(
            count.load(Ordering::Relaxed).wrapping_sub(1),
            Ordering::Release,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_over_when_what_began_before_is() {
        let epochs = Epochs::default();
        let (a, b) = (epochs.path(), epochs.path());
        let first = epochs.enter(&a);
        let turn = epochs.turn().unwrap();
        let second = epochs.enter(&b);
        assert!(!epochs.is_over(turn));
        assert_eq!(epochs.turn(), None, "one turn at a time");
        a.leave(first);
        assert!(epochs.is_over(turn), "what began later does not count");
        let next = epochs.turn().unwrap();
        assert!(!epochs.is_over(next));
        assert!(epochs.is_over(turn));
        b.leave(second);
        assert!(epochs.is_over(next));
    }

    #[test]
    fn a_path_that_is_gone_does_not_count() {
        let epochs = Epochs::default();
        let path = epochs.path();
        let turn = epochs.turn().unwrap();
        drop(path);
        assert!(epochs.is_over(turn));
        let _other = epochs.path();
        assert_eq!(lock(&epochs.paths).len(), 1);
    }
}
