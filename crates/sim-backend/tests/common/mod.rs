// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the tests share.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use sim_backend::{BlkSim, Options};
use vdpa_bus::{VdpaDevice, VqState};
use virtio_blk_core::memory::{HostMemory, IotlbMapping, IotlbTable, Permissions};
use virtio_blk_driver::request::{Done, Request};
use virtio_blk_driver::vdpa::{Setup, VdpaDriver};
use vm_memory::{GuestAddress, GuestMemoryMmap};

pub type Memory = Arc<GuestMemoryMmap<()>>;
pub type Driver = VdpaDriver<Memory>;

/// Bytes of guest memory.
pub const MEMORY: usize = 8 << 20;

pub fn memory() -> Memory {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap())
}

/// All of `memory` at its own addresses.
pub fn physical(memory: &Memory) -> Vec<(u64, HostMemory)> {
    HostMemory::of_map(memory)
}

pub fn mapping(memory: &Memory, iova: u64, offset: usize, len: usize) -> IotlbMapping {
    let (_, all) = physical(memory).remove(0);
    let part = all.slice(offset, len).unwrap();
    IotlbMapping::new(iova, part, Permissions::ReadWrite).unwrap()
}

/// `memory` at its own addresses, as a table.
pub fn table(memory: &Memory) -> IotlbTable {
    let mut table = IotlbTable::new();
    table.insert(mapping(memory, 0, 0, MEMORY)).unwrap();
    table
}

/// A simulator and a driver of `queues` queues.
pub fn bring_up(options: Options, queues: u16) -> (Arc<BlkSim>, Driver) {
    let memory = memory();
    let sim = Arc::new(BlkSim::in_memory(options).unwrap());
    let driver = attach(&sim, &memory, queues);
    (sim, driver)
}

pub fn attach(sim: &Arc<BlkSim>, memory: &Memory, queues: u16) -> Driver {
    let setup = Setup {
        queues,
        maps: &[(0, table(memory))],
        ..Setup::default()
    };
    VdpaDriver::start(sim.clone(), memory.clone(), &setup).unwrap()
}

/// The answer to one request on queue `vq`.
pub fn ask(sim: &BlkSim, driver: &mut Driver, vq: u16, request: &Request<'_>) -> Done {
    driver.queues()[usize::from(vq)].submit(request).unwrap();
    driver.publish(vq).unwrap();
    answer(sim, driver, vq)
}

/// The next answer on queue `vq`, for which a lot of time is given before the test fails.
pub fn answer(sim: &BlkSim, driver: &mut Driver, vq: u16) -> Done {
    let patience = Instant::now() + Duration::from_secs(30);
    loop {
        sim.step();
        if let Some(done) = driver.queues()[usize::from(vq)].poll().unwrap() {
            return done;
        }
        assert!(Instant::now() < patience, "no answer on queue {vq}");
        std::thread::yield_now();
    }
}

/// The index at which queue `vq` stands.
pub fn state(sim: &BlkSim, vq: u16) -> u16 {
    match sim.get_vq_state(vq).unwrap() {
        VqState::Split { avail_index } => avail_index,
        other => panic!("{other:?}"),
    }
}
