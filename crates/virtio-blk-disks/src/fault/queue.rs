// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One misbehaving data path.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use virtio_blk_core::disk::{Completion, DiskError, IoQueue, Op, Submit, Token, Wait};

use super::Shared;
use super::rng::Rng;

/// How long a completion is held back.
#[derive(Clone, Copy, Debug)]
struct Delay {
    reaps: u64,
    time: Duration,
}

/// What was decided for an operation that is with the disk underneath.
struct Decision {
    error: Option<DiskError>,
    delay: Delay,
}

/// A completion that is held back.
struct Held {
    completion: Completion,
    /// Calls of `reap` still to come.
    reaps: u64,
    until: Option<Instant>,
}

impl Held {
    fn is_due(&self, now: &mut Option<Instant>) -> bool {
        self.reaps == 0
            && self
                .until
                .is_none_or(|until| until <= *now.get_or_insert_with(Instant::now))
    }
}

/// How the owner waits.
enum Waiting {
    /// As for the disk underneath: nothing is ever held back.
    Inner,
    /// By asking.
    Poll,
    /// By a descriptor that is readable while `bell` rings or the disk underneath has something.
    Fd { ready: OwnedFd, bell: OwnedFd },
}

/// A data path of a [`super::FaultDisk`].
pub(super) struct FaultQueue {
    shared: Arc<Shared>,
    inner: Box<dyn IoQueue>,
    rng: Rng,
    limit: usize,
    /// With the disk underneath.
    below: HashMap<Token, Decision>,
    held: Vec<Held>,
    scratch: Vec<Completion>,
    waiting: Waiting,
    /// Whether `bell` rings.
    ringing: bool,
    /// Operations taken.
    taken: u64,
}

/// A descriptor from a system call that answers with one.
fn owned(fd: libc::c_int) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes `watched` part of `ready`, an epoll.
fn watch(ready: &OwnedFd, watched: &impl AsRawFd) -> io::Result<()> {
    let mut event = libc::epoll_event {
        events: libc::EPOLLIN as u32,
        u64: 0,
    };
    // SAFETY: both descriptors are open, the event is valid.
    let failed = unsafe {
        libc::epoll_ctl(
            ready.as_raw_fd(),
            libc::EPOLL_CTL_ADD,
            watched.as_raw_fd(),
            &raw mut event,
        )
    } < 0;
    if failed {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

impl Waiting {
    fn new(shared: &Shared, inner: &dyn IoQueue) -> io::Result<Self> {
        if !shared.plan.holds() {
            return Ok(Self::Inner);
        }
        let below = match inner.wait() {
            Wait::Poll => return Ok(Self::Poll),
            Wait::Inline if shared.plan.poll => return Ok(Self::Poll),
            Wait::Inline => None,
            Wait::Fd(fd) => Some(fd),
        };
        // SAFETY: no pointers are involved.
        let bell = owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // SAFETY: as above.
        let ready = owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        watch(&ready, &bell)?;
        if let Some(fd) = below {
            watch(&ready, &fd)?;
        }
        Ok(Self::Fd { ready, bell })
    }
}

impl FaultQueue {
    pub fn new(
        shared: Arc<Shared>,
        inner: Box<dyn IoQueue>,
        depth: u16,
        number: u64,
    ) -> Result<Self, DiskError> {
        let waiting = Waiting::new(&shared, &*inner)?;
        Ok(Self {
            rng: Rng::new(shared.plan.seed, number),
            shared,
            inner,
            limit: depth.max(1).into(),
            below: HashMap::new(),
            held: Vec::new(),
            scratch: Vec::new(),
            waiting,
            ringing: false,
            taken: 0,
        })
    }

    fn armed(&self) -> bool {
        self.shared.armed.load(Ordering::SeqCst)
    }

    /// The error for an operation, and whether it is made after the effect.
    fn failure(&mut self, op: &Op) -> Option<(DiskError, bool)> {
        let armed = self.armed();
        let mut found = None;
        for (rule, matches) in self.shared.plan.rules.iter().zip(&self.shared.matches) {
            // Every rule draws each time, so that one rule's outcome doesn't shift another's.
            let chosen = self.rng.chance(rule.rate());
            if found.is_none()
                && armed
                && chosen
                && rule.matches(&op.kind, op.buf.len())
                && rule.hits(matches.fetch_add(1, Ordering::SeqCst))
            {
                found = Some((rule.error(), rule.after_effect));
            }
        }
        if found.is_some() {
            self.shared.errors.fetch_add(1, Ordering::SeqCst);
        }
        found
    }

    fn delay(&mut self) -> Delay {
        let plan = &self.shared.plan;
        let reaps = plan
            .delay
            .as_ref()
            .map_or(0, |range| self.rng.within(range));
        let time = plan.real_delay.as_ref().map_or(Duration::ZERO, |range| {
            let nanos = range.start().as_nanos() as u64..=range.end().as_nanos() as u64;
            Duration::from_nanos(self.rng.within(&nanos))
        });
        Delay { reaps, time }
    }

    /// Answers a submission whose operation is over: now, or by a later `reap`.
    fn answer(&mut self, completion: Completion, delay: Delay) -> Submit {
        if !self.shared.plan.holds() {
            return Submit::Done(completion);
        }
        self.hold(completion, delay);
        self.ring();
        Submit::Queued
    }

    fn hold(&mut self, completion: Completion, delay: Delay) {
        self.held.push(Held {
            completion,
            reaps: delay.reaps,
            until: (delay.time > Duration::ZERO).then(|| Instant::now() + delay.time),
        });
    }

    /// Makes the descriptor agree with what is held. What only waits for a time has a deadline instead.
    fn ring(&mut self) {
        let wanted = self.held.iter().any(|h| h.reaps > 0 || h.until.is_none());
        let Waiting::Fd { bell, .. } = &self.waiting else {
            return;
        };
        if wanted == self.ringing {
            return;
        }
        let mut value = 1_u64;
        // Neither can fail: the counter goes from 0 to 1 and back.
        // SAFETY: the descriptor is open, the eight bytes are valid.
        unsafe {
            if wanted {
                libc::write(bell.as_raw_fd(), (&raw const value).cast(), 8);
            } else {
                libc::read(bell.as_raw_fd(), (&raw mut value).cast(), 8);
            }
        }
        self.ringing = wanted;
    }

    fn check_broken(&self) -> Result<(), DiskError> {
        match self.shared.plan.break_after {
            Some(count) if self.armed() && self.taken >= count => {
                Err(DiskError::from_errno(libc::EIO))
            }
            _ => Ok(()),
        }
    }

    /// Takes over what the disk underneath finished.
    fn collect(&mut self) -> Result<(), DiskError> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let result = self.inner.reap(&mut scratch);
        for mut completion in scratch.drain(..) {
            let Some(decision) = self.below.remove(&completion.token) else {
                continue;
            };
            if let Some(error) = decision.error {
                completion.result = Err(error);
            }
            self.hold(completion, decision.delay);
        }
        self.scratch = scratch;
        result.map(|_| ())
    }

    /// Moves what is due to `done`. Returns how many.
    fn release(&mut self, done: &mut Vec<Completion>) -> usize {
        let first = done.len();
        let mut now = None;
        let mut index = 0;
        while let Some(held) = self.held.get_mut(index) {
            if held.is_due(&mut now) {
                done.push(self.held.remove(index).completion);
            } else {
                held.reaps = held.reaps.saturating_sub(1);
                index += 1;
            }
        }
        let count = done.len() - first;
        if self.shared.plan.reorder {
            for left in (1..count).rev() {
                let other = self.rng.below(left as u64 + 1) as usize;
                done.swap(first + left, first + other);
            }
        }
        count
    }
}

impl IoQueue for FaultQueue {
    fn submit(&mut self, op: Op) -> Submit {
        let in_flight = self.below.len() + self.held.len();
        if in_flight >= self.limit {
            return Submit::Full(op);
        }
        let refuse = self.rng.chance(self.shared.plan.full_per_mille);
        if refuse && in_flight > 0 && self.armed() {
            self.shared.refusals.fetch_add(1, Ordering::SeqCst);
            return Submit::Full(op);
        }
        let failure = self.failure(&op);
        let delay = self.delay();
        let error = match failure {
            Some((error, false)) => {
                self.taken += 1;
                return self.answer(op.complete(Err(error)), delay);
            }
            Some((error, true)) => Some(error),
            None => None,
        };
        let token = op.token;
        match self.inner.submit(op) {
            Submit::Full(op) => Submit::Full(op),
            Submit::Queued => {
                self.taken += 1;
                self.below.insert(token, Decision { error, delay });
                Submit::Queued
            }
            Submit::Done(mut completion) => {
                self.taken += 1;
                if let Some(error) = error {
                    completion.result = Err(error);
                }
                self.answer(completion, delay)
            }
        }
    }

    fn flush_batch(&mut self) -> Result<(), DiskError> {
        self.check_broken()?;
        self.inner.flush_batch()
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        self.check_broken()?;
        let result = self.collect();
        let count = self.release(done);
        self.ring();
        result.map(|()| count)
    }

    fn wait(&self) -> Wait<'_> {
        match &self.waiting {
            Waiting::Inner => self.inner.wait(),
            Waiting::Poll => Wait::Poll,
            Waiting::Fd { ready, .. } => Wait::Fd(ready.as_fd()),
        }
    }

    fn cancel(&mut self, token: Token) {
        match self.held.iter_mut().find(|h| h.completion.token == token) {
            // Its effect is there: it keeps its result, and only comes sooner.
            Some(held) => {
                held.reaps = 0;
                held.until = None;
                self.ring();
            }
            None => self.inner.cancel(token),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let held = self.held.iter().filter_map(|held| held.until).min();
        [held, self.inner.deadline()].into_iter().flatten().min()
    }
}
