// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a device calls its driver.

use std::fmt;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

/// What a device does to notify its driver (`struct vdpa_callback`). Cheap to clone and to call, from
/// any thread.
#[derive(Clone)]
pub enum Callback {
    /// Writes 1 to an eventfd: KVM's irqfd, or one that a thread waits for. Every device takes these; a kernel
    /// device takes only these.
    Trigger(Arc<EventFd>),
    /// Calls a function, which must not block nor call the device.
    Call(Arc<dyn Fn() + Send + Sync>),
}

impl Callback {
    /// A function as callback.
    pub fn call(f: impl Fn() + Send + Sync + 'static) -> Self {
        Self::Call(Arc::new(f))
    }

    /// Notifies the driver.
    pub fn notify(&self) {
        match self {
            Self::Trigger(fd) => {
                // It only fails where the counter is about to overflow: the driver is told then anyway.
                let _ = fd.write(1);
            }
            Self::Call(f) => f(),
        }
    }
}

impl fmt::Debug for Callback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trigger(fd) => write!(f, "Trigger({fd:?})"),
            Self::Call(_) => f.write_str("Call"),
        }
    }
}
