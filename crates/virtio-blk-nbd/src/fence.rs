// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Ranges whose writes are in doubt, and that newer operations wait for.
//!
//! A write that was sent on a connection which was lost may have been executed, is sent again, and may be executed once
//! more by the old connection's server in between. Until it has completed, newer operations on its range wait, on
//! all connections of the disk, so that it can't land on newer data.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::waiter::Waiter;

/// Names a range of a [`Fence`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FenceId(u64);

/// The ranges of a disk that are in doubt.
#[derive(Default)]
pub(crate) struct Fence {
    /// As many as there are in the list.
    count: AtomicUsize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    next: u64,
    ranges: Vec<(FenceId, u64, u64)>,
    /// Owners of queues that have operations that wait.
    waiting: Vec<Arc<Waiter>>,
}

impl Fence {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `len` bytes from `offset` on are in doubt.
    pub(crate) fn add(&self, offset: u64, len: u64) -> FenceId {
        let mut inner = self.lock();
        let id = FenceId(inner.next);
        inner.next += 1;
        inner.ranges.push((id, offset, offset.saturating_add(len)));
        self.count.store(inner.ranges.len(), Ordering::SeqCst);
        id
    }

    /// The range is no longer in doubt. Who waits is told.
    pub(crate) fn release(&self, id: FenceId) {
        let waiting = {
            let mut inner = self.lock();
            inner.ranges.retain(|range| range.0 != id);
            self.count.store(inner.ranges.len(), Ordering::SeqCst);
            std::mem::take(&mut inner.waiting)
        };
        waiting.iter().for_each(|waiter| waiter.ring());
    }

    /// Whether an operation on the range must wait. If so, `waiter` is told when to ask again.
    #[inline]
    pub(crate) fn holds(&self, range: Option<(u64, u64)>, waiter: &Arc<Waiter>) -> bool {
        if self.count.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let Some((start, len)) = range else {
            return false;
        };
        let end = start.saturating_add(len);
        let mut inner = self.lock();
        let held = inner
            .ranges
            .iter()
            .any(|range| range.1 < end && start < range.2);
        if held && !inner.waiting.iter().any(|known| Arc::ptr_eq(known, waiter)) {
            inner.waiting.push(waiter.clone());
        }
        held
    }
}
