// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Layers that were made.

use std::any::Any;
use std::sync::Arc;

use virtio_blk_core::disk::{Disk, DiskError};

use super::options::LayerContext;
use super::{LayerSpec, StackError};
use crate::layer::{Layer, Layered};

/// The disk of a layer whose type is not known.
#[derive(Clone)]
pub(super) struct AnyDisk {
    disk: Arc<dyn Disk>,
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

/// A layer with its options.
#[derive(Clone)]
pub(super) struct Built {
    pub(super) spec: LayerSpec,
    disk: AnyDisk,
}

impl Built {
    /// Makes a layer over `inner`. What the same layer knew `before` is kept.
    pub(super) fn new(
        spec: &LayerSpec,
        inner: Arc<dyn Disk>,
        before: &[Self],
        context: &LayerContext<'_>,
    ) -> Result<Self, StackError> {
        let before = before.iter().find(|built| built.spec.is_same(spec));
        let before = before.filter(|built| built.can_become(spec));
        let before = before.map(|built| &built.disk);
        Ok(Self {
            spec: spec.clone(),
            disk: spec.0.build(inner, before, context)?,
        })
    }

    /// Has the settings hold that can change while the layer is at work.
    pub(super) fn apply(&self) -> Result<(), DiskError> {
        self.spec.0.apply(&self.disk)
    }

    /// Does what a layer needs that is about to be removed while the disk is in use.
    pub(super) fn leave(&self) -> Result<(), DiskError> {
        self.spec.0.leave(&self.disk)
    }

    /// The layer's options as they are now: of a throttle, the limits of its group.
    pub(super) fn current(&self) -> LayerSpec {
        self.spec.0.current(&self.disk)
    }

    /// Whether it is the layer of that name with other settings, which it can take over as it is.
    pub(super) fn can_become(&self, spec: &LayerSpec) -> bool {
        self.spec == *spec || self.spec.0.adapts() && self.spec.is_same(spec)
    }

    /// Whether it needs to see requests.
    pub(super) fn sees_requests(&self) -> bool {
        self.spec.0.sees_requests(&self.disk)
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

/// Makes one layer of those that are parts of one, as `rerror` and `werror`.
pub(super) fn merge(layers: &[LayerSpec]) -> Vec<LayerSpec> {
    let mut merged: Vec<LayerSpec> = Vec::with_capacity(layers.len());
    for layer in layers {
        let both = |known: &mut LayerSpec| {
            *known = known.0.merged(layer)?;
            Some(())
        };
        if merged.iter_mut().find_map(both).is_none() {
            merged.push(layer.clone());
        }
    }
    merged
}

/// Two of these layers would be one and the same.
pub(super) fn find_double(layers: &[LayerSpec]) -> Option<&LayerSpec> {
    let is_double = |(index, layer): &(usize, &LayerSpec)| {
        let before = layers.get(..*index).unwrap_or_default();
        before.iter().any(|other| other.is_same(layer))
    };
    let found = layers.iter().enumerate().find(is_double);
    found.map(|(_, layer)| layer)
}
