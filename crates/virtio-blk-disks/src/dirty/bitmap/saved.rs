// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A bitmap as it is saved, and added to another.

use std::sync::atomic::Ordering;

use super::{CHANGED, DirtyBitmap, State};
use crate::dirty::changes::{Generation, ranges};
use crate::dirty::error::BitmapError;
use crate::dirty::format::{self, Marks};

impl DirtyBitmap {
    /// The bitmap as bytes, to be kept in a file: also what was taken and not committed. Marks set meanwhile may be
    /// among them or not.
    pub fn save(&self, name: &str) -> Vec<u8> {
        format::encode(&self.marks(name, u64::MAX), None, &[])
    }

    /// Adds the marks of a bitmap that was saved, and what the disk has grown by since. Then this one knows everything
    /// that changed, if that one did: the caller guarantees that nothing changed between that moment and the start of
    /// this bitmap.
    ///
    /// # Errors
    /// `saved` is something else, or damaged, and nothing happened; or the file could not be written.
    pub fn load(&self, saved: &[u8]) -> Result<(), BitmapError> {
        let saved = format::decode(saved)?;
        let damage = saved.damage.or(saved
            .in_use
            .map(|_| "it is the file of a bitmap that was not closed: start a server with it"));
        if let Some(damage) = damage {
            return Err(BitmapError::Saved(damage));
        }
        let saved = saved.marks;
        for (offset, len) in ranges(&saved.words, saved.granularity, saved.size) {
            self.mark(offset, len);
        }
        self.mark(saved.size, self.size().saturating_sub(saved.size));
        self.state().incomplete = saved.incomplete.or(saved.unseen.map(|_| CHANGED));
        self.settle()
    }

    /// What it is, without its marks.
    pub(in crate::dirty) fn head(&self, name: &str) -> Marks {
        self.described(name, &self.state())
    }

    fn described(&self, name: &str, state: &State) -> Marks {
        let taken = state.taken.as_ref().and_then(|taken| taken.incomplete);
        Marks {
            name: name.to_owned(),
            granularity: self.granularity,
            size: self.tracked.load(Ordering::Acquire).min(self.size()),
            words: Vec::new(),
            incomplete: state.incomplete.or(taken),
            unseen: state.unseen,
            generation: Generation {
                id: state.id,
                number: state.generation,
            },
        }
    }

    /// The marks as they are kept in a file, of the first `most` bytes. Marks set meanwhile may be among them or not.
    pub(in crate::dirty) fn marks(&self, name: &str, most: u64) -> Marks {
        let state = self.state();
        let head = self.described(name, &state);
        let mut marks = Marks {
            size: head.size.min(most),
            words: self.marked(&state),
            ..head
        };
        marks.trim();
        marks
    }
}
