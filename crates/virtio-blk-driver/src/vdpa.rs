// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A driver of a whole vDPA block device: what a guest's driver and its VMM do together.

use std::ops::Deref;
use std::sync::Arc;

use vdpa_bus::{Callback, VdpaDevice, VdpaError, VqAddress, VqState};
use virtio_blk_core::memory::IotlbTable;
use vm_memory::GuestAddress;

use crate::Memory;
use crate::request::{Arena, ArenaConfig, ArenaError, Driver, DriverError};
use crate::ring::{LayoutError, RingConfig, RingError, SplitLayout};

/// Status bits, as a driver sets them.
const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
/// Feature bits that concern a ring.
const RING_INDIRECT_DESC: u64 = 1 << 28;
const RING_EVENT_IDX: u64 = 1 << 29;

/// Why a device could not be brought up or driven.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VdpaDriverError {
    /// The device refused an operation.
    #[error("{what}: {source}")]
    Device {
        /// The operation.
        what: &'static str,
        /// Its error.
        source: VdpaError,
    },
    /// The device did not take FEATURES_OK.
    #[error("the device refused features {0:#x}")]
    Features(u64),
    /// The queue size.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The arena.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// The ring's memory.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// A request.
    #[error(transparent)]
    Request(#[from] DriverError),
}

/// How a device is brought up.
pub struct Setup<'a> {
    /// Features to acknowledge where the device offers them.
    pub features: u64,
    /// Queues to use, from the first on.
    pub queues: u16,
    /// Their size in descriptors.
    pub queue_size: u16,
    /// The index at which rings start.
    pub start: u16,
    /// Memory for requests, per queue.
    pub arena: ArenaConfig,
    /// Where rings and arenas are put, one queue after the other: an address that driver and device share.
    pub base: GuestAddress,
    /// What is mapped, by address space. Empty for a device with a map of its own.
    pub maps: &'a [(u32, IotlbTable)],
    /// The callback of each queue.
    pub callback: &'a dyn Fn(u16) -> Option<Callback>,
}

impl Default for Setup<'_> {
    /// All features, one queue of 256, 16 requests of 4 KiB, everything from address 0x1000 on, no maps and no
    /// callbacks.
    fn default() -> Self {
        Self {
            features: u64::MAX,
            queues: 1,
            queue_size: 256,
            start: 0,
            arena: ArenaConfig::default(),
            base: GuestAddress(0x1000),
            maps: &[],
            callback: &|_| None,
        }
    }
}

impl Setup<'_> {
    /// Bytes that rings and arenas take from `base` on.
    pub fn footprint(&self) -> u64 {
        (SplitLayout::footprint(self.queue_size).next_multiple_of(PAGE)
            + self.arena.footprint().next_multiple_of(PAGE))
            * u64::from(self.queues)
            + PAGE
    }
}

const PAGE: u64 = 4096;

/// A vDPA device that was brought up, and the drivers of its queues.
pub struct VdpaDriver<G> {
    device: Arc<dyn VdpaDevice>,
    features: u64,
    queues: Vec<Driver<G>>,
}

impl<G> VdpaDriver<G>
where
    G: Deref + Clone,
    G::Target: Memory,
{
    /// Brings `device` up, in the order that works with every device, real ones included: reset, features,
    /// maps, queues, DRIVER_OK, one kick for each queue.
    ///
    /// # Errors
    /// [`VdpaDriverError`]: the device is left as it was at that moment; a reset is safe.
    pub fn start(
        device: Arc<dyn VdpaDevice>,
        memory: G,
        setup: &Setup<'_>,
    ) -> Result<Self, VdpaDriverError> {
        let dev = &*device;
        check("reset", dev.reset())?;
        let features = negotiate(dev, setup.features)?;
        for (asid, table) in setup.maps {
            map(dev, *asid, table)?;
        }
        let ring = RingConfig {
            event_idx: features & RING_EVENT_IDX != 0,
            indirect: features & RING_INDIRECT_DESC != 0,
            start: setup.start,
        };
        let mut base = setup.base.0;
        let mut take = |len: u64| {
            let at = base.next_multiple_of(PAGE);
            base = at.saturating_add(len);
            GuestAddress(at)
        };
        let mut queues = Vec::new();
        for vq in 0..setup.queues {
            let at = take(SplitLayout::footprint(setup.queue_size));
            let layout = SplitLayout::contiguous(setup.queue_size, at)?;
            let arena = Arena::new(take(setup.arena.footprint()), setup.arena)?;
            let queue = Driver::new(memory.clone(), layout, ring, arena)?;
            attach(dev, vq, &queue, (setup.callback)(vq))?;
            queues.push(queue);
        }
        let status = dev.get_status() | DRIVER_OK;
        check("DRIVER_OK", dev.set_status(status))?;
        for vq in 0..setup.queues {
            dev.kick_vq(vq);
        }
        Ok(Self {
            device,
            features,
            queues,
        })
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn VdpaDevice> {
        &self.device
    }

    /// The features in use.
    pub const fn features(&self) -> u64 {
        self.features
    }

    /// The drivers of the queues.
    pub fn queues(&mut self) -> &mut [Driver<G>] {
        &mut self.queues
    }

    /// Makes what was submitted to queue `vq` visible, and kicks if the device wants that. Returns whether it
    /// did.
    ///
    /// # Errors
    /// The ring's memory is gone, or the device broke a rule.
    pub fn publish(&mut self, vq: u16) -> Result<bool, VdpaDriverError> {
        let Some(queue) = self.queues.get_mut(usize::from(vq)) else {
            return Ok(false);
        };
        let kick = queue.publish()?;
        if kick {
            self.device.kick_vq(vq);
        }
        Ok(kick)
    }

    /// Takes the drivers of the queues, to use each on a thread of its own.
    pub fn into_queues(self) -> Vec<Driver<G>> {
        self.queues
    }
}

/// Status and features, up to FEATURES_OK. Returns the features in use.
///
/// # Errors
/// The device refused.
pub fn negotiate(device: &dyn VdpaDevice, wanted: u64) -> Result<u64, VdpaDriverError> {
    check("ACKNOWLEDGE", device.set_status(ACKNOWLEDGE))?;
    check("DRIVER", device.set_status(ACKNOWLEDGE | DRIVER))?;
    let features = device.get_device_features() & wanted;
    check("the features", device.set_driver_features(features))?;
    check(
        "FEATURES_OK",
        device.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK),
    )?;
    if device.get_status() & FEATURES_OK == 0 {
        return Err(VdpaDriverError::Features(features));
    }
    Ok(features)
}

/// Maps a table, whichever way the device has.
///
/// # Errors
/// The device refused.
pub fn map(device: &dyn VdpaDevice, asid: u32, table: &IotlbTable) -> Result<(), VdpaDriverError> {
    match device.set_map(asid, table) {
        Err(VdpaError::NotSupported(_)) => {}
        answer => return check("set_map", answer),
    }
    check("dma_unmap", device.dma_unmap(asid, 0, u64::MAX))?;
    for mapping in table.mappings() {
        check("dma_map", device.dma_map(asid, mapping.clone()))?;
    }
    Ok(())
}

/// Size, state, addresses, callback and ready of a queue, where the driver stands now.
///
/// # Errors
/// The device refused.
pub fn attach<G>(
    device: &dyn VdpaDevice,
    vq: u16,
    queue: &Driver<G>,
    callback: Option<Callback>,
) -> Result<(), VdpaDriverError>
where
    G: Deref,
    G::Target: Memory,
{
    let state = queue.state();
    let address = VqAddress {
        desc: state.desc_table,
        driver: state.avail_ring,
        device: state.used_ring,
    };
    let base = VqState::Split {
        avail_index: state.next_avail,
    };
    check("set_vq_num", device.set_vq_num(vq, state.size.into()))?;
    check("set_vq_state", device.set_vq_state(vq, base))?;
    check("set_vq_address", device.set_vq_address(vq, address))?;
    check("set_vq_cb", device.set_vq_cb(vq, callback))?;
    check("set_vq_ready", device.set_vq_ready(vq, true))
}

fn check(what: &'static str, answer: Result<(), VdpaError>) -> Result<(), VdpaDriverError> {
    answer.map_err(|source| VdpaDriverError::Device { what, source })
}
