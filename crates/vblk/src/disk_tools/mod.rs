// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vblk disk create`, `check` and `map`: what is done to images that nobody serves.

pub mod arg;
pub mod check;
pub mod create;
pub mod map;
mod unfinished;

use std::path::Path;
use std::sync::Arc;

use virtio_blk_core::disk::{Disk, DiskError};
use virtio_blk_qcow2::{Access, Files, Qcow2File};

/// Opens a file that an image lies in, or that one names.
fn open(path: &Path, access: Access) -> Result<Arc<dyn Disk>, DiskError> {
    Files::open(&Qcow2File::new(path), path, access)
}
