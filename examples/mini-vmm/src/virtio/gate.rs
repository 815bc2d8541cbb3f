// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether the driver may be interrupted.

use std::sync::{Arc, Mutex};

use super::Interrupt;
use crate::bus::lock;

/// Passes interrupts on while the driver runs, from DRIVER_OK to the reset (virtio 1.4, 2.1.2). Threads that
/// nobody waits for raise them too: that of the disk's changes, that of a vDPA device's calls. What they raise
/// late must not reach the next driver.
pub struct Gate {
    inner: Arc<dyn Interrupt>,
    /// Locked while an interrupt passes, so that none is on its way once [`Gate::set`] has returned.
    open: Mutex<bool>,
}

impl Gate {
    /// A closed gate.
    pub fn new(inner: Arc<dyn Interrupt>) -> Self {
        Self {
            inner,
            open: Mutex::new(false),
        }
    }

    /// Opens or closes it.
    pub fn set(&self, open: bool) {
        *lock(&self.open) = open;
    }
}

impl Interrupt for Gate {
    fn queue(&self, index: u16) {
        let open = lock(&self.open);
        if *open {
            self.inner.queue(index);
        }
    }

    fn config(&self) {
        let open = lock(&self.open);
        if *open {
            self.inner.config();
        }
    }
}
