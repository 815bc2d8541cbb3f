// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why a queue broke.

use crate::disk::DiskError;
use crate::ring::RingError;

/// Why a queue broke.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// Ring and driver disagree.
    #[error("the virtqueue is broken: {0}")]
    Ring(#[from] RingError),
    /// The disk's data path failed as a whole.
    #[error("the disk's queue is broken: {0}")]
    Disk(#[source] DiskError),
    /// An event loop does not take the queue's descriptors (`QueueSubscriber` only).
    #[error("the event loop can't watch the queue: {0}")]
    Watch(#[source] std::io::Error),
    /// The thread that served the queue panicked (a bug in a disk), so that where the queue stands is not known
    /// (`QueueThread` only).
    #[error("its thread panicked: where it stands is not known")]
    Panicked,
}

/// Told why a queue broke, once, on the thread that noticed. Must not block.
#[cfg(any(feature = "thread", feature = "event-manager"))]
pub type OnFatal = Box<dyn FnOnce(&QueueError) + Send>;
