// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The three structures of a split virtqueue: where they lie, and what a state says of them.

use std::sync::Arc;

use crate::memory::{DeviceMemory, GuestMap, KeepAlive, Permissions, RingArea};
use crate::ring::{AddressKind, MAX_QUEUE_SIZE, QueueState, RingError};

/// Bytes of a descriptor.
pub(super) const DESC_SIZE: usize = 16;
/// Offset of `flags`, `idx` and the first entry, in the available and in the used ring.
pub(super) const FLAGS: usize = 0;
pub(super) const IDX: usize = 2;
pub(super) const ENTRIES: usize = 4;

/// The three structures in host memory.
pub(super) struct Areas {
    pub(super) desc: RingArea,
    pub(super) avail: RingArea,
    pub(super) used: RingArea,
    /// Keeps the areas mapped.
    _keep: Arc<dyn KeepAlive>,
}

/// Checks what a state says of the ring, apart from where it lies.
pub(super) fn check(state: &QueueState) -> Result<(), RingError> {
    check_form(state)?;
    if !state.ready {
        return Err(RingError::NotReady);
    }
    let (size, max) = (state.size, state.max_size.min(MAX_QUEUE_SIZE));
    if !size.is_power_of_two() || size > max {
        return Err(RingError::Size { size, max });
    }
    Ok(())
}

/// Checks that a state says what this code understands.
pub(super) fn check_form(state: &QueueState) -> Result<(), RingError> {
    let (found, known) = (state.version, QueueState::VERSION);
    if found > known {
        return Err(RingError::Version { found, known });
    }
    match state.addresses {
        AddressKind::Guest => Ok(()),
        other => Err(RingError::Addresses(other)),
    }
}

/// Bytes of the used ring.
pub(super) fn used_len(size: u16, event_idx: bool) -> usize {
    ENTRIES + 8 * usize::from(size) + if event_idx { 2 } else { 0 }
}

impl Areas {
    pub(super) fn resolve<M: DeviceMemory>(
        map: &GuestMap<M>,
        state: &QueueState,
        event_idx: bool,
    ) -> Result<Self, RingError> {
        let size = usize::from(state.size);
        let event = if event_idx { 2 } else { 0 };
        let used = used_len(state.size, event_idx);
        let area = |what, addr: u64, len, access, align: usize| {
            if !addr.is_multiple_of(align as u64) {
                return Err(RingError::Misaligned {
                    what,
                    addr,
                    align: align as u64,
                });
            }
            RingArea::resolve(map, addr, len, access, align)
                .map_err(|source| RingError::NotMapped { what, source })
        };
        Ok(Self {
            desc: area(
                "descriptor table",
                state.desc_table,
                size * DESC_SIZE,
                Permissions::Read,
                DESC_SIZE,
            )?,
            avail: area(
                "available ring",
                state.avail_ring,
                ENTRIES + 2 * size + event,
                Permissions::Read,
                2,
            )?,
            used: area(
                "used ring",
                state.used_ring,
                used,
                Permissions::ReadWrite,
                4,
            )?,
            _keep: map.keep().clone(),
        })
    }
}
