// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vblk disk create`, `check` and `map`: what is done to images that nobody serves.

pub mod arg;
pub mod check;
pub mod create;
pub mod map;
mod unfinished;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use virtio_blk_core::disk::{Disk, DiskError};
use virtio_blk_qcow2::{Access, Files, Qcow2File};

/// Opens a file that an image lies in, or that one names.
fn open(path: &Path, access: Access) -> Result<Arc<dyn Disk>, DiskError> {
    Files::open(&Qcow2File::new(path), path, access)
}

/// A file can't be opened.
#[derive(Debug, thiserror::Error)]
#[error("{}", named(path, source))]
struct Unusable {
    path: PathBuf,
    source: DiskError,
}

/// What is wrong with a file, with its name once.
fn named(path: &Path, source: &DiskError) -> String {
    let (path, source) = (path.display().to_string(), source.to_string());
    if source.contains(&path) {
        source
    } else {
        format!("can't use {path}: {source}")
    }
}

/// As [`open`], for a file that is named in the error.
fn open_named(path: &Path, access: Access) -> Result<Arc<dyn Disk>, Unusable> {
    open(path, access).map_err(|source| Unusable {
        path: path.to_owned(),
        source,
    })
}
