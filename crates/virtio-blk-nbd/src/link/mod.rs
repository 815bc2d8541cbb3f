// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A connection for as long as the disk is open: it is made anew when it is lost.
//!
//! One or several queues are its members. The one that calls does what there is to do for all, under one lock: sends
//! what is queued, receives what is there, and leaves the others their completions with a ring of their bell. With
//! one member, which is usual, the lock is free and no bell is needed.

mod ask;
mod leave;
mod lost;
mod member;
mod orphans;
mod watch;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use member::Member;
use virtio_blk_core::disk::{Completion, DiskError, Op, OpKind, Submit};

use crate::NbdError;
use crate::dial::Connected;
use crate::flight::{Flight, Flights, Stage};
use crate::proto::{Command, CommandFlags, ExportFlags};
use crate::session::Session;
use crate::shared::Shared;
use crate::socket::Peer;
use crate::waiter::Waiter;

pub(crate) use watch::Watch;

/// How often one call receives at most, so that a server that sends and sends does not keep it.
const ROUNDS: usize = 16;

/// A connection for as long as the disk is open.
pub(crate) struct Link {
    shared: Arc<Shared>,
    me: Weak<Self>,
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    flights: Flights,
    /// Requests to be sent, in order.
    backlog: VecDeque<usize>,
    /// Requests whose reply is whole.
    finished: Vec<usize>,
    /// Operations that wait for a write that is in doubt.
    held: usize,
    /// The server had nothing to reply to before the last call sent something: a look at the socket can wait for the
    /// next call.
    is_quiet: bool,
    members: Vec<Option<Member>>,
    /// The member that makes the call, which needs no bell.
    caller: Option<usize>,
    /// Whether replies come.
    watch: Watch,
    /// A thread looks for a new connection.
    dialing: bool,
    /// A thread receives what no member waits for any more.
    minding: bool,
    /// How long it waits before it does: longer each time a connection is lost as soon as it is there.
    pause: Duration,
}

enum Phase {
    Up(Session),
    Down(Down),
}

/// What is left of a connection.
struct Down {
    since: Instant,
    /// Why.
    errno: i32,
    /// Of the lost connection.
    peer: Option<Peer>,
    /// As above.
    epoch: u64,
}

impl Link {
    /// Over a connection that was made.
    pub(crate) fn new(shared: Arc<Shared>, connected: Connected) -> Arc<Self> {
        let session = Session::new(connected, shared.durability.epoch());
        Arc::new_cyclic(|me| Self {
            shared,
            me: me.clone(),
            state: Mutex::new(State {
                phase: Phase::Up(session),
                flights: Flights::default(),
                backlog: VecDeque::new(),
                finished: Vec::new(),
                held: 0,
                is_quiet: false,
                members: Vec::new(),
                caller: None,
                watch: Watch::new(),
                dialing: false,
                minding: false,
                pause: Duration::ZERO,
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As called by a member.
    fn lock_as(&self, who: Option<usize>) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        state.caller = who;
        state
    }

    /// Queues that use it.
    pub(crate) fn member_count(&self) -> usize {
        self.lock().members.iter().flatten().count()
    }

    /// Adds a queue of this depth. Returns its number.
    ///
    /// # Errors
    /// The socket can't be waited for.
    pub(crate) fn join(&self, waiter: Arc<Waiter>, depth: u16) -> Result<usize, DiskError> {
        let mut state = self.lock();
        if let Phase::Up(session) = &state.phase {
            waiter.watch(session.socket())?;
        }
        let member = Some(Member::new(waiter, depth));
        let free = state.members.iter().position(Option::is_none);
        match free.and_then(|at| Some((at, state.members.get_mut(at)?))) {
            Some((at, place)) => {
                *place = member;
                Ok(at)
            }
            None => {
                state.members.push(member);
                Ok(state.members.len() - 1)
            }
        }
    }

    /// Takes an operation, which the queue has checked against the disk. It is sent by [`Link::send`].
    pub(crate) fn submit(&self, who: usize, op: Op) -> Submit {
        let shared = &*self.shared;
        let (fua, is_flush) = match op.kind {
            OpKind::Write { fua, .. } | OpKind::WriteZeroes { fua, .. } => (fua, false),
            OpKind::Flush => (false, true),
            _ => (false, false),
        };
        let can_flush = shared.can(ExportFlags::SEND_FLUSH);
        if is_flush && !can_flush {
            return Submit::Done(op.complete(Ok(())));
        }
        if (fua || is_flush)
            && let Err(error) = shared.durability.check()
        {
            return Submit::Done(op.complete(Err(error)));
        }
        // Not as the caller: a completion that is made inside this call is rung for.
        let mut state = self.lock_as(None);
        let now = match &state.phase {
            Phase::Up(_) => None,
            Phase::Down(down) => Some((down.errno, down.since)),
        };
        let Some(member) = state.member(who) else {
            return Submit::Done(op.complete(Err(DiskError::Cancelled)));
        };
        if member.in_flight >= member.depth {
            return Submit::Full(op);
        }
        if let Some((errno, since)) = now
            && (member.released || since.elapsed() >= shared.options.window())
        {
            self.redial(&mut state);
            return Submit::Done(op.complete(Err(DiskError::from_errno(errno))));
        }
        member.in_flight += 1;
        let range = op.kind.range(op.buf.len() as u64);
        let held = !member.released && shared.fence.holds(range, &member.waiter);
        let flushes = fua && can_flush && !shared.can(ExportFlags::SEND_FUA);
        let place = state
            .flights
            .add(who, op, flushes, shared.durability.mark());
        if held {
            state.hold(place);
        } else {
            self.queue(&mut state, place);
        }
        Submit::Queued
    }

    /// Sends what was submitted.
    pub(crate) fn send(&self, who: usize) {
        let mut state = self.lock_as(None);
        let State {
            phase,
            flights,
            backlog,
            is_quiet,
            ..
        } = &mut *state;
        *is_quiet = !backlog.is_empty() && flights.len() == backlog.len();
        if let Phase::Up(session) = phase
            && let Err(error) = session.send(flights, backlog)
        {
            self.lose(&mut state, error);
        }
        state.want_room(who);
    }

    /// Does what there is to do, and hands out what is finished of the member's.
    pub(crate) fn reap(&self, who: usize, done: &mut Vec<Completion>) -> usize {
        let mut state = self.lock_as(Some(who));
        // The owner calls again once there is something, or if it polls.
        if !std::mem::take(&mut state.is_quiet) || state.held != 0 {
            self.pump(&mut state);
        }
        state.want_room(who);
        match state.member(who) {
            Some(member) => {
                let count = member.done.len();
                done.append(&mut member.done);
                count
            }
            None => 0,
        }
    }

    /// Sends and receives, and gives up what has waited for too long.
    fn pump(&self, state: &mut State) {
        if state.held != 0 {
            self.let_go(state, |_| false);
        }
        for round in 1..=ROUNDS {
            let State {
                phase,
                flights,
                backlog,
                finished,
                ..
            } = state;
            let Phase::Up(session) = phase else {
                break;
            };
            let received = session.send(flights, backlog);
            let received = received.and_then(|()| session.receive(flights, finished));
            let settled = self.settle(state);
            match received.and_then(|more| settled.map(|()| more)) {
                Ok(more) => {
                    let Phase::Up(session) = &state.phase else {
                        break;
                    };
                    let can_send = !state.backlog.is_empty() && !session.wants_room();
                    if !more && !can_send {
                        break;
                    }
                    if round == ROUNDS && (can_send || session.has_received()) {
                        // The socket does not tell of that.
                        state
                            .caller
                            .take()
                            .into_iter()
                            .for_each(|who| state.ring(who));
                    }
                }
                Err(error) => self.lose(state, error),
            }
        }
        self.watch(state);
        self.expire(state);
    }

    /// Takes what the server has replied to.
    ///
    /// # Errors
    /// [`NbdError::Replaced`]: the replies are worth nothing.
    fn settle(&self, state: &mut State) -> Result<(), NbdError> {
        let mut finished = std::mem::take(&mut state.finished);
        let mut outcome = Ok(());
        for place in finished.drain(..) {
            if outcome.is_ok() {
                outcome = self.settle_one(state, place);
            }
            // What is left is in flight as before: the connection is given up.
        }
        state.finished = finished;
        outcome
    }

    fn settle_one(&self, state: &mut State, place: usize) -> Result<(), NbdError> {
        let durability = &self.shared.durability;
        let epoch = match &state.phase {
            Phase::Up(session) => session.epoch,
            Phase::Down(_) => return Ok(()),
        };
        if epoch != durability.epoch() {
            // Also what was read: the server that has taken its place may have newer data.
            return Err(NbdError::Replaced);
        }
        let Some(flight) = state.flights.get_mut(place) else {
            return Ok(());
        };
        if let Some(error) = flight.error.take() {
            self.complete(state, place, Err(error));
            return Ok(());
        }
        let stable = flight.request.flags.contains(CommandFlags::FUA);
        if flight.is_change() && !stable && self.shared.can(ExportFlags::SEND_FLUSH) {
            durability.completed();
        }
        let mut result = Ok(());
        if flight.request.command == Command::FLUSH {
            durability.flushed(flight.mark);
        }
        if stable || flight.request.command == Command::FLUSH {
            // The server may say so without what it lost before.
            result = durability.check();
        }
        if flight.advance() {
            flight.mark = durability.mark();
            self.queue(state, place);
        } else {
            self.complete(state, place, result);
        }
        Ok(())
    }

    /// Makes the next request of an operation, if there is a connection.
    fn queue(&self, state: &mut State, place: usize) {
        let Some(flight) = state.flights.get_mut(place) else {
            return;
        };
        flight.stage = Stage::Waiting;
        let Phase::Up(session) = &state.phase else {
            return;
        };
        if flight.asked.is_some() && session.export.allocation.is_none() {
            return self.complete(state, place, Err(DiskError::Unsupported));
        }
        if matches!(flight.op.kind, OpKind::Write { .. }) && !flight.op.buf.is_intact() {
            let error = DiskError::from_errno(libc::EFAULT);
            return self.complete(state, place, Err(error));
        }
        match state.flights.prepare(place, &session.export) {
            Ok(()) => state.backlog.push_back(place),
            Err(error) => {
                let errno = NbdError::from(error).errno();
                self.complete(state, place, Err(DiskError::from_errno(errno)));
            }
        }
    }

    /// Ends an operation that is not in the backlog.
    fn complete(&self, state: &mut State, place: usize, result: Result<(), DiskError>) {
        let Some(flight) = self.forget(state, place) else {
            return;
        };
        let Some(who) = flight.owner else {
            return;
        };
        if let Some(member) = state.member(who) {
            member.in_flight -= 1;
            member.answer = flight.asked;
            member.done.push(flight.op.complete(result));
        }
        if state.caller != Some(who) {
            state.ring(who);
        }
    }

    /// Forgets an operation that is not in the backlog, and lets go of those that waited for it.
    fn forget(&self, state: &mut State, place: usize) -> Option<Flight> {
        let flight = state.flights.remove(place)?;
        if flight.stage == Stage::Held {
            state.held -= 1;
        }
        if let Some(fence) = flight.fence {
            self.shared.fence.release(fence);
        }
        Some(flight)
    }

    /// Queues the operations that need not wait any more for a write that is in doubt, and those that `anyway` names.
    fn let_go(&self, state: &mut State, anyway: impl Fn(&Flight) -> bool) {
        for place in state.flights.places(|flight| flight.stage == Stage::Held) {
            let Some(flight) = state.flights.get(place) else {
                continue;
            };
            let range = flight.op.kind.range(flight.op.buf.len() as u64);
            let waiter = flight.owner.and_then(|who| state.waiter(who));
            let held = waiter.is_some_and(|waiter| self.shared.fence.holds(range, &waiter));
            if !held || anyway(flight) {
                state.held -= 1;
                self.queue(state, place);
            }
        }
    }
}

impl State {
    fn member(&mut self, who: usize) -> Option<&mut Member> {
        self.members.get_mut(who)?.as_mut()
    }

    fn waiter(&self, who: usize) -> Option<Arc<Waiter>> {
        Some(self.members.get(who)?.as_ref()?.waiter.clone())
    }

    fn ring(&self, who: usize) {
        if let Some(Some(member)) = self.members.get(who) {
            member.waiter.ring();
        }
    }

    fn hold(&mut self, place: usize) {
        if let Some(flight) = self.flights.get_mut(place) {
            flight.stage = Stage::Held;
            self.held += 1;
        }
    }

    /// Has the member that sends wait for room in the socket, if there was none.
    fn want_room(&mut self, who: usize) {
        let Phase::Up(session) = &self.phase else {
            return;
        };
        let wanted = session.wants_room();
        if let Some(Some(member)) = self.members.get_mut(who)
            && member.wants_room != wanted
            && member.waiter.want_room(session.socket(), wanted).is_ok()
        {
            member.wants_room = wanted;
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Phase::Up(session) = &mut state.phase {
            session.disconnect();
        }
        // Queues of other connections may wait for them.
        for flight in state.flights.iter() {
            if let Some(fence) = flight.fence {
                self.shared.fence.release(fence);
            }
        }
    }
}
