// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A stop that may be asked for before there is anything to stop.

use std::sync::{Arc, Mutex, PoisonError};

/// Makes a disk end; does not wait for that.
pub(super) type Stop = Box<dyn Fn() + Send>;

/// Whether the process should end, and what has to be told of it.
#[derive(Clone, Default)]
pub(super) struct Stopping(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    begun: bool,
    stops: Vec<Stop>,
}

impl Stopping {
    fn with<R>(&self, call: impl FnOnce(&mut State) -> R) -> R {
        call(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tells all disks, if they are known by now. Does not wait.
    pub(super) fn begin(&self) {
        self.with(|state| {
            state.begun = true;
            state.stops.drain(..).for_each(|stop| stop());
        });
    }

    /// Has `stops` called when a stop begins. Returns whether none has begun; if one has, they are not called.
    pub(super) fn arm(&self, stops: Vec<Stop>) -> bool {
        self.with(|state| {
            if !state.begun {
                state.stops = stops;
            }
            !state.begun
        })
    }
}
