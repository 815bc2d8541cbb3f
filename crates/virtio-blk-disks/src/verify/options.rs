// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The verifying layer's options.

use std::sync::Arc;

use serde::Deserialize;
use virtio_blk_core::disk::Disk;

use super::{Verify, VerifyDisk};
use crate::layer::Layered;
use crate::stack::{LayerContext, LayerOptions, Shape, StackError};

/// A [`VerifyDisk`] by name: `verify`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyOptions {}

impl LayerOptions for VerifyOptions {
    type Layer = Verify;

    const NAME: &'static str = "verify";
    const SHAPE: Shape = Shape::Alone;
    const MANUAL: &'static str = "  \
  verify                  remember checksums and fail reads that lie; takes
                          50 bytes of memory a sector";

    fn changed(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn build(
        &self,
        inner: Arc<dyn Disk>,
        _: &LayerContext<'_>,
    ) -> Result<Layered<Verify>, StackError> {
        Ok(VerifyDisk::new(inner))
    }
}
