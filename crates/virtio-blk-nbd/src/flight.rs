// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Operations that a connection has, and the requests that they become.

use std::time::Instant;

use virtio_blk_core::disk::{DiskError, IoBuf, Op, OpKind, Token};

use crate::asked::Asked;
use crate::coverage::Coverage;
use crate::fence::FenceId;
use crate::handshake::Export;
use crate::proto::{
    Command, CommandFlags, ExportFlags, MAX_PAYLOAD, ProtoError, ReplyMode, Request,
};

/// The longest range of a request without data. Every server's number types hold it, and it is a multiple of every
/// block size.
pub(crate) const MAX_RANGE: u64 = 1 << 30;

/// Where an operation's present request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nowhere: another write on its range is in doubt.
    Held,
    /// Nowhere: there is no connection.
    Waiting,
    /// In the list of what is to be sent; of the first there, a part may have been sent.
    Queued,
    /// With the server.
    Sent,
    /// The reply is there.
    Replied,
}

/// An operation that a connection has. It has one request at a time: what is too long for one becomes several, one
/// after the other.
pub(crate) struct Flight {
    /// The member whose operation it is. `None`: that is gone, or does not wait for it any more.
    pub owner: Option<usize>,
    pub op: Op,
    /// Bytes of the operation that earlier requests did.
    pub at: u64,
    /// The byte of the operation at which its buffer begins.
    base: u64,
    /// The present request. Without a meaning until it is queued.
    pub request: Request,
    pub header: [u8; Request::EXTENDED_LEN],
    pub stage: Stage,
    /// It is no operation of a queue's, but a question for block status. `op` is a flush then.
    pub asked: Option<Box<Asked>>,
    /// Of a read's present request.
    pub covered: Coverage,
    /// Why it fails, once the reply is whole.
    pub error: Option<DiskError>,
    /// When the server was first seen to have no more of the present request done than now: see
    /// [`Watch`](crate::link::Watch).
    pub seen: Option<Instant>,
    /// When its request was first lost with a connection.
    pub lost_at: Option<Instant>,
    /// It may have been executed on a connection that was lost.
    pub fence: Option<FenceId>,
    /// A flush follows, or is the present request, as the server has no FUA.
    pub flushes: bool,
    /// Of a flush: what it covers.
    pub mark: u64,
    /// The order of submission.
    pub order: u64,
}

impl Flight {
    /// Bytes of the operation.
    fn total(&self) -> u64 {
        self.op
            .kind
            .range(self.op.buf.len() as u64)
            .map_or(0, |range| range.1)
    }

    /// The byte of the buffer at which the request's data begins.
    pub(crate) const fn buf_at(&self) -> usize {
        (self.at - self.base) as usize
    }

    /// Bytes of the request's payload.
    pub(crate) const fn payload(&self) -> usize {
        match self.request.command {
            // Bounded by the buffer.
            Command::WRITE => self.request.length as usize,
            _ => 0,
        }
    }

    /// Whether the present request changes the medium.
    pub(crate) const fn is_change(&self) -> bool {
        self.op.kind.is_write() && !matches!(self.request.command, Command::FLUSH)
    }

    /// Makes the next request of the operation.
    ///
    /// # Errors
    /// The length needs extended headers, which no length here does.
    fn prepare(&mut self, export: &Export, cookie: u64) -> Result<(), ProtoError> {
        let left = self.total() - self.at;
        let data = u64::from(export.sizes.maximum.min(MAX_PAYLOAD));
        // What offsets are a multiple of, lengths are, too.
        let whole = |most: u64| left.min(most - most % u64::from(export.sizes.minimum));
        let fua = |yes| {
            CommandFlags::NONE.with(CommandFlags::FUA, yes && export.can(ExportFlags::SEND_FUA))
        };
        if let Some(asked) = &mut self.asked {
            asked.clear();
            let range = &asked.aligned;
            let request = Request {
                flags: CommandFlags::NONE.with(CommandFlags::REQ_ONE, asked.is_one()),
                command: Command::BLOCK_STATUS,
                cookie,
                offset: range.start,
                length: range.end - range.start,
            };
            return self.put(export, request);
        }
        let (command, flags, start, length) = match self.op.kind {
            _ if self.flushes && left == 0 => (Command::FLUSH, CommandFlags::NONE, None, 0),
            OpKind::Read { offset } => {
                (Command::READ, CommandFlags::NONE, Some(offset), whole(data))
            }
            OpKind::Write {
                offset,
                fua: stable,
            } => {
                let flags = fua(stable).with(
                    CommandFlags::PAYLOAD_LEN,
                    export.mode == ReplyMode::Extended,
                );
                (Command::WRITE, flags, Some(offset), whole(data))
            }
            OpKind::Discard { offset, .. } => (
                Command::TRIM,
                CommandFlags::NONE,
                Some(offset),
                whole(MAX_RANGE),
            ),
            OpKind::WriteZeroes {
                offset,
                unmap,
                fua: stable,
                ..
            } => {
                let flags = fua(stable).with(CommandFlags::NO_HOLE, !unmap);
                (Command::WRITE_ZEROES, flags, Some(offset), whole(MAX_RANGE))
            }
            // Nothing else is taken.
            _ => (Command::FLUSH, CommandFlags::NONE, None, 0),
        };
        self.put(
            export,
            Request {
                flags,
                command,
                cookie,
                offset: start.map_or(0, |start| start + self.at),
                length,
            },
        )
    }

    /// Makes this the present request.
    fn put(&mut self, export: &Export, request: Request) -> Result<(), ProtoError> {
        self.request = request;
        self.header = request.encode(export.mode)?;
        self.covered.clear();
        self.error = None;
        self.seen = None;
        self.stage = Stage::Queued;
        Ok(())
    }

    /// The present request was done. Returns whether another has to follow.
    pub(crate) fn advance(&mut self) -> bool {
        if self.request.command == Command::FLUSH {
            return false;
        }
        self.at += self.request.length;
        // What nobody waits for ends with the request that the server has.
        self.owner.is_some() && (self.at < self.total() || self.flushes)
    }

    /// Nobody waits for it any more. Returns the operation. The server still replies, and the rest of a payload that
    /// was sent in part must still be sent: it is copied, one request's at most.
    pub(crate) fn orphan(&mut self, keep_payload: bool) -> Op {
        self.owner = None;
        self.flushes = false;
        let rest = if keep_payload {
            let mut data = vec![0; self.payload()];
            self.op.buf.copy_out(self.buf_at(), &mut data);
            IoBuf::from_vec(data)
        } else {
            IoBuf::new()
        };
        self.base = self.at;
        Op {
            token: self.op.token,
            kind: self.op.kind,
            buf: std::mem::replace(&mut self.op.buf, rest),
        }
    }
}

/// The operations of a connection.
#[derive(Default)]
pub(crate) struct Flights {
    slots: Vec<Option<Flight>>,
    free: Vec<usize>,
    order: u64,
    /// Counts requests, so that a cookie is not used again soon.
    requests: u32,
}

impl Flights {
    /// Adds an operation. Returns its place.
    pub(crate) fn add(&mut self, owner: usize, op: Op, flushes: bool, mark: u64) -> usize {
        self.order += 1;
        let flight = Flight {
            owner: Some(owner),
            op,
            at: 0,
            base: 0,
            request: Request {
                flags: CommandFlags::NONE,
                command: Command::FLUSH,
                cookie: 0,
                offset: 0,
                length: 0,
            },
            header: [0; Request::EXTENDED_LEN],
            stage: Stage::Waiting,
            asked: None,
            covered: Coverage::default(),
            error: None,
            seen: None,
            lost_at: None,
            fence: None,
            flushes,
            mark,
            order: self.order,
        };
        match self.free.pop() {
            Some(place) => {
                if let Some(slot) = self.slots.get_mut(place) {
                    *slot = Some(flight);
                }
                place
            }
            None => {
                self.slots.push(Some(flight));
                self.slots.len() - 1
            }
        }
    }

    pub(crate) fn get(&self, place: usize) -> Option<&Flight> {
        self.slots.get(place)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, place: usize) -> Option<&mut Flight> {
        self.slots.get_mut(place)?.as_mut()
    }

    /// Forgets an operation, and hands it out.
    pub(crate) fn remove(&mut self, place: usize) -> Option<Flight> {
        let flight = self.slots.get_mut(place)?.take()?;
        self.free.push(place);
        Some(flight)
    }

    /// Makes the next request of an operation.
    ///
    /// # Errors
    /// See [`Flight::prepare`].
    pub(crate) fn prepare(&mut self, place: usize, export: &Export) -> Result<(), ProtoError> {
        self.requests = self.requests.wrapping_add(1);
        let cookie = u64::from(self.requests) << 32 | place as u64;
        match self.get_mut(place) {
            Some(flight) => flight.prepare(export, cookie),
            None => Ok(()),
        }
    }

    /// The operation whose request is with the server by this cookie.
    pub(crate) fn sent(&mut self, cookie: u64) -> Option<(usize, &mut Flight)> {
        let place = (cookie & u64::from(u32::MAX)) as usize;
        let flight = self.get_mut(place)?;
        let good = flight.request.cookie == cookie && flight.stage == Stage::Sent;
        good.then_some((place, flight))
    }

    /// All operations, with their places.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut Flight)> {
        let slots = self.slots.iter_mut().enumerate();
        slots.filter_map(|(place, slot)| Some((place, slot.as_mut()?)))
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All operations.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Flight> {
        self.slots.iter().flatten()
    }

    /// The place of a member's operation.
    pub(crate) fn find(&self, owner: usize, token: Token) -> Option<usize> {
        self.slots.iter().position(|slot| {
            (slot.as_ref())
                .is_some_and(|flight| flight.owner == Some(owner) && flight.op.token == token)
        })
    }

    /// The places for which `chosen` says yes, in the order of submission.
    pub(crate) fn places(&self, chosen: impl Fn(&Flight) -> bool) -> Vec<usize> {
        let mut places: Vec<(u64, usize)> = (self.slots.iter().enumerate())
            .filter_map(|(place, slot)| {
                let flight = slot.as_ref().filter(|flight| chosen(flight))?;
                Some((flight.order, place))
            })
            .collect();
        places.sort_unstable();
        places.into_iter().map(|(_, place)| place).collect()
    }
}
