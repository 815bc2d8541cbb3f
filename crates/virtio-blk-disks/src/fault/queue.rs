// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One misbehaving data path.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use virtio_blk_core::disk::{
    Completion, DiskError, Execute, IoBuf, IoQueue, Op, OpKind, Submit, Token, Wait,
};

use super::Shared;
use super::plan::Effect;
use super::rng::Rng;

/// How long a completion is held back.
#[derive(Clone, Copy, Debug)]
struct Delay {
    reaps: u64,
    time: Duration,
}

/// What was decided for an operation that is with the disk underneath.
struct Decision {
    /// What it shall end with instead.
    result: Option<Result<(), DiskError>>,
    /// Its own buffer, if only a part of it went down.
    buf: Option<IoBuf>,
    delay: Delay,
}

impl Decision {
    /// Makes a completion what was decided.
    fn apply(self, mut completion: Completion) -> Completion {
        if let Some(result) = self.result {
            completion.result = result;
        }
        if let Some(buf) = self.buf {
            completion.buf = buf;
        }
        completion
    }
}

/// The most bytes of a part of a write, which are copied.
const MAX_PART: u64 = 1 << 20;

/// A change cut down to the `len` bytes from its byte `skip` on.
const fn cut(kind: OpKind, skip: u64, len: u64) -> OpKind {
    match kind {
        OpKind::Write { offset, fua } => OpKind::Write {
            offset: offset.saturating_add(skip),
            fua,
        },
        OpKind::WriteZeroes {
            offset, unmap, fua, ..
        } => OpKind::WriteZeroes {
            offset: offset.saturating_add(skip),
            len,
            unmap,
            fua,
        },
        OpKind::Discard { offset, .. } => OpKind::Discard {
            offset: offset.saturating_add(skip),
            len,
        },
        OpKind::SecureErase { offset, .. } => OpKind::SecureErase {
            offset: offset.saturating_add(skip),
            len,
        },
        other => other,
    }
}

/// Cuts an operation down to a part of it. Also returns its own buffer, if the part has a copy.
fn tear(op: Op, skip: u64, len: u64) -> (Op, Option<IoBuf>) {
    let kind = cut(op.kind, skip, len);
    if op.buf.is_empty() {
        return (Op { kind, ..op }, None);
    }
    // Both are within the buffer.
    let mut part = vec![0; usize::try_from(len).unwrap_or(0)];
    let skip = usize::try_from(skip).unwrap_or(usize::MAX);
    op.buf.copy_out(skip, &mut part);
    let buf = IoBuf::from_vec(part);
    (Op { kind, buf, ..op }, Some(op.buf))
}

/// A completion that is held back.
struct Held {
    completion: Completion,
    /// Calls of `reap` still to come.
    reaps: u64,
    until: Option<Instant>,
}

impl Held {
    /// Makes it due.
    fn let_go(&mut self) {
        self.reaps = 0;
        self.until = None;
    }

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
    /// By a descriptor that is readable while `notifier` is signalled or the disk underneath has something.
    Fd { ready: OwnedFd, notifier: OwnedFd },
}

/// A data path of a [`super::FaultDisk`].
pub(super) struct FaultQueue {
    shared: Arc<Shared>,
    inner: Box<dyn IoQueue>,
    rng: Rng,
    limit: usize,
    /// Bytes of the guest block: what is torn is torn between these.
    block: u64,
    /// With the disk underneath.
    below: HashMap<Token, Decision>,
    held: Vec<Held>,
    scratch: Vec<Completion>,
    waiting: Waiting,
    /// Whether `notifier` is signalled.
    ringing: bool,
    /// Operations taken.
    taken: u64,
    /// The plan changes nothing.
    passes: bool,
    /// The owner is about to stop: nothing is held back any more.
    released: bool,
}

/// The descriptor that a system call returned.
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
        let notifier = owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // SAFETY: as above.
        let ready = owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        watch(&ready, &notifier)?;
        if let Some(fd) = below {
            watch(&ready, &fd)?;
        }
        Ok(Self::Fd { ready, notifier })
    }
}

impl FaultQueue {
    pub fn new(
        shared: Arc<Shared>,
        inner: Box<dyn IoQueue>,
        depth: u16,
        number: u64,
        block: u32,
    ) -> Result<Self, DiskError> {
        let waiting = Waiting::new(&shared, &*inner)?;
        Ok(Self {
            rng: Rng::new(shared.plan.seed, number),
            passes: shared.plan.is_empty(),
            shared,
            inner,
            limit: depth.max(1).into(),
            block: u64::from(block.max(1)),
            below: HashMap::new(),
            held: Vec::new(),
            scratch: Vec::new(),
            waiting,
            ringing: false,
            taken: 0,
            released: false,
        })
    }

    fn armed(&self) -> bool {
        self.shared.armed.load(Ordering::SeqCst)
    }

    /// What an operation ends with instead, and what it does all the same.
    fn failure(&mut self, op: &Op) -> Option<(Result<(), DiskError>, Effect)> {
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
                found = Some((rule.result(), rule.effect));
            }
        }
        if found.is_some() {
            self.shared.errors.fetch_add(1, Ordering::SeqCst);
        }
        found
    }

    /// A part of a change, not the whole of it: how many bytes are left out, and how many follow. `None`: no part
    /// of it.
    fn part(&mut self, op: &Op) -> Option<(u64, u64)> {
        let (_, len) = op.kind.range(op.buf.len() as u64)?;
        let blocks = len / self.block;
        if !op.kind.is_write() || blocks < 2 {
            return None;
        }
        let mut most = blocks - 1;
        if !op.buf.is_empty() {
            most = most.min(MAX_PART / self.block);
        }
        let count = self.rng.below(most + 1);
        let skip = self.rng.below(blocks - count + 1);
        (count != 0).then_some((skip * self.block, count * self.block))
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

    /// Completes an operation: in `submit`, or by a later `reap`.
    fn answer(&mut self, completion: Completion, delay: Delay) -> Submit {
        if !self.shared.plan.holds() {
            return Submit::Done(completion);
        }
        self.hold(completion, delay);
        self.signal();
        Submit::Queued
    }

    fn hold(&mut self, completion: Completion, delay: Delay) {
        let mut held = Held {
            completion,
            reaps: delay.reaps,
            until: (delay.time > Duration::ZERO).then(|| Instant::now() + delay.time),
        };
        if self.released {
            held.let_go();
        }
        self.held.push(held);
    }

    /// Makes the descriptor agree with what is held. What only waits for a time has a deadline instead.
    fn signal(&mut self) {
        let wanted = self.held.iter().any(|h| h.reaps > 0 || h.until.is_none());
        let Waiting::Fd { notifier, .. } = &self.waiting else {
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
                libc::write(notifier.as_raw_fd(), (&raw const value).cast(), 8);
            } else {
                libc::read(notifier.as_raw_fd(), (&raw mut value).cast(), 8);
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
        for completion in scratch.drain(..) {
            let Some(decision) = self.below.remove(&completion.token) else {
                continue;
            };
            let delay = decision.delay;
            self.hold(decision.apply(completion), delay);
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
        let (token, kind) = (op.token, op.kind);
        let (result, effect) = match failure {
            Some((result, effect)) => (Some(result), effect),
            None => (None, Effect::All),
        };
        let part = match effect {
            Effect::Part => self.part(&op),
            Effect::Nothing | Effect::All => None,
        };
        let (op, buf) = match (effect, part) {
            (Effect::All, _) => (op, None),
            (_, Some((skip, len))) => tear(op, skip, len),
            (_, None) => {
                self.taken += 1;
                return self.answer(op.complete(result.unwrap_or(Ok(()))), delay);
            }
        };
        let decision = Decision { result, buf, delay };
        // What was declined above was not offered below.
        let submitted = match self.passes {
            true => self.inner.submit(op),
            false => self.inner.execute_or_submit(op),
        };
        match submitted {
            Submit::Full(op) => Submit::Full(Op {
                kind,
                buf: decision.buf.unwrap_or(op.buf),
                ..op
            }),
            Submit::Queued => {
                self.taken += 1;
                self.below.insert(token, decision);
                Submit::Queued
            }
            Submit::Done(completion) => {
                self.taken += 1;
                self.answer(decision.apply(completion), delay)
            }
        }
    }

    fn execute(&mut self, kind: &OpKind, buf: &IoBuf, _token: Option<Token>) -> Execute {
        match self.passes {
            true => self.inner.execute(kind, buf, None),
            false => Execute::Declined,
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
        self.signal();
        result.map(|()| count)
    }

    fn wait(&self) -> Wait<'_> {
        match &self.waiting {
            Waiting::Inner => self.inner.wait(),
            Waiting::Poll => Wait::Poll,
            Waiting::Fd { ready, .. } => Wait::Fd(ready.as_fd()),
        }
    }

    fn release_held(&mut self) {
        self.released = true;
        self.held.iter_mut().for_each(Held::let_go);
        self.signal();
        self.inner.release_held();
    }

    fn cancel(&mut self, token: Token) {
        match self.held.iter_mut().find(|h| h.completion.token == token) {
            // Its effect is there: it keeps its result, and only comes sooner.
            Some(held) => {
                held.let_go();
                self.signal();
            }
            None => self.inner.cancel(token),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let held = self.held.iter().filter_map(|held| held.until).min();
        [held, self.inner.deadline()].into_iter().flatten().min()
    }
}
