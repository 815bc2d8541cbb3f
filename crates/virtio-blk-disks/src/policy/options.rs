// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The error policy's options.

use std::sync::Arc;

use serde::{Deserialize, Deserializer};
use virtio_blk_core::disk::{Disk, DiskError};

use super::{ErrorPolicy, OnError, Policy, PolicyDisk};
use crate::layer::Layered;
use crate::stack::{LayerContext, LayerOptions, Shape, StackError};

/// A [`PolicyDisk`] by name: `errors=rerror:stop/werror:enospc`, `rerror=stop`. What is not said is reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ErrorsOptions {
    /// For reads; never [`OnError::Enospc`].
    #[serde(rename = "rerror", deserialize_with = "on_read_error")]
    pub read: Option<OnError>,
    /// For everything that changes the disk.
    #[serde(rename = "werror")]
    pub write: Option<OnError>,
}

/// Reads what is possible for reads: these take no space.
fn on_read_error<'de, D: Deserializer<'de>>(from: D) -> Result<Option<OnError>, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum OnReadError {
        Report,
        Stop,
    }
    Ok(Some(match OnReadError::deserialize(from)? {
        OnReadError::Report => OnError::Report,
        OnReadError::Stop => OnError::Stop,
    }))
}

impl ErrorsOptions {
    fn policy(self) -> ErrorPolicy {
        ErrorPolicy {
            read: self.read.unwrap_or_default(),
            write: self.write.unwrap_or_default(),
        }
    }
}

impl LayerOptions for ErrorsOptions {
    type Layer = Policy;

    const NAME: &'static str = "errors";
    const SHAPE: Shape = Shape::SomeOption("errors=rerror:stop/werror:enospc");
    const SHORT: &'static [&'static str] = &["rerror", "werror"];
    const MANUAL: &'static str = "  \
  rerror=report|stop, werror=report|stop|enospc
                          keep reads or changes that the host failed (enospc:
                          for want of space) until `vblk ctl SOCKET resume`,
                          as QEMU does (report)";
    const ADAPTS: bool = true;

    fn changed(&self) -> Vec<(&'static str, String)> {
        let given = [("rerror", self.read), ("werror", self.write)].into_iter();
        given
            .filter_map(|(word, on)| Some((word, on?.word().to_owned())))
            .collect()
    }

    fn merged(&self, other: &Self) -> Option<Self> {
        let contradict =
            other.read.and(self.read).is_some() || other.write.and(self.write).is_some();
        (!contradict).then(|| self.or(other))
    }

    fn or(self, old: &Self) -> Self {
        Self {
            read: self.read.or(old.read),
            write: self.write.or(old.write),
        }
    }

    fn build(
        &self,
        inner: Arc<dyn Disk>,
        context: &LayerContext<'_>,
    ) -> Result<Layered<Policy>, StackError> {
        let listeners = context.listeners.clone();
        Ok(PolicyDisk::with_listeners(inner, self.policy(), listeners))
    }

    fn apply(&self, disk: &Layered<Policy>) -> Result<(), DiskError> {
        if self.policy() != disk.policy() {
            disk.set_policy(self.policy());
        }
        Ok(())
    }
}
