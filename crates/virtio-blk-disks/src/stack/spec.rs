// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks with layers by name.

use std::fmt;
use std::str::FromStr;

use super::{Groups, LayerSpec, Stack, StackError, parse};
use crate::disk_arg::DiskArg;
use crate::{DiskSpec, SpecError};

/// A disk with layers, by name. `Display` writes what `FromStr` reads; see the [module](super) for the
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

impl<D: DiskArg> FromStr for StackSpec<D> {
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
