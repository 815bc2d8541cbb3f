// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Stopping a device that works on the guest's rings, at an instant at which nothing is in flight.
//!
//! What is in flight can't be read from a split ring: a device returns requests in any order. So no other instant
//! will do for going over to another device, or another user of the ring.

use std::time::{Duration, Instant};

use vdpa_bus::{VdpaDevice, VdpaError, VqState, backend_feature};

use virtio_blk_core::spec::feature;

use super::{Guest, RingView};
use crate::PathError;
use crate::error::{DeviceStep, Step};

/// How long to wait between two looks.
const POLL_INTERVAL: Duration = Duration::from_micros(20);
/// How long a device that was resumed, as it was not drained, runs on before the next attempt.
const RETRY_DELAY: Duration = Duration::from_micros(200);

/// Where each queue stands. Nothing is in flight.
pub(crate) type QueuePositions = Vec<(u16, VqState)>;

/// Why a device was not stopped.
#[derive(Debug)]
pub(crate) enum QuiesceError {
    /// It runs, without kicks.
    Running(PathError),
    /// It is suspended with requests in flight, and could not be resumed.
    Stuck(PathError),
}

impl QuiesceError {
    /// The cause.
    pub(crate) fn into_source(self) -> PathError {
        match self {
            Self::Running(source) | Self::Stuck(source) => source,
        }
    }
}

impl From<PathError> for QuiesceError {
    fn from(source: PathError) -> Self {
        Self::Running(source)
    }
}

fn position(view: &RingView, index: u16) -> (u16, VqState) {
    let avail_index = view.used_idx();
    (index, VqState::Split { avail_index })
}

/// Makes the device listen to no kicks, or to the guest's again. Those of the meantime collect in the eventfds.
pub(crate) fn bind_kicks(
    device: &dyn VdpaDevice,
    guest: &Guest,
    bind: bool,
) -> Result<(), PathError> {
    for (index, queue) in guest.enabled() {
        let kick = bind.then(|| queue.kick.clone());
        device
            .set_vq_kick(index, kick)
            .step(DeviceStep::BindKicks)?;
    }
    Ok(())
}

/// Binds the kicks again, and kicks: the kernel may have lost one that it saw while it was being suspended.
pub(crate) fn rebind_and_kick(device: &dyn VdpaDevice, guest: &Guest) -> Result<(), PathError> {
    bind_kicks(device, guest, true)?;
    for (index, _) in guest.enabled() {
        device.kick_vq(index);
    }
    Ok(())
}

/// Method A: by SUSPEND. Also counts how often it was tried.
pub(crate) fn suspend(
    device: &dyn VdpaDevice,
    guest: &Guest,
    deadline: Instant,
    attempts: &mut u32,
) -> Result<QueuePositions, QuiesceError> {
    // A packed ring has no index to compare with: what SUSPEND promises must do.
    let packed = guest.features & feature::RING_PACKED != 0;
    let views = if packed { Vec::new() } else { guest.rings()? };
    let can_resume = device.get_backend_features() & backend_feature::RESUME != 0;
    loop {
        *attempts += 1;
        bind_kicks(device, guest, false)?;
        device.suspend().step(DeviceStep::Suspend)?;
        let states = match states(device, guest) {
            Ok(states) => states,
            Err(why) => return Err(resume_after(device, can_resume, why)),
        };
        // What was fetched before the suspension may still end.
        let patience = if can_resume {
            Instant::now() + RETRY_DELAY
        } else {
            deadline
        };
        loop {
            match drained(&views, &states) {
                Ok(true) => return Ok(states),
                Ok(false) if Instant::now() < patience => std::thread::sleep(POLL_INTERVAL),
                Ok(false) => break,
                Err(why) => return Err(resume_after(device, can_resume, why)),
            }
        }
        let late = PathError::Busy("requests in flight don't end");
        if !can_resume {
            return Err(QuiesceError::Stuck(late));
        }
        device
            .resume()
            .step(DeviceStep::Resume)
            .map_err(QuiesceError::Stuck)?;
        rebind_and_kick(device, guest)?;
        if Instant::now() >= deadline {
            return Err(late.into());
        }
        std::thread::sleep(RETRY_DELAY);
    }
}

/// The error of a device that is suspended, after its return to work.
fn resume_after(device: &dyn VdpaDevice, can_resume: bool, source: PathError) -> QuiesceError {
    if can_resume && device.resume().is_ok() {
        QuiesceError::Running(source)
    } else {
        QuiesceError::Stuck(source)
    }
}

fn states(device: &dyn VdpaDevice, guest: &Guest) -> Result<QueuePositions, PathError> {
    guest
        .enabled()
        .map(|(index, _)| {
            Ok((
                index,
                device
                    .get_vq_state(index)
                    .step(DeviceStep::ReadQueueState)?,
            ))
        })
        .collect()
}

/// Whether nothing is in flight at `states`.
fn drained(views: &[(u16, RingView)], states: &QueuePositions) -> Result<bool, PathError> {
    let mut all = true;
    for ((index, view), (_, state)) in views.iter().zip(states) {
        let VqState::Split { avail_index } = *state else {
            return Err(PathError::Queue {
                index: *index,
                why: "it is a packed ring".to_owned(),
            });
        };
        let pending = view.avail_idx().wrapping_sub(avail_index);
        if pending > view.layout().size() {
            return Err(PathError::Queue {
                index: *index,
                why: format!(
                    "the guest made {pending} requests available in a ring of {}",
                    view.layout().size()
                ),
            });
        }
        all &= avail_index == view.used_idx();
    }
    Ok(all)
}

/// Waits while the device, which gets no kicks, still returns requests; at most until `deadline`.
pub(crate) fn wait_while_completing(guest: &Guest, deadline: Instant) -> Result<(), PathError> {
    let views = guest.rings()?;
    let used = || -> Vec<u16> { views.iter().map(|(_, view)| view.used_idx()).collect() };
    let mut last = used();
    while Instant::now() < deadline {
        std::thread::sleep(RETRY_DELAY);
        let now = used();
        if now == last {
            break;
        }
        last = now;
    }
    Ok(())
}

/// Waits until everything that the guest made available is used. The guest does not run, or gives no kicks.
fn wait_drained(guest: &Guest, deadline: Instant) -> Result<Option<QueuePositions>, PathError> {
    let views = guest.rings()?;
    loop {
        if views
            .iter()
            .all(|(_, view)| view.used_idx() == view.avail_idx())
        {
            return Ok(Some(
                views
                    .iter()
                    .map(|(index, view)| position(view, *index))
                    .collect(),
            ));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Method B, with the guest stopped by the caller: everything available is consumed. Nothing was reset yet.
pub(crate) fn drain(
    device: &dyn VdpaDevice,
    guest: &Guest,
    deadline: Instant,
) -> Result<QueuePositions, QuiesceError> {
    rebind_and_kick(device, guest)?;
    match wait_drained(guest, deadline)? {
        Some(states) => Ok(states),
        None => Err(PathError::Busy("requests in flight don't end").into()),
    }
}

/// Resets, twice if need be.
pub(crate) fn reset(device: &dyn VdpaDevice) -> Result<(), PathError> {
    match device.reset() {
        Err(VdpaError::Gone) => Err(VdpaError::Gone).step(DeviceStep::Reset),
        Err(_) => device.reset().step(DeviceStep::Reset),
        Ok(()) => Ok(()),
    }
}
