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
use super::shadow_queue::ShadowQueue;
use crate::lock;

/// How long the request may take if the options set no limit.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks for the serial number on a queue that nobody else has, and gives that back.
pub(super) fn get(shared: &Arc<Shared>, mut shadow: ShadowQueue) -> Result<Vec<u8>, DiskError> {
    let answer = ask(shared, &mut shadow);
    if let Err(error) = &answer {
        shared.give_up(error);
    }
    lock(&shared.shadow_queues).push(shadow);
    match answer.ok().flatten() {
        Some(mut id) => {
            let len = id.iter().position(|&byte| byte == 0).unwrap_or(id.len());
            id.truncate(len);
            Ok(id)
        }
        None => Err(DiskError::from_errno(libc::EIO)),
    }
}

/// `None`: the request completed, but not with a serial number.
fn ask(shared: &Shared, shadow: &mut ShadowQueue) -> Result<Option<Vec<u8>>, RingError> {
    let (Some(head), Some(bounce)) = (shadow.ring.next_head(), shadow.take_bounce()) else {
        return Ok(None);
    };
    let window = &shared.window;
    let place = shadow.slot(head);
    let data = GuestAddress(shadow.bounce(bounce));
    shadow.prepare(window, head, &wire::header(wire::T_GET_ID, 0, 0))?;
    let chain = Chain {
        readable: &[place.header()],
        writable: &[Segment::new(data, wire::ID_LEN), place.status()],
        indirect: None,
    };
    shadow.ring.add(window, &chain, 0)?;
    shadow.ring.publish(window)?;
    if shadow.ring.needs_kick(window)? {
        shared.device.kick_vq(shadow.index);
    }
    let deadline = Instant::now() + shared.options.timeout.unwrap_or(PATIENCE);
    while shadow.ring.poll_used(window)?.is_none() {
        if Instant::now() >= deadline {
            shared.give_up(&"it did not answer GET_ID");
            return Ok(None);
        }
        std::thread::yield_now();
    }
    let mut id = vec![0; wire::ID_LEN as usize];
    window.read_at(data, &mut id)?;
    let ok = shadow.status(window, place) == wire::S_OK;
    shadow.give_bounce(bounce);
    // The queue's next owner may wait at once.
    shadow.ring.enable_interrupts(window)?;
    Ok(ok.then_some(id))
}
