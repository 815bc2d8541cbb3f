// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an embedder is told of operations that failed.

use std::fmt;
use std::sync::Arc;

use virtio_blk_core::disk::{DiskError, OpKind};

use crate::listeners::Listeners;
use crate::meter::OpClass;

/// An operation that failed and is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldOperation {
    /// Its kind.
    pub class: OpClass,
    /// Its first byte on the disk.
    pub offset: u64,
    /// Its bytes.
    pub len: u64,
    /// The host's `errno`, if there is one.
    pub errno: Option<i32>,
    /// The error in words.
    pub error: String,
    /// How many operations of the disk are kept, with this one.
    pub held: u64,
}

impl HeldOperation {
    pub(super) fn new(kind: &OpKind, data_len: u64, error: &DiskError, held: u64) -> Self {
        let (offset, len) = kind.range(data_len).unwrap_or_default();
        Self {
            class: OpClass::of(kind),
            offset,
            len,
            errno: error.errno(),
            error: error.to_string(),
            held,
        }
    }
}

impl fmt::Display for HeldOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            class,
            offset,
            len,
            error,
            ..
        } = self;
        let class = class.name();
        write!(
            f,
            "a {class} of {len} bytes at byte {offset} is held: {error}"
        )
    }
}

/// What happened to operations that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PolicyEvent {
    /// One is kept from now on, to be tried again.
    Held(HeldOperation),
    /// All that are kept are tried again.
    Resumed {
        /// How many.
        operations: u64,
    },
    /// A queue was about to stop: what it kept failed after all.
    Failed {
        /// How many.
        operations: u64,
    },
}

/// Called for each [`PolicyEvent`], from whatever thread noticed it. Must not block.
pub type PolicyListener = Arc<dyn Fn(&PolicyEvent) + Send + Sync>;

/// The listeners of one disk.
pub(crate) type PolicyListeners = Listeners<dyn Fn(&PolicyEvent) + Send + Sync>;

impl PolicyListeners {
    /// Tells all of what happened.
    pub(super) fn tell(&self, event: &PolicyEvent) {
        self.each(|listener| listener(event));
    }
}
