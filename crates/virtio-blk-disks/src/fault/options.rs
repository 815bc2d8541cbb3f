// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The fault layer's options.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use virtio_blk_core::disk::Disk;

use super::{Fault, FaultDisk, FaultPlan, Kind, Rule};
use crate::disk_arg::{parsed, seconds};
use crate::layer::Layered;
use crate::stack::{LayerContext, LayerOptions, Shape, StackError};

/// A [`FaultDisk`] with a plain plan by name: `fault=seed:7/errors:10/reorder:on`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FaultOptions {
    /// What its random numbers follow from.
    #[serde(deserialize_with = "seed")]
    pub seed: u64,
    /// So many of a thousand operations fail with `EIO`, without having had an effect.
    #[serde(deserialize_with = "per_mille")]
    pub errors: u32,
    /// So many of a thousand changes fail with `EIO` after a part of them was done.
    #[serde(deserialize_with = "per_mille")]
    pub torn: u32,
    /// The longest time by which a completion comes late. Each is drawn from zero up to it.
    #[serde(deserialize_with = "seconds")]
    pub delay: Duration,
    /// Completions come out of order.
    pub reorder: bool,
}

fn seed<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    parsed(from, |text| text.parse().map_err(|_| "a whole number"))
}

fn per_mille<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    parsed(from, |text| {
        let rate = text.parse().ok().filter(|rate| *rate <= 1000);
        rate.ok_or("0 to 1000 (of a thousand operations)")
    })
}

impl FaultOptions {
    fn plan(&self) -> FaultPlan {
        let mut plan = FaultPlan::new(self.seed);
        if self.errors != 0 {
            plan = plan.rule(Rule::errno(libc::EIO).per_mille(self.errors));
        }
        if self.torn != 0 {
            let kinds = [
                Kind::Write,
                Kind::WriteZeroes,
                Kind::Discard,
                Kind::SecureErase,
            ];
            for kind in kinds {
                let rule = Rule::errno(libc::EIO).torn().kind(kind);
                plan = plan.rule(rule.per_mille(self.torn));
            }
        }
        if self.delay != Duration::ZERO {
            plan = plan.delay_time(Duration::ZERO..=self.delay);
        }
        if self.reorder {
            plan = plan.reorder();
        }
        plan
    }
}

impl LayerOptions for FaultOptions {
    type Layer = Fault;

    const NAME: &'static str = "fault";
    const SHAPE: Shape = Shape::Options;
    const MANUAL: &'static str = "  \
  fault=[seed:N][/errors:PER_MILLE][/torn:PER_MILLE][/delay:SECONDS]
        [/reorder:on]     misbehave, for tests";

    fn changed(&self) -> Vec<(&'static str, String)> {
        let mut changed = vec![("seed", self.seed.to_string())];
        for (word, rate) in [("errors", self.errors), ("torn", self.torn)] {
            if rate != 0 {
                changed.push((word, rate.to_string()));
            }
        }
        if self.delay != Duration::ZERO {
            changed.push(("delay", self.delay.as_secs_f64().to_string()));
        }
        if self.reorder {
            changed.push(("reorder", "on".to_owned()));
        }
        changed
    }

    fn build(
        &self,
        inner: Arc<dyn Disk>,
        _: &LayerContext<'_>,
    ) -> Result<Layered<Fault>, StackError> {
        Ok(FaultDisk::new(inner, self.plan()))
    }
}
