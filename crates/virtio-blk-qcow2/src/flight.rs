// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a queue remembers of the operations that are with the queues underneath.

use virtio_blk_core::disk::Token;

use crate::epoch::Turn;

/// What is remembered of an operation.
#[derive(Clone, Copy, Debug)]
pub struct Flight {
    /// The counter it is in.
    pub turn: Turn,
    /// What its end means.
    pub role: Role,
}

/// What the end of an operation means.
#[derive(Clone, Copy, Debug)]
pub enum Role {
    /// Its own completion, and nothing else.
    Plain,
    /// A flush: what it makes stable, see [`Desk::before_flush`](crate::desk::Desk::before_flush).
    Flush(u64),
    /// A write to a cluster whose entry may still have to be written: the number of the grant.
    Granted(usize),
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    token: Token,
    flight: Flight,
    below: bool,
}

/// Operations underneath. They have tokens of their own there: the number of a place here.
#[derive(Debug)]
pub struct Flights {
    places: Vec<Option<Entry>>,
    free: Vec<usize>,
    /// With the data, and with the backing file.
    counts: [usize; 2],
}

impl Flights {
    /// Room for `depth` operations without an allocation later.
    pub fn new(depth: u16) -> Self {
        Self {
            places: Vec::with_capacity(depth.into()),
            free: Vec::with_capacity(depth.into()),
            counts: [0; 2],
        }
    }

    fn count(&mut self, below: bool) -> &mut usize {
        let [data, backing] = &mut self.counts;
        if below { backing } else { data }
    }

    /// Notes an operation. Its token underneath.
    pub fn begin(&mut self, token: Token, flight: Flight, below: bool) -> Token {
        *self.count(below) += 1;
        let entry = Some(Entry {
            token,
            flight,
            below,
        });
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        if let Some(slot) = self.places.get_mut(place) {
            *slot = entry;
        }
        Token(place as u64)
    }

    /// Forgets an operation: its own token, and what was noted. `None` if nobody knows it.
    pub fn end(&mut self, inner: Token) -> Option<(Token, Flight)> {
        let place = usize::try_from(inner.0).ok()?;
        let entry = self.places.get_mut(place)?.take()?;
        self.free.push(place);
        *self.count(entry.below) -= 1;
        Some((entry.token, entry.flight))
    }

    /// Whether there are operations with the backing file, or with the data.
    pub const fn any(&self, below: bool) -> bool {
        let [data, backing] = self.counts;
        if below { backing > 0 } else { data > 0 }
    }

    /// The token underneath of an operation, and whether it is with the backing file. Searches.
    pub fn find(&self, token: Token) -> Option<(Token, bool)> {
        let place = self
            .places
            .iter()
            .position(|entry| entry.is_some_and(|entry| entry.token == token))?;
        let below = self.places.get(place)?.as_ref()?.below;
        Some((Token(place as u64), below))
    }
}
