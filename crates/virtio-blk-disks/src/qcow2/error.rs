// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why a qcow2 image could not become a disk.

use std::io;
use std::path::{Path, PathBuf};

use virtio_blk_core::disk::DiskError;

use crate::raw;

/// Why a qcow2 image could not become a disk. Every message names the file and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file could not be opened, locked or used.
    #[error(transparent)]
    File(#[from] raw::OpenError),
    /// Not a qcow2 image.
    #[error(
        "{path} is not a qcow2 image: `qemu-img info {path}` shows what it is; use raw:{path} for a raw one",
        path = path.display()
    )]
    Format {
        /// The file.
        path: PathBuf,
    },
    /// The image has a feature that we don't have.
    #[error(
        "{path} uses {feature}, which is not supported: `qemu-img convert -O qcow2 {path} new.qcow2` \
         makes an image without it",
        path = path.display()
    )]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The feature.
        feature: String,
    },
    /// The image was not closed as it should have been, or is marked as damaged.
    #[error(
        "{path} is marked as {mark}: `qemu-img check -r all {path}` repairs it",
        path = path.display()
    )]
    Marked {
        /// The file.
        path: PathBuf,
        /// How it is marked.
        mark: &'static str,
    },
    /// The image contradicts itself or the format.
    #[error("{path} is damaged: {what}. `qemu-img check {path}` says more", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The image has a backing file, which was not allowed.
    #[error(
        "{path} has a backing file ({backing}): with backing=allow it is opened, too. Whoever wrote the \
         image chose that file, and a guest can read it; check it before",
        path = path.display()
    )]
    BackingDenied {
        /// The file.
        path: PathBuf,
        /// The backing file as the image names it.
        backing: String,
    },
    /// The backing file can't be used.
    #[error("the backing file ({backing}) of {path} can't be used: {why}", path = path.display())]
    Backing {
        /// The file that names it.
        path: PathBuf,
        /// The backing file as the image names it.
        backing: String,
        /// Why, and what to do.
        why: String,
    },
    /// The format library refused the image.
    #[error("can't open {path} as qcow2: {source}", path = path.display())]
    Library {
        /// The file.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
}

impl OpenError {
    pub(super) fn damaged(path: &Path, what: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            what: what.into(),
        }
    }

    pub(super) fn unsupported(path: &Path, feature: impl Into<String>) -> Self {
        Self::Unsupported {
            path: path.to_owned(),
            feature: feature.into(),
        }
    }
}

impl From<OpenError> for DiskError {
    /// Failed system calls stay I/O errors of the same kind, the rest are settings to be changed.
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::File(error) => error.into(),
            error => Self::Config(error.to_string()),
        }
    }
}
