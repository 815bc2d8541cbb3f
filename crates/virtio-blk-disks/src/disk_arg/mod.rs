// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks by name: the syntax of command lines.
//!
//! | disk | syntax |
//! |---|---|
//! | file or block device | `raw:PATH[,readonly=on\|off][,direct=on\|off][,engine=auto\|io_uring\|sync][,discard=on\|off][,block=BYTES][,lock=on\|off\|handover][,mmap=auto\|off]` |
//! | memory | `memory:SIZE` |
//! | nothing | `null:SIZE[,zero=on\|off]` |
//!
//! `SIZE` is a number of bytes, or of binary units with one of the letters K, M, G, T, P after it. A
//! comma in `PATH` is written twice. The format of an image is always given and never guessed: guessing
//! would let a guest choose it by what it writes.

mod error;
mod kind;
mod own;
mod size;
mod text;
pub mod tree;
pub mod words;

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use virtio_blk_core::disk::{Disk, DiskError};

pub use error::ArgError;
use kind::AnyOptions;
pub use kind::{DiskKind, DiskKinds, DiskOptions};
pub(crate) use own::block;
pub use own::{MemoryOptions, NullOptions, OWN};
pub(crate) use size::{Size, bytes};
pub(crate) use text::{checked_name, list, name, names, parsed, read, seconds};
pub(crate) use tree::split;
pub use tree::{FromTree, Tree, TreeError};

/// A disk by name. `Display` writes what [`DiskKinds::parse`] reads, and `FromStr` if it is of this crate; see the
/// [module](self) for the syntax. Two are equal if they are written alike.
#[derive(Clone, Debug)]
pub struct DiskArg(Arc<dyn AnyOptions>);

impl DiskArg {
    /// The formats of this crate: the words that can stand in front of the colon.
    pub const FORMATS: &'static [&'static str] = &["raw", "memory", "null"];

    /// The disk with these options.
    pub fn new(options: impl DiskOptions) -> Self {
        Self(Arc::new(options))
    }

    /// The options, if it is of that kind.
    pub fn options<O: DiskOptions>(&self) -> Option<&O> {
        // Of what is in the `Arc`, not of the `Arc`.
        (*self.0).as_any().downcast_ref()
    }

    /// Makes the disk. It is read-only if `read_only` or its options say so.
    ///
    /// # Errors
    /// [`DiskError::Config`] or [`DiskError::Io`], naming the file where there is one.
    pub fn open(&self, read_only: bool) -> Result<Arc<dyn Disk>, DiskError> {
        self.0.open(read_only)
    }

    /// The same disk for inspection: opened without changing anything, also while others use it. See
    /// [`RawOptions::inspect`].
    ///
    /// [`RawOptions::inspect`]: crate::RawOptions::inspect
    #[must_use]
    pub fn for_inspection(self) -> Self {
        Self(self.0.for_inspection())
    }

    /// The same disk without locks on its files: for a look at one that is in use.
    #[must_use]
    pub fn unlocked(self) -> Self {
        Self(self.0.unlocked())
    }

    /// The file that holds the disk, if one does.
    pub fn path(&self) -> Option<&Path> {
        self.0.path()
    }
}

impl PartialEq for DiskArg {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl Eq for DiskArg {}

impl FromStr for DiskArg {
    type Err = ArgError;

    /// Of the kinds of this crate.
    fn from_str(text: &str) -> Result<Self, ArgError> {
        DiskKinds::new(OWN).parse(text)
    }
}

impl FromTree for DiskArg {
    /// Of the kinds of this crate.
    fn from_tree(tree: &Tree) -> Result<Self, TreeError> {
        DiskKinds::new(OWN).read(tree)
    }
}

impl fmt::Display for DiskArg {
    /// Leaves out options that have their default.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let doubled = |text: &str| text.replace(',', ",,");
        write!(f, "{}:{}", self.0.name(), doubled(&self.0.target()))?;
        let mut changed = self.0.changed().into_iter();
        changed.try_for_each(|(name, value)| write!(f, ",{name}={}", doubled(&value)))
    }
}

#[cfg(test)]
mod tests;
