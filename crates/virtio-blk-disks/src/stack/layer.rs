// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Layers by name.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use virtio_blk_core::disk::{Disk, DiskError};

use super::StackError;
use super::any_disk::AnyDisk;
use super::options::{LayerContext, LayerOptions};
use crate::disk_arg::ArgError;

/// A layer by name. `Display` writes what [`LayerKinds::parse`](super::LayerKinds::parse) reads, and `FromStr` if it is of this crate; see the
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

/// [`LayerOptions`] with their type erased.
pub(super) trait AnyLayer: fmt::Debug + Send + Sync {
    fn as_any(&self) -> &dyn Any;
    fn kind(&self) -> &'static str;
    fn short(&self) -> &'static [&'static str];
    fn adapts(&self) -> bool;
    fn target(&self) -> Option<String>;
    fn changed(&self) -> Vec<(&'static str, String)>;
    fn validate(&self) -> Result<(), ArgError>;
    fn identity(&self) -> Option<String>;
    fn is_equal(&self, other: &LayerArg) -> bool;
    fn merged(&self, other: &LayerArg) -> Option<LayerArg>;
    fn or(&self, old: &LayerArg) -> LayerArg;
    /// Makes the layer over `inner`, or the one that was there before.
    fn build(
        &self,
        inner: Arc<dyn Disk>,
        before: Option<&AnyDisk>,
        context: &LayerContext<'_>,
    ) -> Result<AnyDisk, StackError>;
    fn apply(&self, disk: &AnyDisk) -> Result<(), DiskError>;
    fn leave(&self, disk: &AnyDisk) -> Result<(), DiskError>;
    fn current(&self, disk: &AnyDisk) -> LayerArg;
    fn sees_requests(&self, disk: &AnyDisk) -> bool;
}

impl<O: LayerOptions> AnyLayer for O {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn kind(&self) -> &'static str {
        O::NAME
    }

    fn short(&self) -> &'static [&'static str] {
        O::SHORT
    }

    fn adapts(&self) -> bool {
        O::ADAPTS
    }

    fn target(&self) -> Option<String> {
        LayerOptions::target(self)
    }

    fn changed(&self) -> Vec<(&'static str, String)> {
        LayerOptions::changed(self)
    }

    fn validate(&self) -> Result<(), ArgError> {
        LayerOptions::validate(self)
    }

    fn identity(&self) -> Option<String> {
        LayerOptions::identity(self)
    }

    fn is_equal(&self, other: &LayerArg) -> bool {
        other.options() == Some(self)
    }

    fn merged(&self, other: &LayerArg) -> Option<LayerArg> {
        LayerOptions::merged(self, other.options()?).map(LayerArg::new)
    }

    fn or(&self, old: &LayerArg) -> LayerArg {
        let this = self.clone();
        LayerArg::new(match old.options() {
            Some(old) => LayerOptions::or(this, old),
            None => this,
        })
    }

    fn build(
        &self,
        inner: Arc<dyn Disk>,
        before: Option<&AnyDisk>,
        context: &LayerContext<'_>,
    ) -> Result<AnyDisk, StackError> {
        let before = before.and_then(AnyDisk::of::<O::Layer>);
        Ok(AnyDisk::new(match before {
            Some(before) => before.over(inner),
            None => LayerOptions::build(self, inner, context)?,
        }))
    }

    fn apply(&self, disk: &AnyDisk) -> Result<(), DiskError> {
        (disk.of().as_ref()).map_or(Ok(()), |disk| LayerOptions::apply(self, disk))
    }

    fn leave(&self, disk: &AnyDisk) -> Result<(), DiskError> {
        disk.of().as_deref().map_or(Ok(()), O::leave)
    }

    fn current(&self, disk: &AnyDisk) -> LayerArg {
        let disk = disk.of();
        LayerArg::new(disk.map_or_else(|| self.clone(), |disk| LayerOptions::current(self, &disk)))
    }

    fn sees_requests(&self, disk: &AnyDisk) -> bool {
        disk.of().as_deref().is_none_or(O::sees_requests)
    }
}
