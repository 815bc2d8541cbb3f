// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a queue did, readable from other threads while it runs.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of one queue. One writer (the runner), any number of readers; each value is exact,
        /// but they are not read at one instant.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: Counter,)*
        }

        impl Counters {
            /// All counters by name, in a fixed order.
            pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get()),)*]
            }
        }
    };
}

counters! {
    /// Reads completed, well or badly.
    reads,
    /// Bytes read by successful reads.
    read_bytes,
    /// Writes completed.
    writes,
    /// Bytes written by successful writes.
    written_bytes,
    /// Flushes completed.
    flushes,
    /// Discard, write-zeroes and secure-erase requests completed.
    erases,
    /// Other requests completed (serial number, lifetime, unknown types).
    others,
    /// Requests answered with a status other than OK.
    errors,
    /// Chains that could not be taken because they were malformed. Those that were answered all the same
    /// count as errors too.
    malformed,
    /// Notifications of the driver.
    interrupts,
    /// Calls of `service` that found at least one request.
    batches,
    /// Completions that a disk invented or repeated; each is a bug in the disk.
    spurious_completions,
}

/// One counter: wraps after 2^64.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds `n`. There is one writer, so no locked instruction is needed.
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(n),
            Ordering::Relaxed,
        );
    }
}
