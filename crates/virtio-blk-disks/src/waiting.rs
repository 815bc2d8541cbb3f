// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How the owner waits for a layer that holds operations back until a [`IoQueue::deadline`].

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use virtio_blk_core::disk::{DiskError, IoQueue, Wait};

/// How the owner of a queue waits.
pub(crate) enum Waiting {
    /// As for the disk underneath.
    Inner,
    /// The disk underneath is never waited for: a descriptor that never fires, as the layer itself has deadlines.
    Never(OwnedFd),
}

impl Waiting {
    /// For a layer over `inner`.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub(crate) fn over(inner: &dyn IoQueue) -> Result<Self, DiskError> {
        Ok(match inner.wait() {
            Wait::Fd(_) | Wait::Poll => Self::Inner,
            Wait::Inline => {
                Self::Never(eventfd(0, EventfdFlags::CLOEXEC).map_err(io::Error::from)?)
            }
        })
    }

    /// What [`IoQueue::wait`] returns.
    pub(crate) fn wait<'a>(&'a self, inner: &'a dyn IoQueue) -> Wait<'a> {
        match self {
            Self::Inner => inner.wait(),
            Self::Never(fd) => Wait::Fd(fd.as_fd()),
        }
    }

    /// Whether the disk underneath finishes everything inside `submit`.
    pub(crate) const fn is_inline(&self) -> bool {
        matches!(self, Self::Never(_))
    }
}
