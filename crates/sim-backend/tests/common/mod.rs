// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the tests share.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sim_backend::{BlkSim, Execution, SimOptions};
use vdpa_bus::{Callback, VdpaDevice, VdpaError, VqState};
use virtio_blk_core::disk::Disk;
use virtio_blk_core::memory::{HostMemory, IotlbMapping, IotlbTable, Permissions};
use virtio_blk_disks::MemoryDisk;
use virtio_blk_driver::request::{ArenaConfig, Done, Driver as QueueDriver, Request, Token};
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

/// A simulator and a driver of it.
pub struct Rig {
    pub sim: Arc<BlkSim>,
    pub memory: Memory,
    pub driver: Driver,
    stepped: bool,
}

impl Rig {
    /// Over memory of the kernel's size, with `queues` queues.
    pub fn new(options: SimOptions, queues: u16) -> Self {
        let disk = Arc::new(MemoryDisk::new(128 << 20).unwrap());
        Self::over(disk, options, queues)
    }

    pub fn over(disk: Arc<dyn Disk>, options: SimOptions, queues: u16) -> Self {
        let stepped = options.execution == Execution::Stepped;
        let memory = memory();
        let sim = Arc::new(BlkSim::new(disk, options).unwrap());
        let driver = Self::start(&sim, &memory, queues);
        if stepped {
            // What the bring-up kicked.
            sim.run();
        }
        Self {
            sim,
            memory,
            driver,
            stepped,
        }
    }

    fn start(sim: &Arc<BlkSim>, memory: &Memory, queues: u16) -> Driver {
        let setup = Setup {
            queues,
            arena: ARENA,
            maps: &[(0, table(memory))],
            ..Setup::default()
        };
        VdpaDriver::start(sim.clone(), memory.clone(), &setup).unwrap()
    }

    /// Resets the device and starts it again.
    pub fn restart(&mut self) {
        let queues = self.driver.queues().len() as u16;
        self.driver = Self::start(&self.sim, &self.memory, queues);
    }

    pub fn queue(&mut self, vq: u16) -> &mut QueueDriver<Memory> {
        &mut self.driver.queues()[usize::from(vq)]
    }

    /// Puts a request into queue `vq` and kicks.
    pub fn send(&mut self, vq: u16, request: &Request<'_>) -> Token {
        let token = self.queue(vq).submit(request).unwrap();
        self.driver.publish(vq).unwrap();
        token
    }

    /// The answer to one request on queue `vq`.
    pub fn ask(&mut self, vq: u16, request: &Request<'_>) -> Done {
        self.send(vq, request);
        self.answer(vq)
    }

    /// The data that is read from `sector` on.
    pub fn read(&mut self, vq: u16, sector: u64, len: u32) -> Vec<u8> {
        let done = self.ask(vq, &Request::read(sector, len));
        assert!(done.is_ok(), "{done:?}");
        self.data(vq, done.token, len)
    }

    /// The data of a request that was answered.
    pub fn data(&mut self, vq: u16, token: Token, len: u32) -> Vec<u8> {
        let mut data = vec![0; len as usize];
        self.queue(vq).read_data(token, 0, &mut data).unwrap();
        data
    }

    /// The next answer on queue `vq`. A lot of time is given before the test fails.
    pub fn answer(&mut self, vq: u16) -> Done {
        let patience = Instant::now() + Duration::from_secs(60);
        loop {
            self.turn();
            if let Some(done) = self.queue(vq).poll().unwrap() {
                return done;
            }
            assert!(Instant::now() < patience, "no answer on queue {vq}");
        }
    }

    /// No answer comes on queue `vq`, however long the device works.
    pub fn no_answer(&mut self, vq: u16) {
        assert!(self.stepped, "only a stepped device is known to be idle");
        self.sim.run();
        assert_eq!(self.queue(vq).poll().unwrap(), None);
    }

    /// A step, or a moment for the worker.
    pub fn turn(&self) {
        if self.stepped {
            self.sim.step();
        } else {
            std::thread::yield_now();
        }
    }

    /// The index at which queue `vq` stands.
    pub fn state(&self, vq: u16) -> u16 {
        match self.sim.get_vq_state(vq).unwrap() {
            VqState::Split { avail_index } => avail_index,
            other => panic!("{other:?}"),
        }
    }
}

/// 16 requests of 8 KiB.
pub const ARENA: ArenaConfig = ArenaConfig {
    slots: 16,
    data_len: 8192,
    data_align: 512,
    table_len: 32,
};

/// What the driver mapped survives a reset; after a clean one, what the device was made with is back.
pub fn compat_reset(options: SimOptions) {
    let physical_memory = memory();
    let options = options.stepped().physical(physical(&physical_memory));
    let mut rig = Rig::new(options, 1);
    for (clean, works) in [(false, true), (true, false)] {
        rig.sim.compat_reset(clean).unwrap();
        let setup = Setup::default();
        rig.driver = VdpaDriver::start(rig.sim.clone(), rig.memory.clone(), &setup).unwrap();
        rig.send(0, &Request::flush());
        rig.sim.run();
        assert_eq!(
            rig.queue(0).poll().unwrap().is_some(),
            works,
            "clean: {clean}"
        );
    }
}

/// A callback that counts.
pub fn counter() -> (Callback, Arc<AtomicU64>) {
    let count = Arc::new(AtomicU64::new(0));
    let callback = Callback::call({
        let count = count.clone();
        move || {
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    (callback, count)
}

/// The error number of an operation that must fail.
pub fn errno<T: std::fmt::Debug>(answer: Result<T, VdpaError>) -> i32 {
    answer.unwrap_err().errno()
}
