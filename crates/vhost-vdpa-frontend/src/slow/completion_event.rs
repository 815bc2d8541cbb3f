// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The event by which a queue's owner learns that the device used buffers.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vdpa_bus::Callback;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::PathError;

/// An eventfd, and whether there is anything in it where that is known without asking the kernel.
pub(super) struct CompletionEvent {
    fd: Arc<EventFd>,
    /// Devices in this process say so; the kernel's only write the eventfd.
    signalled: AtomicBool,
    tracked: AtomicBool,
}

impl CompletionEvent {
    pub(super) fn new() -> Result<Arc<Self>, PathError> {
        let fd = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|source| PathError::System {
            what: "no eventfd to be had",
            source,
        })?;
        Ok(Arc::new(Self {
            fd: Arc::new(fd),
            signalled: AtomicBool::new(false),
            tracked: AtomicBool::new(false),
        }))
    }

    /// A callback that any device takes.
    pub(super) fn trigger(&self) -> Callback {
        self.tracked.store(false, Ordering::Release);
        Callback::Trigger(self.fd.clone())
    }

    /// A callback that devices in this process take.
    pub(super) fn call(self: &Arc<Self>) -> Callback {
        self.tracked.store(true, Ordering::Release);
        let event = self.clone();
        Callback::call(move || event.signal())
    }

    /// Makes it readable.
    pub(super) fn signal(&self) {
        // First the descriptor, then the flag: the other way round the descriptor could stay readable with a
        // flag that says it is not.
        let _ = self.fd.write(1);
        self.signalled.store(true, Ordering::Release);
    }

    /// Makes it unreadable.
    #[inline]
    pub(super) fn clear(&self) {
        if !self.is_clear() {
            self.signalled.swap(false, Ordering::AcqRel);
            // Nothing in it is fine.
            let _ = rustix::io::read(self.as_fd(), &mut [0; 8]);
        }
    }

    /// Whether it is known not to be readable.
    #[inline]
    pub(super) fn is_clear(&self) -> bool {
        self.tracked.load(Ordering::Relaxed) && !self.signalled.load(Ordering::Acquire)
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as `self` lives.
        unsafe { BorrowedFd::borrow_raw(self.fd.as_raw_fd()) }
    }
}
