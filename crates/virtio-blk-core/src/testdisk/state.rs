// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is behind the handles.

use std::collections::VecDeque;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::{Break, Event, Mode, WaitKind, signal};
use crate::disk::{
    Caps, Completion, DiskError, DiskListener, Execute, IoBuf, Lifetime, Op, OpKind, Submit, Token,
};

/// Decides which operations fail.
pub(super) type Fault = Box<dyn FnMut(&OpKind) -> Option<DiskError> + Send>;

/// An operation that a queue accepted.
struct Accepted {
    op: Op,
    /// By `execute`, without its buffer: that of `op` is the same memory.
    taken: bool,
}

/// An operation that the test releases.
pub(super) struct HeldOp {
    queue: usize,
    accepted: Accepted,
}

/// One open queue.
struct Queue {
    notifier: Option<UnixStream>,
    /// Accepted, and waiting for `flush_batch`.
    batch: Vec<Accepted>,
    ready: Vec<Completion>,
}

pub(super) struct State {
    pub(super) caps: Caps,
    pub(super) data: Vec<u8>,
    pub(super) mode: Mode,
    pub(super) wait: WaitKind,
    pub(super) room: usize,
    pub(super) deadline: Option<Instant>,
    /// Nothing is cancelled.
    pub(super) keeps: bool,
    pub(super) lifetime: [u8; Lifetime::SIZE],
    pub(super) fault: Option<Fault>,
    pub(super) broken: Option<Break>,
    pub(super) closed: bool,
    pub(super) reaps: u64,
    pub(super) log: Vec<Event>,
    pub(super) depths: Vec<u16>,
    pub(super) listeners: Vec<DiskListener>,
    /// Operations that the test releases, oldest first.
    pub(super) held: VecDeque<HeldOp>,
    /// The token of the latest operation.
    pub(super) last: Option<Token>,
    queues: Vec<Option<Queue>>,
}

impl State {
    pub(super) fn new(caps: Caps) -> Self {
        Self {
            caps,
            data: vec![0; caps.capacity_bytes() as usize],
            mode: Mode::Inline,
            wait: WaitKind::Inline,
            room: usize::MAX,
            deadline: None,
            keeps: false,
            lifetime: [0; Lifetime::SIZE],
            fault: None,
            broken: None,
            closed: false,
            reaps: 0,
            log: Vec::new(),
            depths: Vec::new(),
            listeners: Vec::new(),
            held: VecDeque::new(),
            last: None,
            queues: Vec::new(),
        }
    }

    pub(super) fn open(&mut self, notifier: Option<UnixStream>) -> usize {
        self.queues.push(Some(Queue {
            notifier,
            batch: Vec::new(),
            ready: Vec::new(),
        }));
        self.queues.len() - 1
    }

    fn queue(&mut self, id: usize) -> Option<&mut Queue> {
        self.queues.get_mut(id)?.as_mut()
    }

    /// Operations a queue has.
    fn load(&mut self, id: usize) -> usize {
        let held = self.held.iter().filter(|held| held.queue == id).count();
        held + self.queue(id).map_or(0, |q| q.batch.len() + q.ready.len())
    }

    pub(super) fn ready(&self) -> usize {
        self.queues.iter().flatten().map(|q| q.ready.len()).sum()
    }

    pub(super) fn submit(&mut self, id: usize, op: Op) -> Submit {
        if self.load(id) >= self.room {
            self.log.push(Event::Refused);
            return Submit::Full(op);
        }
        self.last = Some(op.token);
        self.note(&op.kind, &op.buf);
        if matches!(self.mode, Mode::Inline | Mode::Execute) {
            return Submit::Done(self.run(op));
        }
        self.accept(id, op, false);
        Submit::Queued
    }

    fn note(&mut self, kind: &OpKind, buf: &IoBuf) {
        self.log.push(Event::Submitted {
            kind: *kind,
            len: buf.len(),
        });
    }

    fn accept(&mut self, id: usize, op: Op, taken: bool) {
        let accepted = Accepted { op, taken };
        if matches!(self.mode, Mode::Held | Mode::TakenHeld) {
            let held = HeldOp {
                queue: id,
                accepted,
            };
            self.held.push_back(held);
        } else if let Some(queue) = self.queue(id) {
            queue.batch.push(accepted);
        }
    }

    pub(super) fn execute(
        &mut self,
        id: usize,
        kind: &OpKind,
        buf: &IoBuf,
        token: Option<Token>,
    ) -> Execute {
        match (self.mode, token) {
            (Mode::Execute, _) => {
                self.note(kind, buf);
                Execute::Done(self.result(kind, buf))
            }
            (Mode::Taken | Mode::TakenHeld, Some(token)) if self.load(id) < self.room => {
                self.last = Some(token);
                self.note(kind, buf);
                let op = Op {
                    token,
                    kind: *kind,
                    buf: buf.part(0, buf.len()),
                };
                self.accept(id, op, true);
                Execute::Taken
            }
            _ => Execute::Declined,
        }
    }

    pub(super) fn flush(&mut self, id: usize) -> Result<(), DiskError> {
        self.log.push(Event::Flushed);
        self.check_broken(Break::Flush)?;
        let batch = self.queue(id).map(|q| std::mem::take(&mut q.batch));
        for accepted in batch.into_iter().flatten() {
            self.finish(id, accepted);
        }
        Ok(())
    }

    pub(super) fn release_at(&mut self, index: usize) -> bool {
        let Some(held) = self.held.remove(index) else {
            return false;
        };
        self.finish(held.queue, held.accepted);
        true
    }

    /// Runs an operation and hands its completion out.
    fn finish(&mut self, id: usize, accepted: Accepted) {
        let mut completion = self.run(accepted.op);
        if accepted.taken {
            completion.buf = IoBuf::new();
        }
        self.hand_out(id, completion);
    }

    pub(super) fn invent(&mut self, token: Token) {
        for id in 0..self.queues.len() {
            let completion = Completion {
                token,
                result: Ok(()),
                buf: IoBuf::new(),
            };
            self.hand_out(id, completion);
        }
    }

    fn hand_out(&mut self, id: usize, completion: Completion) {
        if let Some(queue) = self.queue(id) {
            queue.ready.push(completion);
            if let Some(notifier) = &queue.notifier {
                signal(notifier);
            }
        }
    }

    pub(super) fn take_ready(&mut self, id: usize, done: &mut Vec<Completion>) -> usize {
        self.queue(id).map_or(0, |queue| {
            let count = queue.ready.len();
            done.append(&mut queue.ready);
            count
        })
    }

    pub(super) fn check_broken(&mut self, call: Break) -> Result<(), DiskError> {
        if self.broken != Some(call) {
            return Ok(());
        }
        self.broken = None;
        Err(DiskError::from_errno(libc::EIO))
    }

    pub(super) fn cancel(&mut self, id: usize, token: Token) {
        self.log.push(Event::Cancelled);
        if self.keeps {
            return;
        }
        let place = |held: &HeldOp| held.queue == id && held.accepted.op.token == token;
        if let Some(held) = self
            .held
            .iter()
            .position(place)
            .and_then(|index| self.held.remove(index))
        {
            let Accepted { op, taken } = held.accepted;
            let mut completion = op.complete(Err(DiskError::Cancelled));
            if taken {
                completion.buf = IoBuf::new();
            }
            self.hand_out(id, completion);
        }
    }

    pub(super) fn close(&mut self, id: usize) {
        let load = self.load(id);
        self.log.push(Event::Dropped(load));
        self.held.retain(|held| held.queue != id);
        if let Some(slot) = self.queues.get_mut(id) {
            *slot = None;
        }
    }

    fn run(&mut self, op: Op) -> Completion {
        let result = self.result(&op.kind, &op.buf);
        op.complete(result)
    }

    fn result(&mut self, kind: &OpKind, buf: &IoBuf) -> Result<(), DiskError> {
        let failed = self.fault.as_mut().and_then(|fault| fault(kind));
        match failed {
            Some(error) => Err(error),
            None => self.perform(kind, buf),
        }
    }

    fn perform(&mut self, kind: &OpKind, buf: &IoBuf) -> Result<(), DiskError> {
        if kind.is_write() && self.caps.read_only {
            return Err(DiskError::ReadOnly);
        }
        let Some((offset, len)) = kind.range(buf.len() as u64) else {
            if *kind == OpKind::Lifetime {
                buf.copy_in(0, &self.lifetime);
            }
            return Ok(());
        };
        if !self.caps.contains(offset, len) {
            return Err(DiskError::OutOfRange);
        }
        let first = offset as usize;
        let range = self
            .data
            .get_mut(first..first + len as usize)
            .ok_or(DiskError::OutOfRange)?;
        match kind {
            OpKind::Read { .. } => {
                buf.copy_in(0, range);
            }
            OpKind::Write { .. } => {
                if !buf.is_intact() {
                    return Err(DiskError::from_errno(libc::EFAULT));
                }
                buf.copy_out(0, range);
            }
            OpKind::WriteZeroes { .. } => range.fill(0),
            // Recognisable, and not zeroes: nobody may rely on those.
            OpKind::Discard { .. } => range.fill(0xd1),
            OpKind::SecureErase { .. } => range.fill(0x5e),
            OpKind::Flush | OpKind::Lifetime => {}
        }
        Ok(())
    }
}
