// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A server on the fake kernel, a driver for it, and a disk that hangs when a test says so.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use malformed_queues::testmem::Space;
use vduse_backend::fake::{FakeDriver, FakeKernel, FakeRegion};
use vduse_backend::kernel::VqInfo;
use vduse_backend::message::{Answer, Request as Ask};
use vduse_backend::{Outcome, Server, ServerError, ServerHandle, ServerOptions};
use virtio_blk_core::device::{Device, DeviceOptions};
use virtio_blk_core::disk::{
    Caps, Completion, Disk, DiskError, DiskListener, Execute, IoBuf, IoQueue, Op, OpKind, Submit,
    Wait,
};
use virtio_blk_core::memory::Permissions;
use virtio_blk_core::spec::feature::ACCESS_PLATFORM;
use virtio_blk_core::testdisk::{Mode, TestDisk, WaitKind};
use virtio_blk_driver::request::{ArenaConfig, Done, Driver, Request, Token};
use virtio_blk_driver::ring::RingConfig;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

/// How long to wait for what must come.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub type Guest = GuestMemoryMmap<()>;

pub const NAME: &str = "disk0";
pub const SECTORS: u64 = 256;
pub const QUEUE_SIZE: u16 = 32;
/// Guest memory for the queues of one life of the driver.
const LIFE: u64 = 4 << 20;
/// Lives of the driver before memory is used again.
const LIVES: u64 = 8;
/// Where guest memory begins for the device.
pub const BASE: u64 = 1 << 32;

const ARENA: ArenaConfig = ArenaConfig {
    slots: 16,
    data_len: 8192,
    data_align: 512,
    table_len: 32,
};

/// A gate that requests pass through.
#[derive(Default)]
struct Gate {
    /// Closed; and how many wait at it.
    state: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.1 += 1;
        self.changed.notify_all();
        while state.0 {
            state = self.changed.wait(state).unwrap();
        }
        state.1 -= 1;
        self.changed.notify_all();
    }

    /// Waits until as many wait at it as `enough` says.
    fn wait_until(&self, enough: impl Fn(usize) -> bool) {
        let state = self.state.lock().unwrap();
        let (_state, waited) = self
            .changed
            .wait_timeout_while(state, PATIENCE, |state| !enough(state.1))
            .unwrap();
        assert!(!waited.timed_out());
    }
}

/// A disk whose requests hang inside `submit` while a test wants that, and are executed afterwards: as
/// late as can be.
#[derive(Clone)]
pub struct StallDisk {
    inner: TestDisk,
    gate: Arc<Gate>,
}

impl StallDisk {
    pub fn new() -> Self {
        Self::with_caps(Caps {
            flush: true,
            ..Caps::basic(SECTORS)
        })
    }

    /// Another kind of disk.
    pub fn with_caps(caps: Caps) -> Self {
        let inner = TestDisk::new(caps);
        Self {
            inner: inner.with_mode(Mode::Inline, WaitKind::Inline),
            gate: Arc::default(),
        }
    }

    /// A disk that never hangs, but completes when a test says so, and is waited for by a descriptor.
    pub fn held() -> Self {
        Self::new().queueing(Mode::Held, WaitKind::Fd)
    }

    /// The same, with another way to complete and to tell that.
    pub fn queueing(self, mode: Mode, wait: WaitKind) -> Self {
        Self {
            inner: self.inner.with_mode(mode, wait),
            ..self
        }
    }

    pub fn inner(&self) -> &TestDisk {
        &self.inner
    }

    pub fn stall(&self) {
        self.gate.state.lock().unwrap().0 = true;
    }

    pub fn go_on(&self) {
        self.gate.state.lock().unwrap().0 = false;
        self.gate.changed.notify_all();
    }

    /// Waits until so many requests hang.
    pub fn wait_stalled(&self, count: usize) {
        self.gate.wait_until(|stalled| stalled >= count);
    }

    /// Waits until none does.
    pub fn wait_idle(&self) {
        self.gate.wait_until(|stalled| stalled == 0);
    }
}

impl Disk for StallDisk {
    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        Ok(Box::new(StallQueue {
            inner: self.inner.open_queue(depth)?,
            gate: self.gate.clone(),
        }))
    }

    fn listen(&self, listener: DiskListener) {
        self.inner.listen(listener);
    }
}

struct StallQueue {
    inner: Box<dyn IoQueue>,
    gate: Arc<Gate>,
}

impl IoQueue for StallQueue {
    fn submit(&mut self, op: Op) -> Submit {
        self.gate.pass();
        self.inner.submit(op)
    }

    fn execute(
        &mut self,
        kind: &OpKind,
        buf: &IoBuf,
        token: Option<virtio_blk_core::disk::Token>,
    ) -> Execute {
        self.gate.pass();
        self.inner.execute(kind, buf, token)
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        self.inner.reap(done)
    }

    fn flush_batch(&mut self) -> Result<(), DiskError> {
        self.inner.flush_batch()
    }

    fn wait(&self) -> Wait<'_> {
        self.inner.wait()
    }

    fn cancel(&mut self, token: virtio_blk_core::disk::Token) {
        self.inner.cancel(token);
    }
}

/// Which writes the disk executed, by sector, and which of them when it was over with them.
#[derive(Default)]
pub struct Ledger {
    executed: HashSet<u64>,
    over: HashSet<u64>,
    wrong: Vec<u64>,
}

impl Ledger {
    /// Of a disk whose sectors are written once each.
    pub fn of(disk: &StallDisk) -> Arc<Mutex<Self>> {
        let ledger = Arc::new(Mutex::new(Self::default()));
        let seen = ledger.clone();
        disk.inner().set_fault(move |kind| {
            if let OpKind::Write { offset, .. } = kind {
                let (mut ledger, sector) = (seen.lock().unwrap(), offset / 512);
                ledger.executed.insert(sector);
                if ledger.over.contains(&sector) {
                    ledger.wrong.push(sector);
                }
            }
            None
        });
        ledger
    }

    /// The write was answered with success, for the first time.
    pub fn answered(&mut self, sector: u64) {
        assert!(self.executed.contains(&sector), "{sector}: not executed");
        assert!(self.over.insert(sector), "{sector}: answered twice");
    }

    /// A reset cancelled the write.
    pub fn cancelled(&mut self, sector: u64) {
        self.over.insert(sector);
    }

    /// None was executed when it was over with it.
    pub fn check(&self) {
        assert!(self.wrong.is_empty(), "executed again: {:?}", self.wrong);
    }
}

struct Running {
    thread: JoinHandle<Result<Outcome, ServerError>>,
    handle: ServerHandle,
}

/// Kernel, server, driver.
pub struct Rig {
    pub kernel: FakeKernel,
    pub bus: FakeDriver,
    pub disk: StallDisk,
    /// What is served: that disk, or one over it.
    pub top: Arc<dyn Disk>,
    pub guest: Arc<Guest>,
    pub memory: Arc<OwnedFd>,
    pub queues: Vec<Driver<Arc<Guest>>>,
    pub dir: tempfile::TempDir,
    pub options: DeviceOptions,
    /// Where the driver starts its queues.
    pub start_index: u16,
    name: &'static str,
    life: u64,
    server: Option<Running>,
}

pub fn memfd(len: u64) -> std::fs::File {
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.set_len(len).unwrap();
    file
}

pub fn usual(queues: u16) -> DeviceOptions {
    DeviceOptions {
        queues,
        queue_size: QUEUE_SIZE,
        serial: "a serial number".to_owned(),
        config_wce: false,
        transport_features: ACCESS_PLATFORM,
        ..DeviceOptions::default()
    }
}

/// A kernel that knows everything.
pub fn newest() -> FakeKernel {
    FakeKernel::new(1, vduse_backend::F_QUEUE_READY | vduse_backend::F_SUSPEND)
}

impl Rig {
    pub fn new(queues: u16) -> Self {
        Self::on(newest(), queues)
    }

    pub fn on(kernel: FakeKernel, queues: u16) -> Self {
        Self::with(kernel, StallDisk::new(), queues)
    }

    pub fn with(kernel: FakeKernel, disk: StallDisk, queues: u16) -> Self {
        Self::named(NAME, kernel, disk, queues)
    }

    /// With a device of this name; a kernel may have several.
    pub fn named(name: &'static str, kernel: FakeKernel, disk: StallDisk, queues: u16) -> Self {
        let top = Arc::new(disk.clone());
        Self::over(top, name, kernel, disk, queues)
    }

    /// With another disk on top, whose driver is not there yet.
    pub fn layered(top: Arc<dyn Disk>, disk: StallDisk, queues: u16) -> Self {
        Self::over(top, NAME, newest(), disk, queues)
    }

    fn over(
        top: Arc<dyn Disk>,
        name: &'static str,
        kernel: FakeKernel,
        disk: StallDisk,
        queues: u16,
    ) -> Self {
        let file = memfd(LIFE * LIVES);
        let memory = Arc::new(OwnedFd::from(file.try_clone().unwrap()));
        let size = (LIFE * LIVES) as usize;
        let range = (GuestAddress(BASE), size, Some(FileOffset::new(file, 0)));
        let mut rig = Self {
            name,
            bus: kernel.driver(name),
            kernel,
            disk,
            top,
            start_index: 0,
            guest: Arc::new(Guest::from_ranges_with_files([range]).unwrap()),
            memory,
            queues: Vec::new(),
            dir: tempfile::tempdir().unwrap(),
            options: usual(queues),
            life: 0,
            server: None,
        };
        rig.serve().unwrap();
        rig.bus.attach(true);
        rig.bus.set_regions(vec![rig.region()]);
        rig
    }

    /// All of guest memory.
    pub fn region(&self) -> FakeRegion {
        FakeRegion {
            file: self.memory.clone(),
            offset: 0,
            first: BASE,
            last: BASE + LIFE * LIVES - 1,
            permissions: Permissions::ReadWrite,
            domain: false,
        }
    }

    pub fn server_options(&self) -> ServerOptions {
        ServerOptions {
            state_dir: self.dir.path().join("state"),
            // A fifth of it is what a message gets: one second.
            msg_timeout: Some(5),
            ..ServerOptions::new(self.name)
        }
    }

    pub fn try_serve(&self, options: ServerOptions) -> Result<Server, ServerError> {
        let device = Device::new(self.top.clone(), self.options.clone()).unwrap();
        Server::new(Arc::new(self.kernel.clone()), device, options)
    }

    /// Starts a server. Returns whether it took the device over.
    pub fn serve(&mut self) -> Result<bool, ServerError> {
        self.serve_with(self.server_options())
    }

    pub fn serve_with(&mut self, options: ServerOptions) -> Result<bool, ServerError> {
        let server = self.try_serve(options)?;
        let (handle, taken_over) = (server.handle(), server.is_taken_over());
        let thread = std::thread::spawn(move || server.run());
        self.server = Some(Running { thread, handle });
        Ok(taken_over)
    }

    /// Ends the server in order.
    pub fn stop(&mut self) -> Result<Outcome, ServerError> {
        let server = self.server.take().unwrap();
        server.handle.stop();
        server.thread.join().unwrap()
    }

    /// Waits until a queue has taken what comes before this index, and waits for a kick.
    pub fn wait_taken(&self, queue: usize, index: u16) {
        let state = self.queues[queue].state();
        // `avail_event` lies behind the used ring.
        let at = state.used_ring + 4 + 8 * u64::from(state.size);
        let deadline = Instant::now() + PATIENCE;
        while self.guest.read_obj::<u16>(GuestAddress(at)).unwrap() != index {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
    }

    /// Tells the server to end.
    pub fn begin_stop(&mut self) {
        self.server.as_ref().unwrap().handle.stop();
    }

    /// The server dies, and leaves everything as it is to the next.
    pub fn die(&mut self) {
        self.bus.shorten_next(1);
        let pending = self.bus.send(Ask::Unknown(99));
        self.ended().unwrap_err();
        pending.kill();
    }

    /// Another server comes. Returns once it has taken over what there was.
    pub fn succeed(&mut self) {
        assert!(self.serve().unwrap());
        self.settle();
    }

    /// Waits until the server has done what was to be done by now.
    pub fn settle(&self) {
        self.ok(Ask::SetGroupAsid { group: 0, asid: 0 });
    }

    /// The next available index of a queue, as the server tells it.
    pub fn told(&self, queue: u32) -> u16 {
        match self.bus.ask(Ask::GetVqState { index: queue }) {
            Some(Answer::VqState { index, next_avail }) => {
                assert_eq!(index, queue);
                next_avail
            }
            other => panic!("queue {queue}: {other:?}"),
        }
    }

    /// Whether the server has ended by itself.
    pub fn has_ended(&self) -> bool {
        let server = self.server.as_ref();
        server.is_none_or(|server| server.thread.is_finished())
    }

    /// How the server ended, if there was one.
    pub fn result(&mut self) -> Option<Result<Outcome, ServerError>> {
        Some(self.server.take()?.thread.join().unwrap())
    }

    /// The server ends by itself.
    pub fn ended(&mut self) -> Result<Outcome, ServerError> {
        self.server.take().unwrap().thread.join().unwrap()
    }

    /// Negotiates everything and sets the queues up, in memory that no earlier life used.
    pub fn start(&mut self) {
        assert!(self.bus.negotiate(self.bus.device_features()));
        self.set_queues_up();
        assert!(self.bus.set_driver_ok());
    }

    pub fn set_queues_up(&mut self) {
        // Memory is used again after so many lives.
        let base = GuestAddress(BASE + self.life % LIVES * LIFE);
        let mut space = Space::new(&[(base, LIFE)]);
        self.life += 1;
        self.queues.clear();
        for index in 0..self.options.queues {
            let config = RingConfig {
                event_idx: true,
                indirect: true,
                start: self.start_index,
            };
            let driver = space
                .driver(self.guest.clone(), QUEUE_SIZE, config, ARENA)
                .unwrap();
            self.bus.set_vq(index, info(&driver));
            self.queues.push(driver);
        }
    }

    /// A request that the disk has begun and does not end until it may continue.
    pub fn hang(&mut self, queue: usize, request: &Request) -> Token {
        self.disk.stall();
        let token = self.submit(queue, request);
        self.disk.wait_stalled(1);
        token
    }

    /// Other memory while the device is in use.
    pub fn map(&self, regions: Vec<FakeRegion>) {
        self.bus.set_regions(regions);
        self.ok(Ask::UpdateIotlb {
            first: 0,
            last: u64::MAX,
        });
    }

    pub fn submit(&mut self, queue: usize, request: &Request<'_>) -> Token {
        let driver = &mut self.queues[queue];
        let token = driver.submit(request).unwrap();
        if driver.publish().unwrap() {
            self.bus.kick(queue as u16);
        }
        token
    }

    /// Reads sector 0 to a place of its own, on the first queue.
    pub fn read_into(&mut self, to: u64) -> Token {
        let table = self.queues[0].state().desc_table;
        let token = self.queues[0].submit(&Request::read(0, 512)).unwrap();
        let data = self.queues[0].data(token).unwrap().addr.0;
        let mut entries = (0..u64::from(QUEUE_SIZE)).map(|n| GuestAddress(table + 16 * n));
        let at = entries.find(|at| self.guest.read_obj::<u64>(*at).unwrap() == data);
        self.guest.write_obj(to, at.unwrap()).unwrap();
        if self.queues[0].publish().unwrap() {
            self.bus.kick(0);
        }
        token
    }

    /// Waits for the next answer on a queue.
    pub fn answer(&mut self, queue: usize) -> Done {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(done) = self.queues[queue].poll().unwrap() {
                return done;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        panic!("queue {queue} does not answer");
    }

    /// A request with its answer.
    pub fn ask(&mut self, queue: usize, request: &Request<'_>) -> Done {
        let token = self.submit(queue, request);
        let done = self.answer(queue);
        assert_eq!(done.token, token);
        done
    }

    /// Writes and reads back, on each queue.
    pub fn check(&mut self) {
        self.check_queues(self.queues.len());
    }

    /// The same on the first `count`.
    pub fn check_queues(&mut self, count: usize) {
        for queue in 0..count {
            let sector = 8 * queue as u64;
            let data = [0x40 + queue as u8; 1024];
            assert!(self.ask(queue, &Request::write(sector, &data)).is_ok());
            let done = self.ask(queue, &Request::read(sector, 1024));
            assert!(done.is_ok());
            let mut back = [0; 1024];
            self.queues[queue]
                .read_data(done.token, 0, &mut back)
                .unwrap();
            assert_eq!(back, data);
        }
        assert!(!self.bus.is_broken());
    }

    /// A message that must be answered with success.
    pub fn ok(&self, ask: Ask) {
        assert_eq!(self.bus.ask(ask), Some(Answer::Ok), "{ask:?}");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.disk.go_on();
        if let Some(server) = self.server.take() {
            server.handle.stop();
            let _ = server.thread.join();
        }
    }
}

pub fn info(driver: &Driver<Arc<Guest>>) -> VqInfo {
    let state = driver.state();
    VqInfo {
        num: state.size.into(),
        descriptor: state.desc_table,
        driver: state.avail_ring,
        device: state.used_ring,
        avail_index: state.next_avail,
        ready: true,
    }
}
