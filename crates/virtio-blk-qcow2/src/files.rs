// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where the files of an image come from: the embedder opens them.

use std::path::Path;
use std::sync::Arc;

use virtio_blk_core::disk::{Disk, DiskError};

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To be looked at: without a lock, and nothing about it may change, also while others use it.
    Look,
    /// To be read, while nobody may write it.
    Read,
    /// To be used by nobody else. It should grow: [`Disk::resize`] is called for that, else writes fail with "no space"
    /// at its end. Its end means nothing to the format: a file that ends within a block may be made longer.
    Write,
}

/// Opens files, each as a disk byte for byte.
///
/// It is asked for the image itself and for the files that the image names, as far as
/// [`Qcow2Options`](crate::Qcow2Options) permit that; it may refuse any of them.
pub trait Files: Send + Sync {
    /// Opens the file at `path`, which is relative to the process's directory if it is relative.
    ///
    /// # Errors
    /// It can't be opened; the text says why and what to do.
    fn open(&self, path: &Path, access: Access) -> Result<Arc<dyn Disk>, DiskError>;
}

impl<F> Files for F
where
    F: Fn(&Path, Access) -> Result<Arc<dyn Disk>, DiskError> + Send + Sync,
{
    fn open(&self, path: &Path, access: Access) -> Result<Arc<dyn Disk>, DiskError> {
        self(path, access)
    }
}
