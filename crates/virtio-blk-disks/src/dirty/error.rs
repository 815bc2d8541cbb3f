// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What can be wrong with a bitmap.

use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use virtio_blk_core::disk::DiskError;

use super::changes::TakeToken;

/// Why a bitmap can't be made, read or committed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BitmapError {
    /// The granularity is not usable.
    #[error("granularity of {0} bytes: give a power of two, at least 512")]
    Granularity(u64),
    /// There would be too many blocks.
    #[error(
        "a disk of {size} bytes has too many blocks of {granularity} bytes: give a larger granularity"
    )]
    TooLarge {
        /// Bytes of the disk.
        size: u64,
        /// Bytes of a block.
        granularity: u64,
    },
    /// Saved data is of something else, of another version, or damaged.
    #[error("this is no saved dirty bitmap: {0}")]
    Saved(&'static str),
    /// There is a bitmap of that name.
    #[error("there is a dirty bitmap {0:?} already")]
    Exists(String),
    /// What was taken is not there to be committed or given back.
    #[error(
        "nothing is taken under {0}: it was committed or given back, by a later `take` or by a restart; what it \
         held is still marked, unless it was committed"
    )]
    Token(TakeToken),
    /// No name of something that was taken.
    #[error("`{0}` is no token of a `take`")]
    NoToken(String),
    /// The disk's own bitmap can't be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The disk's own bitmap has other blocks.
    #[error(
        "the disk has a dirty bitmap {name:?} itself, with blocks of {granularity} bytes: give that granularity, or none"
    )]
    Stored {
        /// Its name.
        name: String,
        /// Bytes of a block.
        granularity: u64,
    },
    /// The file of a persistent bitmap belongs to something else.
    #[error("{}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// The file of a persistent bitmap can't be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl FromStr for TakeToken {
    type Err = BitmapError;

    fn from_str(text: &str) -> Result<Self, BitmapError> {
        let parse = || {
            let (id, number) = text.split_once('-')?;
            Some(Self {
                id: u64::from_str_radix(id, 16).ok()?,
                number: number.parse().ok()?,
            })
        };
        parse().ok_or_else(|| BitmapError::NoToken(text.to_owned()))
    }
}
