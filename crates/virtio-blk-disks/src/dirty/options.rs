// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The dirty bitmap's options.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Deserializer};
use virtio_blk_core::disk::{Disk, DiskError};

use super::{Dirty, DirtyDisk, PersistOptions};
use crate::disk_arg::{ArgError, Size, bytes, checked_name, parsed};
use crate::layer::Layered;
use crate::stack::{LayerContext, LayerOptions, Shape, StackError};

/// Bytes of a dirty bitmap's block where nothing else is said.
pub const GRANULARITY: u64 = 64 << 10;

/// A [`DirtyDisk`] with one bitmap by name: `dirty=backup/granularity:1M`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "Words")]
pub struct DirtyOptions {
    /// The bitmap's name.
    pub name: String,
    /// Bytes of a block, see [`super::DirtyBitmap::new`]. Of the disk's own bitmap, it is that of the bitmap.
    pub granularity: u64,
    /// Where it is kept over restarts.
    pub persist: Option<PersistOptions>,
}

impl Default for DirtyOptions {
    fn default() -> Self {
        Words::default().into()
    }
}

/// The options as they are written.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Words {
    #[serde(deserialize_with = "granularity")]
    granularity: u64,
    #[serde(deserialize_with = "path")]
    persist: Option<PathBuf>,
    sync: Option<bool>,
}

impl Default for Words {
    fn default() -> Self {
        Self {
            granularity: GRANULARITY,
            persist: None,
            sync: None,
        }
    }
}

impl From<Words> for DirtyOptions {
    fn from(words: Words) -> Self {
        let sync = words.sync.unwrap_or_default();
        // Without a path, `sync` alone is found by `validate`.
        let alone = words.sync.map(|_| PathBuf::new());
        Self {
            name: String::new(),
            granularity: words.granularity,
            persist: words
                .persist
                .or(alone)
                .map(|path| PersistOptions { path, sync }),
        }
    }
}

fn granularity<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    parsed(from, |text| {
        bytes(text)
            .filter(|bytes| bytes.is_power_of_two() && *bytes >= 512)
            .ok_or("a power of two from 512 (bytes), such as 64K")
    })
}

fn path<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
    parsed(from, |text| {
        let last = text.rsplit('/').next().unwrap_or(text);
        let is_option = ["granularity:", "sync:"]
            .iter()
            .any(|word| last.starts_with(word));
        match text {
            "" => Err("the path of a file"),
            // In text it could not be told from them.
            _ if is_option && last != text => {
                Err("a path whose last part does not begin as an option of this layer does")
            }
            _ => Ok(Some(text.into())),
        }
    })
}

fn refused(error: super::BitmapError) -> DiskError {
    DiskError::Config(error.to_string())
}

impl LayerOptions for DirtyOptions {
    type Layer = Dirty;

    const NAME: &'static str = "dirty";
    const SHAPE: Shape = Shape::Target("dirty=backup");
    const MANUAL: &'static str = "  \
  dirty=NAME[/granularity:SIZE][/persist:FILE[/sync:on]]
                          mark changed blocks (64K); kept in a file they
                          outlive kill -9, with sync:on a power cut. Without
                          a file, the bitmap NAME of a qcow2 image is used
                          if it has one";
    const PATH: Option<&'static str> = Some("persist");

    fn set_target(&mut self, target: &str) -> Result<(), ArgError> {
        self.name = checked_name(target).map_err(|allowed| ArgError::Value {
            option: "dirty".into(),
            value: target.to_owned(),
            allowed: allowed.into(),
        })?;
        Ok(())
    }

    fn target(&self) -> Option<String> {
        Some(self.name.clone())
    }

    fn changed(&self) -> Vec<(&'static str, String)> {
        let mut changed = Vec::new();
        if self.granularity != GRANULARITY {
            changed.push(("granularity", Size(self.granularity).to_string()));
        }
        if let Some(persist) = &self.persist {
            if persist.sync {
                changed.push(("sync", "on".to_owned()));
            }
            // Last: it may have slashes.
            changed.push(("persist", persist.path.to_string_lossy().into_owned()));
        }
        changed
    }

    fn validate(&self) -> Result<(), ArgError> {
        match &self.persist {
            Some(persist) if persist.path.as_os_str().is_empty() => Err(ArgError::NoValue {
                layer: "sync",
                example: "dirty=backup/sync:on/persist:/var/lib/backup.bitmap",
            }),
            _ => Ok(()),
        }
    }

    fn identity(&self) -> Option<String> {
        Some(self.name.clone())
    }

    fn build(
        &self,
        inner: Arc<dyn Disk>,
        _: &LayerContext<'_>,
    ) -> Result<Layered<Dirty>, StackError> {
        let persist = self.persist.as_ref();
        let disk = DirtyDisk::open(inner, &self.name, self.granularity, persist);
        Ok(disk.map_err(refused)?)
    }

    fn leave(disk: &Layered<Dirty>) -> Result<(), DiskError> {
        disk.forget().map_err(refused)
    }
}
