// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Callbacks that can be exchanged while the device runs.

use std::sync::{Arc, Mutex};

use vdpa_bus::Callback;

use crate::faults::FaultState;
use crate::lock;

/// A queue's callback. Called under its lock, so that the old one is not called any more once another
/// was set.
pub(crate) struct VqCallback {
    callback: Mutex<Option<Callback>>,
    faults: Arc<FaultState>,
}

impl VqCallback {
    pub(crate) fn new(faults: Arc<FaultState>) -> Self {
        Self {
            callback: Mutex::new(None),
            faults,
        }
    }

    pub(crate) fn set(&self, callback: Option<Callback>) {
        *lock(&self.callback) = callback;
    }

    pub(crate) fn notify(&self) {
        if let Some(callback) = &*lock(&self.callback)
            && !self.faults.callbacks.roll()
        {
            callback.notify();
        }
    }
}

/// The callback for changes of the configuration space. Held back while the device is suspended.
#[derive(Default)]
pub(crate) struct ConfigCallback(Mutex<ConfigState>);

#[derive(Default)]
struct ConfigState {
    callback: Option<Callback>,
    held: bool,
    missed: bool,
}

impl ConfigCallback {
    pub(crate) fn set(&self, callback: Option<Callback>) {
        lock(&self.0).callback = callback;
    }

    pub(crate) fn notify(&self) {
        let mut state = lock(&self.0);
        if state.held {
            state.missed = true;
        } else if let Some(callback) = &state.callback {
            callback.notify();
        }
    }

    /// Holds notifications back, or sends the one that was held back.
    pub(crate) fn hold(&self, held: bool) {
        let missed = {
            let mut state = lock(&self.0);
            state.held = held;
            !held && std::mem::take(&mut state.missed)
        };
        if missed {
            self.notify();
        }
    }

    /// As after the device's making.
    pub(crate) fn clear(&self) {
        *lock(&self.0) = ConfigState::default();
    }
}
