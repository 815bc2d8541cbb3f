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

type Plain = GuestMemoryMmap<()>;
type Memory = Arc<Plain>;

const SIZE: u16 = 16;

/// The driver's half of a ring, in whatever layout: what the tests need that hold for each.
trait DriverHalf {
    /// What to start a device with.
    fn state(&self) -> QueueState;

    /// Puts a chain into the ring, not yet visible. Returns what names it.
    fn add(&mut self, mem: &Plain, chain: &Offer<'_>) -> u16;

    /// Makes what was added visible.
    fn publish(&mut self, mem: &Plain);

    /// The next chain that came back: what names it, and the bytes written.
    fn poll_used(&mut self, mem: &Plain) -> Option<(u16, u32)>;

    /// Whether the device asked for a kick for what was published.
    fn needs_kick(&mut self, mem: &Plain) -> bool;

    /// Asks for an interrupt after so many more used chains.
    fn interrupt_after(&mut self, mem: &Plain, count: u16);

    /// Whether the interrupt that was asked for is due.
    fn interrupt_due(&mut self, mem: &Plain) -> bool;

    /// Checks that the device wrote nothing that is the driver's.
    fn audit(&mut self, mem: &Plain);
}

/// A layout of rings.
trait Layout {
    /// The device's half.
    type Ring: Ring;
    /// The driver's half.
    type Driver: DriverHalf;

    /// A ring of `SIZE` descriptors, whose indices begin at `start`.
    fn driver(mem: &Plain, space: &mut Space, event_idx: bool, start: u16) -> Self::Driver;

    /// # Errors
    /// The state is refused.
    fn ring(
        map: &GuestMap<Memory>,
        state: &QueueState,
        features: u64,
    ) -> Result<Self::Ring, RingError>;

    /// Where an index is that was at `at`, after so many chains of one descriptor.
    fn advance(at: u16, chains: u16) -> u16;
}

/// The split layout.
struct Split;

impl Layout for Split {
    type Ring = SplitRing;
    type Driver = SplitDriver;

    fn driver(mem: &Plain, space: &mut Space, event_idx: bool, start: u16) -> SplitDriver {
        let config = RingConfig {
            event_idx,
            indirect: true,
            start,
        };
        SplitDriver::new(mem, space.layout(SIZE).unwrap(), config).unwrap()
    }

    fn ring(
        map: &GuestMap<Memory>,
        state: &QueueState,
        features: u64,
    ) -> Result<SplitRing, RingError> {
        SplitRing::new(map, state, features)
    }

    fn advance(at: u16, chains: u16) -> u16 {
        at.wrapping_add(chains)
    }
}

impl DriverHalf for SplitDriver {
    fn state(&self) -> QueueState {
        self.state().into()
    }

    fn add(&mut self, mem: &Plain, chain: &Offer<'_>) -> u16 {
        self.add(mem, chain, 0).unwrap()
    }

    fn publish(&mut self, mem: &Plain) {
        self.publish(mem).unwrap();
    }

    fn poll_used(&mut self, mem: &Plain) -> Option<(u16, u32)> {
        let used = self.poll_used(mem).unwrap();
        used.map(|used| (used.head, used.len))
    }

    fn needs_kick(&mut self, mem: &Plain) -> bool {
        self.needs_kick(mem).unwrap()
    }

    fn interrupt_after(&mut self, mem: &Plain, count: u16) {
        self.interrupt_after(mem, count).unwrap();
    }

    fn interrupt_due(&mut self, mem: &Plain) -> bool {
        self.interrupt_due(mem).unwrap()
    }

    fn audit(&mut self, mem: &Plain) {
        self.audit(mem).unwrap();
    }
}

/// Runs a test for each layout, which it knows as the type of this name. Another layout is another line.
macro_rules! on_each_layout {
    ($layout:ident => $body:block) => {{
        {
            type $layout = Split;
            $body
        }
    }};
}
use on_each_layout;

/// Both halves of a ring.
struct Rig<L: Layout = Split> {
    mem: Memory,
    space: Space,
    map: GuestMap<Memory>,
    driver: L::Driver,
    ring: L::Ring,
    chain: Chain,
}

fn features(event_idx: bool) -> u64 {
    let event_idx = if event_idx { RING_EVENT_IDX } else { 0 };
    event_idx | RING_INDIRECT_DESC
}

fn rig(event_idx: bool, start: u16) -> Rig {
    Rig::new(event_idx, start)
}

impl<L: Layout> Rig<L> {
    fn new(event_idx: bool, start: u16) -> Self {
        let (mem, mut space) = testmem::single(128 * 1024).unwrap();
        let mem = Arc::new(mem);
        let driver = L::driver(&mem, &mut space, event_idx, start);
        let map = GuestMap::new(mem.clone());
        let ring = L::ring(&map, &driver.state(), features(event_idx)).unwrap();
        Self {
            mem,
            space,
            map,
            driver,
            ring,
            chain: Chain::new(),
        }
    }

    /// Makes a chain available.
    fn offer_chain(&mut self, offer: &Offer<'_>) -> u16 {
        let head = self.driver.add(&self.mem, offer);
        self.driver.publish(&self.mem);
        head
    }

    /// Makes a chain of one writable descriptor available.
    fn offer(&mut self) -> u16 {
        let writable = [Piece::new(GuestAddress(0x5000), 8)];
        self.offer_chain(&Offer {
            readable: &[],
            writable: &writable,
            indirect: None,
        })
    }

    fn pop(&mut self) -> Result<Popped, RingError> {
        self.ring.pop(&self.map, &mut self.chain)
    }

    /// Takes a chain that is there.
    fn take(&mut self) -> u16 {
        assert_eq!(self.pop(), Ok(Popped::Chain));
        self.chain.head()
    }

    /// Uses a head at once; returns whether the driver is to be told.
    fn use_up(&mut self, head: u16, len: u32) -> bool {
        self.ring.add_used(head, len);
        self.ring.publish(&self.map).unwrap()
    }

    fn used(&mut self) -> Option<(u16, u32)> {
        self.driver.poll_used(&self.mem)
    }

    fn audit(&mut self) {
        self.driver.audit(&self.mem);
    }
}
