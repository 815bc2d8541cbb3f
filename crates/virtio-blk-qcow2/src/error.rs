// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why an image could not become a disk.

use std::io;
use std::path::{Path, PathBuf};

use virtio_blk_core::disk::DiskError;

use crate::format::FormatError;

/// Why an image could not become a disk. Every message names the file and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A system call on the file failed.
    #[error("{}", told(path, source, source.get_ref().is_some()))]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file could not be opened, read or locked.
    #[error("{}", told(path, source, matches!(source, DiskError::Config(_))))]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: DiskError,
    },
    /// Not a qcow2 image.
    #[error(
        "{path} is not a qcow2 image: `qemu-img info {path}` shows what it is; use raw:{path} for a raw one",
        path = path.display()
    )]
    Format {
        /// The file.
        path: PathBuf,
    },
    /// The image has a feature that this crate does not have.
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
        "{path} has a backing file ({backing}): with backing=allow it is opened, too. The author of the \
         image chose that file, and a guest can read it; check it before",
        path = path.display()
    )]
    BackingDenied {
        /// The file.
        path: PathBuf,
        /// The backing file as the image names it.
        backing: String,
    },
    /// A file that the image names can't be used.
    #[error("the file {name} that {path} names can't be used: {why}", path = path.display())]
    Named {
        /// The file that names it.
        path: PathBuf,
        /// The other file as the image names it.
        name: String,
        /// Why, and what to do.
        why: String,
    },
}

/// What is wrong with a file, unless the text names it already.
fn told(path: &Path, source: &dyn std::error::Error, named: bool) -> String {
    if named {
        return source.to_string();
    }
    format!("can't use {}: {source}", path.display())
}

impl OpenError {
    pub(crate) fn file(path: &Path, source: DiskError) -> Self {
        let path = path.to_owned();
        match source {
            DiskError::Io(source) => Self::Io { path, source },
            source => Self::File { path, source },
        }
    }

    pub(crate) fn damaged(path: &Path, what: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            what: what.into(),
        }
    }

    pub(crate) fn unsupported(path: &Path, feature: impl Into<String>) -> Self {
        Self::Unsupported {
            path: path.to_owned(),
            feature: feature.into(),
        }
    }

    pub(crate) fn format(path: &Path, error: FormatError) -> Self {
        let path = path.to_owned();
        match error {
            FormatError::Magic => Self::Format { path },
            FormatError::Unsupported(feature) => Self::Unsupported { path, feature },
            FormatError::Marked(mark) => Self::Marked { path, mark },
            FormatError::Damaged(what) => Self::Damaged { path, what },
        }
    }
}

impl From<OpenError> for DiskError {
    /// Failed system calls stay I/O errors, the rest are settings to be changed.
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Io { source, .. } => source.into(),
            OpenError::File { source, .. } => source,
            error => Self::Config(error.to_string()),
        }
    }
}
