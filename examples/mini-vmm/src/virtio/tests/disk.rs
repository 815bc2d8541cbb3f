// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks that make stops hard.

use std::sync::{Arc, Condvar, Mutex};

use virtio_blk_core::disk::{
    Caps, Completion, Disk, DiskError, DiskListener, IoQueue, Op, Submit, Wait,
};
use virtio_blk_disks::MemoryDisk;

use super::memory_disk;
use crate::bus::lock;

/// What a disk was asked, and whether it completes.
#[derive(Default)]
pub struct State {
    /// Requests that were taken.
    pub taken: usize,
    /// Whether it releases buffers.
    lets_go: bool,
    /// Calls of `activate` and `deactivate`.
    pub calls: Vec<&'static str>,
    /// It can't be activated.
    pub refuses: bool,
    /// Deactivating it does not end.
    pub stays: bool,
    /// Deactivating it fails.
    pub loses: bool,
    /// Requests make it panic.
    pub panics: bool,
}

/// A disk that takes requests and never completes them. It keeps their buffers until it is told to release them.
#[derive(Clone, Default)]
pub struct Silent(Arc<(Mutex<State>, Condvar)>);

impl Silent {
    pub fn with<R>(&self, call: impl FnOnce(&mut State) -> R) -> R {
        call(&mut lock(&self.0.0))
    }

    /// Makes it release all buffers, now and later.
    pub fn let_go(&self) {
        self.with(|state| state.lets_go = true);
        self.0.1.notify_all();
    }

    /// Whether deactivating it takes for ever.
    pub fn stay(&self, stays: bool) {
        self.with(|state| state.stays = stays);
        self.0.1.notify_all();
    }
}

impl Disk for Silent {
    fn caps(&self) -> Caps {
        memory_disk().caps()
    }

    fn open_queue(&self, _depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        let ops = Vec::new();
        Ok(Box::new(SilentQueue(self.clone(), ops)))
    }

    fn activate(&self) -> Result<(), DiskError> {
        self.with(|state| {
            state.calls.push("activate");
            match state.refuses {
                true => Err(DiskError::Config("another has it".to_owned())),
                false => Ok(()),
            }
        })
    }

    fn deactivate(&self) -> Result<(), DiskError> {
        self.with(|state| state.calls.push("deactivate"));
        let (state, told) = &*self.0;
        let state = told.wait_while(lock(state), |state| state.stays);
        match state.unwrap().loses {
            true => Err(DiskError::Config("no room".to_owned())),
            false => Ok(()),
        }
    }
}

struct SilentQueue(Silent, Vec<Op>);

impl IoQueue for SilentQueue {
    fn submit(&mut self, op: Op) -> Submit {
        self.1.push(op);
        let panics = self.0.with(|state| {
            state.taken += 1;
            state.panics
        });
        assert!(!panics, "as a test wants it");
        Submit::Queued
    }

    fn reap(&mut self, _: &mut Vec<Completion>) -> Result<usize, DiskError> {
        Ok(0)
    }

    fn wait(&self) -> Wait<'_> {
        Wait::Poll
    }
}

impl Drop for SilentQueue {
    fn drop(&mut self) {
        let (state, told) = &*self.0.0;
        drop(told.wait_while(lock(state), |state| !state.lets_go));
    }
}

/// A disk that grows whenever a queue of it ends: a change of the configuration in the middle of a stop.
pub struct Growing(pub Arc<MemoryDisk>);

impl Disk for Growing {
    fn caps(&self) -> Caps {
        self.0.caps()
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        let inner = self.0.open_queue(depth)?;
        Ok(Box::new(GrowingQueue(self.0.clone(), inner)))
    }

    fn listen(&self, listener: DiskListener) {
        self.0.listen(listener);
    }
}

struct GrowingQueue(Arc<MemoryDisk>, Box<dyn IoQueue>);

impl IoQueue for GrowingQueue {
    fn submit(&mut self, op: Op) -> Submit {
        self.1.submit(op)
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        self.1.reap(done)
    }

    fn wait(&self) -> Wait<'_> {
        self.1.wait()
    }
}

impl Drop for GrowingQueue {
    fn drop(&mut self) {
        let _ = self.0.resize(self.0.caps().capacity + 8);
    }
}
