// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a device may have written, read from its rings while it is paused.
//!
//! A device on the fast path writes guest memory behind the VMM's back, and neither vhost nor KVM tells where. The
//! rings tell what the device has and had: used rings, and the writable buffers of every descriptor in the tables. But a
//! descriptor is free for other uses once its request was returned. So the rings tell all if no request was returned
//! since the last look (which can only be told for milliseconds, before an index can have gone round), and else perhaps
//! not: [`Coverage::complete`] says which. A migration that needs all either marks
//! everything ([`Coverage`] explains), or takes the slow path while memory is tracked.

use std::time::{Duration, Instant};

use virtio_blk_driver::ring::SplitLayout;
use virtio_blk_driver::wire::{DESC_F_INDIRECT, DESC_F_WRITE, DESC_LEN};

use crate::PathError;
use crate::guest::{Guest, RingView};

/// Entries of an indirect table that are looked at: what a `next` field can address.
const MAX_TABLE: u64 = 1 << 16;
/// Indirect entries of one queue that are looked at; a guest can describe more, but no device would accept that.
const MAX_INDIRECT: u64 = 1 << 20;

/// No queue of any device is faster than this: an index of 16 bits that stands where it stood, after less than 65536
/// times this, has not gone round.
const FASTEST: Duration = Duration::from_nanos(50);

/// The used index of each queue at the last look, and when that was.
#[derive(Default)]
pub(crate) struct Seen {
    at: Option<Instant>,
    used: Vec<(u16, u16)>,
}

impl Seen {
    /// A device that starts now, with nothing returned.
    pub(crate) fn start() -> Self {
        Self {
            at: Some(Instant::now()),
            used: Vec::new(),
        }
    }
}

/// What a look at the rings was worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Whether all that the device wrote since the last look was marked. If not, requests were returned meanwhile
    /// whose descriptors may be gone: their buffers can be anywhere in the guest's memory, and only marking all of
    /// that is safe.
    pub complete: bool,
    /// Ranges marked.
    pub ranges: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Requests returned to the guest since the last look, or since the start; modulo 65536 for each queue.
    pub returned: u64,
}

/// Marks what the tables of all enabled queues name as writable, and the used rings.
pub(crate) fn walk(
    guest: &Guest,
    seen: &mut Seen,
    mark: &mut dyn FnMut(u64, u64),
) -> Result<Coverage, PathError> {
    let in_time = seen.at.is_some_and(|at| at.elapsed() < FASTEST * (1 << 16));
    let mut coverage = Coverage {
        complete: in_time,
        ..Coverage::default()
    };
    let mut now = Vec::new();
    for (index, view) in guest.rings()? {
        let used = view.used_idx();
        let before = seen.used.iter().find(|(found, _)| *found == index);
        // A ring may start in its middle, but what it did before is accounted for by the move.
        let returned = before.map_or(used, |(_, before)| used.wrapping_sub(*before));
        coverage.returned += u64::from(returned);
        coverage.complete &= returned == 0;
        now.push((index, used));
        coverage.complete &= walk_ring(&view, &mut |at, len| {
            coverage.ranges += 1;
            coverage.bytes += len;
            mark(at, len);
        });
    }
    *seen = Seen {
        at: Some(Instant::now()),
        used: now,
    };
    Ok(coverage)
}

/// Marks what one ring names. Returns whether everything could be read.
fn walk_ring(view: &RingView, mark: &mut dyn FnMut(u64, u64)) -> bool {
    let layout = view.layout();
    mark(layout.used().0, SplitLayout::used_len(layout.size()));
    let mut budget = MAX_INDIRECT;
    let mut complete = true;
    for index in 0..u64::from(layout.size()) {
        let Some(descriptor) = view.descriptor(layout.desc().0 + DESC_LEN * index) else {
            complete = false;
            continue;
        };
        if descriptor.flags & DESC_F_INDIRECT == 0 {
            if descriptor.flags & DESC_F_WRITE != 0 && descriptor.len != 0 {
                mark(descriptor.addr.0, descriptor.len.into());
            }
            continue;
        }
        let entries = (u64::from(descriptor.len) / DESC_LEN).min(MAX_TABLE);
        complete &= entries <= budget;
        for entry in 0..entries.min(budget) {
            let at = descriptor.addr.0.checked_add(DESC_LEN * entry);
            // A table that is gone belongs to a request that was returned.
            let Some(inner) = at.and_then(|at| view.descriptor(at)) else {
                break;
            };
            if inner.flags & DESC_F_WRITE != 0 && inner.len != 0 {
                mark(inner.addr.0, inner.len.into());
            }
        }
        budget = budget.saturating_sub(entries);
    }
    complete
}
