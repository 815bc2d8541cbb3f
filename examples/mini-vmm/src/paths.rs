// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The two paths of a vDPA device's requests, and who decides between them.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vhost_vdpa_frontend::{Path, PathSwitch, Policy, SwitchOptions, SwitchParts, ThreadHost};
use virtio_blk_disks::stack::{Groups, LayerSpec, Stack};

use crate::disks::VdpaDisk;
use crate::error::{Error, Result};
use crate::gate::Gate;
use crate::memory::Memory;
use crate::virtio::vdpa::Switch;

/// The path that is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Wanted {
    /// From the guest's rings straight into the device
    Fast,
    /// Through the VMM
    Slow,
    /// Slow while a layer needs to see requests, fast otherwise
    #[default]
    Auto,
}

/// Requests of a device under emulation take their time.
const PATIENCE: Duration = Duration::from_secs(30);

/// A device's paths.
pub struct Paths {
    pub switch: Arc<Switch>,
    stack: Option<Stack>,
}

impl Paths {
    pub fn new(disk: &VdpaDisk, memory: Memory, gate: Arc<Gate>) -> Result<Self> {
        let made = Arc::new(OnceLock::new());
        let (cell, specs) = (made.clone(), disk.layers.clone());
        let layers = move |slow| {
            let stack = Stack::fixed(Arc::clone(&slow), &specs, Groups::default());
            let stack = cell.get_or_init(|| stack);
            stack.as_ref().map_or(slow, Stack::disk)
        };
        let parts = SwitchParts {
            device: disk.device.clone(),
            memory,
            host: Box::new(ThreadHost::new(Duration::ZERO)),
            vmm: gate,
            layers: (!disk.layers.is_empty()).then(|| Box::new(layers) as _),
        };
        let options = SwitchOptions {
            policy: Policy::Auto,
            quiesce: PATIENCE,
            drain: PATIENCE,
            ..SwitchOptions::default()
        };
        let switch = PathSwitch::new(parts, options);
        let switch = switch.map_err(|error| Error::Control(error.to_string()))?;
        let stack = Arc::into_inner(made).and_then(OnceLock::into_inner);
        let stack = stack.transpose();
        let paths = Self {
            stack: stack.map_err(|error| Error::Control(error.to_string()))?,
            switch: Arc::new(switch),
        };
        paths.follow_layers()?;
        paths.want(disk.wanted)?;
        Ok(paths)
    }

    fn follow(&self, reason: &'static str, needed: bool) -> Result<()> {
        let followed = self.switch.follow(reason, needed);
        followed.map_err(|error| Error::Control(error.to_string()))
    }

    fn follow_layers(&self) -> Result<()> {
        let sees = self.stack.as_ref().is_some_and(Stack::sees_requests);
        self.follow("layers", sees)
    }

    /// Moves the guest, at once if its driver runs.
    pub fn want(&self, wanted: Wanted) -> Result<()> {
        self.follow("asked for", wanted == Wanted::Slow)?;
        let needs = self.switch.reasons();
        match wanted {
            Wanted::Fast if self.switch.path() == Path::Slow => Err(Error::Control(format!(
                "it stays slow: {}",
                needs.join(", ")
            ))),
            _ => Ok(()),
        }
    }

    /// Replaces the layers by others of the same kinds; the path follows.
    pub fn set_layers(&self, layers: &[LayerSpec]) -> Result<()> {
        let stack = self.stack.as_ref();
        let stack = stack.ok_or_else(|| Error::Control("it was given no layers".to_owned()))?;
        let changed = stack.change(layers);
        changed.map_err(|error| Error::Control(error.to_string()))?;
        self.follow_layers()
    }
}
