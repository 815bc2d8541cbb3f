// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One data path of a qcow2 image.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::event::epoll;
use virtio_blk_core::disk::{
    Completion, DiskError, IoBuf, IoQueue, Op, OpKind, Submit, Token, Wait,
};

use super::Leave;
use super::image::Image;
use super::map::Map;
use super::pool::{Finished, Home, Pool};

/// Users of the gate. Those that are left leave when this is dropped.
struct Tickets {
    image: Arc<Image>,
    count: usize,
}

impl Tickets {
    #[inline]
    fn give_back(&mut self, count: usize) {
        for _ in 0..count.min(self.count) {
            self.count -= 1;
            self.image.gate.leave();
        }
    }
}

impl Drop for Tickets {
    fn drop(&mut self) {
        self.give_back(self.count);
    }
}

/// The queue's share of what the threads hold. Waits for its end when dropped.
struct Share(Arc<Home>);

impl Drop for Share {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// A data path of a [`super::Qcow2Disk`].
///
/// Reads and writes whose place in the file is known go to the file directly; the rest goes to the threads.
/// The order of fields is the order in which they are dropped: a thread may wait for the tickets, which
/// must not be given back before the file's queue has let go of its buffers.
pub(super) struct Qcow2Queue {
    /// The file's own queue.
    inner: Box<dyn IoQueue>,
    /// One for each operation in `inner`.
    tickets: Tickets,
    share: Share,
    pool: Arc<Pool>,
    map: Map,
    /// Operations with the threads, or finished and not reaped.
    slow: usize,
    depth: usize,
    /// Readable when `inner` or the threads have something, unless `inner` never has.
    ready: Option<OwnedFd>,
    scratch: Vec<Finished>,
    /// What this disk lies on holds nothing back for our sake.
    released: Option<Released>,
    _leave: Leave,
}

/// The tables of the image are read and written without being held back, until this is dropped.
struct Released(Arc<Image>);

impl Released {
    fn new(image: &Arc<Image>) -> Self {
        image.host.release_held();
        Self(image.clone())
    }
}

impl Drop for Released {
    fn drop(&mut self) {
        self.0.host.hold_again();
    }
}

impl Qcow2Queue {
    /// `leave` comes first, so that it is dropped last if this fails.
    ///
    /// # Errors
    /// The host has no more descriptors.
    pub fn new(
        leave: Leave,
        image: Arc<Image>,
        pool: Arc<Pool>,
        inner: Box<dyn IoQueue>,
        depth: u16,
    ) -> Result<Self, DiskError> {
        let home = Arc::new(Home::new()?);
        let ready = match inner.wait() {
            Wait::Fd(fd) => {
                let ready =
                    epoll::create(epoll::CreateFlags::CLOEXEC).map_err(std::io::Error::from)?;
                for watched in [fd, home.as_fd()] {
                    let (data, event) = (epoll::EventData::new_u64(0), epoll::EventFlags::IN);
                    epoll::add(&ready, watched, data, event).map_err(std::io::Error::from)?;
                }
                Some(ready)
            }
            Wait::Poll | Wait::Inline => None,
        };
        Ok(Self {
            inner,
            map: Map::new(image.capacity(), image.cluster_bits),
            tickets: Tickets { image, count: 0 },
            share: Share(home),
            pool,
            slow: 0,
            depth: depth.max(1).into(),
            ready,
            scratch: Vec::new(),
            released: None,
            _leave: leave,
        })
    }

    /// Where an operation goes directly, having entered the gate for it.
    #[inline]
    fn aim(&mut self, kind: &OpKind, len: usize) -> Option<OpKind> {
        let offset = match *kind {
            OpKind::Read { offset } | OpKind::Write { offset, fua: false } => offset,
            _ => return None,
        };
        let gate = &self.tickets.image.gate;
        if !gate.try_enter() {
            return None;
        }
        let Some(offset) = self.map.find(offset, len, gate.generation()) else {
            gate.leave();
            return None;
        };
        self.tickets.count += 1;
        Some(match kind {
            OpKind::Read { .. } => OpKind::Read { offset },
            _ => OpKind::Write { offset, fua: false },
        })
    }
}

impl IoQueue for Qcow2Queue {
    fn submit(&mut self, mut op: Op) -> Submit {
        if let Err(error) = self.tickets.image.bounds().check(&op.kind, op.buf.len()) {
            return Submit::Done(op.complete(Err(error)));
        }
        if let Some(aimed) = self.aim(&op.kind, op.buf.len()) {
            let kind = std::mem::replace(&mut op.kind, aimed);
            return match self.inner.submit(op) {
                Submit::Queued => Submit::Queued,
                Submit::Done(completion) => {
                    self.tickets.give_back(1);
                    Submit::Done(completion)
                }
                Submit::Full(op) => {
                    self.tickets.give_back(1);
                    Submit::Full(Op { kind, ..op })
                }
            };
        }
        let offered = match op.kind {
            OpKind::Discard { .. } | OpKind::WriteZeroes { .. } => self.tickets.image.erases,
            OpKind::Read { .. } | OpKind::Write { .. } | OpKind::Flush => true,
            _ => false,
        };
        if !offered {
            return Submit::Done(op.complete(Err(DiskError::Unsupported)));
        }
        if self.slow == self.depth {
            return Submit::Full(op);
        }
        self.slow += 1;
        self.pool.submit(op, &self.share.0);
        Submit::Queued
    }

    #[inline]
    fn execute(&mut self, kind: &OpKind, buf: &IoBuf) -> Option<Result<(), DiskError>> {
        if let Err(error) = self.tickets.image.bounds().check(kind, buf.len()) {
            return Some(Err(error));
        }
        let aimed = self.aim(kind, buf.len())?;
        let result = self.inner.execute(&aimed, buf);
        self.tickets.give_back(1);
        result
    }

    fn flush_batch(&mut self) -> Result<(), DiskError> {
        self.inner.flush_batch()
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        let before = done.len();
        let direct = self.inner.reap(done);
        self.tickets.give_back(done.len() - before);
        if self.slow > 0 {
            self.share.0.take(&mut self.scratch);
            for finished in self.scratch.drain(..) {
                self.slow -= 1;
                if let Some(extent) = &finished.extent {
                    self.map.learn(extent);
                }
                done.push(finished.completion);
            }
        }
        direct?;
        Ok(done.len() - before)
    }

    fn wait(&self) -> Wait<'_> {
        Wait::Fd(match &self.ready {
            Some(ready) => ready.as_fd(),
            None => self.share.0.as_fd(),
        })
    }

    fn deadline(&self) -> Option<Instant> {
        self.inner.deadline()
    }

    fn release_held(&mut self) {
        self.inner.release_held();
        // Tables of all queues are read and written through one path.
        if self.released.is_none() {
            self.released = Some(Released::new(&self.tickets.image));
        }
    }

    fn cancel(&mut self, token: Token) {
        self.inner.cancel(token);
    }
}
