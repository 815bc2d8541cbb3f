// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The end of operations before their time, and of a queue.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_blk_core::disk::{DiskError, Token};

use super::{Link, Phase, State};
use crate::NbdError;
use crate::flight::Stage;

/// How long the end of a queue waits for replies to changes that the server has: until then they can't land any more
/// on what the next owner writes.
const LAST_REPLIES: Duration = Duration::from_secs(1);

impl Link {
    /// Ends an operation that the server does not have, or that changes nothing. Others end with the server's reply.
    pub(crate) fn cancel(&self, who: usize, token: Token) {
        let mut state = self.lock_as(None);
        let Some(place) = state.flights.find(who, token) else {
            return;
        };
        let halfway = state.is_halfway(place);
        let Some(flight) = state.flights.get_mut(place) else {
            return;
        };
        match flight.stage {
            Stage::Sent | Stage::Replied if flight.is_change() => {}
            Stage::Sent | Stage::Replied => {
                // The reply is passed over when it comes.
                let op = flight.orphan(false);
                if let Some(member) = state.member(who) {
                    member.in_flight -= 1;
                    member.done.push(op.complete(Err(DiskError::Cancelled)));
                }
                state.ring(who);
            }
            Stage::Queued if halfway => {}
            Stage::Queued | Stage::Waiting | Stage::Held => {
                state.backlog.retain(|queued| *queued != place);
                self.complete(&mut state, place, Err(DiskError::Cancelled));
            }
        }
    }

    /// Nothing of the member's waits any more: neither for a connection, nor for a write that is in doubt.
    pub(crate) fn release(&self, who: usize) {
        let mut state = self.lock_as(None);
        if let Some(member) = state.member(who) {
            member.released = true;
        }
        if state.held != 0 {
            self.let_go(&mut state, |flight| flight.owner == Some(who));
        }
        self.expire(&mut state);
    }

    /// Ends a member. Its operations are dropped; their memory is not used any more.
    pub(crate) fn leave(&self, who: usize) {
        let deadline = Instant::now() + LAST_REPLIES;
        let mut state = self.lock_as(Some(who));
        if let Some(member) = state.member(who) {
            member.released = true;
        }
        self.drop_unsent(&mut state, who);
        while state.has_changes(who) {
            self.pump(&mut state);
            state.want_room(who);
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(waiter) = state.waiter(who).filter(|_| !left.is_zero()) else {
                break;
            };
            if !state.has_changes(who) {
                break;
            }
            drop(state);
            let timeout = Timespec::try_from(left).ok();
            let _ = poll(
                &mut [PollFd::from_borrowed_fd(waiter.as_fd(), PollFlags::IN)],
                timeout.as_ref(),
            );
            waiter.come();
            state = self.lock_as(Some(who));
        }
        let alone = state.members.iter().flatten().count() == 1;
        let halfway = state
            .backlog
            .front()
            .copied()
            .filter(|place| state.is_halfway(*place));
        let mine = |place: usize| {
            state
                .flights
                .get(place)
                .is_some_and(|flight| flight.owner == Some(who))
        };
        let halfway = halfway.filter(|place| mine(*place));
        if halfway.is_some() && alone {
            // The server has a part of the request, and must not get the rest.
            self.lose(&mut state, NbdError::Closed);
        }
        self.drop_unsent(&mut state, who);
        for place in state.flights.places(|flight| flight.owner == Some(who)) {
            let Some(flight) = state.flights.get_mut(place) else {
                continue;
            };
            let change = flight.is_change();
            let range = flight.op.kind.range(flight.op.buf.len() as u64);
            flight.orphan(halfway == Some(place));
            if let (true, None, Some((offset, len))) = (change, flight.fence, range) {
                // It may still be executed: what comes after it waits for the reply.
                flight.fence = Some(self.shared.fence.add(offset, len));
            }
        }
        let left = state.members.get_mut(who).and_then(Option::take);
        if let (Phase::Up(session), Some(member)) = (&state.phase, left) {
            member.waiter.unwatch(session.socket());
        }
        // One of them sends what is left.
        if !state.backlog.is_empty() {
            for member in state.members.iter().flatten() {
                member.waiter.ring();
            }
        }
        self.mind_orphans(&mut state);
    }

    /// Drops the member's operations of which the server has nothing.
    fn drop_unsent(&self, state: &mut State, who: usize) {
        let unsent = state.flights.places(|flight| {
            flight.owner == Some(who) && !matches!(flight.stage, Stage::Sent | Stage::Replied)
        });
        for place in unsent {
            if !state.is_halfway(place) {
                state.backlog.retain(|queued| *queued != place);
                self.forget(state, place);
            }
        }
    }
}

impl State {
    /// Whether a part of the request was sent, so that the rest has to follow.
    fn is_halfway(&self, place: usize) -> bool {
        match &self.phase {
            Phase::Up(session) => session.is_halfway() && self.backlog.front() == Some(&place),
            Phase::Down(_) => false,
        }
    }

    /// Whether the server has changes of the member's, or parts of them.
    fn has_changes(&self, who: usize) -> bool {
        self.flights.iter().any(|flight| {
            flight.owner == Some(who)
                && flight.is_change()
                && matches!(flight.stage, Stage::Sent | Stage::Queued)
        })
    }
}
