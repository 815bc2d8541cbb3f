// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How the path is chosen, and what is done when none works.

use std::sync::{Arc, Mutex};

use crate::lock;

/// How the path of a guest is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SwitchPolicy {
    /// By calls of [`super::PathSwitch::switch_to`] only.
    #[default]
    Manual,
    /// The slow path while requests are to be intercepted ([`super::PathSwitch::intercept`]), the fast path otherwise.
    Auto,
}

/// What happens to a guest's requests when neither path works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// They stay in the rings, and are served once [`super::PathSwitch::retry`] succeeds.
    #[default]
    Hold,
    /// They complete with VIRTIO_BLK_S_IOERR.
    Fail,
}

/// The reasons for which requests are intercepted.
#[derive(Default)]
pub(super) struct Interceptions(Mutex<Vec<&'static str>>);

impl Interceptions {
    pub(super) fn add(self: &Arc<Self>, reason: &'static str) -> Interception {
        lock(&self.0).push(reason);
        Interception {
            interceptions: self.clone(),
            reason,
        }
    }

    /// Whether there is one.
    pub(super) fn any(&self) -> bool {
        !lock(&self.0).is_empty()
    }

    /// The reasons at the moment.
    pub(super) fn reasons(&self) -> Vec<&'static str> {
        lock(&self.0).clone()
    }
}

/// A reason to intercept a guest's requests: a throttle, a map of dirty blocks, a mirror, a snapshot. It ends when this
/// is dropped; call [`super::PathSwitch::apply_policy`] afterwards to return to the fast path if it was the last.
pub struct Interception {
    interceptions: Arc<Interceptions>,
    reason: &'static str,
}

impl Interception {
    /// Returns the name that was given to [`super::PathSwitch::intercept`].
    pub const fn reason(&self) -> &'static str {
        self.reason
    }
}

impl Drop for Interception {
    fn drop(&mut self) {
        let mut all = lock(&self.interceptions.0);
        if let Some(at) = all.iter().position(|reason| *reason == self.reason) {
            all.swap_remove(at);
        }
    }
}

impl std::fmt::Debug for Interception {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Interception").field(&self.reason).finish()
    }
}
