// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::io;
use std::time::Duration;

use crate::model::Mismatch;

/// What can go wrong between the client and the server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The driver refused a step of the set-up.
    #[error("{step}: {source}")]
    Driver {
        /// The step.
        step: &'static str,
        /// The driver's word on it.
        source: blkio::Error,
    },
    /// A read returned bytes that no allowed history explains.
    #[error("wrong data: {0}")]
    Mismatch(#[from] Box<Mismatch>),
    /// A request ended with another status than it had to.
    #[error("{what}: returned {got}, expected {expected}")]
    Status {
        /// The request.
        what: String,
        /// Zero or a negative `errno`.
        got: i32,
        /// The same.
        expected: i32,
    },
    /// A completion for a request that is not in flight.
    #[error("queue {queue}: slot {slot} completed although nothing is in flight in it")]
    Spurious {
        /// Queue number.
        queue: usize,
        /// Slot number.
        slot: usize,
    },
    /// Requests in flight made no progress for a long time.
    #[error("queue {queue}: {in_flight} requests in flight, none completed within {waited:?}")]
    Lost {
        /// Queue number.
        queue: usize,
        /// Requests that should have completed.
        in_flight: usize,
        /// How long the client waited.
        waited: Duration,
    },
    /// The device wrote past the end of a read's buffer.
    #[error("{what}: the device wrote past the end of the buffer")]
    Overrun {
        /// The request.
        what: String,
    },
    /// The configuration asks for something this device or this program can't do.
    #[error("{0}")]
    Config(String),
    /// The server process did not do what it should.
    #[error("server: {0}")]
    Server(String),
    /// A file or process operation.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`: names the step of the set-up that failed.
    pub(crate) fn driver(step: &'static str) -> impl FnOnce(blkio::Error) -> Self {
        move |source| Self::Driver { step, source }
    }

    /// For `map_err`: names the file or process operation that failed.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
