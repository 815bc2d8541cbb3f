// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Changes that the server has and that no queue waits for any more.
//!
//! Newer operations on their ranges wait until the server has replied, on all connections: somebody must receive that.

use std::io;
use std::sync::Weak;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Link, Phase, State};
use crate::NbdError;
use crate::waiter::Waiter;

/// How often a thread looks whether it is still needed.
const LOOK: Duration = Duration::from_secs(1);

impl Link {
    /// Has a thread receive what the server still replies, if no member does.
    pub(super) fn mind_orphans(&self, state: &mut State) {
        if state.minding || !state.has_orphans() {
            return;
        }
        match self.start_minding(state) {
            Ok(()) => state.minding = true,
            // Nobody would learn of the replies.
            Err(error) => self.lose(state, NbdError::Io(error)),
        }
    }

    fn start_minding(&self, state: &State) -> io::Result<()> {
        let Phase::Up(session) = &state.phase else {
            return Ok(());
        };
        let waiter = Waiter::new()?;
        waiter.watch(session.socket())?;
        let (me, since) = (self.me.clone(), session.since);
        let thread = std::thread::Builder::new().name("nbd-orphans".to_owned());
        thread.spawn(move || mind(&me, since, &waiter)).map(drop)
    }
}

impl State {
    /// Whether there are changes whose replies no member receives.
    fn has_orphans(&self) -> bool {
        let up = matches!(self.phase, Phase::Up(_));
        up && self.members.iter().all(Option::is_none)
            && self.flights.iter().any(|flight| flight.fence.is_some())
    }
}

/// Receives on the connection that began at `since`, until nothing is left, it is lost, or a member does it.
fn mind(link: &Weak<Link>, since: Instant, waiter: &Waiter) {
    while let Some(link) = link.upgrade() {
        let mut state = link.lock_as(None);
        link.pump(&mut state);
        let room = match &state.phase {
            Phase::Up(session) if session.since == since && state.has_orphans() => {
                waiter.want_room(session.socket(), session.wants_room())
            }
            _ => {
                state.minding = false;
                // Of a later connection.
                return link.mind_orphans(&mut state);
            }
        };
        if let Err(error) = room {
            state.minding = false;
            return link.lose(&mut state, NbdError::Io(error));
        }
        drop(state);
        drop(link);
        let timeout = Timespec::try_from(LOOK).ok();
        let mut fds = [PollFd::from_borrowed_fd(waiter.as_fd(), PollFlags::IN)];
        // Returning early only means to look sooner.
        let _ = poll(&mut fds, timeout.as_ref());
    }
}
