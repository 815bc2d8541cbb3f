// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The thread that writes entries for queues that finish nothing inside a call: all that wait for it, at once.

use std::sync::{Arc, Condvar, Mutex};

use virtio_blk_core::disk::DiskError;

use crate::format::Entry;
use crate::grant::Change;
use crate::image::{Image, broken};
use crate::job::Home;
use crate::keeper::again;
use crate::lane::Lane;
use crate::medium::Put;
use crate::pool::Line;
use crate::slice::Slice;
use crate::sync::{lock, wait};

/// Entries of a slice that are to refer to clusters of the reserve. Their clusters are in transit.
pub struct Entries {
    slice: Arc<Slice>,
    changes: Vec<Change>,
    home: Arc<Home>,
    grant: usize,
}

impl Entries {
    /// Entries that the queue of `home` waits for, by the number of its grant.
    pub fn new(slice: Arc<Slice>, changes: Vec<Change>, home: &Arc<Home>, grant: usize) -> Self {
        home.begin();
        Self {
            slice,
            changes,
            home: home.clone(),
            grant,
        }
    }
}

#[derive(Default)]
struct Work {
    entries: Vec<Entries>,
    closed: bool,
}

/// Entries that wait for the thread.
#[derive(Default)]
pub struct Shelf {
    work: Mutex<Work>,
    more: Condvar,
}

impl Shelf {
    /// Hands entries over.
    pub fn put(&self, entries: Entries) {
        lock(&self.work).entries.push(entries);
        self.more.notify_one();
    }

    /// Ends the thread when it has written everything.
    pub fn close(&self) {
        lock(&self.work).closed = true;
        self.more.notify_one();
    }

    /// Everything that waits; waits for something. Nothing: there will be nothing more.
    fn take(&self) -> Vec<Entries> {
        let mut work = lock(&self.work);
        while work.entries.is_empty() && !work.closed {
            work = wait(&self.more, work);
        }
        std::mem::take(&mut work.entries)
    }
}

/// The thread's own state.
pub struct Writer {
    image: Arc<Image>,
    line: Arc<Line>,
    shelf: Arc<Shelf>,
    lane: Lane,
}

impl Writer {
    /// # Errors
    /// The disk's.
    pub fn new(image: Arc<Image>, line: Arc<Line>, shelf: Arc<Shelf>) -> Result<Self, DiskError> {
        Ok(Self {
            lane: image.base.medium.lane()?,
            image,
            line,
            shelf,
        })
    }

    /// What the thread does until the shelf is closed.
    pub fn run(mut self) {
        loop {
            let mut all = self.shelf.take();
            if all.is_empty() {
                return;
            }
            all.sort_by_key(|entries| entries.slice.number);
            let mut all = all.into_iter().peekable();
            while let Some(first) = all.next() {
                let slice = first.slice.clone();
                let mut group = vec![first];
                while let Some(next) = all.next_if(|next| Arc::ptr_eq(&next.slice, &slice)) {
                    group.push(next);
                }
                self.write(&slice, group);
            }
        }
    }

    /// Writes entries of a slice, and tells who waits for them.
    fn write(&mut self, slice: &Arc<Slice>, group: Vec<Entries>) {
        let image = self.image.clone();
        let changes = || group.iter().flat_map(|entries| &entries.changes);
        let entries: Vec<(usize, Entry)> = changes()
            .map(|change| (change.index, change.entry))
            .collect();
        let mut state = lock(&slice.state);
        let loaded = image.tables.load(&mut self.lane, slice, &mut state);
        let put =
            loaded.map(|()| (image.tables).store(&mut self.lane, slice, &mut state, &entries));
        let result = match put {
            Ok(Put::Done) => Ok(()),
            Ok(Put::Failed(error)) | Err(error) => Err(error),
            Ok(Put::Later) => Err(broken()),
        };
        let mut waiting = Vec::new();
        for change in changes() {
            if result.is_ok() {
                image.learn(change.entry, change.cluster);
            }
            waiting.extend(state.end_transit(change.index));
        }
        drop(state);
        if result.is_err() {
            image.retire(changes().filter_map(|change| image.clusters_of(change.entry)));
        }
        self.line.put_all(waiting);
        for entries in group {
            let result = result.as_ref().copied().map_err(again);
            entries.home.wrote(entries.grant, result);
        }
    }
}
