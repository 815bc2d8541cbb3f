// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A disk and the layers on it, by name: `DISK,LAYER,LAYER…`, from the medium upwards.
//!
//! | layer | syntax |
//! |---|---|
//! | limits | `throttle=[iops:N][/read_iops:N][/write_iops:N][/bandwidth:B][/read_bandwidth:B][/write_bandwidth:B][/group:NAME]` |
//! | a bitmap of changes | `dirty=NAME[/granularity:SIZE][/sync:on\|off][/persist:PATH]` |
//! | what failed is kept and tried again | `rerror=report\|stop`, `werror=report\|stop\|enospc`; or both, `errors=rerror:stop/werror:enospc` |
//! | counts and latencies | `meter` |
//! | checksums | `verify` |
//! | faults | `fault=[seed:N][/errors:PER_MILLE][/torn:PER_MILLE][/delay:SECONDS][/reorder:on]` |
//!
//! `N` is operations a second, `B` bytes a second, with K, M, G, T, P in binary units. After a limit may
//! stand `/burst:RATE`, and after that `/length:SECONDS` (1): the rate that holds for so long after a quiet
//! time. `PATH` goes to the end, but for `/granularity` and `/sync`. The disk itself is a [`DiskSpec`].
//!
//! ```
//! use virtio_blk_disks::stack::{Groups, StackSpec};
//!
//! let spec: StackSpec = "memory:64M,throttle=iops:5000/burst:20000/group:a,dirty=backup,meter".parse()?;
//! let stack = spec.open_live(false, &Groups::default())?;
//! let disk = stack.disk();
//! // … the disk is served; then, while it works:
//! stack.change(&["throttle=iops:100/group:a".parse()?, "meter".parse()?])?;
//! assert!(stack.dirty("backup").is_none());
//! # drop(disk);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod built;
mod flush;
mod layer;
mod live;
mod parse;

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::throttle::{Limits, ThrottleGroup};
use crate::{DiskSpec, SpecError};

pub use layer::{FaultSpec, GRANULARITY, LayerSpec};
pub use live::{Resumed, Stack, StackError};

/// A disk with layers, by name. `Display` writes what `FromStr` reads; see the [module](self) for the
/// syntax.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackSpec<D = DiskSpec> {
    /// The disk at the bottom: one of this crate's, or of an embedder's own kinds.
    pub disk: D,
    /// What lies on it, from the medium upwards.
    pub layers: Vec<LayerSpec>,
}

impl StackSpec {
    /// Makes the disk and its layers, once for all. A stack without layers is the bare disk.
    ///
    /// # Errors
    /// As for [`DiskSpec::open`]; or the layers don't go together.
    pub fn open(&self, read_only: bool, groups: &Groups) -> Result<Stack, StackError> {
        let disk = self.disk.open(read_only)?;
        Stack::fixed(disk, &self.layers, groups.clone())
    }

    /// Makes a stack whose layers can be changed while it is in use ([`Stack::change`]). That costs a
    /// check for each operation, and a descriptor for each queue.
    ///
    /// # Errors
    /// As for [`StackSpec::open`]; or the disk has only one queue.
    pub fn open_live(&self, read_only: bool, groups: &Groups) -> Result<Stack, StackError> {
        let disk = self.disk.open(read_only)?;
        Stack::live(disk, &self.layers, groups.clone())
    }
}

impl From<DiskSpec> for StackSpec {
    fn from(disk: DiskSpec) -> Self {
        Self {
            disk,
            layers: Vec::new(),
        }
    }
}

impl<D: FromStr<Err = SpecError>> FromStr for StackSpec<D> {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        parse::stack(text)
    }
}

impl<D: fmt::Display> fmt::Display for StackSpec<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.disk)?;
        self.layers
            .iter()
            .try_for_each(|layer| write!(f, ",{}", layer.to_string().replace(',', ",,")))
    }
}

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
    pub(crate) fn join(&self, name: &str, limits: Limits) -> Result<ThrottleGroup, SpecError> {
        let mut groups = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // One that was left by all is made anew.
        if let Some(group) = groups.get(name).filter(|group| group.is_shared()) {
            let theirs = group.limits();
            if limits == theirs || limits == Limits::default() {
                return Ok(group.clone());
            }
            let written = |limits| {
                let group = Some(name.to_owned());
                LayerSpec::Throttle { limits, group }.to_string()
            };
            return Err(SpecError::GroupLimits {
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

#[cfg(test)]
mod tests;
