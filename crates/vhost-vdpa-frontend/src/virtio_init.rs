// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Device initialization (virtio 1.4, 3.1): from the reset to DRIVER_OK, in the order that works on every parent.

use std::sync::Arc;

use vdpa_bus::{Callback, VdpaDevice, VqAddress, VqState};
use virtio_blk_core::spec::{feature, status};
use vmm_sys_util::eventfd::EventFd;

use crate::error::{DeviceStep, PathError, Step};

/// What a queue is started with.
#[derive(Clone, Debug)]
pub(crate) struct Ring {
    pub(crate) index: u16,
    pub(crate) size: u16,
    pub(crate) state: VqState,
    pub(crate) address: VqAddress,
    pub(crate) kick: Option<Arc<EventFd>>,
    pub(crate) callback: Option<Callback>,
}

/// Negotiates on a device that was just reset: up to FEATURES_OK, and sees that it stayed.
pub(crate) fn negotiate(device: &dyn VdpaDevice, features: u64) -> Result<(), PathError> {
    let mut byte = status::ACKNOWLEDGE;
    device.set_status(byte).step(DeviceStep::SetAcknowledge)?;
    byte |= status::DRIVER;
    device.set_status(byte).step(DeviceStep::SetDriver)?;
    device
        .set_driver_features(features)
        .step(DeviceStep::SetFeatures)?;
    byte |= status::FEATURES_OK;
    device.set_status(byte).step(DeviceStep::SetFeaturesOk)?;
    if device.get_status() & status::FEATURES_OK == 0 {
        return Err(PathError::Features(features));
    }
    Ok(())
}

/// Asks a device that [`negotiate`] left whether it starts a ring elsewhere than at its beginning; a real virtio-pci
/// device can't, and its parent (vp_vdpa) says so here. `None`: the answer was lost. The position set is of no effect, as
/// [`start`] sets that of each ring.
pub(crate) fn starts_midway(device: &dyn VdpaDevice, features: u64) -> Option<bool> {
    let state = if features & feature::RING_PACKED != 0 {
        VqState::Packed {
            last_avail_counter: true,
            last_avail_idx: 1,
            last_used_counter: true,
            last_used_idx: 1,
        }
    } else {
        VqState::Split { avail_index: 1 }
    };
    match device.set_vq_state(0, state) {
        Ok(()) => Some(true),
        // vhost says EINVAL for whatever its parent says.
        Err(error) if matches!(error.errno(), libc::EINVAL | libc::EOPNOTSUPP) => Some(false),
        Err(_) => None,
    }
}

/// Starts `rings` on a device that [`negotiate`] left, sees that DRIVER_OK stayed, and kicks each ring: a kick that
/// came earlier may be lost.
pub(crate) fn start(
    device: &dyn VdpaDevice,
    rings: &[Ring],
    config: Option<Callback>,
) -> Result<(), PathError> {
    for ring in rings {
        let vq = ring.index;
        device
            .set_vq_num(vq, ring.size.into())
            .step(DeviceStep::SetQueueSize)?;
        device
            .set_vq_state(vq, ring.state)
            .step(DeviceStep::SetQueueState)?;
        device
            .set_vq_address(vq, ring.address)
            .step(DeviceStep::SetQueueAddress)?;
        device
            .set_vq_kick(vq, ring.kick.clone())
            .step(DeviceStep::SetQueueKick)?;
        device
            .set_vq_cb(vq, ring.callback.clone())
            .step(DeviceStep::SetQueueCallback)?;
    }
    device
        .set_config_cb(config)
        .step(DeviceStep::SetConfigCallback)?;
    for ring in rings {
        device
            .set_vq_ready(ring.index, true)
            .step(DeviceStep::EnableQueue)?;
    }
    let byte = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
    device.set_status(byte).step(DeviceStep::SetDriverOk)?;
    // The kernel returns success also where the parent could not start the device.
    let found = device.get_status();
    if found & status::DRIVER_OK == 0 || found & status::FAILED != 0 {
        return Err(PathError::NotStarted(found));
    }
    for ring in rings {
        device.kick_vq(ring.index);
    }
    Ok(())
}
