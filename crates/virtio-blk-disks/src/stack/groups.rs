// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Throttle groups by name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::throttle::{LimitError, Limits, ThrottleGroup};

/// The throttle groups of a process, by name. Cheap to clone; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Groups(Arc<Mutex<HashMap<String, ThrottleGroup>>>);

/// Why a throttle can't join a group.
#[derive(Debug)]
pub(crate) enum JoinError {
    /// The limits make no sense.
    Limits(LimitError),
    /// The group has members, and these limits.
    Others(Box<Limits>),
}

impl Groups {
    /// The group of that name.
    pub fn get(&self, name: &str) -> Option<ThrottleGroup> {
        let groups = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        groups.get(name).cloned()
    }

    /// The group of that name for a new member, which is made with these limits if nobody is in it.
    ///
    /// # Errors
    /// The limits make no sense; or there are members, whose limits are others.
    pub(crate) fn join(&self, name: &str, limits: Limits) -> Result<ThrottleGroup, JoinError> {
        let mut groups = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // One that was left by all is made anew.
        if let Some(group) = groups.get(name).filter(|group| group.is_shared()) {
            let theirs = group.limits();
            if limits == theirs || limits == Limits::default() {
                return Ok(group.clone());
            }
            return Err(JoinError::Others(Box::new(theirs)));
        }
        let group = ThrottleGroup::new(limits).map_err(JoinError::Limits)?;
        groups.insert(name.to_owned(), group.clone());
        Ok(group)
    }
}
