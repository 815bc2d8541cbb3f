// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whole queues, driven as a guest would: the driver half on one side, a scripted disk on the other.

mod disks;
mod errors;
mod hostile;
mod long;
mod notify;
mod pace;
mod race;
mod remap;
mod requests;
mod stop;
mod stress;
#[cfg(feature = "event-manager")]
mod subscriber;
mod taken;
#[cfg(feature = "thread")]
mod threads;

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use malformed_queues::testmem::Space;
use virtio_blk_driver::request::{ArenaConfig, Done, Driver, Request, Token};
use virtio_blk_driver::ring::RingConfig;
use vm_memory::{GuestMemory, GuestMemoryMmap};

use super::*;
use crate::device::{Device, DeviceOptions};
use crate::disk::{Caps, DiskError, EraseLimits, IoBuf, OpKind, Wait, ZeroLimits};
use crate::ring::{QueueState, RingError};
use crate::spec::feature;
use crate::testdisk::{Mode, TestDisk, WaitKind};

pub(super) type Plain = GuestMemoryMmap<()>;

/// Sectors of the disks here.
const SECTORS: u64 = 128;
const SERIAL: &str = "serial number 16";
/// Enough for a queue of 32 and 16 requests, twice.
const MEMORY: usize = 384 * 1024;
const ARENA: ArenaConfig = ArenaConfig {
    slots: 16,
    data_len: 8192,
    data_align: 512,
    table_len: 32,
};

/// Disks that hold operations until they are released, given to them in either way.
const HELD: [Mode; 2] = [Mode::Held, Mode::TakenHeld];

/// Everything a disk can do.
fn caps() -> Caps {
    let erase = EraseLimits {
        max_sectors: 64,
        max_segments: 8,
        alignment: 1,
    };
    Caps {
        flush: true,
        discard: Some(erase),
        write_zeroes: Some(ZeroLimits {
            max_sectors: 64,
            max_segments: 8,
            may_unmap: true,
        }),
        secure_erase: Some(erase),
        lifetime: true,
        ..Caps::basic(SECTORS)
    }
}

/// A disk whose sector `n` is full of bytes `n`.
pub(super) fn disk(mode: Mode, wait: WaitKind) -> TestDisk {
    let disk = TestDisk::new(caps()).with_mode(mode, wait);
    for sector in 0..SECTORS as usize {
        disk.set_content(sector * 512, &[sector as u8; 512]);
    }
    disk
}

/// A device over `disk` whose driver took every feature.
fn device(disk: &TestDisk) -> Arc<Device> {
    let options = DeviceOptions {
        serial: SERIAL.to_owned(),
        ..DeviceOptions::default()
    };
    let device = Device::new(Arc::new(disk.clone()), options).unwrap();
    device.accept(device.offered()).unwrap();
    device
}

/// One queue with both halves.
struct Rig<M: GuestMemory + Send + Sync + 'static> {
    mem: Arc<M>,
    disk: TestDisk,
    device: Arc<Device>,
    driver: Driver<Arc<M>>,
    runner: QueueRunner<Arc<M>>,
    irqs: Arc<AtomicU64>,
}

impl<M: GuestMemory + Send + Sync + 'static> Rig<M> {
    /// A rig whose ring has `event_idx` and starts at `start`.
    fn with(mem: &Arc<M>, space: &mut Space, disk: TestDisk, event_idx: bool, start: u16) -> Self {
        let device = device(&disk);
        if !event_idx {
            let features = device.offered() & !feature::RING_EVENT_IDX;
            device.accept(features).unwrap();
        }
        Self::over(mem, space, disk, device, start)
    }

    /// A rig over a device that is negotiated.
    fn over(
        mem: &Arc<M>,
        space: &mut Space,
        disk: TestDisk,
        device: Arc<Device>,
        start: u16,
    ) -> Self {
        let config = RingConfig {
            event_idx: device.accepted() & feature::RING_EVENT_IDX != 0,
            indirect: true,
            start,
        };
        let driver = space.driver(mem.clone(), 32, config, ARENA).unwrap();
        let irqs = Arc::new(AtomicU64::new(0));
        let setup = QueueSetup::new(mem.clone(), counting(&irqs));
        let runner = device.start_queue(0, setup, driver.state()).unwrap();
        Self {
            mem: mem.clone(),
            disk,
            device,
            driver,
            runner,
            irqs,
        }
    }

    fn new(mem: &Arc<M>, space: &mut Space, disk: TestDisk) -> Self {
        Self::with(mem, space, disk, true, 0)
    }

    fn submit(&mut self, request: &Request<'_>) -> Token {
        let token = self.driver.submit(request).unwrap();
        self.driver.publish().unwrap();
        token
    }

    /// As `submit`, with one descriptor of the ring.
    fn queue(&mut self, request: &Request<'_>) -> Token {
        self.submit(&request.indirect(true))
    }

    /// Lets the device work until it has nothing to do, without waiting for anything.
    fn settle(&mut self) -> Service {
        for _ in 0..10_000 {
            match self.runner.service(64) {
                Service::More => {}
                other => return other,
            }
        }
        panic!("the device does not come to rest");
    }

    /// The completions there are.
    fn answers(&mut self) -> Vec<Done> {
        std::iter::from_fn(|| self.driver.poll().unwrap()).collect()
    }

    /// One request to a device that completes it without help.
    fn ask(&mut self, request: &Request<'_>) -> Done {
        let token = self.submit(request);
        self.run();
        let answers = self.answers();
        assert_eq!(answers.len(), 1, "one answer to {request:?}");
        assert_eq!(answers[0].token, token);
        answers[0]
    }

    /// Calls the device when a loop would, until nothing is in flight.
    fn run(&mut self) {
        assert_eq!(self.settle(), Service::Idle);
        while self.runner.in_flight() != 0 {
            assert!(
                self.disk_rings(),
                "nothing would ever call the device again"
            );
            assert_eq!(self.settle(), Service::Idle);
        }
    }

    /// Whether the disk asks for a call.
    fn disk_rings(&self) -> bool {
        match self.runner.wait() {
            Wait::Fd(fd) => readable(&fd, 0),
            Wait::Poll => self.disk.ready() != 0,
            Wait::Inline => false,
        }
    }

    fn data(&self, done: Done, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.driver.read_data(done.token, 0, &mut bytes).unwrap();
        bytes
    }

    /// The device wrote nothing it must not write.
    fn audit(&mut self) {
        let (ring, mem) = self.driver.ring_mut();
        ring.audit(mem).unwrap();
    }

    fn irqs(&self) -> u64 {
        self.irqs.load(Ordering::SeqCst)
    }
}

/// The driver half of a queue whose device half runs elsewhere, with the two eventfds in between.
#[cfg(any(feature = "thread", feature = "event-manager"))]
pub(super) struct Apart {
    pub(super) device: Arc<Device>,
    pub(super) disk: TestDisk,
    pub(super) driver: Driver<Arc<Plain>>,
    pub(super) kick: vmm_sys_util::eventfd::EventFd,
    pub(super) irq: vmm_sys_util::eventfd::EventFd,
}

#[cfg(any(feature = "thread", feature = "event-manager"))]
impl Apart {
    pub(super) fn new(disk: TestDisk, event_idx: bool) -> (Self, QueueRunner<Arc<Plain>>) {
        let eventfd = || vmm_sys_util::eventfd::EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let (mem, mut space) = malformed_queues::testmem::single(MEMORY).unwrap();
        let rig = Rig::with(&Arc::new(mem), &mut space, disk, event_idx, 65_000);
        let (kick, irq) = (eventfd(), eventfd());
        let notifier = irq.try_clone().unwrap();
        let setup = QueueSetup::new(rig.mem.clone(), move || notifier.write(1).unwrap());
        let state = rig.driver.state();
        let runner = rig.device.start_queue(0, setup, state).unwrap();
        let apart = Self {
            device: rig.device,
            disk: rig.disk,
            driver: rig.driver,
            kick,
            irq,
        };
        (apart, runner)
    }

    /// Makes a request available, and kicks if the device asked for that.
    pub(super) fn submit(&mut self, request: &Request<'_>) -> Token {
        let token = self.driver.submit(&request.indirect(true)).unwrap();
        if self.driver.publish().unwrap() {
            self.kick.write(1).unwrap();
        }
        token
    }

    /// Sleeps until there is an answer, as a guest does.
    pub(super) fn answer(&mut self) -> Done {
        loop {
            if let Some(done) = self.driver.poll().unwrap() {
                return done;
            }
            let (ring, mem) = self.driver.ring_mut();
            if ring.enable_interrupts(mem).unwrap() {
                continue;
            }
            assert!(readable(&self.irq, 20_000), "an interrupt got lost");
            self.irq.read().unwrap();
        }
    }
}

/// Whether `fd` is readable, or becomes so in time.
pub(super) fn readable(fd: &impl AsRawFd, milliseconds: i32) -> bool {
    let mut fd = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid entry.
    unsafe { libc::poll(&mut fd, 1, milliseconds) == 1 }
}

fn counting(irqs: &Arc<AtomicU64>) -> impl Fn() + Send + 'static {
    let irqs = irqs.clone();
    move || {
        irqs.fetch_add(1, Ordering::SeqCst);
    }
}
