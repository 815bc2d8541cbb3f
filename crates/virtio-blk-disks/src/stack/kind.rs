// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The table of the layers that a program knows.

use std::str::FromStr;

use super::nearest::nearest;
use super::options::LayerOptions;
use super::{LayerArg, parse};
use crate::ArgError;
use crate::dirty::DirtyOptions;
use crate::disk_arg::{self, Tree, TreeError};
use crate::fault::FaultOptions;
use crate::meter::MeterOptions;
use crate::policy::ErrorsOptions;
use crate::throttle::ThrottleOptions;
use crate::verify::VerifyOptions;

/// The layers of this crate, in the order in which help and errors name them.
pub const OWN: &[LayerKind] = &[
    LayerKind::of::<ThrottleOptions>(),
    LayerKind::of::<DirtyOptions>(),
    LayerKind::of::<ErrorsOptions>(),
    LayerKind::of::<MeterOptions>(),
    LayerKind::of::<VerifyOptions>(),
    LayerKind::of::<FaultOptions>(),
];

/// A kind of layer in a table. It has no place of its own in a stack: layers lie in the order in which they are
/// written.
#[derive(Clone, Copy, Debug)]
pub struct LayerKind {
    /// The word that names it.
    pub name: &'static str,
    /// Options that may stand as words of their own.
    pub short: &'static [&'static str],
    /// Its part of a help text.
    pub manual: &'static str,
    /// Makes a tree of a word with its value, if it has one.
    parse: fn(&str, Option<&str>) -> Result<Tree, ArgError>,
    /// Reads the target and the options.
    read: fn(&Tree) -> Result<LayerArg, TreeError>,
}

impl LayerKind {
    /// The kind that has these options.
    pub const fn of<O: LayerOptions>() -> Self {
        Self {
            name: O::NAME,
            short: O::SHORT,
            manual: O::MANUAL,
            parse: parse::tree::<O>,
            read: parse::options::<O>,
        }
    }

    fn words(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.short.iter().copied().chain([self.name])
    }
}

/// The kinds of layers that a program knows, in the order in which help and errors name them. The default has those of
/// this crate ([`OWN`]). Of two with one name the first counts.
#[derive(Clone, Copy, Debug)]
pub struct LayerKinds<'a>(&'a [LayerKind]);

impl Default for LayerKinds<'_> {
    fn default() -> Self {
        Self(OWN)
    }
}

impl FromStr for LayerArg {
    type Err = ArgError;

    /// Of the layers of this crate.
    fn from_str(text: &str) -> Result<Self, ArgError> {
        LayerKinds::default().parse(text)
    }
}

impl<'a> LayerKinds<'a> {
    /// A table of these. Usually a `static` of the program, with the layers of all crates that it links.
    pub const fn new(kinds: &'a [LayerKind]) -> Self {
        Self(kinds)
    }

    /// The kinds.
    pub fn iter(&self) -> impl Iterator<Item = &'a LayerKind> + use<'a> {
        self.0.iter()
    }

    /// The part of a help text about them: lines of at most 78 columns.
    pub fn manual(&self) -> String {
        let manuals: Vec<&str> = self.iter().map(|kind| kind.manual).collect();
        manuals.join("\n")
    }

    /// Reads a layer by name.
    ///
    /// # Errors
    /// The text is of no kind in the table, or not what that kind needs.
    pub fn parse(&self, text: &str) -> Result<LayerArg, ArgError> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        let kind = self.find(name).ok_or_else(|| self.unknown(name))?;
        Ok((kind.read)(&(kind.parse)(name, value)?)?)
    }

    /// Reads a layer as it was written.
    ///
    /// # Errors
    /// It is of no kind in the table, or not what that kind needs.
    pub fn read(&self, tree: &Tree) -> Result<LayerArg, TreeError> {
        let name = tree.kind.word();
        let kind = self.find(name).ok_or_else(|| TreeError {
            key: tree.kind.key.clone(),
            error: self.unknown(name),
        })?;
        (kind.read)(tree)
    }

    fn find(&self, word: &str) -> Option<&'a LayerKind> {
        self.iter()
            .find(|kind| kind.words().any(|known| known == word))
    }

    fn words(&self) -> impl Iterator<Item = &'static str> + use<'a> {
        self.iter().flat_map(LayerKind::words)
    }

    /// Whether this part of a text, between two commas, is a layer.
    pub(super) fn has(&self, part: &str) -> bool {
        let word = part.split_once('=').map_or(part, |(name, _)| name);
        self.find(word).is_some()
    }

    /// The error for a name that no layer has, with the layer that was perhaps meant.
    pub(super) fn unknown(&self, name: &str) -> ArgError {
        let known: Vec<&str> = self.words().collect();
        ArgError::Layer {
            layer: name.to_owned(),
            nearest: self.nearest(name),
            known: disk_arg::list(&known, "or"),
        }
    }

    /// The layer whose name is nearly this one.
    pub(super) fn nearest(&self, name: &str) -> Option<&'static str> {
        nearest(name, self.words())
    }
}
