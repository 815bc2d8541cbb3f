// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A bitmap over a disk that others may change while it is not in use: whether the content is what it was.

use virtio_blk_core::disk::ContentStamp;

use super::{CHANGED, DirtyBitmap};
use crate::dirty::error::BitmapError;
use crate::dirty::format::Unseen;

impl DirtyBitmap {
    /// Others may change the disk from now on, so that everything counts as changed until [`DirtyBitmap::look_again`].
    ///
    /// # Errors
    /// The bitmap's file could not be told.
    pub(in crate::dirty) fn look_away(&self) -> Result<(), BitmapError> {
        let before = {
            let mut state = self.state();
            let before = state.unseen;
            state.unseen = before.or(Some(Unseen(None)));
            before
        };
        before.map_or_else(|| self.settle(), |_| Ok(()))
    }

    /// Notes how the disk was left to the others.
    ///
    /// # Errors
    /// As for [`DirtyBitmap::look_away`].
    pub(in crate::dirty) fn note_left(&self, stamp: ContentStamp) -> Result<(), BitmapError> {
        match &mut self.state().unseen {
            Some(unseen) => *unseen = Unseen(Some(stamp)),
            None => return Ok(()),
        }
        self.settle()
    }

    /// Nobody else changes the disk any more, which is as `found`. Unless it was left so, everything counts as changed.
    ///
    /// # Errors
    /// As for [`DirtyBitmap::look_away`].
    pub(in crate::dirty) fn look_again(
        &self,
        found: Option<ContentStamp>,
    ) -> Result<(), BitmapError> {
        self.see(|left| left.is_some() && left == found)
    }

    /// Nobody could change the disk since [`DirtyBitmap::look_away`] after all.
    ///
    /// # Errors
    /// As for [`DirtyBitmap::look_away`].
    pub(in crate::dirty) fn stay(&self) -> Result<(), BitmapError> {
        self.see(|_| true)
    }

    fn see(&self, is_same: impl Fn(Option<ContentStamp>) -> bool) -> Result<(), BitmapError> {
        {
            let mut state = self.state();
            let Some(Unseen(left)) = state.unseen.take() else {
                return Ok(());
            };
            if !is_same(left) {
                state.incomplete = state.incomplete.or(Some(CHANGED));
            }
        }
        self.settle()
    }
}
