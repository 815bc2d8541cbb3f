// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Questions for block status, from threads that wait for the answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_blk_core::disk::{DiskError, Extent, IoBuf, Op, OpKind, Token};

use super::{Link, Phase};
use crate::asked::Asked;
use crate::waiter::Waiter;

/// How long an answer is waited for, beyond the window in which a lost connection is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// A member for as long as one question takes.
struct Asking<'a> {
    link: &'a Link,
    who: usize,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.link.leave(self.who);
    }
}

impl Link {
    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// The server's, [`DiskError::Unsupported`] if it has no such context, or `ETIMEDOUT`.
    pub(crate) fn ask(&self, asked: Asked) -> Result<Vec<Extent>, DiskError> {
        let waiter = Arc::new(Waiter::new()?);
        let asking = Asking {
            link: self,
            who: self.join(waiter.clone(), 1)?,
        };
        let who = asking.who;
        let until = Instant::now() + self.shared.options.window() + PATIENCE;
        self.submit_question(who, asked);
        self.send(who);
        let mut done = Vec::new();
        loop {
            waiter.come();
            self.reap(who, &mut done);
            if let Some(completion) = done.pop() {
                completion.result?;
                let answer = self
                    .lock()
                    .member(who)
                    .and_then(|member| member.answer.take());
                return Ok(answer.map(|asked| asked.into_extents()).unwrap_or_default());
            }
            let now = Instant::now();
            if now >= until {
                return Err(DiskError::from_errno(libc::ETIMEDOUT));
            }
            let next = self.deadline(who).map_or(until, |at| at.min(until));
            let timeout = Timespec::try_from(next.saturating_duration_since(now)).ok();
            let mut fds = [PollFd::from_borrowed_fd(waiter.as_fd(), PollFlags::IN)];
            // Returning early only means to look sooner.
            let _ = poll(&mut fds, timeout.as_ref());
        }
    }

    fn submit_question(&self, who: usize, asked: Asked) {
        let op = Op {
            token: Token(0),
            kind: OpKind::Flush,
            buf: IoBuf::new(),
        };
        let mut state = self.lock_as(None);
        if let Some(member) = state.member(who) {
            member.in_flight += 1;
        }
        let place = state.flights.add(who, op, false, 0);
        if let Some(flight) = state.flights.get_mut(place) {
            flight.asked = Some(Box::new(asked));
        }
        self.queue(&mut state, place);
        if matches!(state.phase, Phase::Down(_)) {
            self.redial(&mut state);
        }
    }
}
