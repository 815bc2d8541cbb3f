// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Layers by name.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::LayerKinds;
use super::options::{AnyLayer, LayerOptions};
use crate::disk_arg::ArgError;

/// A layer by name. `Display` writes what [`LayerKinds::parse`] reads, and `FromStr` if it is of this crate; see the
/// [module](super) for the syntax.
#[derive(Clone, Debug)]
pub struct LayerArg(pub(super) Arc<dyn AnyLayer>);

impl LayerArg {
    /// The layer with these options.
    pub fn new(options: impl LayerOptions) -> Self {
        Self(Arc::new(options))
    }

    /// The options, if it is of that kind.
    pub fn options<O: LayerOptions>(&self) -> Option<&O> {
        // Of what is in the `Arc`, not of the `Arc`.
        (*self.0).as_any().downcast_ref()
    }

    /// Whether both are the same layer of a disk, perhaps with other settings: throttles with the same group, bitmaps
    /// with the same name.
    pub fn is_same(&self, other: &Self) -> bool {
        self.0.kind() == other.0.kind() && self.0.identity() == other.0.identity()
    }

    /// Whether `text` names this layer: by its word, or with what tells it from others of the kind.
    pub fn is_named(&self, text: &str) -> bool {
        let kind = self.0.kind();
        let special = match self.0.identity() {
            Some(identity) => format!("{kind}={identity}"),
            None => kind.to_owned(),
        };
        text == self.name() || text == special || text == self.to_string()
    }

    /// This layer, with its options completed by those that only `old` sets: for changing some settings of a layer.
    #[must_use]
    pub fn or(&self, old: &Self) -> Self {
        self.0.or(old)
    }

    /// The option that it consists of, if that may stand as a word of its own.
    fn short(&self) -> Option<(&'static str, String)> {
        let mut changed = self.0.changed().into_iter();
        let one = changed.next().filter(|_| changed.len() == 0)?;
        self.0.short().contains(&one.0).then_some(one)
    }

    /// The word that names the layer.
    pub fn name(&self) -> &'static str {
        self.short().map_or_else(|| self.0.kind(), |(name, _)| name)
    }
}

impl PartialEq for LayerArg {
    fn eq(&self, other: &Self) -> bool {
        self.0.is_equal(other)
    }
}

impl Eq for LayerArg {}

impl FromStr for LayerArg {
    type Err = ArgError;

    /// Of the layers of this crate.
    fn from_str(text: &str) -> Result<Self, ArgError> {
        LayerKinds::default().parse(text)
    }
}

impl fmt::Display for LayerArg {
    /// Leaves out options that have their default.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((name, value)) = self.short() {
            return write!(f, "{name}={value}");
        }
        f.write_str(self.0.kind())?;
        let options = self.0.changed().into_iter();
        let options = options.map(|(name, value)| format!("{name}:{value}"));
        let items: Vec<String> = self.0.target().into_iter().chain(options).collect();
        if !items.is_empty() {
            write!(f, "={}", items.join("/"))?;
        }
        Ok(())
    }
}
