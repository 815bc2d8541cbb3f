// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests to which the server does not reply.

use std::time::{Duration, Instant};

use super::{Link, Phase, State};
use crate::NbdError;
use crate::flight::{Flights, Stage};

/// How long a request is without a reply before a warning says so, if there is no time-out.
const WARN_AFTER: Duration = Duration::from_secs(30);

/// Parts of the time that a request may take, after which requests are looked at again.
const LOOKS: u32 = 4;

/// When the requests that the server has are looked at.
///
/// Requests carry no time of their own, as that would cost each of them a look at the clock: a look notes the time in those
/// that it sees for the first time, and each progress takes that away again.
pub(crate) struct Watch {
    next: Instant,
    /// Somebody was told that a request waits.
    told: bool,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self {
            next: Instant::now(),
            told: false,
        }
    }

    /// When the next look is due. `None`: there is nothing to look at.
    pub(super) fn next(&self, flights: &Flights) -> Option<Instant> {
        (!flights.is_empty()).then_some(self.next)
    }
}

impl Link {
    /// Looks at the requests that the server has, if it is time. Gives the connection up if one is without progress for
    /// too long.
    pub(super) fn watch(&self, state: &mut State) {
        if state.flights.is_empty() || !matches!(state.phase, Phase::Up(_)) {
            return;
        }
        let now = Instant::now();
        if now < state.watch.next {
            return;
        }
        let limit = self.shared.options.patience();
        let patience = limit.unwrap_or(WARN_AFTER);
        state.watch.next = now + patience / LOOKS;
        // What is behind the first that is not sent yet waits for that.
        let first = state.backlog.front().copied();
        let oldest = (state.flights.iter_mut())
            .filter(|(place, flight)| {
                flight.stage == Stage::Sent
                    || flight.stage == Stage::Queued && first == Some(*place)
            })
            .map(|(_, flight)| *flight.seen.get_or_insert(now))
            .min();
        let waits = oldest.is_some_and(|oldest| now - oldest >= patience);
        match limit {
            Some(limit) if waits => {
                let seconds = limit.as_secs();
                self.lose(state, NbdError::Unanswered { seconds });
            }
            None if waits && !state.watch.told => {
                state.watch.told = true;
                log::warn!(
                    "nbd:{}: the server has not replied to a request for {} s, which waits without an end: \
                     timeout=SECONDS would set one",
                    self.shared.address,
                    patience.as_secs()
                );
            }
            _ if !waits => state.watch.told = false,
            _ => {}
        }
    }
}
