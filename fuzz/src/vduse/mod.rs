// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! VDUSE servers on a kernel that is a model: any messages, any queues, any memory, calls that fail, servers that are
//! killed, records that are damaged.
//!
//! Whatever happens, each message is answered in time by a server that lives, the disk is never asked for what it does not
//! have, memory that the device was never given stays as it is, and a driver that behaves is served afterwards. Without
//! anything hostile each request is completed once, and reads return what was written.

mod input;
pub mod seeds;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use input::{Damage, Input, Step};
use vduse_backend::fake::{FakeDriver, FakeKernel, FakeRegion};
use vduse_backend::kernel::VqInfo;
use vduse_backend::message::{Answer, Request as Ask};
use vduse_backend::{
    F_QUEUE_READY, F_SUSPEND, Outcome, Server, ServerError, ServerHandle, ServerOptions,
};
use virtio_blk_core::device::{Device, DeviceOptions};
use virtio_blk_core::disk::Caps;
use virtio_blk_core::memory::Permissions;
use virtio_blk_core::spec::feature::ACCESS_PLATFORM;
use virtio_blk_core::testdisk::{Mode, TestDisk, WaitKind};
use vm_memory::{FileOffset, GuestAddress};

use crate::drivers::{self, Drivers, Memory};
use crate::threads;

/// Steps, at most.
const STEPS: usize = 40;
const QUEUES: u16 = 2;
const SECTORS: u64 = 64;
const PAGE: u64 = 4096;
/// Where memory begins for the device.
const BASE: u64 = 1 << 32;
/// Pages of each part: rings and requests of one queue.
const PART: u64 = drivers::PART / PAGE;
/// Parts that can be mapped.
const PARTS: u64 = 4;
/// Pages that the device can never have.
const OTHERS: u64 = 2;
const PAGES: u64 = PART * PARTS + OTHERS;
/// What is in them.
const GUARD: u8 = 0xa7;
/// The kernel's `msg_timeout` in seconds: a message gets a fifth.
const TIMEOUT: u32 = 1;
/// How long what must happen may take.
const PATIENCE: Duration = Duration::from_secs(20);
const NAME: &str = "disk0";
struct Running {
    thread: JoinHandle<Result<Outcome, ServerError>>,
    handle: ServerHandle,
}

/// Kernel, servers and driver.
struct World {
    kernel: FakeKernel,
    bus: FakeDriver,
    disk: TestDisk,
    file: File,
    memory: Arc<OwnedFd>,
    folder: tempfile::TempDir,
    server: Option<Running>,
    drivers: Drivers,
    /// The features are negotiated, and DRIVER_OK is set.
    negotiated: bool,
    live: bool,
    /// Nothing hostile has happened.
    behaves: bool,
}

fn file(pages: u64) -> File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = File::from(rustix::fs::memfd_create("vblk-fuzz", flags).expect("memory"));
    file.set_len(pages * PAGE).expect("memory");
    file
}

impl World {
    fn new(input: &Input) -> Self {
        let kernel = match input.newest {
            true => FakeKernel::new(1, F_QUEUE_READY | F_SUSPEND),
            false => FakeKernel::new(0, 0),
        };
        let file = file(PAGES);
        for page in PART * PARTS..PAGES {
            file.write_all_at(&[GUARD; PAGE as usize], page * PAGE)
                .expect("memory");
        }
        let part = |first: u64, pages: u64| {
            let file = file.try_clone().expect("descriptors");
            let offset = Some(FileOffset::new(file, first * PAGE));
            (
                GuestAddress(BASE + first * PAGE),
                (pages * PAGE) as usize,
                offset,
            )
        };
        let guest = Memory::from_ranges_with_files([part(0, PAGES)]).expect("memory");
        let mode = match input.holds {
            true => Mode::Held,
            false => Mode::AtFlush,
        };
        let caps = Caps {
            flush: true,
            ..Caps::basic(SECTORS)
        };
        let mut this = Self {
            bus: kernel.driver(NAME),
            kernel,
            disk: TestDisk::new(caps).with_mode(mode, WaitKind::Fd),
            memory: Arc::new(file.try_clone().expect("descriptors").into()),
            file,
            drivers: Drivers::new(Arc::new(guest), QUEUES.into(), SECTORS),
            folder: tempfile::tempdir_in("/dev/shm").expect("memory"),
            server: None,
            negotiated: false,
            live: false,
            behaves: true,
        };
        this.serve().expect("the first server");
        this.bus.attach(true);
        this.bus.set_regions(this.regions(0xff));
        this
    }

    fn region(&self, first: u64, pages: u64) -> FakeRegion {
        FakeRegion {
            file: self.memory.clone(),
            offset: first * PAGE,
            first: BASE + first * PAGE,
            last: BASE + (first + pages) * PAGE - 1,
            permissions: Permissions::ReadWrite,
            domain: false,
        }
    }

    fn regions(&self, parts: u8) -> Vec<FakeRegion> {
        let chosen = (0..PARTS).filter(|part| parts & 1 << part != 0);
        chosen.map(|part| self.region(part * PART, PART)).collect()
    }

    fn serve(&mut self) -> Result<(), ServerError> {
        let options = DeviceOptions {
            queues: QUEUES,
            queue_size: drivers::QUEUE_SIZE,
            config_wce: false,
            transport_features: ACCESS_PLATFORM,
            ..DeviceOptions::default()
        };
        let device = Device::new(Arc::new(self.disk.clone()), options).expect("a device");
        let options = ServerOptions {
            state_dir: self.folder.path().to_owned(),
            msg_timeout: Some(TIMEOUT),
            pin: false,
            ..ServerOptions::new(NAME)
        };
        let server = Server::new(Arc::new(self.kernel.clone()), device, options)?;
        let handle = server.handle();
        let thread = std::thread::spawn(move || server.run());
        self.server = Some(Running { thread, handle });
        Ok(())
    }

    /// Ends the server, which must not take long.
    fn end(&mut self) {
        if let Some(server) = self.server.take() {
            server.handle.stop();
            let ended = server.thread.join().expect("the server panicked");
            if let Ok(Outcome::Unfinished) = ended {
                // Its threads still have the device open.
                self.disk.release(usize::MAX);
            }
        }
    }

    /// The server ends by itself, at once.
    fn kill(&mut self) {
        let Some(server) = self.server.take() else {
            return;
        };
        self.bus.shorten_next(1);
        let pending = self.bus.send(Ask::Unknown(99));
        let deadline = Instant::now() + PATIENCE;
        while !server.thread.is_finished() {
            assert!(Instant::now() < deadline, "a server does not end");
            std::thread::sleep(Duration::from_micros(50));
        }
        server.thread.join().expect("the server panicked").ok();
        pending.kill();
    }

    /// A server, if there is none: perhaps of a device that has to be made anew.
    fn revive(&mut self) {
        let alive = |server: &Running| !server.thread.is_finished();
        if self.server.as_ref().is_some_and(alive) && !self.bus.is_broken() {
            return;
        }
        if let Some(server) = self.server.take() {
            server.handle.stop();
            server.thread.join().expect("the server panicked").ok();
            self.behaves = false;
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let error = match self.serve() {
                Ok(()) => break,
                Err(error) => error,
            };
            assert!(Instant::now() < deadline, "no server comes: {error}");
            // Threads that were left behind may still hold it. Else what the message says helps: the device is taken off the
            // bus.
            self.disk.release(usize::MAX);
            if !matches!(error, ServerError::InUse(_)) {
                self.behaves = false;
                self.live = false;
                self.bus.attach(false);
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        self.bus.attach(true);
    }

    /// Sends a message. It is answered in time, unless the server ends, or the kernel gives the device up as it had to.
    fn ask(&mut self, ask: Ask) -> Option<Answer> {
        let pending = self.bus.send(ask);
        let deadline = Instant::now() + PATIENCE;
        while !pending.is_over() {
            if self
                .server
                .as_ref()
                .is_none_or(|server| server.thread.is_finished())
            {
                pending.kill();
                self.behaves = false;
                return None;
            }
            assert!(Instant::now() < deadline, "{ask:?} is not answered");
            std::thread::sleep(Duration::from_micros(20));
        }
        pending.wait()
    }

    fn ok(&mut self, ask: Ask) -> bool {
        self.ask(ask) == Some(Answer::Ok)
    }

    /// The driver resets the device: what was in flight is so no more.
    fn reset(&mut self) -> bool {
        self.drivers.forget_all();
        (self.negotiated, self.live) = (false, false);
        self.ok(Ask::SetStatus(0))
    }

    fn negotiate(&mut self, but: u8) -> bool {
        if !self.reset() || !self.ok(Ask::SetStatus(1)) || !self.ok(Ask::SetStatus(3)) {
            return false;
        }
        let without = 1_u64.checked_shl(but.into()).unwrap_or(0);
        self.behaves &= without == 0;
        self.bus
            .set_driver_features(self.bus.device_features() & !without);
        self.negotiated = self.ok(Ask::SetStatus(11));
        self.negotiated
    }

    fn driver_ok(&mut self) -> bool {
        // Only once.
        self.behaves &= self.negotiated && !self.live;
        self.live = self.ok(Ask::SetStatus(15));
        self.live
    }

    fn set_queue_up(&mut self, index: usize, start: u16) {
        // Not below a server that uses it.
        self.behaves &= !self.live;
        let at = GuestAddress(BASE + index as u64 * drivers::PART);
        let state = self.drivers.set_up(index, at, start, (true, true));
        let info = VqInfo {
            num: state.size.into(),
            descriptor: state.desc_table,
            driver: state.avail_ring,
            device: state.used_ring,
            avail_index: state.next_avail,
            ready: true,
        };
        self.bus.set_vq(index as u16, info);
    }

    fn request(&mut self, index: usize, kind: u8, sector: u64) {
        if self.drivers.request(index, kind, sector, self.behaves) {
            self.bus.kick(index as u16);
        }
    }

    fn poll(&mut self) {
        self.drivers.poll(self.behaves);
    }

    fn damage(&self, changes: &[Damage]) {
        let path = self.folder.path().join(format!("vduse-{NAME}.state"));
        let Ok(mut bytes) = std::fs::read(&path) else {
            return;
        };
        for change in changes {
            match bytes.get_mut(usize::from(change.at)) {
                Some(byte) => *byte ^= change.with,
                None => bytes.truncate(usize::from(change.at) % bytes.len().max(1)),
            }
        }
        std::fs::write(path, bytes).expect("memory");
    }

    fn take_step(&mut self, step: &Step) {
        let queue = |index: &u8| usize::from(*index) % usize::from(QUEUES);
        // Beyond them, too.
        let any = |index: &u8| u32::from(*index) % (u32::from(QUEUES) + 2);
        match step {
            Step::Negotiate { but } => {
                self.negotiate(*but);
            }
            Step::Queue { index, start } => self.set_queue_up(queue(index), *start),
            Step::AnyQueue {
                index,
                exponent,
                pages,
                offset,
                ready,
            } => {
                self.behaves = false;
                let page = |byte: u8| match byte {
                    u8::MAX => u64::MAX - PAGE + 1,
                    byte => BASE + u64::from(byte) % (PAGES + 2) * PAGE,
                };
                let [one, two, three, _] = pages.to_le_bytes();
                let at = |byte| page(byte).wrapping_add(u64::from(*offset) % PAGE);
                let info = VqInfo {
                    num: if *exponent > 15 { 3 } else { 1 << exponent },
                    descriptor: at(one),
                    driver: at(two),
                    device: at(three),
                    avail_index: *offset,
                    ready: *ready,
                };
                self.bus.set_vq(queue(index) as u16, info);
            }
            Step::DriverOk => {
                self.driver_ok();
            }
            Step::Status { byte } => {
                if *byte == 0 {
                    self.reset();
                } else {
                    self.behaves = false;
                    self.ask(Ask::SetStatus(*byte));
                }
            }
            Step::GetState { index } => {
                let index = any(index);
                let answer = self.ask(Ask::GetVqState { index });
                if let Some(Answer::VqState { index: told, .. }) = answer {
                    assert!(
                        told == index && index < QUEUES.into(),
                        "a queue that is not there"
                    );
                }
            }
            Step::Ready { index, ready } => {
                let index = any(index);
                self.ask(Ask::SetVqReady {
                    index,
                    ready: *ready,
                });
                // Its requests wait until it is enabled again.
                self.behaves = false;
            }
            Step::Suspend => {
                self.ask(Ask::Suspend);
                self.behaves = false;
            }
            Step::Group { group, asid } => {
                let (group, asid) = (u32::from(*group) % 3, u32::from(*asid) % 3);
                let answer = self.ask(Ask::SetGroupAsid { group, asid });
                let there = (group, asid) == (0, 0);
                let expected = if there { Answer::Ok } else { Answer::Failed };
                assert!(answer.is_none_or(|answer| answer == expected));
            }
            Step::Unknown { kind } => {
                let answer = self.ask(Ask::Unknown(kind | 0x100));
                assert!(answer.is_none_or(|answer| answer == Answer::Failed));
            }
            Step::Regions { parts, told } => {
                // Those of the queues stay where they are, if anything is to be expected of them.
                self.behaves &= parts & 3 == 3;
                self.bus.set_regions(self.regions(*parts));
                if *told {
                    self.ask(Ask::UpdateIotlb {
                        first: 0,
                        last: u64::MAX,
                    });
                }
            }
            Step::Wild {
                first,
                pages,
                domain,
            } => {
                self.behaves = false;
                let wild = (*pages != 0).then(|| {
                    let mapped = u64::from(*first) % (PART * PARTS);
                    let part = self.region(mapped, (PART * PARTS - mapped).min((*pages).into()));
                    match *first {
                        u8::MAX => FakeRegion {
                            first: u64::MAX - 7,
                            last: u64::MAX,
                            ..part
                        },
                        _ => FakeRegion {
                            domain: *domain,
                            ..part
                        },
                    }
                });
                self.bus.set_wild_region(wild);
                self.ask(Ask::UpdateIotlb {
                    first: 0,
                    last: u64::MAX,
                });
            }
            Step::Request {
                index,
                kind,
                sector,
            } => self.request(queue(index), kind % 20, (*sector).into()),
            Step::Poll => self.poll(),
            Step::Poke { at, value } => {
                self.behaves = false;
                let at = 8 * u64::from(*at) % (PART * PARTS * PAGE);
                self.file
                    .write_all_at(&value.to_le_bytes(), at)
                    .expect("memory");
            }
            Step::Kick { index } => self.bus.kick(any(index) as u16),
            Step::Shrink { pages } => {
                self.behaves = false;
                let pages = match *pages {
                    u8::MAX => PAGES,
                    pages => u64::from(pages) % PAGES,
                };
                self.shrink(pages);
            }
            Step::Release { count } => {
                self.disk.release((*count).into());
            }
            Step::Resize { sectors } => {
                self.behaves = false;
                self.disk.resize(u64::from(*sectors).max(1));
            }
            Step::Fail { after, how } => {
                self.behaves = false;
                let errors = [5, 12, 22, 24, 1];
                let errno = errors[usize::from(*how) % errors.len()];
                self.kernel.fail_after((*after).into(), errno);
            }
            Step::Restart { killed, damage } => {
                match killed {
                    true => self.kill(),
                    false => self.end(),
                }
                if !damage.is_empty() {
                    self.behaves = false;
                    self.damage(damage);
                }
            }
            Step::Rebind => {
                self.behaves = false;
                self.bus.attach(false);
                self.reset();
                self.bus.attach(true);
            }
        }
    }

    /// Cuts memory short. The driver's own accesses must not meet the hole: only the file's.
    fn shrink(&mut self, pages: u64) {
        self.drivers.forget_all();
        self.file.set_len(pages * PAGE).expect("memory");
        self.file.set_len(PAGES * PAGE).expect("memory");
        for page in (PART * PARTS).max(pages)..PAGES {
            self.file
                .write_all_at(&[GUARD; PAGE as usize], page * PAGE)
                .expect("memory");
        }
    }

    /// What is in flight completes in the end, if nothing hostile happened.
    fn finish(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.behaves && self.live && self.drivers.in_flight() != 0 {
            self.disk.release(usize::MAX);
            self.poll();
            assert!(Instant::now() < deadline, "requests never complete");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// A driver that behaves is served, by a server of a device that may have to be made anew.
    fn assert_serves(&mut self) {
        self.kernel.fail_after(u64::MAX / 2, 5);
        self.bus.set_wild_region(None);
        self.bus.set_regions(self.regions(0xff));
        self.disk.set_mode(Mode::AtFlush);
        self.disk.release(usize::MAX);
        self.disk.resize(SECTORS);
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.revive();
            if self.negotiate(u8::MAX) {
                (0..usize::from(QUEUES)).for_each(|index| self.set_queue_up(index, 0xfffe));
                if self.driver_ok() {
                    break;
                }
            }
            assert!(Instant::now() < deadline, "a good driver is not served");
            std::thread::sleep(Duration::from_micros(100));
        }
        self.drivers.forget_content();
        self.behaves = true;
        for (round, kind) in [1, 0, 4].into_iter().enumerate() {
            for index in 0..usize::from(QUEUES) {
                self.request(index, kind, 8 + index as u64);
            }
            while self.drivers.in_flight() != 0 {
                self.poll();
                assert!(
                    Instant::now() < deadline,
                    "a good driver gets no answer in round {round}"
                );
                std::thread::sleep(Duration::from_micros(20));
            }
        }
        assert!(!self.bus.is_broken());
    }
}

/// Runs an input.
///
/// # Panics
/// The server did what it must not.
pub fn run(input: &Input) {
    let mut world = World::new(input);
    // Messages have to wait for what is held.
    let steps = if input.holds { STEPS / 4 } else { STEPS };
    for step in input.steps.iter().take(steps) {
        world.revive();
        world.take_step(step);
    }
    world.revive();
    world.finish();
    world.assert_serves();
    world.end();
    let mut guard = vec![0; (OTHERS * PAGE) as usize];
    world
        .file
        .read_exact_at(&mut guard, PART * PARTS * PAGE)
        .expect("memory");
    assert!(
        guard.iter().all(|byte| *byte == GUARD),
        "memory that the device never had was written"
    );
}

/// Runs an input where nothing else runs: no thread stays, either.
///
/// # Panics
/// As for [`run`].
pub fn run_alone(input: &Input) {
    threads::outlive(|| run(input));
}
