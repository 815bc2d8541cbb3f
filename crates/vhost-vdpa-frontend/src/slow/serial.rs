// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The one request that no operation of a disk stands for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_blk_core::disk::DiskError;
use virtio_blk_driver::ring::{Chain, RingError};
use virtio_blk_driver::{Memory, Segment, wire};
use vm_memory::GuestAddress;

use super::Shared;
use super::lane::Lane;
use crate::lock;

/// How long the answer may take, where the options don't say.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks for the serial number on a queue that nobody else has, and gives that back.
pub(super) fn get(shared: &Arc<Shared>, mut lane: Lane) -> Result<Vec<u8>, DiskError> {
    let answer = ask(shared, &mut lane);
    if let Err(error) = &answer {
        shared.give_up(error);
    }
    lock(&shared.lanes).push(lane);
    match answer.ok().flatten() {
        Some(mut id) => {
            let len = id.iter().position(|&byte| byte == 0).unwrap_or(id.len());
            id.truncate(len);
            Ok(id)
        }
        None => Err(DiskError::from_errno(libc::EIO)),
    }
}

/// `None`: the device answered, but not with a serial number.
fn ask(shared: &Shared, lane: &mut Lane) -> Result<Option<Vec<u8>>, RingError> {
    let (Some(slot), Some(bounce)) = (lane.take_slot(), lane.take_bounce()) else {
        return Ok(None);
    };
    let window = &shared.window;
    let place = lane.slot(slot);
    let data = GuestAddress(lane.bounce(bounce));
    lane.prepare(window, place, &wire::header(wire::T_GET_ID, 0, 0))?;
    let chain = Chain {
        readable: &[place.header()],
        writable: &[Segment::new(data, wire::ID_LEN), place.status()],
        indirect: None,
    };
    lane.ring.add(window, &chain, 0)?;
    lane.ring.publish(window)?;
    if lane.ring.needs_kick(window)? {
        shared.device.kick_vq(lane.index);
    }
    let deadline = Instant::now() + shared.options.timeout.unwrap_or(PATIENCE);
    while lane.ring.poll_used(window)?.is_none() {
        if Instant::now() >= deadline {
            shared.give_up(&"it did not answer GET_ID");
            return Ok(None);
        }
        std::thread::yield_now();
    }
    let mut id = vec![0; wire::ID_LEN as usize];
    window.read_at(data, &mut id)?;
    let ok = lane.status(window, place) == wire::S_OK;
    lane.give_slot(slot);
    lane.give_bounce(bounce);
    Ok(ok.then_some(id))
}
