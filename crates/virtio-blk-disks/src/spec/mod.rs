// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks by name: the syntax of command lines.
//!
//! | disk | syntax |
//! |---|---|
//! | file or block device | `raw:PATH[,readonly=on\|off][,direct=on\|off][,engine=auto\|io_uring\|sync][,discard=on\|off][,block=BYTES][,lock=on\|off\|handover][,mmap=auto\|off]` |
//! | qcow2 image | `qcow2:PATH[,readonly=on\|off][,backing=deny\|allow][,engine=auto\|io_uring\|sync][,discard=on\|off][,lock=on\|off\|handover]` (feature `qcow2`) |
//! | memory | `memory:SIZE` |
//! | nothing | `null:SIZE[,zero=on\|off]` |
//!
//! `SIZE` is a number of bytes, or of binary units with one of the letters K, M, G, T, P after it. A
//! comma in `PATH` is written twice. The format of an image is always given and never guessed: guessing
//! would let a guest choose it by what it writes.

mod error;
mod parse;
mod size;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use virtio_blk_core::disk::{Disk, DiskError};

use crate::{Engine, Lock, MemoryDisk, NullDisk, RawDisk, RawOptions};
#[cfg(feature = "qcow2")]
use crate::{Qcow2Disk, Qcow2Options};
pub use error::SpecError;
pub(crate) use parse::{split, switch};
pub(crate) use size::{Size, bytes};

/// A disk by name. `Display` writes what `FromStr` reads; see the [module](self) for the syntax.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiskSpec {
    /// A file or block device.
    Raw(RawOptions),
    /// A qcow2 image.
    #[cfg(feature = "qcow2")]
    Qcow2(Qcow2Options),
    /// Memory.
    Memory {
        /// Bytes, a multiple of 512.
        bytes: u64,
    },
    /// Nothing.
    Null {
        /// Bytes, a multiple of 512.
        bytes: u64,
        /// Reads give zeroes, see [`NullDisk::zero_fill`].
        zero: bool,
    },
}

impl DiskSpec {
    /// The formats of this build: the words that can stand in front of the colon.
    pub const FORMATS: &'static [&'static str] = &[
        "raw",
        #[cfg(feature = "qcow2")]
        "qcow2",
        "memory",
        "null",
    ];

    /// Makes the disk. It is read-only if `read_only` says so or the specification does.
    ///
    /// # Errors
    /// [`DiskError::Config`] or [`DiskError::Io`], naming the file where there is one.
    pub fn open(&self, read_only: bool) -> Result<Arc<dyn Disk>, DiskError> {
        Ok(match self {
            Self::Raw(options) => {
                let options = options.clone();
                let read_only = read_only || options.read_only;
                Arc::new(RawDisk::open(&options.read_only(read_only))?)
            }
            #[cfg(feature = "qcow2")]
            Self::Qcow2(options) => {
                let options = options.clone();
                let read_only = read_only || options.read_only;
                Arc::new(Qcow2Disk::open(&options.read_only(read_only))?)
            }
            Self::Memory { bytes } => {
                let disk = MemoryDisk::new(*bytes)?;
                Arc::new(if read_only { disk.read_only()? } else { disk })
            }
            Self::Null { bytes, zero } => {
                Arc::new(NullDisk::new(*bytes)?.zero_fill(*zero).read_only(read_only))
            }
        })
    }
}

impl DiskSpec {
    /// The same disk for a look that changes nothing, also while others use it: see [`RawOptions::inspect`].
    #[must_use]
    pub fn for_inspection(self) -> Self {
        match self {
            Self::Raw(options) => Self::Raw(options.inspect(true)),
            #[cfg(feature = "qcow2")]
            Self::Qcow2(options) => Self::Qcow2(options.inspect(true)),
            other => other,
        }
    }

    /// The same disk without locks on its files: for a look at one that is in use.
    #[must_use]
    pub fn unlocked(self) -> Self {
        match self {
            Self::Raw(options) => Self::Raw(options.lock(false)),
            #[cfg(feature = "qcow2")]
            Self::Qcow2(options) => Self::Qcow2(options.lock(false)),
            other => other,
        }
    }
}

impl FromStr for DiskSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        parse::spec(text)
    }
}

/// The word for a switch.
const fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// The word for when a file is locked.
const fn lock(lock: Lock) -> &'static str {
    match lock {
        Lock::On => "on",
        Lock::Off => "off",
        Lock::Handover => "handover",
    }
}

/// The word for an engine.
const fn engine(engine: Engine) -> &'static str {
    match engine {
        Engine::Auto => "auto",
        Engine::IoUring => "io_uring",
        Engine::Sync => "sync",
    }
}

impl fmt::Display for DiskSpec {
    /// Leaves out what is as by default.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Raw(options) => {
                let path = options.path.to_string_lossy().replace(',', ",,");
                write!(f, "raw:{path}")?;
                let usual = RawOptions::new("");
                for (name, value, default) in [
                    ("readonly", options.read_only, usual.read_only),
                    ("direct", options.direct, usual.direct),
                    ("discard", options.discard, usual.discard),
                ] {
                    if value != default {
                        write!(f, ",{name}={}", on_off(value))?;
                    }
                }
                if options.lock != usual.lock {
                    write!(f, ",lock={}", lock(options.lock))?;
                }
                if options.engine != usual.engine {
                    write!(f, ",engine={}", engine(options.engine))?;
                }
                if let Some(bytes) = options.block {
                    write!(f, ",block={bytes}")?;
                }
                if !options.mmap {
                    write!(f, ",mmap=off")?;
                }
                Ok(())
            }
            #[cfg(feature = "qcow2")]
            Self::Qcow2(options) => {
                let path = options.path.to_string_lossy().replace(',', ",,");
                write!(f, "qcow2:{path}")?;
                let usual = Qcow2Options::new("");
                for (name, value, default) in [
                    ("readonly", options.read_only, usual.read_only),
                    ("discard", options.discard, usual.discard),
                ] {
                    if value != default {
                        write!(f, ",{name}={}", on_off(value))?;
                    }
                }
                if options.lock != usual.lock {
                    write!(f, ",lock={}", lock(options.lock))?;
                }
                if options.backing {
                    write!(f, ",backing=allow")?;
                }
                if options.engine != usual.engine {
                    write!(f, ",engine={}", engine(options.engine))?;
                }
                Ok(())
            }
            Self::Memory { bytes } => write!(f, "memory:{}", Size(*bytes)),
            Self::Null { bytes, zero } => {
                write!(f, "null:{}", Size(*bytes))?;
                if !zero {
                    write!(f, ",zero={}", on_off(*zero))?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests;
