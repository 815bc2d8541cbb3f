// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The meter's options.

use std::sync::Arc;

use serde::Deserialize;
use virtio_blk_core::disk::Disk;

use super::{Meter, MeterDisk};
use crate::layer::Layered;
use crate::stack::{LayerContext, LayerOptions, Shape, StackError};

/// A [`MeterDisk`] by name: `meter`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeterOptions {}

impl LayerOptions for MeterOptions {
    type Layer = Meter;

    const NAME: &'static str = "meter";
    const SHAPE: Shape = Shape::Alone;
    const MANUAL: &'static str = "  \
  meter                   count and time operations; --metrics brings it along";

    fn changed(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn build(
        &self,
        inner: Arc<dyn Disk>,
        _: &LayerContext<'_>,
    ) -> Result<Layered<Meter>, StackError> {
        Ok(MeterDisk::new(inner))
    }
}
