// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A layer that keeps failed operations instead of failing them, until the cause is gone: a host file system that is
//! full, a path to a SAN that is down.
//!
//! Its words are QEMU's `rerror` and `werror`. The driver sees a request that takes long; its other requests continue.
//!
//! ```
//! use std::sync::Arc;
//! use virtio_blk_disks::MemoryDisk;
//! use virtio_blk_disks::policy::{ErrorPolicy, OnError, PolicyDisk, PolicyEvent};
//!
//! let policy = ErrorPolicy { write: OnError::Enospc, ..ErrorPolicy::default() };
//! let disk = PolicyDisk::new(Arc::new(MemoryDisk::new(4 << 20)?), policy);
//! disk.listen_events(Arc::new(|event| {
//!     if let PolicyEvent::Held(operation) = event {
//!         eprintln!("{operation}");
//!     }
//! }));
//! // … there is room again:
//! assert_eq!(disk.resume(), 0);
//! # Ok::<(), virtio_blk_core::disk::DiskError>(())
//! ```

mod event;
mod options;
mod queue;

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use virtio_blk_core::disk::{Caps, Disk, DiskError, IoQueue, OpKind};

pub(crate) use event::PolicyListeners;
pub use event::{HeldOperation, PolicyEvent, PolicyListener};
pub use options::ErrorsOptions;
use queue::{Failures, PolicyQueue};

use crate::layer::{Layer, Layered};

/// A queue that keeps something checks at least this often whether it is to try again.
pub const RECHECK: Duration = Duration::from_millis(100);

/// What becomes of an operation that the host failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// It fails.
    #[default]
    Report,
    /// It is kept, to be tried again.
    Stop,
    /// It is kept if the host has no space (`ENOSPC`, `EDQUOT`), and fails otherwise.
    Enospc,
}

impl OnError {
    /// The word for it, as QEMU has it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Report => "report",
            Self::Stop => "stop",
            Self::Enospc => "enospc",
        }
    }

    fn from_number(number: u8) -> Self {
        [Self::Report, Self::Stop, Self::Enospc]
            .into_iter()
            .find(|this| *this as u8 == number)
            .unwrap_or_default()
    }
}

/// What becomes of operations that the host failed. The default reports all.
///
/// It is about [`DiskError::Io`] alone. What is wrong with the request itself (its range, its alignment, a write to a
/// read-only disk) fails whatever the policy says; so does a flush, and everything that fails with
/// [`DiskError::FlushLost`]: this can't be waited out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErrorPolicy {
    /// For reads.
    pub read: OnError,
    /// For writes, write-zeroes, discards and secure erases.
    pub write: OnError,
}

/// What the disk shares with its queues.
struct Shared {
    read: AtomicU8,
    write: AtomicU8,
    /// Counts the calls to try again.
    calls: AtomicU64,
    held: Mutex<Held>,
    listeners: Arc<PolicyListeners>,
}

#[derive(Default)]
struct Held {
    operations: u64,
    last: Option<HeldOperation>,
}

impl Shared {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an operation that failed is kept.
    fn keeps(&self, kind: &OpKind, error: &DiskError) -> bool {
        if !matches!(error, DiskError::Io(_)) {
            return false;
        }
        let policy = match kind {
            OpKind::Read { .. } => &self.read,
            kind if kind.is_write() => &self.write,
            _ => return false,
        };
        match OnError::from_number(policy.load(Ordering::Relaxed)) {
            OnError::Report => false,
            OnError::Stop => true,
            OnError::Enospc => error.is_no_space(),
        }
    }

    fn calls(&self) -> u64 {
        self.calls.load(Ordering::Acquire)
    }

    /// Notes an operation that is kept from now on.
    fn keep(&self, kind: &OpKind, len: usize, error: &DiskError) {
        let operation = {
            let mut held = self.held();
            held.operations += 1;
            let operation = HeldOperation::new(kind, len as u64, error, held.operations);
            held.last = Some(operation.clone());
            operation
        };
        self.listeners.tell(&PolicyEvent::Held(operation));
    }

    /// Notes operations that are not kept any more.
    fn leave(&self, operations: u64) {
        let mut held = self.held();
        held.operations = held.operations.saturating_sub(operations);
    }
}

/// A disk that keeps operations that failed.
///
/// Each queue keeps its own, and passes on what comes behind them. [`PolicyDisk::resume`] has all queues try theirs
/// again, in the order of submission; what fails again is kept again. At a stop ([`IoQueue::release_held`]) they fail
/// with their error; a cancelled one is cancelled. While nothing fails, an operation costs a place in a list.
pub type PolicyDisk<D = dyn Disk> = Layered<Policy, D>;

/// The layer of a [`PolicyDisk`].
#[derive(Clone)]
pub struct Policy {
    shared: Arc<Shared>,
}

impl<D: Disk + ?Sized> PolicyDisk<D> {
    /// Puts the policy over a disk.
    pub fn new(inner: Arc<D>, policy: ErrorPolicy) -> Self {
        Self::with_listeners(inner, policy, Arc::default())
    }

    pub(crate) fn with_listeners(
        inner: Arc<D>,
        policy: ErrorPolicy,
        listeners: Arc<PolicyListeners>,
    ) -> Self {
        let shared = Arc::new(Shared {
            read: AtomicU8::new(policy.read as u8),
            write: AtomicU8::new(policy.write as u8),
            calls: AtomicU64::new(0),
            held: Mutex::default(),
            listeners,
        });
        Self::with(Policy { shared }, inner)
    }

    fn shared(&self) -> &Shared {
        &self.layer().shared
    }

    /// The policy in force.
    pub fn policy(&self) -> ErrorPolicy {
        let of = |number: &AtomicU8| OnError::from_number(number.load(Ordering::Relaxed));
        ErrorPolicy {
            read: of(&self.shared().read),
            write: of(&self.shared().write),
        }
    }

    /// Changes the policy. Everything that is kept is tried again, under the new one.
    pub fn set_policy(&self, policy: ErrorPolicy) {
        (self.shared().read).store(policy.read as u8, Ordering::Relaxed);
        (self.shared().write).store(policy.write as u8, Ordering::Relaxed);
        self.resume();
    }

    /// Retries everything that is kept, at the latest after [`RECHECK`] each time that its queue is served.
    /// Returns how many operations that are.
    pub fn resume(&self) -> u64 {
        let operations = self.shared().held().operations;
        self.shared().calls.fetch_add(1, Ordering::Release);
        if operations != 0 {
            let event = PolicyEvent::Resumed { operations };
            self.shared().listeners.tell(&event);
        }
        operations
    }

    /// How many operations are kept now.
    pub fn held(&self) -> u64 {
        self.shared().held().operations
    }

    /// The last operation that was kept, also if it is not any more.
    pub fn last_held(&self) -> Option<HeldOperation> {
        self.shared().held().last.clone()
    }

    /// Adds a listener for what happens to operations that failed. It stays for the life of the disk.
    pub fn listen_events(&self, listener: PolicyListener) {
        self.shared().listeners.add(listener);
    }
}

impl Layer for Policy {
    fn open_queue(
        &self,
        inner: Box<dyn IoQueue>,
        depth: u16,
        _: &Caps,
    ) -> Result<Box<dyn IoQueue>, DiskError> {
        let failures = Failures::new(self.shared.clone(), depth);
        Ok(Box::new(PolicyQueue::new(failures, inner)?))
    }
}

#[cfg(test)]
mod tests;
