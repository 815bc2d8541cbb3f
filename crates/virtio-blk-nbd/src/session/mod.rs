// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A connection after the handshake: requests go out, replies come in.

mod incoming;
mod outgoing;

use std::collections::VecDeque;
use std::time::Instant;

use incoming::Incoming;
use outgoing::Outgoing;

use crate::NbdError;
use crate::dial::Connected;
use crate::flight::Flights;
use crate::handshake::Export;
use crate::proto::{Command, CommandFlags, Request};
use crate::socket::Peer;
use crate::stream::Stream;

/// A connection after the handshake. If a call fails it is of no use any more.
pub(crate) struct Session {
    stream: Box<dyn Stream>,
    pub export: Export,
    pub peer: Option<Peer>,
    /// Of [`Durability`](crate::durability::Durability).
    pub epoch: u64,
    /// When it began.
    pub since: Instant,
    outgoing: Outgoing,
    incoming: Incoming,
}

impl Session {
    pub(crate) fn new(connected: Connected, epoch: u64) -> Self {
        Self {
            stream: connected.stream,
            export: connected.export,
            peer: connected.peer,
            epoch,
            since: Instant::now(),
            outgoing: Outgoing::default(),
            incoming: Incoming::new(),
        }
    }

    /// What to wait on.
    pub(crate) fn socket(&self) -> std::os::fd::BorrowedFd<'_> {
        self.stream.socket()
    }

    /// Sends what is queued, as far as there is room.
    ///
    /// # Errors
    /// The connection's.
    pub(crate) fn send(
        &mut self,
        flights: &mut Flights,
        backlog: &mut VecDeque<usize>,
    ) -> Result<(), NbdError> {
        self.outgoing
            .send(&mut *self.stream, self.export.mode, flights, backlog)
    }

    /// Receives once. Requests whose reply is whole are added to `finished`. Returns whether there may be more.
    ///
    /// # Errors
    /// The connection's, or a reply that can't be. What is in `finished` is good.
    pub(crate) fn receive(
        &mut self,
        flights: &mut Flights,
        finished: &mut Vec<usize>,
    ) -> Result<bool, NbdError> {
        self.incoming
            .receive(&mut *self.stream, &self.export, flights, finished)
    }

    /// Whether sending waits for room in the socket.
    pub(crate) const fn wants_room(&self) -> bool {
        self.outgoing.is_blocked()
    }

    /// Whether a part of the first request in the backlog was sent, so that the rest has to follow.
    pub(crate) const fn is_halfway(&self) -> bool {
        self.outgoing.is_halfway()
    }

    /// Whether there is something that the socket says nothing of.
    pub(crate) fn has_received(&self) -> bool {
        self.stream.has_received()
    }

    /// Says good-bye, if that is possible without waiting. Nothing is queued.
    pub(crate) fn disconnect(&mut self) {
        let request = Request {
            flags: CommandFlags::NONE,
            command: Command::DISC,
            cookie: 0,
            offset: 0,
            length: 0,
        };
        if self.is_halfway() {
            return;
        }
        if let Ok(bytes) = request.encode(self.export.mode) {
            let len = Request::len(self.export.mode);
            self.outgoing
                .send_last(&mut *self.stream, bytes.get(..len).unwrap_or_default());
        }
    }
}
