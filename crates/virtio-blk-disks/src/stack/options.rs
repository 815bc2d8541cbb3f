// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Kinds of layers: the types of their options, and what is made of them.

use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use virtio_blk_core::disk::{Disk, DiskError};

use super::{Groups, StackError};
use crate::disk_arg::ArgError;
use crate::layer::{Layer, Layered};
use crate::policy::PolicyListeners;

/// What follows a layer's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Nothing.
    Alone,
    /// Options, if any.
    Options,
    /// At least one option, as in this example.
    SomeOption(&'static str),
    /// A word of its own, as in this example, and then options.
    Target(&'static str),
}

/// Words that belong to an option before them.
#[derive(Clone, Copy, Debug)]
pub struct Parts {
    /// The words, in their order.
    pub words: &'static [&'static str],
    /// The options that can have them.
    pub of: &'static [&'static str],
    /// Where they can stand: for a word that has no option before it.
    pub after: &'static str,
    /// How often, and in which order: for a word that comes again or too early.
    pub order: &'static str,
}

/// A kind of layer: the type of its options. A layer that implements it and is listed in a table
/// ([`LayerKinds`](super::LayerKinds)) can be named, in text and in files; its crate may lie above this one.
///
/// A layer is written `NAME=TARGET/OPTION:VALUE…`, of which its [`Shape`] says what there is. The options are read by
/// serde into the type, as for [`DiskOptions`](crate::disk_arg::DiskOptions).
pub trait LayerOptions:
    DeserializeOwned + Default + Clone + PartialEq + fmt::Debug + Send + Sync + 'static
{
    /// The layer itself.
    type Layer: Layer;

    /// The word that names it.
    const NAME: &'static str;
    /// What follows it.
    const SHAPE: Shape;
    /// Its part of a help text: lines of at most 78 columns, the first indented by two.
    const MANUAL: &'static str;
    /// Options that may stand as words of their own: `rerror=stop` is `errors=rerror:stop`.
    const SHORT: &'static [&'static str] = &[];
    /// The option with a path, which has slashes itself: it goes to the end, but for the other options.
    const PATH: Option<&'static str> = None;
    /// Words that belong to the option before them.
    const PARTS: Option<Parts> = None;
    /// Whether a layer in use can adopt other options ([`LayerOptions::apply`]).
    const ADAPTS: bool = false;

    /// Sets the target. It may be empty.
    ///
    /// # Errors
    /// It is no target of this layer.
    fn set_target(&mut self, target: &str) -> Result<(), ArgError> {
        let _ = target;
        Ok(())
    }

    /// What [`LayerOptions::set_target`] takes.
    fn target(&self) -> Option<String> {
        None
    }

    /// Names and values, as written, of the options that differ from the default.
    fn changed(&self) -> Vec<(&'static str, String)>;

    /// Checks options that depend on each other.
    ///
    /// # Errors
    /// The options don't go together.
    fn validate(&self) -> Result<(), ArgError> {
        Ok(())
    }

    /// What tells it from others of the kind on the same disk, as it is written. `None`: a disk has one.
    fn identity(&self) -> Option<String> {
        None
    }

    /// Both merged into one, if they don't contradict each other.
    fn merged(&self, other: &Self) -> Option<Self> {
        let _ = other;
        None
    }

    /// These options, completed by those that only `old` sets.
    #[must_use]
    fn or(self, old: &Self) -> Self {
        let _ = old;
        self
    }

    /// Makes a new layer.
    ///
    /// # Errors
    /// It does not fit on the disk, or lacks something of the host.
    fn build(
        &self,
        inner: Arc<dyn Disk>,
        context: &LayerContext<'_>,
    ) -> Result<Layered<Self::Layer>, StackError>;

    /// Applies the options that can change while the layer is in use.
    ///
    /// # Errors
    /// They can't be applied.
    fn apply(&self, disk: &Layered<Self::Layer>) -> Result<(), DiskError> {
        let _ = disk;
        Ok(())
    }

    /// Prepares the layer for its removal from a disk that is in use.
    ///
    /// # Errors
    /// It can't be done; the layer stays.
    fn leave(disk: &Layered<Self::Layer>) -> Result<(), DiskError> {
        let _ = disk;
        Ok(())
    }

    /// The options as they are in force.
    #[must_use]
    fn current(&self, disk: &Layered<Self::Layer>) -> Self {
        let _ = disk;
        self.clone()
    }

    /// Whether the layer needs to see requests now.
    fn sees_requests(disk: &Layered<Self::Layer>) -> bool {
        let _ = disk;
        true
    }
}

/// What layers are made from, beside their options.
#[derive(Clone, Copy)]
pub struct LayerContext<'a> {
    pub(crate) groups: &'a Groups,
    /// Listeners for operations that are kept.
    pub(crate) listeners: &'a Arc<PolicyListeners>,
}
