// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One data path of an image.

mod clear;
mod discard;
mod fresh;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::event::epoll;
use virtio_blk_core::disk::{
    Completion, DiskError, Execute, IoBuf, IoQueue, Op, OpKind, Submit, Token, Wait,
};

use crate::disk::Leave;
use crate::epoch::{Path, Turn};
use crate::flight::{Flight, Flights, Role};
use crate::grant::{Granted, Target};
use crate::image::Image;
use crate::job::{Home, Job};
use crate::lane::aligned;
use crate::map::Found;
use crate::medium::Inline;
use crate::pool::Pool;
use crate::sync::try_lock;
use fresh::{Fresh, Inlining};

/// The queue's share of what the threads hold. Waits for its end when dropped.
struct Share(Arc<Home>);

impl Drop for Share {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// A data path of a [`Qcow2Disk`](crate::Qcow2Disk).
///
/// What has a place in a file goes there directly, and so does a write to a cluster that gets its place inside the call;
/// the rest goes to the threads. The order of fields is the order in which they are dropped: the paths below let go of
/// their buffers first.
pub struct Qcow2Queue {
    /// Where the guest's data is.
    inner: Box<dyn IoQueue>,
    /// The backing file.
    below: Option<Box<dyn IoQueue>>,
    /// The file of the tables, if the guest's data is elsewhere.
    tables: Option<Box<dyn IoQueue>>,
    path: Arc<Path>,
    share: Share,
    pool: Arc<Pool>,
    image: Arc<Image>,
    /// Operations with `inner` and `below`.
    flights: Flights,
    /// Operations with the threads, or finished by them and not reaped.
    slow: usize,
    depth: usize,
    /// Whether metadata is written inside a call.
    inlining: Inlining,
    room: IoBuf,
    /// Writes that get new clusters where it is not.
    fresh: Fresh,
    /// Readable when something is finished below or by the threads, unless nothing below ever is.
    ready: Option<OwnedFd>,
    /// Something below does not tell when it is finished.
    polls: bool,
    scratch: Vec<Completion>,
    _leave: Leave,
}

/// Where an operation goes.
enum Aim {
    /// To the data, from this byte on.
    Data(u64),
    Zero,
    Below,
}

impl Qcow2Queue {
    /// `leave` comes first, so that it is dropped last if there is an error: it waits for the threads' end.
    ///
    /// # Errors
    /// The host has no more descriptors; the disks'.
    pub fn new(
        leave: Leave,
        image: Arc<Image>,
        pool: Arc<Pool>,
        depth: u16,
    ) -> Result<Self, DiskError> {
        let inner = image.data.disk().open_queue(depth)?;
        let below = match &image.backing {
            Some((backing, _)) => Some(backing.disk().open_queue(depth)?),
            None => None,
        };
        let tables = if image.base.external {
            Some(image.base.medium.disk().open_queue(1)?)
        } else {
            None
        };
        let is_inline = matches!(inner.wait(), Wait::Inline) || tables.is_some();
        let home = Arc::new(Home::new()?);
        let fds: Vec<_> = [Some(&inner), below.as_ref()]
            .into_iter()
            .flatten()
            .filter_map(|queue| match queue.wait() {
                Wait::Fd(fd) => Some(fd),
                Wait::Poll | Wait::Inline => None,
            })
            .collect();
        let polls = [Some(&inner), below.as_ref()]
            .into_iter()
            .flatten()
            .any(|queue| matches!(queue.wait(), Wait::Poll));
        let ready = if fds.is_empty() {
            None
        } else {
            let ready = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(std::io::Error::from)?;
            for watched in fds.into_iter().chain([home.as_fd()]) {
                let (data, event) = (epoll::EventData::new_u64(0), epoll::EventFlags::IN);
                epoll::add(&ready, watched, data, event).map_err(std::io::Error::from)?;
            }
            Some(ready)
        };
        Ok(Self {
            inner,
            below,
            tables,
            share: Share(home),
            pool,
            path: image.epochs.path(),
            flights: Flights::new(depth),
            slow: 0,
            depth: depth.max(1).into(),
            inlining: Inlining::new(is_inline),
            room: aligned(image.base.medium.block()),
            fresh: Fresh::default(),
            ready,
            polls,
            scratch: Vec::new(),
            image,
            _leave: leave,
        })
    }

    /// # Errors
    /// `ReadOnly`, `OutOfRange` or `Misaligned`.
    #[inline]
    fn admit(&self, kind: &OpKind, len: usize) -> Result<(), DiskError> {
        let image = &*self.image;
        if image.read_only && kind.is_write() {
            return Err(DiskError::ReadOnly);
        }
        let Some((offset, len)) = kind.range(len as u64) else {
            return Ok(());
        };
        let size = image.size();
        if offset > size || len > size - offset {
            return Err(DiskError::OutOfRange);
        }
        if (offset | len) & (image.data.block() as u64 - 1) != 0 {
            return Err(DiskError::Misaligned);
        }
        Ok(())
    }

    /// Where an operation goes, if that is remembered. It has entered before.
    #[inline]
    fn aim(&self, offset: u64, len: usize, write: bool) -> Option<Aim> {
        if write && !self.image.base.changes.allowed() {
            return None;
        }
        Some(match self.image.map.find(offset, len, write)? {
            Found::Data(host) => Aim::Data(host),
            Found::Zero => Aim::Zero,
            Found::Below => Aim::Below,
        })
    }

    /// Finds out where an operation goes from what is in memory, and gives a write its place. Whether it is remembered
    /// now. The operation has entered before.
    fn find_out(&mut self, offset: u64, len: usize, write: bool) -> bool {
        let image = self.image.clone();
        if len == 0 || (write && !image.base.changes.allowed()) {
            return false;
        }
        let geometry = image.base.geometry;
        let (first, end) = (offset >> geometry.cluster_bits, offset + len as u64);
        let (number, index) = image.tables.place(first);
        if end > (number + 1) * geometry.slice_reach() {
            return false;
        }
        let Some(slice) = image.tables.cached(number) else {
            return false;
        };
        let Some(mut state) = try_lock(&slice.state) else {
            return false;
        };
        if !image.tables.is_loaded(&slice, &mut state) {
            return false;
        }
        if !write {
            let last = (end - 1) >> geometry.cluster_bits;
            for cluster in first..=last {
                let Ok(entry) = image.entry(&state, index + (cluster - first) as usize) else {
                    return false;
                };
                image.learn(entry, cluster);
            }
            return true;
        }
        if !self.inlining.get() {
            // Of a file of tables alone, data tells nothing.
            if self.tables.is_some() {
                self.inlining.is_possible();
            }
            return false;
        }
        let mut io = Inline {
            queue: match &mut self.tables {
                Some(tables) => &mut **tables,
                None => &mut *self.inner,
            },
            room: &self.room,
        };
        let len = len as u64;
        let target = Target { offset, len, index };
        match image.grant(&mut io, &slice, &mut state, target) {
            Ok(Granted::Ready(ready)) => {
                self.inlining.worked();
                ready == len
            }
            Ok(Granted::Later) => {
                self.inlining.failed();
                false
            }
            _ => false,
        }
    }

    /// Submits an operation to a queue underneath. `fresh`: it was not offered there to be executed inside a call.
    fn pass(
        &mut self,
        op: Op,
        below: bool,
        kind: OpKind,
        turn: Turn,
        role: Role,
        fresh: bool,
    ) -> Submit {
        let Op {
            token,
            kind: original,
            buf,
        } = op;
        let flight = Flight { turn, role };
        let inner = self.flights.begin(token, flight, below);
        let op = Op {
            token: inner,
            kind,
            buf,
        };
        let queue = match &mut self.below {
            Some(queue) if below => queue,
            _ => &mut self.inner,
        };
        let executed = match fresh {
            true => queue.execute(&op.kind, &op.buf, None).done(),
            false => None,
        };
        let submitted = match executed {
            Some(result) => {
                if matches!(role, Role::Granted(_)) && result.is_ok() {
                    self.inlining.is_possible();
                }
                Submit::Done(op.complete(result))
            }
            None => queue.submit(op),
        };
        match submitted {
            Submit::Queued => Submit::Queued,
            Submit::Done(completion) => {
                self.flights.end(inner);
                match self.landed(token, flight, completion) {
                    Some(completion) => Submit::Done(completion),
                    None => Submit::Queued,
                }
            }
            Submit::Full(op) => {
                self.flights.end(inner);
                self.path.leave(turn);
                Submit::Full(Op {
                    token,
                    kind: original,
                    buf: op.buf,
                })
            }
        }
    }

    /// An operation came back. Its completion, unless it waits for something else.
    fn landed(
        &mut self,
        token: Token,
        flight: Flight,
        completion: Completion,
    ) -> Option<Completion> {
        self.path.leave(flight.turn);
        let Completion { result, buf, .. } = completion;
        let result = match (flight.role, result) {
            (Role::Flush(stamp), Ok(())) => {
                self.image.desk.flushed(stamp);
                Ok(())
            }
            (Role::Flush(_), Err(error)) if !matches!(error, DiskError::Cancelled) => {
                Err(self.image.base.changes.freeze("a flush", error))
            }
            (_, result) => result,
        };
        let completion = Completion { token, result, buf };
        match flight.role {
            Role::Granted(grant) => self.fresh.landed(grant, completion),
            Role::Plain | Role::Flush(_) => Some(completion),
        }
    }

    /// Hands an operation to the threads.
    fn hand_over(&mut self, op: Op) -> Submit {
        let image = &*self.image;
        let caps = image.caps();
        let offered = match op.kind {
            OpKind::Discard { .. } => caps.discard.is_some(),
            OpKind::WriteZeroes { .. } => caps.write_zeroes.is_some(),
            OpKind::Read { .. } | OpKind::Write { .. } | OpKind::Flush => true,
            _ => false,
        };
        if !offered {
            return Submit::Done(op.complete(Err(DiskError::Unsupported)));
        }
        let range = op.kind.range(op.buf.len() as u64);
        if range.is_some_and(|(_, len)| len == 0) {
            return Submit::Done(op.complete(Ok(())));
        }
        if self.slow == self.depth {
            return Submit::Full(op);
        }
        self.give(op);
        Submit::Queued
    }

    /// Hands an operation to the threads that was accepted.
    fn give(&mut self, op: Op) {
        self.slow += 1;
        self.pool.put(Job::new(op, &self.share.0));
    }

    /// Takes finished operations from a queue underneath.
    fn collect(&mut self, below: bool, done: &mut Vec<Completion>) -> Result<(), DiskError> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let queue = match &mut self.below {
            Some(queue) if below => queue,
            _ => &mut self.inner,
        };
        let result = queue.reap(&mut scratch);
        for completion in scratch.drain(..) {
            if let Some((token, flight)) = self.flights.end(completion.token) {
                done.extend(self.landed(token, flight, completion));
            }
        }
        self.scratch = scratch;
        result.map(drop)
    }

    /// Submits a flush to the file, if that is all there is to it.
    fn flush(&mut self, op: Op) -> Submit {
        let image = self.image.clone();
        if let Err(error) = image.base.changes.check() {
            return Submit::Done(op.complete(Err(error)));
        }
        let stamp = image.desk.before_flush();
        // Tables and data in two files take two flushes.
        if image.base.external || image.base.medium.is_suspect() {
            return self.hand_over(op);
        }
        let turn = image.epochs.enter(&self.path);
        self.pass(op, false, OpKind::Flush, turn, Role::Flush(stamp), false)
    }
}

impl IoQueue for Qcow2Queue {
    fn submit(&mut self, op: Op) -> Submit {
        let len = op.buf.len();
        if let Err(error) = self.admit(&op.kind, len) {
            return Submit::Done(op.complete(Err(error)));
        }
        let (offset, write) = match op.kind {
            OpKind::Read { offset } => (offset, false),
            OpKind::Write { offset, fua: false } => (offset, true),
            OpKind::Flush => return self.flush(op),
            OpKind::Discard { offset, len } => return self.discard(op, offset, len),
            _ => return self.hand_over(op),
        };
        let image = self.image.clone();
        let turn = image.epochs.enter(&self.path);
        let mut aim = self.aim(offset, len, write);
        // Where nothing was known of it, `execute` did not offer it to the file.
        let fresh = aim.is_none();
        if fresh && self.find_out(offset, len, write) {
            aim = self.aim(offset, len, write);
        }
        match aim {
            Some(Aim::Data(host)) => {
                let kind = match write {
                    false => OpKind::Read { offset: host },
                    true => OpKind::Write {
                        offset: host,
                        fua: false,
                    },
                };
                self.pass(op, false, kind, turn, Role::Plain, fresh)
            }
            Some(Aim::Below) if self.below.is_some() => {
                let kind = op.kind;
                self.pass(op, true, kind, turn, Role::Plain, fresh)
            }
            Some(Aim::Zero) if !write => {
                self.path.leave(turn);
                op.buf.fill(0, len, 0);
                Submit::Done(op.complete(Ok(())))
            }
            _ => {
                self.path.leave(turn);
                if write && self.may_gather(offset, len) {
                    self.fresh.gather(op);
                    return Submit::Queued;
                }
                self.hand_over(op)
            }
        }
    }

    #[inline]
    fn execute(&mut self, kind: &OpKind, buf: &IoBuf, _token: Option<Token>) -> Execute {
        if let Err(error) = self.admit(kind, buf.len()) {
            return Execute::Done(Err(error));
        }
        let (offset, write) = match *kind {
            OpKind::Read { offset } => (offset, false),
            OpKind::Write { offset, fua: false } => (offset, true),
            _ => return Execute::Declined,
        };
        let turn = self.image.epochs.enter(&self.path);
        let executed = match self.aim(offset, buf.len(), write) {
            Some(Aim::Data(offset)) => {
                let kind = match write {
                    false => OpKind::Read { offset },
                    true => OpKind::Write { offset, fua: false },
                };
                self.inner.execute(&kind, buf, None)
            }
            Some(Aim::Below) => match &mut self.below {
                Some(below) => below.execute(kind, buf, None),
                None => Execute::Declined,
            },
            Some(Aim::Zero) if !write => {
                buf.fill(0, buf.len(), 0);
                Execute::Done(Ok(()))
            }
            _ => Execute::Declined,
        };
        self.path.leave(turn);
        executed
    }

    fn flush_batch(&mut self) -> Result<(), DiskError> {
        self.start_gathered();
        self.bring_finished();
        self.inner.flush_batch()?;
        self.below
            .as_mut()
            .map_or(Ok(()), |below| below.flush_batch())
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        let before = done.len();
        let mut result = Ok(());
        if self.flights.any(false) {
            result = self.collect(false, done);
        }
        if self.flights.any(true) {
            result = result.and(self.collect(true, done));
        }
        if self.slow > 0 || self.fresh.is_busy() {
            result = result.and(self.take_slow(done));
        }
        result?;
        Ok(done.len() - before)
    }

    fn wait(&self) -> Wait<'_> {
        if self.polls {
            return Wait::Poll;
        }
        Wait::Fd(match &self.ready {
            Some(ready) => ready.as_fd(),
            None => self.share.0.as_fd(),
        })
    }

    fn deadline(&self) -> Option<Instant> {
        let below = self.below.as_ref().and_then(|below| below.deadline());
        match (self.inner.deadline(), below) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    fn release_held(&mut self) {
        self.inner.release_held();
        if let Some(below) = &mut self.below {
            below.release_held();
        }
        // Tables of all queues are read and written through the threads' paths.
        self.image.base.medium.release_held();
        self.image.data.release_held();
        if let Some((backing, _)) = &self.image.backing {
            backing.release_held();
        }
    }

    fn cancel(&mut self, token: Token) {
        if let Some((inner, below)) = self.flights.find(token) {
            match &mut self.below {
                Some(queue) if below => queue.cancel(inner),
                _ => self.inner.cancel(inner),
            }
        }
    }
}
