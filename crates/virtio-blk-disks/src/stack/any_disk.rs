// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Layers as disks, with their type erased.

use std::any::Any;
use std::sync::Arc;

use virtio_blk_core::disk::Disk;

use crate::layer::{Layer, Layered};

/// The disk of a layer whose type is not known.
#[derive(Clone)]
pub(super) struct AnyDisk {
    pub(super) disk: Arc<dyn Disk>,
    any: Arc<dyn Any + Send + Sync>,
}

impl AnyDisk {
    pub(super) fn new<L: Layer>(disk: Layered<L>) -> Self {
        let disk = Arc::new(disk);
        Self {
            any: disk.clone(),
            disk,
        }
    }

    /// The layer, if it is of that type.
    pub(super) fn of<L: Layer>(&self) -> Option<Arc<Layered<L>>> {
        self.any.clone().downcast().ok()
    }
}
