// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device, memory for it, and what it returned.

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sim_backend::{BlkSim, SimOptions};
use vdpa_bus::{Callback, VdpaDevice, VdpaError, VqState};
use vhost_vdpa_frontend::VhostVdpa;
use virtio_blk_core::memory::{HostMemory, IotlbMapping, IotlbTable, Permissions};
use virtio_blk_driver::Segment;
use virtio_blk_driver::request::{Arena, ArenaConfig, Done, Driver, Request};
use virtio_blk_driver::ring::{RingConfig, SplitLayout};
use virtio_blk_driver::vdpa::{attach, negotiate};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub type Memory = Arc<GuestMemoryMmap<()>>;
/// Steps and results.
pub type Transcript = Vec<(String, String)>;

/// Bytes of guest memory, from address 0 on.
pub const MEMORY: usize = 8 << 20;
/// Where rings and arenas lie.
const RING: GuestAddress = GuestAddress(0x1_0000);
const ARENA: GuestAddress = GuestAddress(0x2_0000);
const SIZE: u16 = 256;
/// How long a device may take until it has nothing to do.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Rig {
    pub device: Arc<dyn VdpaDevice>,
    /// Returns when the device has nothing to do any more.
    work: Box<dyn Fn()>,
    pub memory: Memory,
    driver: Option<Driver<Memory>>,
    call: Arc<EventFd>,
    transcript: Transcript,
}

impl Rig {
    /// With the kernel's simulator behind this node.
    pub fn kernel(node: &str) -> Self {
        let device = VhostVdpa::open(node).unwrap();
        // A kick reaches its worker inside the `write` to the eventfd, and a thread that sleeps there has no work: the
        // kernel names no function of one that was woken up.
        let worker = kernel_worker().join("wchan");
        Self::new(Arc::new(device), move || {
            let start = Instant::now();
            while std::fs::read_to_string(&worker).unwrap() != "kthread_worker_fn" {
                assert!(
                    start.elapsed() < PATIENCE,
                    "the kernel's worker never rests"
                );
                std::thread::yield_now();
            }
        })
    }

    /// With a stepped simulator of ours.
    pub fn ours() -> Self {
        let sim = Arc::new(BlkSim::in_memory(SimOptions::compat().stepped()).unwrap());
        Self::new(sim.clone(), move || sim.run())
    }

    fn new(device: Arc<dyn VdpaDevice>, work: impl Fn() + 'static) -> Self {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = std::fs::File::from(rustix::fs::memfd_create("guest", flags).unwrap());
        file.set_len(MEMORY as u64).unwrap();
        let range = (GuestAddress(0), MEMORY, Some(FileOffset::new(file, 0)));
        let memory = GuestMemoryMmap::from_ranges_with_files([range]).unwrap();
        Self {
            device,
            work: Box::new(work),
            memory: Arc::new(memory),
            driver: None,
            call: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
            transcript: Vec::new(),
        }
    }

    pub fn into_transcript(self) -> Transcript {
        self.transcript
    }

    /// Writes down what a step returned.
    pub fn note(&mut self, step: &str, value: impl Debug) {
        self.transcript
            .push((step.to_owned(), format!("{value:?}")));
    }

    /// As [`Rig::note`], with the error's number.
    pub fn result<T: Debug>(&mut self, step: &str, result: Result<T, VdpaError>) {
        self.note(step, result.map_err(|error| error.errno()));
    }

    /// All memory at its own addresses.
    pub fn table(&self) -> IotlbTable {
        let mut table = IotlbTable::new();
        for (base, memory) in HostMemory::of_map(&self.memory) {
            let mapping = IotlbMapping::new(base, memory, Permissions::ReadWrite).unwrap();
            table.insert(mapping).unwrap();
        }
        table
    }

    /// A device that was just reset, with its features and its map.
    pub fn negotiated(&mut self) {
        self.driver = None;
        self.device.reset().unwrap();
        negotiate(&*self.device, u64::MAX).unwrap();
        self.device.set_map(0, &self.table()).unwrap();
        // Of the life before.
        self.calls();
    }

    pub fn callback(&self) -> Callback {
        Callback::Trigger(self.call.clone())
    }

    /// A running device whose ring starts at index `start`.
    pub fn start(&mut self, start: u16) {
        self.negotiated();
        let config = RingConfig {
            event_idx: false,
            indirect: true,
            start,
        };
        let arena = ArenaConfig {
            slots: 32,
            data_len: 8192,
            data_align: 512,
            table_len: 32,
        };
        let layout = SplitLayout::contiguous(SIZE, RING).unwrap();
        let arena = Arena::new(ARENA, arena).unwrap();
        let driver = Driver::new(self.memory.clone(), layout, config, arena).unwrap();
        attach(&*self.device, 0, &driver, Some(self.callback())).unwrap();
        self.driver = Some(driver);
        self.device.set_status(15).unwrap();
    }

    pub fn driver(&mut self) -> &mut Driver<Memory> {
        self.driver.as_mut().expect("a device that was started")
    }

    /// Puts a request into the ring, without making it available.
    pub fn submit(&mut self, request: &Request<'_>) {
        self.driver().submit(request).unwrap();
    }

    /// Makes what was submitted available, and kicks.
    pub fn publish(&mut self) {
        self.driver().publish().unwrap();
        self.device.kick_vq(0);
    }

    /// Lets the device work until it has nothing to do.
    pub fn work(&self) {
        (self.work)();
    }

    /// What has come back when the device has nothing to do.
    fn answers(&mut self) -> Vec<String> {
        self.work();
        let mut list = Vec::new();
        while let Some(done) = self.driver().poll().unwrap() {
            list.push(self.describe(&done));
        }
        list
    }

    /// Status, length, and a sum of the data if there is some.
    fn describe(&mut self, done: &Done) -> String {
        let data = self.driver().data(done.token).unwrap();
        let text = format!("status {} len {}", done.status, done.len);
        if data.len == 0 {
            return text;
        }
        format!("{text} data {:x}", self.sum(data))
    }

    /// A number that stands for what lies in memory (FNV-1a).
    pub fn sum(&self, at: Segment) -> u64 {
        let mut bytes = vec![0; at.len as usize];
        self.memory.read_slice(&mut bytes, at.addr).unwrap();
        bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
            (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
        })
    }

    /// One request, and what comes back.
    pub fn ask(&mut self, step: &str, request: &Request<'_>) {
        self.submit(request);
        self.publish();
        let answers = self.answers();
        self.note(step, answers);
    }

    /// What comes back, with the callbacks and the index that the queue stands at.
    pub fn look(&mut self, step: &str) {
        let answers = self.answers();
        let (calls, index) = (self.calls(), self.index());
        self.note(step, (answers, calls, index));
    }

    /// How often the device called since this was asked last.
    pub fn calls(&self) -> u64 {
        self.call.read().unwrap_or(0)
    }

    /// The index that the queue stands at, or an error number.
    pub fn index(&self) -> Result<u16, i32> {
        match self.device.get_vq_state(0) {
            Ok(VqState::Split { avail_index }) => Ok(avail_index),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.errno()),
        }
    }
}

/// The directory in `/proc` of the thread that serves the kernel's simulator.
fn kernel_worker() -> PathBuf {
    std::fs::read_dir("/proc")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| {
            std::fs::read_to_string(path.join("comm"))
                .is_ok_and(|name| name.starts_with("vDPA sim worker"))
        })
        .expect("no thread of a vdpa_sim device")
}
