// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the clients of an export did.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What the clients of an export did, since it was made. Each value is exact, but they are not read at one
        /// instant.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        #[derive(Debug, Default)]
        pub(crate) struct Counting {
            $(pub(crate) $name: AtomicU64,)*
        }

        impl Counting {
            pub(crate) fn get(&self) -> Counters {
                Counters {
                    $($name: self.$name.load(Ordering::Relaxed),)*
                }
            }
        }
    };
}

counters! {
    /// Clients that used it.
    clients,
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
    /// Trims and write-zeroes completed.
    erases,
    /// Requests for block status completed.
    statuses,
    /// Requests that failed, also those that never reached the disk.
    errors,
    /// Connections that ended because the client broke the protocol.
    malformed,
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}
