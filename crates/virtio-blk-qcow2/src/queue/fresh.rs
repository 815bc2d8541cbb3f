// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Writes that get new clusters on a path that finishes nothing inside a call.
//!
//! They are gathered until the batch ends, and while entries of the same slice are being written. Then each gets its
//! clusters; the data goes to the file, and beside it the writer of entries writes all their entries at once. A write
//! completes when both are there.

use virtio_blk_core::disk::{Completion, DiskError, Op, OpKind, Submit};

use super::Qcow2Queue;
use crate::flight::Role;
use crate::grant::{Granting, Spot};
use crate::image::Image;
use crate::keeper::again;
use crate::slice::State;
use crate::sync::try_lock;
use crate::tables::Tables;
use crate::writer::Entries;

/// After an inline write of metadata that was declined, so many writes of new data have to be finished inside a call
/// before the next one is tried; doubled each time in a row.
const MIN_PAUSE: u32 = 64;
const MAX_PAUSE: u32 = 1 << 16;

/// Clusters that are being given to writes, all in one slice.
#[derive(Debug, Default)]
struct Grant {
    slice: u64,
    /// The guest's clusters, and where they will be in the file.
    clusters: Vec<(u64, u64)>,
    /// Writes whose data is on its way.
    pending: usize,
    /// Writes whose data is there, while the entries are not.
    landed: Vec<Completion>,
    /// How the entries were written.
    written: Option<Result<(), DiskError>>,
}

/// What a queue knows of the writes that get new clusters.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    gathered: Vec<Op>,
    grants: Vec<Option<Grant>>,
    /// Operations that were finished while nobody could be told.
    finished: Vec<Completion>,
}

impl Fresh {
    /// Whether there is a grant whose entries are being written.
    pub fn is_busy(&self) -> bool {
        self.grants
            .iter()
            .flatten()
            .any(|one| one.written.is_none())
    }

    /// Whether there is room among so many operations.
    pub const fn has_room(&self, depth: usize) -> bool {
        self.gathered.len() < depth
    }

    /// Keeps an operation until the batch ends.
    pub fn gather(&mut self, op: Op) {
        self.gathered.push(op);
    }

    /// The grant that a cluster is in whose entry is being written, and its place.
    fn find(&self, cluster: u64) -> Option<(usize, u64)> {
        let open = |grant: &&Grant| grant.written.is_none();
        (self.grants.iter().enumerate()).find_map(|(number, grant)| {
            let clusters = &grant.as_ref().filter(open)?.clusters;
            let found = clusters.iter().find(|(known, _)| *known == cluster)?;
            Some((number, found.1))
        })
    }

    /// Whether entries of a slice are being written.
    fn is_writing(&self, slice: u64) -> bool {
        (self.grants.iter().flatten()).any(|grant| grant.slice == slice && grant.written.is_none())
    }

    fn begin(&mut self, slice: u64, clusters: Vec<(u64, u64)>) -> usize {
        let grant = Some(Grant {
            slice,
            clusters,
            ..Grant::default()
        });
        match self.grants.iter().position(Option::is_none) {
            Some(number) => {
                if let Some(slot) = self.grants.get_mut(number) {
                    *slot = grant;
                }
                number
            }
            None => {
                self.grants.push(grant);
                self.grants.len() - 1
            }
        }
    }

    fn grant(&mut self, number: usize) -> Option<&mut Grant> {
        self.grants.get_mut(number)?.as_mut()
    }

    /// Forgets a grant that nobody waits for.
    fn settle(&mut self, number: usize) {
        if let Some(slot) = self.grants.get_mut(number)
            && (slot.as_ref()).is_some_and(|grant| grant.pending == 0 && grant.written.is_some())
        {
            *slot = None;
        }
    }

    /// The data of an operation is on its way, or it is not after all.
    fn count(&mut self, number: usize, begins: bool) {
        if let Some(grant) = self.grant(number) {
            grant.pending = match begins {
                true => grant.pending + 1,
                false => grant.pending.saturating_sub(1),
            };
        }
        if !begins {
            self.settle(number);
        }
    }

    /// The data of an operation is there, or not: its completion, unless its entry is still being written.
    pub fn landed(&mut self, number: usize, completion: Completion) -> Option<Completion> {
        let Some(grant) = self.grant(number) else {
            return Some(completion);
        };
        grant.pending = grant.pending.saturating_sub(1);
        let completed = match &grant.written {
            None => {
                grant.landed.push(completion);
                None
            }
            Some(written) => Some(with(completion, written)),
        };
        self.settle(number);
        completed
    }

    /// The entries of a grant are written, or not. What is complete now is added to `done`.
    pub fn written(
        &mut self,
        number: usize,
        result: Result<(), DiskError>,
        done: &mut Vec<Completion>,
    ) {
        if let Some(grant) = self.grant(number) {
            let landed = std::mem::take(&mut grant.landed);
            done.extend(
                landed
                    .into_iter()
                    .map(|completion| with(completion, &result)),
            );
            grant.written = Some(result);
        }
        self.settle(number);
    }
}

/// A completion of an operation that also depends on its entries.
fn with(mut completion: Completion, written: &Result<(), DiskError>) -> Completion {
    if let (Ok(()), Err(error)) = (&completion.result, written) {
        completion.result = Err(again(error));
    }
    completion
}

/// Whether metadata is written inside a call.
#[derive(Debug)]
pub(super) struct Inlining {
    now: bool,
    /// Writes that have to be finished inside a call before the next try, and how many it will be after another failure.
    left: u32,
    pause: u32,
}

impl Inlining {
    /// `now`: the path finishes everything inside the call.
    pub const fn new(now: bool) -> Self {
        Self {
            now,
            left: 0,
            pause: MIN_PAUSE,
        }
    }

    pub const fn get(&self) -> bool {
        self.now
    }

    /// Metadata was written inside a call.
    pub const fn worked(&mut self) {
        self.pause = MIN_PAUSE;
    }

    /// It was declined, and may be there in part.
    pub fn failed(&mut self) {
        self.now = false;
        self.left = self.pause;
        self.pause = (self.pause * 2).min(MAX_PAUSE);
    }

    /// Data was written inside a call where metadata is not.
    pub const fn is_possible(&mut self) {
        match self.left.checked_sub(1) {
            None => self.now = true,
            Some(left) => self.left = left,
        }
    }
}

impl Qcow2Queue {
    /// Whether a write whose place is not known is to wait for the end of its batch.
    pub(super) fn may_gather(&self, offset: u64, len: usize) -> bool {
        let image = &*self.image;
        let number = image.slice_of(offset);
        !self.inlining.get()
            && self.tables.is_none()
            && len > 0
            && image.slice_of(offset + len as u64 - 1) == number
            && image.base.changes.allowed()
            && self.fresh.has_room(self.depth)
            && self.pool.writes_entries()
    }

    /// Starts what was gathered.
    pub(super) fn start_gathered(&mut self) {
        if self.fresh.gathered.is_empty() {
            return;
        }
        let image = self.image.clone();
        let slice_of = |op: &Op| image.slice_of(op.kind.range(0).map_or(0, |(offset, _)| offset));
        let mut ops = std::mem::take(&mut self.fresh.gathered);
        ops.sort_by_key(slice_of);
        let mut ops = ops.into_iter().peekable();
        while let Some(first) = ops.next() {
            let number = slice_of(&first);
            let mut group = vec![first];
            while let Some(op) = ops.next_if(|op| slice_of(op) == number) {
                group.push(op);
            }
            self.start_in(&image, number, group);
        }
    }

    /// Has the owner learn of what is finished already, as of what the threads finish.
    pub(super) fn bring_finished(&mut self) {
        for completion in std::mem::take(&mut self.fresh.finished) {
            self.slow += 1;
            self.share.0.bring(completion);
        }
    }

    /// Takes what the threads have finished, and starts what waited for entries.
    pub(super) fn take_slow(&mut self, done: &mut Vec<Completion>) -> Result<(), DiskError> {
        let before = done.len();
        let written = self.share.0.take(done);
        self.slow -= done.len() - before;
        if written.is_empty() {
            return Ok(());
        }
        for (grant, result) in written {
            self.fresh.written(grant, result, done);
        }
        self.start_gathered();
        done.append(&mut self.fresh.finished);
        self.inner.flush_batch()
    }

    /// Starts writes to a slice.
    fn start_in(&mut self, image: &Image, number: u64, group: Vec<Op>) {
        let cached = image.tables.cached(number);
        let locked = cached.as_ref().and_then(|slice| try_lock(&slice.state));
        if locked.is_none() && self.fresh.is_writing(number) {
            // They are next.
            return self.fresh.gathered.extend(group);
        }
        let (Some(slice), Some(mut state)) = (&cached, locked) else {
            return group.into_iter().for_each(|op| self.give(op));
        };
        let ready = image.tables.is_loaded(slice, &mut state) && Tables::is_writable(&state);
        let mut granting = Granting::default();
        let (mut begun, mut rest) = (Vec::new(), Vec::new());
        for op in group {
            let turn = image.epochs.enter(&self.path);
            match ready.then(|| self.spot(image, &mut state, &op, &mut granting)) {
                Some(Some(spot)) => begun.push((op, turn, spot)),
                _ => {
                    self.path.leave(turn);
                    rest.push(op);
                }
            }
        }
        drop(state);
        rest.into_iter().for_each(|op| self.give(op));
        let changes = granting.changes;
        let grant = (!changes.is_empty()).then(|| {
            let clusters = changes.iter().map(|change| (change.cluster, change.host));
            let grant = self.fresh.begin(number, clusters.collect());
            let home = &self.share.0;
            self.pool
                .write_entries(Entries::new(slice.clone(), changes, home, grant));
            grant
        });
        for (op, turn, spot) in begun {
            let (host, grant) = match spot {
                Spot::Placed(host) => (host, None),
                Spot::New(host) => (host, grant),
                Spot::Joined(host, grant) => (host, Some(grant)),
            };
            let role = grant.map_or(Role::Plain, Role::Granted);
            if let Some(grant) = grant {
                self.fresh.count(grant, true);
            }
            let kind = OpKind::Write {
                offset: host,
                fua: false,
            };
            match self.pass(op, false, kind, turn, role, true) {
                Submit::Queued => {}
                Submit::Done(completion) => self.fresh.finished.push(completion),
                Submit::Full(op) => {
                    if let Some(grant) = grant {
                        self.fresh.count(grant, false);
                    }
                    self.give(op);
                }
            }
        }
    }

    /// Where a write goes, if it needs no copy and nothing that takes a wait.
    fn spot(
        &self,
        image: &Image,
        state: &mut State,
        op: &Op,
        granting: &mut Granting,
    ) -> Option<Spot> {
        let (offset, len) = op.kind.range(op.buf.len() as u64)?;
        image.spot(state, offset, len, granting, &|cluster| {
            self.fresh.find(cluster)
        })
    }
}

#[cfg(test)]
mod tests {
    use virtio_blk_core::disk::{IoBuf, Token};

    use super::*;

    fn completion(token: u64, result: Result<(), DiskError>) -> Completion {
        Completion {
            token: Token(token),
            result,
            buf: IoBuf::new(),
        }
    }

    #[test]
    fn a_write_completes_when_data_and_entries_are_there() {
        let mut fresh = Fresh::default();
        let grant = fresh.begin(3, vec![(7, 9), (8, 10)]);
        assert_eq!(fresh.find(8), Some((grant, 10)));
        assert!(fresh.is_writing(3) && !fresh.is_writing(4));
        fresh.count(grant, true);
        fresh.count(grant, true);
        assert!(fresh.landed(grant, completion(1, Ok(()))).is_none());
        let mut done = Vec::new();
        fresh.written(grant, Ok(()), &mut done);
        assert_eq!(done.pop().unwrap().token, Token(1));
        assert_eq!(fresh.find(8), None, "it is in the table");
        assert!(!fresh.is_busy());
        let last = fresh.landed(grant, completion(2, Ok(()))).unwrap();
        assert!(last.result.is_ok());
        assert_eq!(
            fresh.begin(3, Vec::new()),
            grant,
            "its number is free again"
        );
    }

    #[test]
    fn no_write_succeeds_without_its_entry() {
        let mut fresh = Fresh::default();
        let grant = fresh.begin(3, vec![(7, 9)]);
        for _ in 0..3 {
            fresh.count(grant, true);
        }
        assert!(fresh.landed(grant, completion(1, Ok(()))).is_none());
        let full = Err(DiskError::from_errno(28));
        assert!(fresh.landed(grant, completion(2, full)).is_none());
        let mut done = Vec::new();
        fresh.written(grant, Err(DiskError::from_errno(5)), &mut done);
        done.extend(fresh.landed(grant, completion(3, Ok(()))));
        let errors: Vec<_> = (done.into_iter())
            .map(|one| one.result.unwrap_err().errno())
            .collect();
        assert_eq!(errors, [Some(5), Some(28), Some(5)]);
        assert!(fresh.grant(grant).is_none());
    }

    #[test]
    fn what_was_declined_is_tried_again_after_a_while() {
        let mut inlining = Inlining::new(true);
        let tries_after = |inlining: &mut Inlining| {
            let mut count = 0;
            while !inlining.get() {
                inlining.is_possible();
                count += 1;
            }
            count
        };
        inlining.failed();
        assert_eq!(tries_after(&mut inlining), MIN_PAUSE + 1);
        inlining.failed();
        assert_eq!(tries_after(&mut inlining), 2 * MIN_PAUSE + 1);
        inlining.worked();
        inlining.failed();
        assert_eq!(tries_after(&mut inlining), MIN_PAUSE + 1);
        assert_eq!(tries_after(&mut Inlining::new(false)), 1);
    }
}
