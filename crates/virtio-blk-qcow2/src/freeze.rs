// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why an image is not changed any more.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use virtio_blk_core::disk::{DiskError, DiskEvent};

use crate::listeners::Listeners;

/// Nobody has changed the image yet.
const UNCHANGED: u8 = 0;
/// The image is being changed.
const CHANGED: u8 = 1;
/// The image is not to be changed any more.
const FROZEN: u8 = 2;

/// Why an image is frozen.
#[derive(Debug)]
struct Reason {
    what: &'static str,
    /// 0: the host gave none.
    errno: i32,
}

/// Whether an image may be changed. What is frozen stays so until it is opened anew.
#[derive(Debug, Default)]
pub struct Changes {
    state: AtomicU8,
    reason: OnceLock<Reason>,
    listeners: Arc<Listeners>,
}

impl Changes {
    /// An image that may not be changed yet. The listeners are told when it is frozen.
    pub fn new(listeners: Arc<Listeners>) -> Self {
        Self {
            listeners,
            ..Self::default()
        }
    }

    /// Whether the image is prepared for changes, and not frozen.
    #[inline]
    pub fn allowed(&self) -> bool {
        self.state.load(Ordering::Acquire) == CHANGED
    }

    /// The image is prepared for changes.
    pub fn allow(&self) {
        let _ =
            (self.state).compare_exchange(UNCHANGED, CHANGED, Ordering::AcqRel, Ordering::Acquire);
    }

    /// The image has to be prepared anew before the next change.
    pub fn rest(&self) {
        let _ =
            (self.state).compare_exchange(CHANGED, UNCHANGED, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Ends all changes, because `what` failed. The first reason stays, and is what is returned.
    pub fn freeze(&self, what: &'static str, error: DiskError) -> DiskError {
        let errno = error.errno().unwrap_or(0);
        let first = self.reason.set(Reason { what, errno }).is_ok();
        if first {
            log::error!(
                "a qcow2 image is not changed any more: {what} failed ({error}). Reads go on; stop, look after the \
                 host's storage and open the image again"
            );
        }
        self.state.store(FROZEN, Ordering::Release);
        if first {
            self.listeners.tell(DiskEvent::MediaError);
        }
        self.error().unwrap_or(error)
    }

    /// # Errors
    /// The image is frozen: why.
    pub fn check(&self) -> Result<(), DiskError> {
        self.error().map_or(Ok(()), Err)
    }

    /// Why the image is frozen.
    pub fn error(&self) -> Option<DiskError> {
        let reason = self.reason.get()?;
        Some(if reason.errno != 0 {
            DiskError::FlushLost {
                errno: reason.errno,
            }
        } else {
            DiskError::Config(format!(
                "the image is frozen, as {} failed: open it again",
                reason.what
            ))
        })
    }
}
