// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From the loss of a connection to the next one.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use virtio_blk_core::disk::DiskError;

use super::{Down, Link, Phase, State};
use crate::NbdError;
use crate::dial::{Connected, FURTHER_PATIENCE, PATIENCE, dial};
use crate::flight::Stage;
use crate::session::Session;
use crate::shared::Shared;
use crate::socket::Peer;

/// Between two attempts to connect: doubled from the one to the other.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// A connection that lasts for so long is a good one.
const GOOD: Duration = Duration::from_secs(1);

impl Link {
    /// The connection is of no use any more. Operations wait for the next, or fail.
    pub(super) fn lose(&self, state: &mut State, why: NbdError) {
        let address = &self.shared.address;
        let Phase::Up(session) = &state.phase else {
            return;
        };
        let now = Instant::now();
        let down = Down {
            since: now,
            errno: why.errno(),
            peer: session.peer,
            epoch: session.epoch,
        };
        state.pause = match session.since.elapsed() >= GOOD {
            true => Duration::ZERO,
            false => (2 * state.pause).clamp(PAUSES.0, PAUSES.1),
        };
        let halfway = session
            .is_halfway()
            .then(|| state.backlog.front().copied())
            .flatten();
        state.phase = Phase::Down(down);
        state.backlog.clear();
        state.finished.clear();
        let mut gone = Vec::new();
        let mut waiting = 0;
        for (place, flight) in state.flights.iter_mut() {
            if flight.stage == Stage::Held {
                continue;
            }
            if flight.owner.is_none() {
                gone.push(place);
                continue;
            }
            let reached = flight.stage != Stage::Queued && flight.stage != Stage::Waiting;
            if flight.is_change()
                && (reached || halfway == Some(place))
                && flight.fence.is_none()
                && let Some((offset, len)) = flight.op.kind.range(flight.op.buf.len() as u64)
            {
                flight.fence = Some(self.shared.fence.add(offset, len));
            }
            flight.stage = Stage::Waiting;
            flight.error = None;
            flight.lost_at.get_or_insert(now);
            waiting += 1;
        }
        for place in gone {
            self.forget(state, place);
        }
        for member in state.members.iter_mut().flatten() {
            member.wants_room = false;
        }
        log::warn!(
            "nbd:{address}: {why}; {waiting} operations wait for the next connection, up to {} s",
            self.shared.options.window().as_secs()
        );
        self.redial(state);
        self.expire(state);
    }

    /// Fails what has waited for a connection for too long, or shall wait no more.
    pub(super) fn expire(&self, state: &mut State) {
        let Phase::Down(down) = &state.phase else {
            return;
        };
        let (errno, since) = (down.errno, down.since);
        let window = self.shared.options.window();
        let members = &state.members;
        let over = state.flights.places(|flight| {
            let released = flight.owner.is_some_and(
                |who| matches!(members.get(who), Some(Some(member)) if member.released),
            );
            matches!(flight.stage, Stage::Waiting | Stage::Held)
                && (released || flight.lost_at.unwrap_or(since).elapsed() >= window)
        });
        for place in over {
            self.complete(state, place, Err(DiskError::from_errno(errno)));
        }
    }

    /// When something of the member's has waited for too long, or is to be looked at again.
    pub(crate) fn deadline(&self, who: usize) -> Option<Instant> {
        let state = self.lock();
        let Phase::Down(down) = &state.phase else {
            return state.watch.next(&state.flights);
        };
        let window = self.shared.options.window();
        let mine = state
            .flights
            .iter()
            .filter(|flight| flight.owner == Some(who));
        mine.map(|flight| flight.lost_at.unwrap_or(down.since) + window)
            .min()
    }

    /// Has a thread look for a new connection, if none does.
    pub(super) fn redial(&self, state: &mut State) {
        if state.dialing || !self.shared.redials {
            return;
        }
        let (me, shared, pause) = (self.me.clone(), self.shared.clone(), state.pause);
        let thread = std::thread::Builder::new().name("nbd-connect".to_owned());
        match thread.spawn(move || look_for(&me, &shared, pause)) {
            Ok(_) => state.dialing = true,
            // The next operation tries it again.
            Err(error) => log::error!(
                "nbd:{}: no thread to connect again: {error}",
                self.shared.address
            ),
        }
    }

    /// Whether a connection that was made just now, to this peer, leads to the server that this one leads to, as far as
    /// that can be told: what was lost long ago says nothing.
    pub(crate) fn leads_to(&self, peer: Option<Peer>) -> bool {
        let mut state = self.lock_as(None);
        // The end of a server is there before the next one listens.
        self.pump(&mut state);
        match &state.phase {
            Phase::Up(session) => peer.is_none() || session.peer == peer,
            Phase::Down(down) => {
                down.epoch != self.shared.durability.epoch() || peer.is_some() && down.peer == peer
            }
        }
    }

    /// Makes the connection anew if it was lost while nobody used it. Waits for the server for a moment; if that is in
    /// vain, operations wait or fail as ever.
    pub(crate) fn revive(&self) {
        let mut state = self.lock_as(None);
        self.pump(&mut state);
        if matches!(state.phase, Phase::Up(_)) || !self.shared.redials {
            return;
        }
        drop(state);
        let shared = &self.shared;
        let dialed = dial(&shared.options, &shared.address, FURTHER_PATIENCE, false);
        if let Ok(connected) = dialed
            && shared.admits(&connected.export).is_ok()
        {
            self.install(connected);
        }
    }

    /// Takes a new connection into use.
    fn install(&self, connected: Connected) {
        let shared = &*self.shared;
        // Before anything that was sent again completes, and without the lock.
        shared.set_size(connected.export.size);
        let mut state = self.lock_as(None);
        let Phase::Down(down) = &state.phase else {
            return;
        };
        let same = down.peer.is_some() && down.peer == connected.peer;
        if !same {
            shared.replaced(down.epoch);
        }
        log::info!(
            "nbd:{}: connected again after {:.1?}",
            shared.address,
            down.since.elapsed()
        );
        let session = Session::new(connected, shared.durability.epoch());
        let mut failed = None;
        for member in state.members.iter().flatten() {
            failed = failed.or(member.waiter.watch(session.socket()).err());
        }
        state.phase = Phase::Up(session);
        if let Some(error) = failed {
            return self.lose(&mut state, error.into());
        }
        for place in state
            .flights
            .places(|flight| flight.stage == Stage::Waiting)
        {
            self.queue(&mut state, place);
        }
        for member in state.members.iter().flatten() {
            member.waiter.ring();
        }
    }
}

/// Connects again and again until it works, or the disk is gone.
fn look_for(link: &Weak<Link>, shared: &Arc<Shared>, first: Duration) {
    let (mut pause, longest) = PAUSES;
    let mut told = false;
    std::thread::sleep(first);
    while link.strong_count() != 0 {
        let dialed = dial(&shared.options, &shared.address, PATIENCE, false);
        let dialed = dialed.and_then(|connected| {
            shared.admits(&connected.export)?;
            Ok(connected)
        });
        match dialed {
            Ok(connected) => {
                if let Some(link) = link.upgrade() {
                    link.lock().dialing = false;
                    link.install(connected);
                }
                return;
            }
            Err(error) if !told => {
                log::warn!("nbd:{}: {error}; trying again", shared.address);
                told = true;
            }
            Err(_) => {}
        }
        std::thread::sleep(pause);
        pause = (2 * pause).min(longest);
    }
}
