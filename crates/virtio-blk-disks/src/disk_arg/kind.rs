// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Kinds of disks, and the table of those that a program knows.

use std::any::Any;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use virtio_blk_core::disk::{Disk, DiskError};

use super::text;
use super::tree::{Tree, TreeError};
use super::{ArgError, DiskArg};

/// A kind of disk: the type of its options. A kind that implements it and is listed in a table ([`DiskKinds`]) can be
/// named on command lines; its crate may lie above this one.
///
/// A disk is written `NAME:TARGET,OPTION=VALUE…`. The options are read by serde into the type, which says in its
/// attributes what they are called and that unknown ones are refused: `#[serde(default, deny_unknown_fields)]`, with
/// `skip` for what is no option, as the target. A `bool` is written `on` or `off`.
pub trait DiskOptions:
    DeserializeOwned + Default + Clone + fmt::Debug + Send + Sync + 'static
{
    /// The word before the colon.
    const NAME: &'static str;
    /// What follows it, in capitals: `PATH`, `SIZE`.
    const TARGET: &'static str;
    /// The whole syntax in one line.
    const HELP: &'static str;
    /// The same with a few words on each option, for help texts: lines of at most 78 columns, the first indented by
    /// two.
    const MANUAL: &'static str;

    /// Sets the target: the text between the colon and the options. It is not empty.
    ///
    /// # Errors
    /// It is no target of this kind.
    fn set_target(&mut self, target: String) -> Result<(), ArgError>;

    /// What [`DiskOptions::set_target`] takes.
    fn target(&self) -> String;

    /// Names and values, as written, of the options that differ from the default.
    fn changed(&self) -> Vec<(&'static str, String)>;

    /// Makes the disk. It is read-only if `read_only` or the options say so.
    ///
    /// # Errors
    /// [`DiskError::Config`] or [`DiskError::Io`], naming the file where there is one.
    fn open(&self, read_only: bool) -> Result<Arc<dyn Disk>, DiskError>;

    /// The same disk for inspection: opened without changing anything, also while others use it.
    #[must_use]
    fn for_inspection(self) -> Self {
        self
    }

    /// The same disk without locks on its files.
    #[must_use]
    fn unlocked(self) -> Self {
        self
    }

    /// The file that holds the disk, if one does.
    fn path(&self) -> Option<&Path> {
        None
    }
}

/// [`DiskOptions`] with their type erased.
pub(super) trait AnyOptions: fmt::Debug + Send + Sync {
    fn as_any(&self) -> &dyn Any;
    fn name(&self) -> &'static str;
    fn target(&self) -> String;
    fn changed(&self) -> Vec<(&'static str, String)>;
    fn open(&self, read_only: bool) -> Result<Arc<dyn Disk>, DiskError>;
    fn for_inspection(&self) -> Arc<dyn AnyOptions>;
    fn unlocked(&self) -> Arc<dyn AnyOptions>;
    fn path(&self) -> Option<&Path>;
}

impl<O: DiskOptions> AnyOptions for O {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn name(&self) -> &'static str {
        O::NAME
    }

    fn target(&self) -> String {
        DiskOptions::target(self)
    }

    fn changed(&self) -> Vec<(&'static str, String)> {
        DiskOptions::changed(self)
    }

    fn open(&self, read_only: bool) -> Result<Arc<dyn Disk>, DiskError> {
        DiskOptions::open(self, read_only)
    }

    fn for_inspection(&self) -> Arc<dyn AnyOptions> {
        Arc::new(DiskOptions::for_inspection(self.clone()))
    }

    fn unlocked(&self) -> Arc<dyn AnyOptions> {
        Arc::new(DiskOptions::unlocked(self.clone()))
    }

    fn path(&self) -> Option<&Path> {
        DiskOptions::path(self)
    }
}

/// A kind of disk in a table.
#[derive(Clone, Copy, Debug)]
pub struct DiskKind {
    /// The word before the colon.
    pub name: &'static str,
    /// What follows it, in capitals: `PATH`, `SIZE`.
    pub target: &'static str,
    /// The whole syntax in one line.
    pub help: &'static str,
    /// Its part of a help text.
    pub manual: &'static str,
    /// Reads the target and the options.
    read: fn(&Tree) -> Result<DiskArg, TreeError>,
}

impl DiskKind {
    /// The kind that has these options.
    pub const fn of<O: DiskOptions>() -> Self {
        Self {
            name: O::NAME,
            target: O::TARGET,
            help: O::HELP,
            manual: O::MANUAL,
            read: read::<O>,
        }
    }
}

fn read<O: DiskOptions>(tree: &Tree) -> Result<DiskArg, TreeError> {
    let place = tree.target.as_ref().unwrap_or(&tree.kind);
    let wrong = |error| TreeError {
        key: place.key.clone(),
        error,
    };
    let target = tree.target.as_ref().map_or("", |target| target.word());
    if target.is_empty() {
        return Err(wrong(ArgError::Missing {
            format: O::NAME,
            what: O::TARGET,
        }));
    }
    // What is wrong with the first word comes first.
    O::default().set_target(target.to_owned()).map_err(wrong)?;
    let mut options: O = text::read(O::NAME, &tree.kind.key, &tree.options)?;
    options.set_target(target.to_owned()).map_err(wrong)?;
    Ok(DiskArg::new(options))
}

/// The kinds of disks that a program knows, in the order in which help and errors name them.
#[derive(Clone, Copy, Debug)]
pub struct DiskKinds<'a>(&'a [DiskKind]);

impl<'a> DiskKinds<'a> {
    /// A table of these. Usually a `static` of the program, with the kinds of all crates that it links.
    pub const fn new(kinds: &'a [DiskKind]) -> Self {
        Self(kinds)
    }

    /// The kinds.
    pub fn iter(&self) -> impl Iterator<Item = &'a DiskKind> + use<'a> {
        self.0.iter()
    }

    /// The part of a help text about them.
    pub fn manual(&self) -> String {
        let manuals: Vec<&str> = self.iter().map(|kind| kind.manual).collect();
        manuals.join("\n")
    }

    /// Reads a disk by name.
    ///
    /// # Errors
    /// The text is of no kind in the table, or not what that kind needs.
    pub fn parse(&self, text: &str) -> Result<DiskArg, ArgError> {
        Ok(self.read(&Tree::disk(text)?)?)
    }

    /// Reads a disk as it was written.
    ///
    /// # Errors
    /// It is of no kind in the table, or not what that kind needs.
    pub fn read(&self, tree: &Tree) -> Result<DiskArg, TreeError> {
        let format = tree.kind.word();
        if let Some(kind) = self.0.iter().find(|kind| kind.name == format) {
            return (kind.read)(tree);
        }
        let names: Vec<&str> = self.0.iter().map(|kind| kind.name).collect();
        let error = if format.contains('/') {
            // A path with a colon in it.
            ArgError::NoFormat {
                text: tree.to_string(),
            }
        } else {
            ArgError::Format {
                format: format.to_owned(),
                known: text::list(&names, "or"),
            }
        };
        Err(TreeError {
            key: tree.kind.key.clone(),
            error,
        })
    }
}
