// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks with layers by name.

use std::fmt;
use std::str::FromStr;

use super::{Groups, LayerArg, LayerKinds, Stack, StackError};
use crate::disk_arg::{self, FromTree, Tree};
use crate::{ArgError, DiskArg};

/// A disk with layers, by name. `Display` writes what [`StackArg::parse`] reads; see the [module](super) for the
/// syntax.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackArg<D = DiskArg> {
    /// The disk at the bottom: one of this crate's, or of an embedder's own kinds.
    pub disk: D,
    /// What lies on it, from the medium upwards.
    pub layers: Vec<LayerArg>,
}

impl StackArg {
    /// Makes the disk and its layers, which can't be changed later. A stack without layers is the bare disk.
    ///
    /// # Errors
    /// As for [`DiskArg::open`]; or the layers don't go together.
    pub fn open(&self, read_only: bool, groups: &Groups) -> Result<Stack, StackError> {
        let disk = self.disk.open(read_only)?;
        Stack::fixed(disk, &self.layers, groups.clone())
    }

    /// Makes a stack whose layers can be changed while it is in use ([`Stack::change`]). That costs a
    /// check for each operation, and a descriptor for each queue.
    ///
    /// # Errors
    /// As for [`StackArg::open`]; or the disk has only one queue.
    pub fn open_live(&self, read_only: bool, groups: &Groups) -> Result<Stack, StackError> {
        let disk = self.disk.open(read_only)?;
        Stack::live(disk, &self.layers, groups.clone())
    }
}

impl From<DiskArg> for StackArg {
    fn from(disk: DiskArg) -> Self {
        Self {
            disk,
            layers: Vec::new(),
        }
    }
}

/// Reads a disk and its layers.
fn parse<D: FromTree>(text: &str, kinds: LayerKinds<'_>) -> Result<StackArg<D>, ArgError> {
    let words = disk_arg::split(text);
    let layers = words.iter().skip(1).position(|word| kinds.has(word));
    let disk = layers.map_or(words.len(), |index| index + 1);
    let (disk, layers) = words.split_at_checked(disk).unwrap_or((&words, &[]));
    let layers = layers.iter().map(|word| kinds.parse(word));
    let layers = layers.collect::<Result<_, _>>()?;
    let disk = D::from_tree(&Tree::disk_of(disk)?).map_err(|wrong| match wrong.error {
        // What is no option was perhaps to be a layer.
        ArgError::Option { option, .. } if kinds.nearest(&option).is_some() => {
            kinds.unknown(&option)
        }
        error => error,
    })?;
    Ok(StackArg { disk, layers })
}

impl<D: FromTree> StackArg<D> {
    /// Reads a disk with layers of these kinds, by name.
    ///
    /// # Errors
    /// The disk is of no kind that `D` knows, a layer of none of these; or not what its kind needs.
    pub fn parse(text: &str, layers: LayerKinds<'_>) -> Result<Self, ArgError> {
        parse(text, layers)
    }
}

impl<D: FromTree> FromStr for StackArg<D> {
    type Err = ArgError;

    /// With layers of this crate.
    fn from_str(text: &str) -> Result<Self, ArgError> {
        Self::parse(text, LayerKinds::default())
    }
}

impl<D: fmt::Display> fmt::Display for StackArg<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.disk)?;
        self.layers
            .iter()
            .try_for_each(|layer| write!(f, ",{}", layer.to_string().replace(',', ",,")))
    }
}
