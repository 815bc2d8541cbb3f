// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A queue that uses a connection.

use std::sync::Arc;

use virtio_blk_core::disk::Completion;

use crate::asked::Asked;
use crate::waiter::Waiter;

/// A queue that uses a connection.
pub(super) struct Member {
    pub waiter: Arc<Waiter>,
    /// What is finished.
    pub done: Vec<Completion>,
    /// The answer to its last question.
    pub answer: Option<Box<Asked>>,
    /// Operations that it may have in flight.
    pub depth: usize,
    /// Those that it has.
    pub in_flight: usize,
    /// It is about to stop, and waits for nothing that can be ended.
    pub released: bool,
    /// It waits for room in the socket.
    pub wants_room: bool,
}

impl Member {
    pub(super) fn new(waiter: Arc<Waiter>, depth: u16) -> Self {
        Self {
            waiter,
            done: Vec::new(),
            answer: None,
            depth: usize::from(depth).max(1),
            in_flight: 0,
            released: false,
            wants_room: false,
        }
    }
}
