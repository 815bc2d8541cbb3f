// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The thread that makes things stable: whatever has to wait for that is handed to it, and one barrier serves all.
//!
//! - An entry that is to refer to copied data is stored after a barrier, so that the data is there whatever happens.
//! - New counts are made stable ahead of use, for the [`Reserve`](crate::reserve::Reserve).
//! - What nothing refers to any more is counted once less when that is stable, and when nobody uses it any more.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use virtio_blk_core::disk::{DiskError, OpKind};

use crate::base::EIO;
use crate::desk::{Commit, Retired, Then, Update};
use crate::format::Entry;
use crate::image::Image;
use crate::lane::Lane;
use crate::medium::Put;
use crate::pool::Line;
use crate::refcounts::Run;
use crate::sync::lock;

/// Retired clusters that have a barrier made for them.
const MAX_RETIRED: u64 = 4096;
/// How long operations may take that use retired clusters while nothing else is free: then there is no space.
const PATIENCE: Duration = Duration::from_secs(1);

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
    /// Since when the reserve is to be refilled and there is nothing for it.
    starved: Option<Instant>,
    /// That took too long, and no operation that was waited for has ended since.
    is_tired: bool,
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
            starved: None,
            is_tired: false,
        })
    }

    /// What the thread does until the desk is closed.
    pub fn run(mut self) {
        loop {
            let mut work = self.image.desk.take(self.waits_for_others());
            self.fresh.append(&mut work.retired);
            self.advance();
            let closed = work.closed && work.commits.is_empty();
            let many = self
                .idle
                .iter()
                .map(|retired| retired.run.count)
                .sum::<u64>()
                > MAX_RETIRED;
            let (filled, short) = if work.refill || self.starved.is_some() {
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
                    self.fall_short(&error, well && !closed);
                }
            }
            let left = self.waits_for_others() || !self.idle.is_empty();
            if closed && (!left || !well || self.image.base.changes.check().is_err()) {
                self.give_back();
                return;
            }
        }
    }

    /// Whether clusters are retired that operations may still use.
    fn waits_for_others(&self) -> bool {
        self.turning.is_some() || !self.fresh.is_empty()
    }

    /// There is no cluster to be had. What is retired may become one soon: if so, and if it may be waited for, that is
    /// tried again at each look, for a while.
    fn fall_short(&mut self, error: &DiskError, may_wait: bool) {
        let since = *self.starved.get_or_insert_with(Instant::now);
        let may_wait = may_wait && self.waits_for_others() && !self.is_tired;
        if may_wait && since.elapsed() < PATIENCE {
            return;
        }
        self.is_tired |= may_wait;
        self.starved = None;
        self.image.reserve.fail(error);
    }

    /// Moves on what is retired.
    fn advance(&mut self) {
        let epochs = &self.image.epochs;
        if let Some((turn, retired)) = self.turning.take() {
            if epochs.is_over(turn) {
                self.idle.extend(retired);
                self.is_tired = false;
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
                    if short.is_none() {
                        self.starved = None;
                    }
                    return (filled, short);
                }
            }
        }
        self.starved = None;
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
