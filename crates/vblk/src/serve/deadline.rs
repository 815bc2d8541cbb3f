// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The end of a server in bounded time, whatever its disks do.

use std::process;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::report;

/// The disks that have not ended, by name.
#[derive(Clone)]
pub(super) struct Unended(Arc<Mutex<Vec<String>>>);

impl Unended {
    pub(super) fn new(names: impl Iterator<Item = String>) -> Self {
        Self(Arc::new(Mutex::new(names.collect())))
    }

    fn names(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A disk is released: everything it had to write is written.
    pub(super) fn ended(&self, name: &str) {
        self.names().retain(|other| other != name);
    }

    /// Ends the process with status 1 after `limit`, if it has not ended by then. What drivers wait for stays where
    /// the next server finds it, as after a kill.
    pub(super) fn end_after(&self, limit: Duration) {
        let this = self.clone();
        let timer = thread::Builder::new().name("vblk-deadline".into());
        let started = timer.spawn(move || {
            thread::sleep(limit);
            let names = this.names().join(", ");
            log::error!(
                "{names}: not ended after {limit:?}: its disk does not finish what it was given; ending without it. \
                 Requests in flight were not answered: the next server finds them"
            );
            report::flush();
            process::exit(1)
        });
        if let Err(error) = started {
            log::error!("the end may take as long as the disks want: {error}");
        }
    }
}
