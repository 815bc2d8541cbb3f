// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The live status line of a server.

use std::io::{IsTerminal, Write};
use std::iter::Sum;
use std::time::Instant;

use serde::Serialize;
use virtio_blk_core::device::Device;

use crate::output;

/// What all queues of a device did so far.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Totals {
    /// Reads.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Discards, write-zeroes, secure erases.
    pub erases: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Malformed chains.
    pub malformed: u64,
}

impl Totals {
    /// Reads the counters.
    pub fn of(device: &Device) -> Self {
        let mut totals = Self::default();
        for queue in 0..device.options().queues {
            if let Some(c) = device.counters(queue) {
                totals.reads += c.reads.get();
                totals.read_bytes += c.read_bytes.get();
                totals.writes += c.writes.get();
                totals.written_bytes += c.written_bytes.get();
                totals.flushes += c.flushes.get();
                totals.erases += c.erases.get();
                totals.errors += c.errors.get();
                totals.malformed += c.malformed.get();
            }
        }
        totals
    }
}

impl Sum for Totals {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            reads: sum.reads + one.reads,
            read_bytes: sum.read_bytes + one.read_bytes,
            writes: sum.writes + one.writes,
            written_bytes: sum.written_bytes + one.written_bytes,
            flushes: sum.flushes + one.flushes,
            erases: sum.erases + one.erases,
            errors: sum.errors + one.errors,
            malformed: sum.malformed + one.malformed,
        })
    }
}

/// A line on standard error that is redrawn; nothing where that is no terminal.
pub struct StatusLine {
    shown: bool,
    last: Totals,
    at: Instant,
}

impl StatusLine {
    /// A line not drawn yet. `None` without a terminal.
    pub fn new() -> Option<Self> {
        std::io::stderr().is_terminal().then(|| Self {
            shown: false,
            last: Totals::default(),
            at: Instant::now(),
        })
    }

    /// Draws rates since the last time.
    pub fn draw(&mut self, connected: bool, now: Totals) {
        let seconds = self.at.elapsed().as_secs_f64().max(1e-3);
        let rate = |new: u64, old: u64| (new.saturating_sub(old) as f64 / seconds) as u64;
        let line = format!(
            "{}  read {}/s ({}/s)  write {}/s ({}/s)  flush {}/s  errors {}",
            if connected {
                "client connected"
            } else {
                "waiting for a client"
            },
            rate(now.reads, self.last.reads),
            output::size(rate(now.read_bytes, self.last.read_bytes)),
            rate(now.writes, self.last.writes),
            output::size(rate(now.written_bytes, self.last.written_bytes)),
            rate(now.flushes, self.last.flushes),
            now.errors + now.malformed,
        );
        let mut out = std::io::stderr().lock();
        let _ = write!(out, "\r\x1b[2K{line}");
        let _ = out.flush();
        self.shown = true;
        self.last = now;
        self.at = Instant::now();
    }
}

impl Drop for StatusLine {
    fn drop(&mut self) {
        if self.shown {
            // A terminal that is gone needs it no more.
            let _ = std::io::stderr().write_all(b"\r\x1b[2K");
        }
    }
}
