// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Layers that were made.

use std::sync::Arc;

use virtio_blk_core::disk::{Disk, DiskError};

use super::any_disk::AnyDisk;
use super::options::LayerContext;
use super::{LayerArg, StackError};
use crate::layer::{Layer, Layered};

/// A layer with its options.
#[derive(Clone)]
pub(super) struct Built {
    pub(super) arg: LayerArg,
    disk: AnyDisk,
}

impl Built {
    /// Makes a layer over `inner`. What the same layer knew `before` is kept.
    pub(super) fn new(
        arg: &LayerArg,
        inner: Arc<dyn Disk>,
        before: &[Self],
        context: &LayerContext<'_>,
    ) -> Result<Self, StackError> {
        let before = before.iter().find(|built| built.arg.is_same(arg));
        let before = before.filter(|built| built.can_become(arg));
        let before = before.map(|built| &built.disk);
        Ok(Self {
            arg: arg.clone(),
            disk: arg.0.build(inner, before, context)?,
        })
    }

    /// Applies the settings that can change while the layer is in use.
    pub(super) fn apply(&self) -> Result<(), DiskError> {
        self.arg.0.apply(&self.disk)
    }

    /// Prepares the layer for its removal while the disk is in use.
    pub(super) fn leave(&self) -> Result<(), DiskError> {
        self.arg.0.leave(&self.disk)
    }

    /// The layer's options as they are now: of a throttle, the limits of its group.
    pub(super) fn current(&self) -> LayerArg {
        self.arg.0.current(&self.disk)
    }

    /// Whether it is the layer of that name with other settings, which it can take over as it is.
    pub(super) fn can_become(&self, arg: &LayerArg) -> bool {
        self.arg == *arg || self.arg.0.adapts() && self.arg.is_same(arg)
    }

    /// Whether it needs to see requests.
    pub(super) fn sees_requests(&self) -> bool {
        self.arg.0.sees_requests(&self.disk)
    }

    /// The layer as a disk.
    pub(super) fn disk(&self) -> Arc<dyn Disk> {
        self.disk.disk.clone()
    }

    /// The layer, if it is of that type.
    pub(super) fn of<L: Layer>(&self) -> Option<Arc<Layered<L>>> {
        self.disk.of()
    }
}

/// Merges layers that are parts of one, such as `rerror` and `werror`.
pub(super) fn merge(layers: &[LayerArg]) -> Vec<LayerArg> {
    let mut merged: Vec<LayerArg> = Vec::with_capacity(layers.len());
    for layer in layers {
        let both = |known: &mut LayerArg| {
            *known = known.0.merged(layer)?;
            Some(())
        };
        if merged.iter_mut().find_map(both).is_none() {
            merged.push(layer.clone());
        }
    }
    merged
}

/// Returns a layer that is the same as one before it.
pub(super) fn find_double(layers: &[LayerArg]) -> Option<&LayerArg> {
    let is_double = |(index, layer): &(usize, &LayerArg)| {
        let before = layers.get(..*index).unwrap_or_default();
        before.iter().any(|other| other.is_same(layer))
    };
    let found = layers.iter().enumerate().find(is_double);
    found.map(|(_, layer)| layer)
}
