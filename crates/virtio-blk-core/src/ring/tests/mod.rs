// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

mod chains;
mod indices;
mod notify;
mod oracle;
mod start;

use std::sync::Arc;

use malformed_queues::testmem::{self, Space};
use virtio_blk_driver::Segment as Piece;
use virtio_blk_driver::ring::{Chain as Offer, RingConfig, SplitDriver};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::*;
use crate::memory::{DeviceMemory, GuestMap, Unmapped};
use crate::spec::feature::{RING_EVENT_IDX, RING_INDIRECT_DESC};

type Memory = Arc<GuestMemoryMmap<()>>;

const SIZE: u16 = 16;

/// Both halves of a ring.
struct Rig {
    mem: Memory,
    space: Space,
    map: GuestMap<Memory>,
    driver: SplitDriver,
    ring: SplitRing,
    chain: Chain,
}

fn features(event_idx: bool) -> u64 {
    let event_idx = if event_idx { RING_EVENT_IDX } else { 0 };
    event_idx | RING_INDIRECT_DESC
}

fn rig(event_idx: bool, start: u16) -> Rig {
    let (mem, mut space) = testmem::single(128 * 1024).unwrap();
    let mem = Arc::new(mem);
    let config = RingConfig {
        event_idx,
        indirect: true,
        start,
    };
    let driver = SplitDriver::new(&*mem, space.layout(SIZE).unwrap(), config).unwrap();
    let map = GuestMap::new(mem.clone());
    let ring = SplitRing::new(&map, driver.state(), features(event_idx)).unwrap();
    Rig {
        mem,
        space,
        map,
        driver,
        ring,
        chain: Chain::new(),
    }
}

impl Rig {
    /// Makes a chain of one writable descriptor available.
    fn offer(&mut self) -> u16 {
        let writable = [Piece::new(GuestAddress(0x5000), 8)];
        let offer = Offer {
            readable: &[],
            writable: &writable,
            indirect: None,
        };
        let head = self.driver.add(&*self.mem, &offer, 0).unwrap();
        self.driver.publish(&*self.mem).unwrap();
        head
    }

    fn pop(&mut self) -> Result<Popped, RingError> {
        self.ring.pop(&self.map, &mut self.chain)
    }

    /// Takes a chain that is there.
    fn take(&mut self) -> u16 {
        assert_eq!(self.pop(), Ok(Popped::Chain));
        self.chain.head()
    }

    /// Uses a head at once; answers whether the driver is to be told.
    fn use_up(&mut self, head: u16, len: u32) -> bool {
        self.ring.add_used(head, len);
        self.ring.publish(&self.map).unwrap()
    }

    fn used(&mut self) -> Option<(u16, u32)> {
        let used = self.driver.poll_used(&*self.mem).unwrap();
        used.map(|used| (used.head, used.len))
    }

    fn audit(&mut self) {
        self.driver.audit(&*self.mem).unwrap();
    }
}
