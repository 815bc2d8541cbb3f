// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Throttle groups by name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::LayerArg;
use crate::ArgError;
use crate::throttle::{Limits, ThrottleGroup, ThrottleOptions};

/// The throttle groups of a process, by name. Cheap to clone; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Groups(Arc<Mutex<HashMap<String, ThrottleGroup>>>);

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
    pub(crate) fn join(&self, name: &str, limits: Limits) -> Result<ThrottleGroup, ArgError> {
        let mut groups = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // One that was left by all is made anew.
        if let Some(group) = groups.get(name).filter(|group| group.is_shared()) {
            let theirs = group.limits();
            if limits == theirs || limits == Limits::default() {
                return Ok(group.clone());
            }
            let written = |limits| {
                let group = Some(name.to_owned());
                LayerArg::new(ThrottleOptions { limits, group }).to_string()
            };
            return Err(ArgError::GroupLimits {
                layer: written(limits),
                group: name.to_owned(),
                theirs: written(theirs),
            });
        }
        let group = ThrottleGroup::new(limits)?;
        groups.insert(name.to_owned(), group.clone());
        Ok(group)
    }
}
