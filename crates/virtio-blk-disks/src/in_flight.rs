// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a layer remembers of the operations that are with the disk underneath.

use virtio_blk_core::disk::Token;

struct Entry<T> {
    /// The submitter's name for the operation.
    outer: Token,
    value: T,
}

/// Values by operation. A layer gives the disk underneath a token of its own, the number of a place here,
/// so that nothing has to be searched when the operation completes.
pub(crate) struct InFlight<T> {
    places: Vec<Option<Entry<T>>>,
    free: Vec<usize>,
}

impl<T> InFlight<T> {
    /// Room for `depth` operations without an allocation later.
    pub(crate) fn new(depth: usize) -> Self {
        Self {
            places: Vec::with_capacity(depth),
            free: Vec::with_capacity(depth),
        }
    }

    /// Notes an operation. Returns the token for the disk underneath.
    pub(crate) fn insert(&mut self, outer: Token, value: T) -> Token {
        let entry = Some(Entry { outer, value });
        let place = match self.free.pop() {
            Some(place) => place,
            None => {
                self.places.push(None);
                self.places.len() - 1
            }
        };
        if let Some(slot) = self.places.get_mut(place) {
            *slot = entry;
        }
        Token(place as u64)
    }

    /// Forgets an operation: its own token and the value. `None` if the disk underneath invented it.
    pub(crate) fn remove(&mut self, inner: Token) -> Option<(Token, T)> {
        let place = usize::try_from(inner.0).ok()?;
        let entry = self.places.get_mut(place)?.take()?;
        self.free.push(place);
        Some((entry.outer, entry.value))
    }

    /// The token underneath of an operation. Searches.
    pub(crate) fn find(&self, outer: Token) -> Option<Token> {
        let holds = |entry: &Option<Entry<T>>| entry.as_ref().is_some_and(|e| e.outer == outer);
        self.places
            .iter()
            .position(holds)
            .map(|place| Token(place as u64))
    }

    /// The value of an operation, by its token underneath.
    pub(crate) fn get_mut(&mut self, inner: Token) -> Option<&mut T> {
        let place = usize::try_from(inner.0).ok()?;
        Some(&mut self.places.get_mut(place)?.as_mut()?.value)
    }

    /// All operations: their tokens underneath and values.
    pub(crate) fn all_mut(&mut self) -> impl Iterator<Item = (Token, &mut T)> {
        (0_u64..)
            .zip(&mut self.places)
            .filter_map(|(place, entry)| Some((Token(place), &mut entry.as_mut()?.value)))
    }

    /// Operations noted.
    pub(crate) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Removes all operations and returns their values.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = T> {
        self.free.clear();
        self.places.drain(..).flatten().map(|entry| entry.value)
    }
}
