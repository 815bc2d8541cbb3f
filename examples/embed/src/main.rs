// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a VMM embeds the virtio-blk device: guest memory, a disk, a device, a queue, and a loop.
//!
//! The other end, which a guest's kernel would be, is played by `virtio-blk-driver` in the same thread. It writes the
//! whole disk, reads it back and compares.

use std::array;
use std::error::Error;
use std::sync::Arc;

use virtio_blk_core::device::{Device, DeviceOptions, StatusRegister};
use virtio_blk_core::runner::{QueueSetup, Service, Stop};
use virtio_blk_disks::MemoryDisk;
use virtio_blk_driver::request::{Arena, ArenaConfig, Driver, Request};
use virtio_blk_driver::ring::{RingConfig, SplitLayout};
use vm_memory::{GuestAddress, GuestMemoryMmap};

type Memory = Arc<GuestMemoryMmap<()>>;
type Outcome<T> = Result<T, Box<dyn Error>>;

const DISK: u64 = 16 << 20;
const CHUNK: u64 = 4096;
const CHUNKS: u64 = DISK / CHUNK;

fn main() -> Outcome<()> {
    let ram = [(GuestAddress(0), 16 << 20)];
    let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&ram)?);
    let mut guest = Guest::new(memory.clone())?;
    let interrupt = || {};

    // ANCHOR: embed
    // A device over a disk. It offers what the disk was probed for.
    let disk = Arc::new(MemoryDisk::new(DISK)?);
    let device = Device::new(disk, DeviceOptions::default())?;
    // The driver writes the status register until DRIVER_OK. It may acknowledge less than is offered.
    let mut register = StatusRegister::default();
    while !register.is_live() {
        register.write(guest.status()?, device.offered(), &device);
    }
    // Now the disk is taken into use, and the queue starts where the driver put its rings.
    device.disk().activate()?;
    let setup = QueueSetup::new(memory, interrupt);
    let mut queue = device.start_queue(0, setup, guest.driver.state())?;
    // The event loop, at each kick, and when `queue.wait()` fires: a disk may complete requests later.
    while guest.kicks()? {
        while queue.service(64) == Service::More {}
    }
    // A reset or a snapshot: nothing is in flight any more, and the state says where to continue.
    let stopped = queue.stop(Stop::Drain);
    device.disk().deactivate()?;
    // ANCHOR_END: embed

    let next = stopped.state.next_avail;
    println!("{CHUNKS} chunks written, read back and compared; stopped at index {next}");
    Ok(())
}

/// The driver of a guest, with one request at a time.
struct Guest {
    driver: Driver<Memory>,
    /// What it writes to the status register: ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK.
    statuses: array::IntoIter<u8, 4>,
    /// The number of the next request: first all writes, then all reads.
    next: u64,
}

impl Guest {
    fn new(memory: Memory) -> Outcome<Self> {
        let layout = SplitLayout::contiguous(128, GuestAddress(0x10_0000))?;
        let ring = RingConfig {
            event_idx: true,
            indirect: true,
            start: 0,
        };
        let arena = Arena::new(GuestAddress(0x20_0000), ArenaConfig::default())?;
        Ok(Self {
            driver: Driver::new(memory, layout, ring, arena)?,
            statuses: [1, 3, 11, 15].into_iter(),
            next: 0,
        })
    }

    fn status(&mut self) -> Outcome<u8> {
        let refused = "the device refuses the driver's features";
        Ok(self.statuses.next().ok_or(refused)?)
    }

    /// Checks what came back, and submits the next request. Returns whether there is one.
    fn kicks(&mut self) -> Outcome<bool> {
        let mut data = vec![0; CHUNK as usize];
        if let Some(done) = self.driver.poll()? {
            let request = self.next - 1;
            if request >= CHUNKS {
                self.driver.read_data(done.token, 0, &mut data)?;
            }
            if !done.is_ok() || request >= CHUNKS && data != pattern(request) {
                return Err(format!("request {request} failed: {done:?}").into());
            }
        }
        if self.next == 2 * CHUNKS {
            return Ok(false);
        }
        let (sector, written) = (self.next % CHUNKS * CHUNK / 512, pattern(self.next));
        self.driver.submit(&if self.next < CHUNKS {
            Request::write(sector, &written)
        } else {
            Request::read(sector, CHUNK as u32)
        })?;
        self.next += 1;
        self.driver.publish()?;
        Ok(true)
    }
}

/// What a request writes, or reads.
fn pattern(request: u64) -> Vec<u8> {
    vec![(request % CHUNKS * 37 + 11) as u8; CHUNK as usize]
}
