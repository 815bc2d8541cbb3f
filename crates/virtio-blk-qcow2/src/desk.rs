// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the keeper is to do, and what others wait for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use virtio_blk_core::disk::DiskError;

use crate::base::EIO;
use crate::format::Entry;
use crate::job::Job;
use crate::refcounts::Run;
use crate::slice::Slice;
use crate::sync::lock;

/// Pieces of what is retired that may wait for the thread, 2 MiB in memory. Then discards wait for it.
const MAX_PIECES: usize = 1 << 16;
/// Pieces of what is retired for which the thread is woken.
const BUNCH: usize = 256;
/// How often it is looked whether nobody uses retired clusters any more.
const GLANCE: Duration = Duration::from_millis(2);

/// An entry that is stored when what it refers to is stable. Its cluster is in transit.
pub struct Update {
    /// Where the entry is.
    pub slice: Arc<Slice>,
    /// Which entry.
    pub index: usize,
    /// The guest's cluster.
    pub cluster: u64,
    /// The new entry.
    pub entry: Entry,
    /// What only the old entry referred to.
    pub old: Option<Run>,
    /// What only the new entry refers to.
    pub new: Option<Run>,
}

/// What becomes of an operation after a barrier.
pub enum Then {
    /// It completes with this.
    Finish(Job, Result<(), DiskError>),
    /// It continues.
    Resume(Job),
}

/// Entries to be stored after a barrier, and an operation that waits for that.
pub struct Commit {
    /// The entries.
    pub updates: Vec<Update>,
    /// The operation.
    pub then: Then,
}

/// A cluster that nothing refers to any more.
#[derive(Clone, Copy, Debug)]
pub struct Retired {
    pub run: Run,
    /// A flush that began when the counter was here makes it stable that nothing refers to it.
    pub stamp: u64,
}

/// What there is to do.
#[derive(Default)]
pub struct Work {
    pub commits: Vec<Commit>,
    pub refill: bool,
    pub retired: Vec<Retired>,
    /// What is retired may have become stable.
    look: bool,
    pub closed: bool,
    /// Pieces that are retired, here and with the thread.
    pieces: usize,
    /// Barriers that failed, and the last error's number.
    failures: u64,
    errno: i32,
}

/// What the keeper is to do.
#[derive(Default)]
pub struct Desk {
    work: Mutex<Work>,
    bell: Condvar,
    /// There are fewer pieces, or a barrier failed.
    fewer: Condvar,
    /// Counts what was retired.
    stamp: AtomicU64,
    /// Up to here, a flush of the guest has made it stable.
    pub stable: AtomicU64,
}

impl Desk {
    /// Hands over entries to be stored after a barrier.
    pub fn commit(&self, commit: Commit) {
        lock(&self.work).commits.push(commit);
        self.bell.notify_one();
    }

    /// Asks for a refill of the reserve.
    pub fn refill(&self) {
        lock(&self.work).refill = true;
        self.bell.notify_one();
    }

    /// Hands over clusters that nothing refers to any more: the file says so, if only unstably.
    pub fn retire(&self, runs: impl IntoIterator<Item = Run>) {
        let stamp = self.stamp.fetch_add(1, Ordering::AcqRel) + 1;
        let mut work = lock(&self.work);
        let before = work.retired.len();
        let retired = runs.into_iter().map(|run| Retired { run, stamp });
        work.retired.extend(retired);
        work.pieces += work.retired.len() - before;
        // A few can wait until there are more, or somebody wants them: nothing is released before the next barrier.
        let many = before < BUNCH && work.retired.len() >= BUNCH;
        drop(work);
        if many {
            self.bell.notify_one();
        }
    }

    /// Whether not too much is retired.
    pub fn has_room(&self) -> bool {
        lock(&self.work).pieces <= MAX_PIECES
    }

    /// Waits until not too much is retired. To be called before more of it, and by nobody whom the thread waits for: an
    /// operation that found its places.
    ///
    /// # Errors
    /// What is retired can't be made stable: why.
    pub fn await_room(&self) -> Result<(), DiskError> {
        let mut work = lock(&self.work);
        let failures = work.failures;
        while work.pieces > MAX_PIECES && !work.closed {
            if work.failures != failures {
                return Err(DiskError::from_errno(work.errno));
            }
            // After a failure nobody else would have it try again.
            work.look = true;
            self.bell.notify_one();
            work = crate::sync::wait(&self.fewer, work);
        }
        Ok(())
    }

    /// So many pieces are not retired any more.
    pub fn released(&self, pieces: usize) {
        let mut work = lock(&self.work);
        work.pieces = work.pieces.saturating_sub(pieces);
        drop(work);
        self.fewer.notify_all();
    }

    /// A barrier failed.
    pub fn failed(&self, error: &DiskError) {
        let mut work = lock(&self.work);
        work.failures += 1;
        work.errno = error.errno().unwrap_or(EIO);
        drop(work);
        self.fewer.notify_all();
    }

    /// To be called before a flush of the guest begins; its success is told with what is returned.
    pub fn before_flush(&self) -> u64 {
        self.stamp.load(Ordering::Acquire)
    }

    /// A flush of the guest succeeded.
    pub fn flushed(&self, stamp: u64) {
        let before = self.stable.fetch_max(stamp, Ordering::AcqRel);
        if before < stamp {
            // Something can be released.
            lock(&self.work).look = true;
            self.bell.notify_one();
        }
    }

    /// Opens the desk anew.
    pub fn open(&self) {
        let mut work = lock(&self.work);
        work.closed = false;
        // What the thread before could not release stays counted.
        work.pieces = work.retired.len();
    }

    /// Ends the keeper when it has done everything.
    pub fn close(&self) {
        lock(&self.work).closed = true;
        self.bell.notify_one();
        self.fewer.notify_all();
    }

    /// Takes what there is to do; waits for something, but not longer than a glance if `soon`.
    pub fn take(&self, soon: bool) -> Work {
        let mut work = lock(&self.work);
        while work.commits.is_empty()
            && work.retired.len() < BUNCH
            && !(work.refill || work.look || work.closed)
        {
            if soon {
                let waited = self.bell.wait_timeout(work, GLANCE);
                work = waited.unwrap_or_else(PoisonError::into_inner).0;
                break;
            }
            work = crate::sync::wait(&self.bell, work);
        }
        let kept = Work {
            closed: work.closed,
            pieces: work.pieces,
            failures: work.failures,
            errno: work.errno,
            ..Work::default()
        };
        let taken = std::mem::replace(&mut *work, kept);
        drop(work);
        taken
    }
}
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_retires_more_waits_while_there_is_too_much() {
        let desk = Desk::default();
        let pieces = |count: usize| (0..count as u64).map(|first| Run { first, count: 1 });
        desk.retire(pieces(MAX_PIECES));
        desk.await_room().unwrap();
        desk.retire(pieces(1));
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| desk.await_room());
            // The thread is told that somebody waits.
            while !lock(&desk.work).look {
                std::thread::yield_now();
            }
            assert!(!waiter.is_finished());
            assert_eq!(desk.take(false).retired.len(), MAX_PIECES + 1);
            desk.released(1);
            waiter.join().unwrap().unwrap();
        });
        desk.retire(pieces(1));
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| desk.await_room());
            while !lock(&desk.work).look {
                std::thread::yield_now();
            }
            desk.failed(&DiskError::from_errno(EIO));
            let error = waiter.join().unwrap().unwrap_err();
            assert_eq!(error.errno(), Some(EIO));
        });
        desk.close();
        desk.await_room().unwrap();
        desk.open();
        assert_eq!(lock(&desk.work).pieces, 1, "what nobody took");
    }
}
