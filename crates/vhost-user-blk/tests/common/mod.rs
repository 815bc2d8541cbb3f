// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A server in this process, and what clients of it need.

// Each test program uses a part of it.
#![allow(dead_code)]

pub mod log;
pub mod stuck;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vblk_testing::frontend::{Client, Guest, InFlight, PATIENCE, Queue, Wire};
use vhost_user_blk::{STOP_TIME, Server, ServerError, ServerHandle, ServerOptions};
use virtio_blk_core::device::{Device, DeviceOptions};
use virtio_blk_core::disk::{Caps, Disk, EraseLimits, ZeroLimits};
use virtio_blk_core::testdisk::{Mode, TestDisk, WaitKind};

/// Sectors of the disks here.
pub const SECTORS: u64 = 2048;
/// Queues and their largest size.
pub const QUEUES: u16 = 4;
pub const QUEUE_SIZE: u16 = 64;

/// A server on a thread.
pub struct Served {
    dir: tempfile::TempDir,
    pub device: Arc<Device>,
    pub handle: ServerHandle,
    thread: Option<JoinHandle<Result<(), ServerError>>>,
}

impl Served {
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Self::with(disk, |server| server)
    }

    /// With a server that `change` makes of the usual one.
    pub fn with(disk: Arc<dyn Disk>, change: impl FnOnce(Server) -> Server) -> Self {
        Self::start(disk, options(), STOP_TIME, change)
    }

    /// With a device of these options.
    pub fn with_device(disk: Arc<dyn Disk>, options: DeviceOptions) -> Self {
        Self::started(disk, options, STOP_TIME)
    }

    /// With stops that take at most so long.
    pub fn with_stop_time(disk: Arc<dyn Disk>, stop_time: Duration) -> Self {
        Self::started(disk, options(), stop_time)
    }

    /// With both.
    pub fn started(disk: Arc<dyn Disk>, options: DeviceOptions, stop_time: Duration) -> Self {
        Self::start(disk, options, stop_time, |server| server)
    }

    fn start(
        disk: Arc<dyn Disk>,
        options: DeviceOptions,
        stop_time: Duration,
        change: impl FnOnce(Server) -> Server,
    ) -> Self {
        let device = Device::new(disk, options).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let server = ServerOptions {
            stop_time,
            ..ServerOptions::default()
        };
        let server = Server::bind(&socket, device.clone(), server).unwrap();
        let server = change(server);
        let handle = server.handle();
        let thread = std::thread::spawn(move || server.run());
        Self {
            dir,
            device,
            handle,
            thread: Some(thread),
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// Waits until the server has ended.
    pub fn join(&mut self) {
        self.thread.take().unwrap().join().unwrap().unwrap();
    }

    /// Waits until no client is connected.
    pub fn wait_idle(&self) {
        wait_for("the client to be gone", || !self.handle.is_connected());
    }

    /// A client with memory and running queues.
    pub fn running(&self, queues: usize) -> Running {
        let mut client = Client::connect(&self.socket()).unwrap();
        let mut guest = guest();
        client.set_memory(&guest).unwrap();
        let queues = start(&mut client, &mut guest, queues);
        Running {
            client,
            guest,
            queues,
        }
    }

    /// A whole session works, up to data that is read back.
    pub fn assert_serves(&self) {
        let mut running = self.running(1);
        let queue = &mut running.queues[0];
        queue.write(8, &[0x5a; 512]).unwrap();
        assert_eq!(queue.read(8, 512).unwrap(), [0x5a; 512]);
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            let result = thread.join();
            if !std::thread::panicking() {
                result.unwrap().unwrap();
            }
        }
    }
}

/// The usual device.
pub fn options() -> DeviceOptions {
    DeviceOptions {
        queues: QUEUES,
        queue_size: QUEUE_SIZE,
        serial: "serial-1".to_owned(),
        ..DeviceOptions::default()
    }
}

/// A client at work. Fields are dropped in this order: it hangs up first.
pub struct Running {
    pub client: Client,
    pub guest: Guest,
    pub queues: Vec<Queue>,
}

/// Memory of two regions with a gap.
pub fn guest() -> Guest {
    Guest::new(&[(0, 2 << 20), (1 << 32, 1 << 20)]).unwrap()
}

pub fn start(client: &mut Client, guest: &mut Guest, queues: usize) -> Vec<Queue> {
    (0..queues)
        .map(|index| {
            let queue = guest.queue(QUEUE_SIZE, 4096, 0).unwrap();
            client.start(index, &queue, 0).unwrap();
            queue
        })
        .collect()
}

/// A disk that does everything, and holds operations if told to.
pub fn test_disk() -> TestDisk {
    let erase = EraseLimits {
        max_sectors: 1024,
        max_segments: 4,
        alignment: 1,
    };
    TestDisk::new(Caps {
        flush: true,
        discard: Some(erase),
        write_zeroes: Some(ZeroLimits {
            max_sectors: 1024,
            max_segments: 4,
            may_unmap: true,
        }),
        ..Caps::basic(SECTORS)
    })
    .with_mode(Mode::AtFlush, WaitKind::Fd)
}

/// A server over such a disk.
pub fn serve() -> (TestDisk, Served) {
    let disk = test_disk();
    let served = Served::new(Arc::new(disk.clone()));
    (disk, served)
}

/// The heads that an in-flight area names, of its queue 0.
pub fn heads_in_flight(area: &InFlight) -> Vec<u16> {
    let mut bytes = vec![0; area.area.mmap_size as usize];
    area.file.read_exact_at(&mut bytes, 0).unwrap();
    let named = |head: &u16| bytes[16 + 16 * usize::from(*head)] != 0;
    (0..area.area.queue_size).filter(named).collect()
}

/// Mappings of guest memory in this process: the client's and the server's.
pub fn mapped(guest: &Guest) -> usize {
    let inode = |fd| std::fs::metadata(format!("/proc/self/fd/{fd}")).unwrap();
    guest
        .regions()
        .iter()
        .map(|region| {
            let inode = std::os::unix::fs::MetadataExt::ino(&inode(region.mmap_handle));
            mappings(&format!(" {inode} "))
        })
        .sum()
}

pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Entries of a directory of `/proc/self`.
pub fn count(dir: &str) -> usize {
    std::fs::read_dir(Path::new("/proc/self").join(dir))
        .unwrap()
        .count()
}

/// Bytes under `/proc/self/maps` that name this file.
pub fn mappings(name: &str) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains(name)).count()
}

/// A second way to write to a client's connection.
pub fn wire(client: &Client) -> Wire {
    Wire::over(client.stream()).unwrap()
}
