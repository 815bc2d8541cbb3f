// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The form with a virtual machine: mini-vmm's built-in guest drives the device.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mini_vmm::{BuiltinGuest, GuestEvent};
use vdpa_bus::VdpaDevice;

use crate::moves::Moves;
use crate::stages::{Failure, Stages};
use crate::{PATIENCE, START, Seen, say};

/// Starts the guest on `device`, moves it, and has it finish.
///
/// # Errors
/// [`Failure::NoGuest`] where KVM can't run it, [`Failure::Work`] if it or a move failed.
pub fn run(device: Arc<dyn VdpaDevice>, stages: &Stages<Seen>) -> Result<Seen, Failure> {
    let guest = BuiltinGuest::start(device.clone()).map_err(no_guest)?;
    match wait(&guest, START)? {
        Some(GuestEvent::Line(said)) => say(format_args!(
            "A virtual machine of mini-vmm, with a vDPA device as its disk:\n  {said}"
        ))?,
        other => {
            return Err(Failure::NoGuest(format!(
                "its guest does not run: {other:?}"
            )));
        }
    }
    stages.running();

    let mut moves = Moves::make(guest.paths(), |time| {
        let start = Instant::now();
        loop {
            match wait(&guest, time.saturating_sub(start.elapsed()))? {
                Some(GuestEvent::Line(said)) => say(format_args!("  {said}"))?,
                Some(_) => return Err("the guest ended before it was told to".into()),
                None => return Ok(()),
            }
        }
    })?;
    guest.finish();
    let mut compared = None;
    loop {
        match wait(&guest, PATIENCE)? {
            Some(GuestEvent::Line(said)) => {
                say(format_args!("  {said}"))?;
                compared = compared.or(chunks(&said));
            }
            Some(_) => break,
            None => return Err(work("the guest does not end")),
        }
    }
    let compared = compared.ok_or_else(|| work("the guest does not say what it compared"))?;
    moves.finish(&*device, compared)?;
    Ok(Seen { moves, compared })
}

/// What the guest does within `time`.
fn wait(guest: &BuiltinGuest, time: Duration) -> Result<Option<GuestEvent>, Failure> {
    match guest.next_event(time) {
        Some(GuestEvent::Failed(error)) => Err(no_guest(error)),
        Some(GuestEvent::Ended(status)) if status != 0 => Err(work(&format!(
            "the guest ended with status {status}; its last line says why"
        ))),
        event => Ok(event),
    }
}

/// How many chunks were compared, if the guest says that.
fn chunks(said: &str) -> Option<u64> {
    let rest = said.strip_prefix("guest: wrote, flushed, read and compared ")?;
    rest.split(' ').next()?.parse().ok()
}

fn no_guest(error: mini_vmm::Error) -> Failure {
    Failure::NoGuest(match error {
        mini_vmm::Error::NoKvm(source) => format!("/dev/kvm can't be opened ({source})"),
        other => other.to_string(),
    })
}

fn work(why: &str) -> Failure {
    Failure::Work(why.into())
}
