// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A driver that breaks the rules.
//!
//! [`HostileRing`] writes whatever one likes into a queue. [`cases`] is a table of malformed queues and
//! of odd but legal ones, each with the answer a device has to give; [`play`] runs one of them against
//! a device and checks everything about the answer. [`Racer`] keeps rewriting memory while a device
//! works on it.
//!
//! What is expected, in short: a chain that is broken in its structure comes back with IOERR in its last
//! writable byte, and the queue continues; one that was read to its end and has nothing writable comes back
//! with length 0. A request that is broken in its content comes back with a status. A ring that is broken
//! stops the queue for good, and so does a chain of whose failure the driver can't be told: it would take
//! it for a success.

mod cases;
mod play;
mod racer;
mod ring;

pub use cases::{Case, Expect, cases};
pub use play::{Health, Mismatch, Options, Setup, Subject, play};
pub use racer::{Racer, Target};
pub use ring::{HostileError, HostileRing, Planned};
