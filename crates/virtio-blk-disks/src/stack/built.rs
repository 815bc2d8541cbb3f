// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Layers that were made.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use virtio_blk_core::disk::{Disk, DiskError};

use super::{FaultSpec, Groups, LayerSpec, StackError};
use crate::policy::{ErrorPolicy, OnError, PolicyListeners};
use crate::throttle::Limits;
use crate::{
    DirtyDisk, FaultDisk, FaultPlan, MeterDisk, PolicyDisk, SpecError, ThrottleDisk, ThrottleGroup,
    VerifyDisk,
    fault::{Kind, Rule},
};

/// A layer that was made.
#[derive(Clone)]
pub(super) enum Layer {
    Throttle(Arc<ThrottleDisk>),
    Dirty(Arc<DirtyDisk>),
    Errors(Arc<PolicyDisk>),
    Meter(Arc<MeterDisk>),
    Verify(Arc<VerifyDisk>),
    Fault(Arc<FaultDisk>),
}

/// A layer with its name.
#[derive(Clone)]
pub(super) struct Built {
    pub(super) spec: LayerSpec,
    pub(super) layer: Layer,
}

fn refused(error: impl Error) -> DiskError {
    DiskError::Config(error.to_string())
}

fn plan(fault: &FaultSpec) -> FaultPlan {
    let mut plan = FaultPlan::new(fault.seed);
    if fault.errors != 0 {
        plan = plan.rule(Rule::errno(libc::EIO).per_mille(fault.errors));
    }
    if fault.torn != 0 {
        let kinds = [
            Kind::Write,
            Kind::WriteZeroes,
            Kind::Discard,
            Kind::SecureErase,
        ];
        for kind in kinds {
            let rule = Rule::errno(libc::EIO).torn().kind(kind);
            plan = plan.rule(rule.per_mille(fault.torn));
        }
    }
    if fault.delay != Duration::ZERO {
        plan = plan.delay_time(Duration::ZERO..=fault.delay);
    }
    if fault.reorder {
        plan = plan.reorder();
    }
    plan
}

fn policy(read: Option<OnError>, write: Option<OnError>) -> ErrorPolicy {
    ErrorPolicy {
        read: read.unwrap_or_default(),
        write: write.unwrap_or_default(),
    }
}

/// What layers are made from, beside their names.
#[derive(Clone, Copy)]
pub(super) struct Origin<'a> {
    /// The layers that were there before.
    pub(super) before: &'a [Built],
    pub(super) groups: &'a Groups,
    /// Who is told of operations that are kept.
    pub(super) listeners: &'a Arc<PolicyListeners>,
}

impl Built {
    /// Makes a layer over `inner`. What the same layer knew before is kept.
    pub(super) fn new(
        spec: &LayerSpec,
        inner: Arc<dyn Disk>,
        origin: Origin<'_>,
    ) -> Result<Self, StackError> {
        let before = origin.before.iter().find(|built| built.spec.is_same(spec));
        let is_equal = before.is_some_and(|built| built.spec == *spec);
        let layer = match (spec, before.map(|built| &built.layer)) {
            (LayerSpec::Throttle { limits, group }, before) => {
                let group = match (group, before) {
                    // A member may change the limits of all.
                    (_, Some(Layer::Throttle(before))) => before.group().clone(),
                    (Some(name), _) => origin.groups.join(name, *limits)?,
                    (None, _) => ThrottleGroup::new(*limits).map_err(SpecError::from)?,
                };
                Layer::Throttle(Arc::new(match before {
                    Some(Layer::Throttle(before)) => before.over(inner),
                    _ => ThrottleDisk::new(inner, group),
                }))
            }
            (LayerSpec::Dirty { .. }, Some(Layer::Dirty(before))) if is_equal => {
                Layer::Dirty(Arc::new(before.over(inner)))
            }
            (
                LayerSpec::Dirty {
                    name,
                    granularity,
                    persist,
                },
                _,
            ) => {
                let disk = DirtyDisk::open(inner, name, *granularity, persist.as_ref());
                Layer::Dirty(Arc::new(disk.map_err(refused)?))
            }
            (LayerSpec::Errors { .. }, Some(Layer::Errors(before))) => {
                Layer::Errors(Arc::new(before.over(inner)))
            }
            (LayerSpec::Errors { read, write }, _) => {
                let listeners = origin.listeners.clone();
                let policy = policy(*read, *write);
                Layer::Errors(Arc::new(PolicyDisk::with_listeners(
                    inner, policy, listeners,
                )))
            }
            (LayerSpec::Meter, Some(Layer::Meter(before))) => {
                Layer::Meter(Arc::new(before.over(inner)))
            }
            (LayerSpec::Meter, _) => Layer::Meter(Arc::new(MeterDisk::new(inner))),
            (LayerSpec::Verify, Some(Layer::Verify(before))) => {
                Layer::Verify(Arc::new(before.over(inner)))
            }
            (LayerSpec::Verify, _) => Layer::Verify(Arc::new(VerifyDisk::new(inner))),
            (LayerSpec::Fault(_), Some(Layer::Fault(before))) if is_equal => {
                Layer::Fault(Arc::new(before.over(inner)))
            }
            (LayerSpec::Fault(fault), _) => {
                Layer::Fault(Arc::new(FaultDisk::new(inner, plan(fault))))
            }
        };
        Ok(Self {
            spec: spec.clone(),
            layer,
        })
    }

    /// Has the settings hold that can change while the layer is at work.
    pub(super) fn apply(&self) -> Result<(), DiskError> {
        match (&self.spec, &self.layer) {
            (LayerSpec::Throttle { limits, group }, Layer::Throttle(disk)) => {
                // A member of a group that says nothing takes the group's limits.
                let is_said = group.is_none() || *limits != Limits::default();
                if is_said && *limits != disk.group().limits() {
                    disk.group().set_limits(*limits).map_err(refused)?;
                }
            }
            (LayerSpec::Errors { read, write }, Layer::Errors(disk)) => {
                let policy = policy(*read, *write);
                if policy != disk.policy() {
                    disk.set_policy(policy);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Does what a layer needs that is about to be removed while the disk is in use.
    pub(super) fn leave(&self) -> Result<(), DiskError> {
        match &self.layer {
            Layer::Dirty(disk) => disk.forget().map_err(refused),
            _ => Ok(()),
        }
    }

    /// The name of the layer as it is now: of a throttle, the limits of its group.
    pub(super) fn now(&self) -> LayerSpec {
        match (&self.spec, &self.layer) {
            (LayerSpec::Throttle { group, .. }, Layer::Throttle(disk)) => LayerSpec::Throttle {
                limits: disk.group().limits(),
                group: group.clone(),
            },
            (spec, _) => spec.clone(),
        }
    }

    /// Whether it is the layer of that name with other settings, which it can take over as it is.
    pub(super) fn can_become(&self, spec: &LayerSpec) -> bool {
        let adapts = matches!(self.layer, Layer::Throttle(_) | Layer::Errors(_));
        self.spec == *spec || adapts && self.spec.is_same(spec)
    }

    /// The layer as a disk.
    pub(super) fn disk(&self) -> Arc<dyn Disk> {
        match &self.layer {
            Layer::Throttle(disk) => disk.clone(),
            Layer::Dirty(disk) => disk.clone(),
            Layer::Errors(disk) => disk.clone(),
            Layer::Meter(disk) => disk.clone(),
            Layer::Verify(disk) => disk.clone(),
            Layer::Fault(disk) => disk.clone(),
        }
    }
}

/// Makes one layer of `rerror` and `werror`.
pub(super) fn merge(layers: &[LayerSpec]) -> Vec<LayerSpec> {
    let mut merged: Vec<LayerSpec> = Vec::with_capacity(layers.len());
    for layer in layers {
        let known = merged.iter_mut().find_map(|known| match known {
            LayerSpec::Errors { read, write } => Some((read, write)),
            _ => None,
        });
        match (layer, known) {
            (LayerSpec::Errors { read, write }, Some((known_read, known_write)))
                if read.and(*known_read).is_none() && write.and(*known_write).is_none() =>
            {
                *known_read = known_read.or(*read);
                *known_write = known_write.or(*write);
            }
            _ => merged.push(layer.clone()),
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
