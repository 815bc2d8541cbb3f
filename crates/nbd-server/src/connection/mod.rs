// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The transmission: requests of one client, in any number at a time, on a queue of the disk of its own.

mod input;
mod output;
mod reply;
mod task;

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use virtio_blk_core::disk::{
    Caps, Completion, DiskError, IoBuf, IoQueue, Op, OpKind, Submit, Token, Wait,
};
use virtio_blk_nbd::proto::{Command, MAX_PAYLOAD, ProtoError, ReplyMode, Request};

use crate::channel::{self, Channel, Moved};
use crate::context::Context;
use crate::counters::add;
use crate::export::{DEPTH, Export, OperationError, Use};
use crate::handshake::Agreed;
use crate::pages::{Pages, Pool};
use input::{Input, Received};
use output::{Head, Output, Reply};
use task::{Pieces, Refusal, Rules, Task};

/// Bytes of memory for the data of requests and replies at a time: room for the longest one.
const MEMORY: usize = MAX_PAYLOAD as usize;

/// Requests that are taken before replies are sent.
const BATCH: usize = 64;

/// Why a connection ended that the client did not end in order.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Proto(#[from] ProtoError),
    #[error("the disk's queue broke: {0}")]
    Disk(#[from] DiskError),
    #[error("the client went without a word")]
    Gone,
    #[error("the disk did not finish {0} requests in time")]
    Late(usize),
    #[error("the client did not receive its replies in time")]
    Unread,
}

/// A request that the disk has.
struct Pending {
    request: Request,
    pages: Option<Arc<Pages>>,
    /// What of it the disk has not got yet.
    rest: Option<Pieces>,
    /// A flush comes last.
    flush: bool,
    cost: usize,
}

/// Where the bytes are that come next.
enum State {
    /// At the beginning of a request.
    Header,
    /// In the data of a write.
    Payload {
        request: Request,
        kind: OpKind,
        buf: IoBuf,
        pages: Arc<Pages>,
        filled: usize,
    },
    /// In the data of a request that fails.
    Skip {
        request: Request,
        left: u64,
        refusal: Refusal,
    },
    /// A request has to wait for so many bytes of memory.
    Waiting(Request, usize),
}

/// Why no more requests are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// The client said so, or sends no more.
    Client,
    /// The server stops, at this moment at the latest.
    Stop(Instant),
}

/// One connection after its handshake.
pub(crate) struct Connection {
    channel: Channel,
    export: Arc<Export>,
    /// Before `using`, which is there until the disk has let go.
    queue: Box<dyn IoQueue>,
    _using: Use,
    rules: Rules,
    /// The disk's. Only the capacity changes: see [`Connection::check`].
    caps: Caps,
    contexts: Vec<Context>,
    input: Input,
    state: State,
    output: Output,
    pool: Pool,
    slots: Vec<Option<Pending>>,
    free: Vec<usize>,
    /// Those that the queue had no room for.
    held: VecDeque<Op>,
    memory: usize,
    done: Vec<Completion>,
    ending: Option<Ending>,
}

impl Connection {
    /// # Errors
    /// The disk can't be used.
    pub(crate) fn new(channel: Channel, agreed: Agreed) -> Result<Self, ConnectionError> {
        let mut using = agreed.using;
        let queue = using.queue.take().ok_or(DiskError::Cancelled)?;
        let export = using.export.clone();
        let depth = usize::from(DEPTH);
        Ok(Self {
            channel,
            rules: Rules {
                mode: agreed.mode,
                read_only: export.is_read_only(),
                has_contexts: !agreed.contexts.is_empty(),
            },
            caps: export.disk.caps(),
            export,
            queue,
            _using: using,
            contexts: agreed.contexts,
            input: Input::new(),
            state: State::Header,
            output: Output::default(),
            pool: Pool::default(),
            slots: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            held: VecDeque::new(),
            memory: 0,
            done: Vec::new(),
            ending: None,
        })
    }

    /// Serves until the client goes, or until `stop` becomes readable and at most `stop_time` after. Nothing is in flight
    /// when it returns well.
    ///
    /// # Errors
    /// [`ConnectionError`]. The disk may still work on requests: dropping the connection waits for it.
    pub(crate) fn serve(
        &mut self,
        stop: BorrowedFd<'_>,
        stop_time: Duration,
    ) -> Result<(), ConnectionError> {
        let result = self.transmit(stop, stop_time);
        if result.is_err() {
            self.queue.release_held();
            for (token, slot) in (0..).zip(&self.slots) {
                if slot.is_some() {
                    self.queue.cancel(Token(token));
                }
            }
        }
        result
    }

    fn transmit(
        &mut self,
        stop: BorrowedFd<'_>,
        stop_time: Duration,
    ) -> Result<(), ConnectionError> {
        loop {
            let is_busy = match self.ending {
                None => self.take()?,
                Some(_) => false,
            };
            self.queue.flush_batch()?;
            self.reap()?;
            self.channel.flush()?;
            self.memory -= self.output.send(&mut self.channel, &mut self.pool)?;
            if let Some(ending) = self.ending {
                if self.in_flight() == 0 && self.output.is_empty() && !self.channel.has_unsent() {
                    return Ok(());
                }
                if let Ending::Stop(deadline) = ending
                    && Instant::now() >= deadline
                {
                    return Err(match self.in_flight() {
                        0 => ConnectionError::Unread,
                        requests => ConnectionError::Late(requests),
                    });
                }
            }
            let is_busy = is_busy || self.has_input();
            self.wait(is_busy, stop, stop_time)?;
        }
    }

    /// Requests that the disk has.
    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether another request can be taken.
    fn has_room(&self) -> bool {
        self.held.is_empty() && self.in_flight() + self.output.len() < usize::from(DEPTH)
    }

    /// Whether so many bytes of memory can be had. Nothing is longer than all there is.
    const fn has_memory(&self, needs: usize) -> bool {
        needs == 0 || self.memory == 0 || self.memory + needs <= MEMORY
    }

    /// Whether a request can be taken without another byte of the client's.
    fn has_input(&self) -> bool {
        self.ending.is_none()
            && match self.state {
                State::Header => {
                    let is_there = self.input.available().len() >= Request::len(self.rules.mode);
                    self.has_room() && (is_there || self.channel.has_more())
                }
                State::Waiting(_, needs) => self.has_memory(needs),
                // All that was received was used.
                State::Payload { .. } | State::Skip { .. } => self.channel.has_more(),
            }
    }

    /// Whether bytes of the client's are of use now.
    fn wants_input(&self) -> bool {
        self.ending.is_none()
            && match self.state {
                State::Header => self.has_room(),
                State::Payload { .. } | State::Skip { .. } => true,
                State::Waiting(..) => false,
            }
    }

    /// Waits until there is something to do.
    fn wait(
        &mut self,
        is_busy: bool,
        stop: BorrowedFd<'_>,
        stop_time: Duration,
    ) -> Result<(), ConnectionError> {
        let in_flight = self.in_flight() > 0;
        let disk = match self.queue.wait() {
            Wait::Fd(fd) if in_flight => Some(fd),
            Wait::Fd(_) | Wait::Poll | Wait::Inline => None,
        };
        let polls = in_flight && matches!(self.queue.wait(), Wait::Poll);
        let held = self.queue.deadline().filter(|_| in_flight);
        let deadline = match self.ending {
            _ if is_busy || polls => Some(Instant::now()),
            Some(Ending::Stop(at)) => Some(held.map_or(at, |held| held.min(at))),
            _ => held,
        };
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, self.wants_input());
        let unsent = !self.output.is_empty() || self.channel.has_unsent();
        flags.set(PollFlags::OUT, unsent);
        let mut stops = PollFlags::empty();
        stops.set(PollFlags::IN, !matches!(self.ending, Some(Ending::Stop(_))));
        let mut fds = [
            PollFd::new(&self.channel, flags),
            PollFd::from_borrowed_fd(stop, stops),
            PollFd::from_borrowed_fd(disk.unwrap_or(stop), PollFlags::IN),
        ];
        let used = if disk.is_some() { 3 } else { 2 };
        channel::wait(fds.get_mut(..used).unwrap_or_default(), deadline)?;
        let happened = fds[0].revents();
        if !fds[1].revents().is_empty() {
            self.queue.release_held();
            self.ending = Some(Ending::Stop(Instant::now() + stop_time));
        }
        // While nothing is read from it, this would be seen again and again.
        let hung_up = happened.intersects(PollFlags::HUP | PollFlags::ERR);
        if hung_up && !flags.contains(PollFlags::IN) {
            return Err(ConnectionError::Gone);
        }
        Ok(())
    }

    /// Takes what came, up to a number of requests. Returns whether there may be more.
    fn take(&mut self) -> Result<bool, ConnectionError> {
        let mut is_all = false;
        for _ in 0..BATCH {
            if self.ending.is_some() {
                return Ok(false);
            }
            if self.step()? {
                continue;
            }
            // What comes after the last of it makes the socket readable.
            if is_all || !self.wants_input() {
                return Ok(false);
            }
            let payload = match &self.state {
                State::Payload { buf, filled, .. } => Some((buf, *filled)),
                _ => None,
            };
            let received = self.input.receive(&mut self.channel, payload)?;
            let Received { moved, direct, .. } = received;
            is_all = received.is_all;
            if let State::Payload { filled, .. } = &mut self.state {
                *filled += direct;
            }
            match moved {
                Moved::Bytes(_) => {}
                Moved::WouldBlock => return Ok(false),
                Moved::End => {
                    // A client that leaves without NBD_CMD_DISC may still read replies.
                    self.ending = Some(Ending::Client);
                }
            }
        }
        Ok(true)
    }

    /// Uses what was received. Returns whether something came of it.
    fn step(&mut self) -> Result<bool, ConnectionError> {
        match std::mem::replace(&mut self.state, State::Header) {
            State::Header => {
                let len = Request::len(self.rules.mode);
                let Some(bytes) = self
                    .input
                    .available()
                    .get(..len)
                    .filter(|_| self.has_room())
                else {
                    return Ok(false);
                };
                let request = Request::decode(bytes, self.rules.mode);
                self.input.consume(len);
                self.begin(request?)
            }
            State::Waiting(request, _) => self.begin(request),
            State::Payload {
                request,
                kind,
                buf,
                pages,
                mut filled,
            } => {
                let copied = self.input.copy_to(&buf, filled);
                filled += copied;
                if filled == buf.len() {
                    self.execute(request, kind, Some((buf, pages)));
                    return Ok(true);
                }
                self.state = State::Payload {
                    request,
                    kind,
                    buf,
                    pages,
                    filled,
                };
                Ok(false)
            }
            State::Skip {
                request,
                mut left,
                refusal,
            } => {
                let there = self.input.available().len();
                let skipped = usize::try_from(left).unwrap_or(usize::MAX).min(there);
                self.input.consume(skipped);
                left -= skipped as u64;
                if left == 0 {
                    self.refuse(&request, &refusal);
                    return Ok(true);
                }
                self.state = State::Skip {
                    request,
                    left,
                    refusal,
                };
                Ok(false)
            }
        }
    }

    /// Begins with a request.
    fn begin(&mut self, request: Request) -> Result<bool, ConnectionError> {
        if request.command == Command::DISC {
            self.ending = Some(Ending::Client);
            return Ok(false);
        }
        let task = match self.check(&request) {
            Ok(task) => task,
            Err(refusal) => return self.skip(request, refusal),
        };
        let (data, other) = match task {
            Task::Read { len, .. } | Task::Write { len, .. } => (len, 0),
            Task::BlockStatus { one, .. } => (0, self.status_cost(one)),
            Task::Flush | Task::Erase(..) => (0, 0),
        };
        let needs = data + other;
        if !self.has_memory(needs) {
            self.state = State::Waiting(request, needs);
            return Ok(false);
        }
        let data = match data {
            0 => None,
            len => match self.pool.get(len) {
                Some(data) => Some(data),
                None => {
                    let error = DiskError::from_errno(libc::ENOMEM);
                    let refusal = Refusal::of_disk(&error, request.command);
                    return self.skip(request, refusal);
                }
            },
        };
        self.memory += needs;
        match task {
            Task::Read { offset, .. } => self.execute(request, OpKind::Read { offset }, data),
            Task::Write { offset, fua, .. } => {
                let kind = OpKind::Write { offset, fua };
                if let Some((buf, pages)) = data {
                    self.state = State::Payload {
                        request,
                        kind,
                        buf,
                        pages,
                        filled: 0,
                    };
                }
            }
            // What has completed is stable then.
            Task::Flush if !self.caps.flush => self.succeed(&request, None, 0),
            Task::Flush => self.execute(request, OpKind::Flush, None),
            Task::Erase(pieces, flush) => self.erase(request, pieces, flush),
            Task::BlockStatus { range, one } => self.block_status(&request, range, one, needs),
        }
        Ok(true)
    }

    /// What a request asks for. A disk that has become smaller fails what lies behind its end by itself.
    ///
    /// # Errors
    /// Why the request fails.
    fn check(&mut self, request: &Request) -> Result<Task, Refusal> {
        match self.rules.check(request, &self.caps) {
            Err(refusal) if refusal.is_beyond => {
                // It may have become larger.
                self.caps = self.export.disk.caps();
                self.rules.check(request, &self.caps)
            }
            checked => checked,
        }
    }

    /// Fails a request, after its payload.
    fn skip(&mut self, request: Request, refusal: Refusal) -> Result<bool, ConnectionError> {
        match request.payload_len(self.rules.mode) {
            0 => self.refuse(&request, &refusal),
            left if left > u32::MAX.into() => {
                return Err(ProtoError::Length {
                    what: "the payload of a request",
                    len: left,
                    max: u32::MAX.into(),
                }
                .into());
            }
            left => {
                self.state = State::Skip {
                    request,
                    left,
                    refusal,
                };
            }
        }
        Ok(true)
    }

    /// A place for a request that the disk is given. There is one: see [`Connection::has_room`].
    fn place(&mut self, pending: Pending) -> Token {
        let slot = self.free.pop().unwrap_or_default();
        if let Some(place) = self.slots.get_mut(slot) {
            *place = Some(pending);
        }
        Token(slot as u64)
    }

    fn execute(&mut self, request: Request, kind: OpKind, data: Option<(IoBuf, Arc<Pages>)>) {
        let (buf, pages) = match data {
            Some((buf, pages)) => (buf, Some(pages)),
            None => (IoBuf::new(), None),
        };
        let cost = buf.len();
        let token = self.place(Pending {
            request,
            pages,
            rest: None,
            flush: false,
            cost,
        });
        self.submit(Some(Op { token, kind, buf }));
    }

    fn erase(&mut self, request: Request, mut pieces: Pieces, flush: bool) {
        let Some(kind) = pieces.next() else {
            return self.succeed(&request, None, 0);
        };
        let token = self.place(Pending {
            request,
            pages: None,
            rest: Some(pieces),
            flush,
            cost: 0,
        });
        let buf = IoBuf::new();
        self.submit(Some(Op { token, kind, buf }));
    }

    /// Gives an operation to the disk, and what follows it if it is done at once.
    fn submit(&mut self, mut next: Option<Op>) {
        while let Some(op) = next.take() {
            match self.queue.execute_or_submit(op) {
                Submit::Queued => {}
                Submit::Done(completion) => next = self.complete(completion),
                Submit::Full(op) => self.held.push_back(op),
            }
        }
    }

    /// Takes over what the disk has done.
    fn reap(&mut self) -> Result<(), ConnectionError> {
        if self.in_flight() == 0 {
            return Ok(());
        }
        let mut done = std::mem::take(&mut self.done);
        let reaped = self.queue.reap(&mut done);
        for completion in done.drain(..) {
            let next = self.complete(completion);
            self.submit(next);
        }
        self.done = done;
        reaped?;
        for _ in 0..self.held.len() {
            let op = self.held.pop_front();
            self.submit(op);
        }
        self.queue.flush_batch()?;
        Ok(())
    }

    /// Ends an operation, and its request if that is all. Returns the next operation of the request.
    fn complete(&mut self, completion: Completion) -> Option<Op> {
        let Completion { token, result, buf } = completion;
        let slot = usize::try_from(token.0).ok()?;
        let Some(pending) = self.slots.get_mut(slot).and_then(Option::as_mut) else {
            log::error!(
                "{}: the disk completed {token:?}, which it does not have",
                self.export.name()
            );
            return None;
        };
        if result.is_ok() {
            let next = pending.rest.as_mut().and_then(Pieces::next);
            let kind = match next {
                None if std::mem::take(&mut pending.flush) => Some(OpKind::Flush),
                next => next,
            };
            if let Some(kind) = kind {
                return Some(Op { token, kind, buf });
            }
        }
        let pending = self.slots.get_mut(slot).and_then(Option::take)?;
        self.free.push(slot);
        let Pending {
            request,
            pages,
            cost,
            ..
        } = pending;
        let error = match result {
            Ok(()) => {
                self.succeed(&request, pages.map(|pages| (buf, pages)), cost);
                return None;
            }
            Err(error) => error,
        };
        if let Some(pages) = pages {
            self.pool.put(buf, pages);
        }
        self.memory -= cost;
        self.export.note(&OperationError {
            operation: reply::operation_of(request.command),
            offset: request.offset,
            len: request.length,
            error: &error,
        });
        self.refuse(&request, &Refusal::of_disk(&error, request.command));
        None
    }

    fn mode(&self) -> ReplyMode {
        self.rules.mode
    }

    fn count(&self, request: &Request, succeeded: bool) {
        let counting = &self.export.counting;
        let bytes = if succeeded { request.length } else { 0 };
        match request.command {
            Command::READ => {
                add(&counting.reads, 1);
                add(&counting.read_bytes, bytes);
            }
            Command::WRITE => {
                add(&counting.writes, 1);
                add(&counting.written_bytes, bytes);
            }
            Command::FLUSH => add(&counting.flushes, 1),
            Command::TRIM | Command::WRITE_ZEROES => add(&counting.erases, 1),
            Command::BLOCK_STATUS => add(&counting.statuses, 1),
            _ => {}
        }
        add(&counting.errors, u64::from(!succeeded));
    }

    fn push(&mut self, head: Head, more: Vec<u8>, data: Option<(IoBuf, Arc<Pages>)>, cost: usize) {
        self.output.push(Reply {
            head,
            more,
            data,
            cost,
        });
    }
}
