// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a queue is stopped, and what is left of it.

use super::QueueError;
use crate::ring::QueueState;

/// How to stop a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Wait until every request taken has been returned to the driver.
    Drain,
    /// Return nothing more. Requests are cancelled where the disk can; what was not returned is named in
    /// [`Stopped::in_flight`], and may have been executed: the next owner executes it again.
    HandOver,
}

/// What is left of a queue.
#[derive(Debug)]
pub struct Stopped {
    /// Where to continue. Counts the heads in `in_flight` as taken. Of no use after a broken ring.
    pub state: QueueState,
    /// Heads taken and not returned, in the order in which they were taken. Empty after a drain of a
    /// sound queue; of a broken one, those that the disk still had.
    pub in_flight: Vec<u16>,
    /// Why the queue was broken, if it was.
    pub error: Option<QueueError>,
}
