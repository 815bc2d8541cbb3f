// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests on their way out.

use std::collections::VecDeque;
use std::io;

use virtio_blk_core::disk::DiskError;

use crate::NbdError;
use crate::flight::{Flights, Stage};
use crate::iov::Scratch;
use crate::proto::{ReplyMode, Request};
use crate::stream::Stream;

/// Bytes that are given to the kernel at once, at most and about.
const BATCH: usize = 1 << 20;

/// Where sending stands.
#[derive(Default)]
pub(super) struct Outgoing {
    /// Bytes of the first request that were sent, its header included.
    sent: usize,
    /// There is no room.
    blocked: bool,
    scratch: Scratch,
}

impl Outgoing {
    pub(super) const fn is_blocked(&self) -> bool {
        self.blocked
    }

    pub(super) const fn is_halfway(&self) -> bool {
        self.sent != 0
    }

    /// Sends requests from the front of the backlog, which only has those that are queued.
    pub(super) fn send(
        &mut self,
        stream: &mut dyn Stream,
        mode: ReplyMode,
        flights: &mut Flights,
        backlog: &mut VecDeque<usize>,
    ) -> Result<(), NbdError> {
        self.blocked = false;
        while !backlog.is_empty() {
            let mut data = self.scratch.outbound();
            let mut skip = self.sent;
            for place in backlog.iter() {
                let Some(flight) = flights.get(*place) else {
                    return Err(NbdError::Reply("a request got lost here"));
                };
                let header = flight.header.get(..Request::len(mode)).unwrap_or_default();
                data.push(header.get(skip..).unwrap_or_default());
                skip = skip.saturating_sub(header.len());
                let payload = flight.payload();
                if skip < payload {
                    let left = payload - skip;
                    let at = flight.buf_at() + skip;
                    if data.push_part(&flight.op.buf, at, left) < left {
                        break;
                    }
                }
                skip = 0;
                if data.is_full() || data.len() >= BATCH {
                    break;
                }
            }
            let offered = data.len();
            match stream.send(&data) {
                Ok(0) => return Err(NbdError::Closed),
                Ok(sent) => {
                    self.account(sent, mode, flights, backlog);
                    if sent < offered {
                        self.blocked = true;
                        return Ok(());
                    }
                }
                Err(error) => return self.not_now(error),
            }
        }
        match stream.flush() {
            Ok(()) => Ok(()),
            Err(error) => self.not_now(error),
        }
    }

    fn not_now(&mut self, error: io::Error) -> Result<(), NbdError> {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {
                self.blocked = true;
                Ok(())
            }
            _ => Err(error.into()),
        }
    }

    /// Notes that bytes were sent.
    fn account(
        &mut self,
        sent: usize,
        mode: ReplyMode,
        flights: &mut Flights,
        backlog: &mut VecDeque<usize>,
    ) {
        self.sent += sent;
        while let Some(flight) = backlog.front().and_then(|place| flights.get_mut(*place)) {
            flight.seen = None;
            let whole = Request::len(mode) + flight.payload();
            if self.sent < whole {
                return;
            }
            self.sent -= whole;
            flight.stage = Stage::Sent;
            if flight.payload() != 0 && !flight.op.buf.is_intact() {
                // Zeroes may have been sent in place of the data.
                flight.error = Some(DiskError::from_errno(libc::EFAULT));
            }
            backlog.pop_front();
        }
    }

    /// Sends a last message, if there is room for it.
    pub(super) fn send_last(&mut self, stream: &mut dyn Stream, bytes: &[u8]) {
        let mut data = self.scratch.outbound();
        data.push(bytes);
        let _ = stream.send(&data);
        let _ = stream.flush();
    }
}
