// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The thread that makes things stable: whatever has to wait for that is handed to it, and one barrier serves all.
//!
//! - An entry that is to refer to copied data is stored after a barrier, so that the data is there whatever happens.
//! - New counts are made stable ahead of use, for the [`Reserve`](crate::reserve::Reserve).
//! - What nothing refers to any more is counted once less when that is stable, and when nobody uses it any more.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use virtio_blk_core::disk::{DiskError, OpKind};

use crate::base::EIO;
use crate::format::Entry;
use crate::image::Image;
use crate::job::Job;
use crate::lane::Lane;
use crate::medium::Put;
use crate::pool::Line;
use crate::refcounts::Run;
use crate::slice::Slice;
use crate::sync::lock;

/// Retired clusters that have a barrier made for them.
const MAX_RETIRED: u64 = 4096;
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
struct Retired {
    run: Run,
    /// A flush that began when the counter was here makes it stable that nothing refers to it.
    stamp: u64,
}

#[derive(Default)]
struct Work {
    commits: Vec<Commit>,
    refill: bool,
    retired: Vec<Retired>,
    /// What is retired may have become stable.
    look: bool,
    closed: bool,
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
    stable: AtomicU64,
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
    fn released(&self, pieces: usize) {
        let mut work = lock(&self.work);
        work.pieces = work.pieces.saturating_sub(pieces);
        drop(work);
        self.fewer.notify_all();
    }

    /// A barrier failed.
    fn failed(&self, error: &DiskError) {
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
    fn take(&self, soon: bool) -> Work {
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

/// The thread's own state.
pub struct Keeper {
    image: Arc<Image>,
    line: Arc<Line>,
    lane: Lane,
    /// Where the guest's data is, if that is another file.
    data: Option<Lane>,
    /// May still be used by an operation that began before this turn was over.
    turning: Option<(u64, Vec<Retired>)>,
    /// Not looked at yet.
    fresh: Vec<Retired>,
    /// Nobody uses them any more.
    idle: VecDeque<Retired>,
}

impl Keeper {
    /// # Errors
    /// The disk's.
    pub fn new(image: Arc<Image>, line: Arc<Line>) -> Result<Self, DiskError> {
        Ok(Self {
            lane: image.base.medium.lane()?,
            data: image.external_lane()?,
            image,
            line,
            turning: None,
            fresh: Vec::new(),
            idle: VecDeque::new(),
        })
    }

    /// What the thread does until the desk is closed.
    pub fn run(mut self) {
        loop {
            let waits = self.turning.is_some() || !self.fresh.is_empty();
            let mut work = self.image.desk.take(waits);
            self.fresh.append(&mut work.retired);
            self.advance();
            let closed = work.closed && work.commits.is_empty();
            let many = self
                .idle
                .iter()
                .map(|retired| retired.run.count)
                .sum::<u64>()
                > MAX_RETIRED;
            let (filled, short) = if work.refill {
                self.refill()
            } else {
                (Vec::new(), None)
            };
            let waits = !self.idle.is_empty() && (many || closed || short.is_some());
            let mut well = true;
            if waits || !work.commits.is_empty() || !filled.is_empty() {
                well = self.barrier(work.commits, filled);
            }
            self.release_stable();
            if let Some(error) = short {
                // Something may have become free.
                let (filled, short) = if waits && well {
                    self.refill()
                } else {
                    (Vec::new(), Some(error))
                };
                if !filled.is_empty() {
                    self.barrier(Vec::new(), filled);
                }
                if let Some(error) = short {
                    self.image.reserve.fail(&error);
                }
            }
            let left = self.turning.is_some() || !self.fresh.is_empty() || !self.idle.is_empty();
            if closed && (!left || !well || self.image.base.changes.check().is_err()) {
                self.give_back();
                return;
            }
        }
    }

    /// Moves on what is retired.
    fn advance(&mut self) {
        let epochs = &self.image.epochs;
        if let Some((turn, retired)) = self.turning.take() {
            if epochs.is_over(turn) {
                self.idle.extend(retired);
            } else {
                self.turning = Some((turn, retired));
            }
        }
        if self.turning.is_none()
            && !self.fresh.is_empty()
            && let Some(turn) = epochs.turn()
        {
            let fresh = std::mem::take(&mut self.fresh);
            if epochs.is_over(turn) {
                self.idle.extend(fresh);
            } else {
                self.turning = Some((turn, fresh));
            }
        }
    }

    /// Counts clusters for the reserve. What could be counted, and why it is not as much as was wanted.
    fn refill(&mut self) -> (Vec<Run>, Option<DiskError>) {
        let mut left = self.image.reserve.target();
        let mut filled = Vec::new();
        let mut refcounts = lock(&self.image.refcounts);
        while left > 0 {
            match refcounts.reserve(&mut self.lane, left) {
                Ok(run) => {
                    left -= run.count.min(left);
                    filled.push(run);
                }
                Err(error) => {
                    let short = filled.is_empty().then_some(error);
                    return (filled, short);
                }
            }
        }
        (filled, None)
    }

    /// Makes everything stable, and does what waited for it. Whether that went well.
    fn barrier(&mut self, commits: Vec<Commit>, filled: Vec<Run>) -> bool {
        let image = self.image.clone();
        let stamp = image.desk.before_flush();
        let data = match &mut self.data {
            Some(data) => data.flush().map_err(|error| {
                let changes = &image.base.changes;
                changes.freeze("a flush of its data file", error)
            }),
            None => Ok(()),
        };
        let result = data.and_then(|()| image.base.barrier(&mut self.lane));
        match result {
            Ok(()) => {
                image.desk.flushed(stamp);
                if !filled.is_empty() {
                    image.reserve.fill(filled);
                }
                self.apply(commits);
                true
            }
            Err(error) => {
                image.desk.failed(&error);
                for commit in commits {
                    self.abandon(commit, &error);
                }
                if !filled.is_empty() {
                    image.retire(filled);
                    image.reserve.fail(&error);
                }
                false
            }
        }
    }

    /// Stores what commits bring: what is in a slice at once.
    fn apply(&mut self, mut commits: Vec<Commit>) {
        let mut updates: Vec<(usize, Update)> = (commits.iter_mut().enumerate())
            .flat_map(|(number, commit)| {
                let updates = std::mem::take(&mut commit.updates);
                updates.into_iter().map(move |update| (number, update))
            })
            .collect();
        updates.sort_by_key(|(_, update)| update.slice.number);
        let mut stored: Vec<Result<(), DiskError>> = commits.iter().map(|_| Ok(())).collect();
        for group in updates.chunk_by(|(_, a), (_, b)| Arc::ptr_eq(&a.slice, &b.slice)) {
            if let Err(error) = self.store(group) {
                for (number, _) in group {
                    if let Some(stored) = stored.get_mut(*number) {
                        *stored = Err(again(&error));
                    }
                }
            }
        }
        for (commit, stored) in commits.into_iter().zip(stored) {
            self.conclude(commit.then, stored);
        }
    }

    /// Stores entries of one slice. Their clusters are in transit no more.
    fn store(&mut self, group: &[(usize, Update)]) -> Result<(), DiskError> {
        let image = self.image.clone();
        let Some((_, Update { slice, .. })) = group.first() else {
            return Ok(());
        };
        let updates = || group.iter().map(|(_, update)| update);
        let changes: Vec<(usize, Entry)> = updates()
            .map(|update| (update.index, update.entry))
            .collect();
        let mut state = lock(&slice.state);
        let loaded = image.tables.load(&mut self.lane, slice, &mut state);
        let put =
            loaded.map(|()| (image.tables).store(&mut self.lane, slice, &mut state, &changes));
        let stored = match put {
            Ok(Put::Done) => Ok(()),
            Ok(Put::Failed(error)) | Err(error) => Err(error),
            Ok(Put::Later) => Err(DiskError::from_errno(EIO)),
        };
        let mut waiting = Vec::new();
        for update in updates() {
            if stored.is_ok() {
                image.learn(update.entry, update.cluster);
            }
            waiting.extend(state.end_transit(update.index));
        }
        drop(state);
        let gone = |update: &Update| match &stored {
            Ok(()) => update.old,
            Err(_) => update.new,
        };
        image.retire(updates().filter_map(gone));
        self.line.put_all(waiting);
        stored
    }

    /// Ends a commit whose entries are stored, or not.
    fn conclude(&mut self, then: Then, stored: Result<(), DiskError>) {
        match (then, stored) {
            (Then::Finish(job, result), Ok(())) => {
                if result.is_ok() && is_fua(&job.op().kind) && !job.last {
                    let mut job = job;
                    // The entries themselves have to become stable, too.
                    job.last = true;
                    let then = Then::Finish(job, result);
                    let updates = Vec::new();
                    self.image.desk.commit(Commit { updates, then });
                } else {
                    job.finish(result);
                }
            }
            (Then::Resume(job), Ok(())) => drop(self.line.put(job)),
            (Then::Finish(job, _) | Then::Resume(job), Err(error)) => job.finish(Err(error)),
        }
    }

    /// Ends a commit whose barrier failed.
    fn abandon(&mut self, commit: Commit, error: &DiskError) {
        for update in commit.updates {
            let waiting = lock(&update.slice.state).end_transit(update.index);
            self.image.retire(update.new);
            self.line.put_all(waiting);
        }
        let (Then::Finish(job, _) | Then::Resume(job)) = commit.then;
        job.finish(Err(again(error)));
    }

    /// Counts clusters once less of which it is stable that nothing refers to them.
    fn release_stable(&mut self) {
        let stable = self.image.desk.stable.load(Ordering::Acquire);
        let mut runs = Vec::new();
        while let Some(retired) = self.idle.front()
            && retired.stamp <= stable
        {
            runs.push(retired.run);
            self.idle.pop_front();
        }
        let pieces = runs.len();
        if pieces > 0 {
            self.release(runs);
            self.image.desk.released(pieces);
        }
    }

    fn release(&mut self, runs: Vec<Run>) {
        if runs.is_empty() || self.image.base.changes.check().is_err() {
            return;
        }
        let mut freed = Vec::new();
        let mut refcounts = lock(&self.image.refcounts);
        for run in runs {
            if let Err(error) = refcounts.release(&mut self.lane, run, &mut freed) {
                log::warn!(
                    "{} clusters of a qcow2 image stay counted though nothing refers to them ({error}): `qemu-img check \
                     -r leaks` frees them",
                    run.count
                );
            }
        }
        // Still under the lock: a table may move into what is free now.
        if self.image.discard {
            let cluster = self.image.base.geometry.cluster();
            for run in freed {
                // Only a favour to the host.
                let _ = (self.lane).zero(run.first * cluster, run.count * cluster, true);
            }
        }
    }

    /// Frees what is left of the reserve.
    fn give_back(&mut self) {
        let runs = self.image.reserve.drain(true);
        self.release(runs);
    }
}

/// Whether an operation completes only when what it did is stable.
pub const fn is_fua(kind: &OpKind) -> bool {
    matches!(
        kind,
        OpKind::Write { fua: true, .. } | OpKind::WriteZeroes { fua: true, .. }
    )
}

/// The same error once more.
pub fn again(error: &DiskError) -> DiskError {
    match error {
        DiskError::FlushLost { errno } => DiskError::FlushLost { errno: *errno },
        DiskError::Io(inner) => match inner.raw_os_error() {
            Some(errno) => DiskError::from_errno(errno),
            None => std::io::Error::from(inner.kind()).into(),
        },
        other => DiskError::Config(other.to_string()),
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
