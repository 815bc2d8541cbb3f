// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who decides on the path.

use std::sync::{Arc, Mutex};

use crate::lock;

/// Who decides on the path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SwitchPolicy {
    /// Whoever calls [`super::PathSwitch::switch_to`].
    #[default]
    Manual,
    /// Slow while somebody needs to see requests ([`super::PathSwitch::intercept`]), fast otherwise.
    Auto,
}

/// What to do with a guest's requests when neither path works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// Leave them in the rings: they are served once [`super::PathSwitch::retry`] succeeds.
    #[default]
    Hold,
    /// Answer them with errors.
    Fail,
}

/// Who needs to see requests.
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

/// Somebody's need to see requests: a throttle, a map of dirty blocks, a mirror, a snapshot. It ends when this is
/// dropped; [`super::PathSwitch::apply_policy`] then goes back, if it was the last.
pub struct Interception {
    interceptions: Arc<Interceptions>,
    reason: &'static str,
}

impl Interception {
    /// As it was given.
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
