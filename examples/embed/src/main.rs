// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a VMM embeds the virtio-blk device: guest memory, a disk, a device, a queue, and a loop.
//!
//! The other end, which a guest's kernel would be, is played by `virtio-blk-driver` in the same thread.
//! Everything runs in one process, without privileges. What it prints was checked byte by byte.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use virtio_blk_core::device::{Device, DeviceOptions, StatusChange, StatusRegister};
use virtio_blk_core::disk::Disk;
use virtio_blk_core::runner::{QueueRunner, QueueSetup, Service, Stop};
use virtio_blk_core::spec::status;
use virtio_blk_disks::MemoryDisk;
use virtio_blk_driver::request::{Arena, ArenaConfig, Done, Driver, Request};
use virtio_blk_driver::ring::{RingConfig, SplitLayout};
use virtio_blk_driver::wire;
use vm_memory::{GuestAddress, GuestMemoryMmap};

type Memory = Arc<GuestMemoryMmap<()>>;
type Outcome<T> = Result<T, Box<dyn Error>>;

const DISK: u64 = 256 << 20;
const CHUNK: u32 = 64 << 10;
const SECTORS: u64 = CHUNK as u64 / 512;
const CHUNKS: u64 = DISK / CHUNK as u64;
const DEPTH: u16 = 32;
const QUEUE_SIZE: u16 = 128;

fn main() -> Outcome<()> {
    // Guest memory, as the VMM made it for its guest.
    let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&[(
        GuestAddress(0),
        16 << 20,
    )])?);

    // A disk, and the device over it. The device offers what the disk was probed for.
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new(DISK)?);
    let options = DeviceOptions {
        queue_size: QUEUE_SIZE,
        serial: "embed".into(),
        ..DeviceOptions::default()
    };
    let device = Device::new(disk, options)?;
    println!(
        "device    {} MiB, offers {}",
        DISK >> 20,
        device.offered_names().join(" ")
    );

    // What the guest's driver does through the VMM's transport: negotiate, lay out a queue, go.
    let features = device.offered();
    let mut register = StatusRegister::default();
    for bits in [status::ACKNOWLEDGE, status::DRIVER, status::FEATURES_OK] {
        register.write(bits, features, &device);
    }
    let layout = SplitLayout::contiguous(QUEUE_SIZE, GuestAddress(0x10_0000))?;
    let config = RingConfig {
        event_idx: true,
        indirect: true,
        start: 0,
    };
    let slots = ArenaConfig {
        slots: DEPTH,
        data_len: CHUNK,
        ..ArenaConfig::default()
    };
    let arena = Arena::new(GuestAddress(0x20_0000), slots)?;
    let driver = Driver::new(memory.clone(), layout, config, arena)?;
    let change = register.write(status::DRIVER_OK, features, &device);
    assert!(
        change == StatusChange::Start,
        "a driver that did it right is let in"
    );

    // At DRIVER_OK the VMM takes the disk into use and starts the queue. Its interrupt would be an irqfd; here it counts.
    device.disk().activate()?;
    let interrupts = Arc::new(AtomicU64::new(0));
    let count = interrupts.clone();
    let setup = QueueSetup::new(memory, move || {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let queue = device.start_queue(0, setup, driver.state())?;
    let mut machine = Machine {
        driver,
        queue,
        kicks: 0,
    };

    // The guest at work.
    machine.run("write", Work::Write, CHUNKS)?;
    machine.run("read", Work::Read(pattern), CHUNKS)?;
    machine.run("discard", Work::DiscardHalf, 1)?;
    machine.run("zero", Work::ZeroHalf, 1)?;
    machine.run("read", Work::Read(half_zeroed), CHUNKS)?;
    machine.run("flush", Work::Flush, 1)?;

    // Stop: nothing is in flight when it returns, and the state says where to go on.
    let kicks = machine.kicks;
    let counters = machine.queue.counters().clone();
    let stopped = machine.queue.stop(Stop::Drain);
    device.disk().deactivate()?;
    println!(
        "stopped   at index {} with {} in flight, after {kicks} kicks and {} interrupts",
        stopped.state.next_avail,
        stopped.in_flight.len(),
        interrupts.load(Ordering::Relaxed),
    );
    for (name, value) in counters
        .snapshot()
        .into_iter()
        .filter(|(_, value)| *value != 0)
    {
        println!("counter   {name} {value}");
    }
    Ok(())
}

/// What every byte of a chunk is after the first stage.
fn pattern(chunk: u64) -> u8 {
    (chunk * 37 + 11) as u8 | 1
}

/// What it is once the first half was zeroed.
fn half_zeroed(chunk: u64) -> u8 {
    if chunk < CHUNKS / 2 {
        0
    } else {
        pattern(chunk)
    }
}

/// What the guest asks for.
#[derive(Clone, Copy)]
enum Work {
    Write,
    /// Read, and expect every byte of a chunk to be this.
    Read(fn(u64) -> u8),
    DiscardHalf,
    ZeroHalf,
    Flush,
}

const HALF: wire::Range = wire::Range {
    sector: 0,
    num_sectors: (DISK / 1024) as u32,
    flags: 0,
};
const HALF_UNMAP: wire::Range = wire::Range {
    flags: wire::RANGE_F_UNMAP,
    ..HALF
};

impl Work {
    /// The request for a chunk; `data` holds what a write writes.
    fn request(self, chunk: u64, data: &mut [u8]) -> Request<'_> {
        let sector = chunk * SECTORS;
        match self {
            Self::Write => {
                data.fill(pattern(chunk));
                Request::write(sector, data)
            }
            Self::Read(_) => Request::read(sector, CHUNK),
            Self::DiscardHalf => Request::discard(&[HALF]),
            Self::ZeroHalf => Request::write_zeroes(&[HALF_UNMAP]),
            Self::Flush => Request::flush(),
        }
    }

    /// Whether an answer is right.
    fn check(self, driver: &Driver<Memory>, done: &Done, chunk: u64, data: &mut [u8]) -> bool {
        done.is_ok()
            && match self {
                Self::Read(expected) => {
                    let expected = expected(chunk);
                    driver.read_data(done.token, 0, data).is_ok()
                        && data.iter().all(|byte| *byte == expected)
                }
                _ => true,
            }
    }
}

/// Guest and VMM in one thread.
struct Machine {
    driver: Driver<Memory>,
    queue: QueueRunner<Memory>,
    kicks: u64,
}

impl Machine {
    /// Runs `count` requests, [`DEPTH`] at a time, and checks each answer.
    fn run(&mut self, name: &str, work: Work, count: u64) -> Outcome<()> {
        let start = Instant::now();
        let mut data = vec![0; CHUNK as usize];
        let mut flying = Vec::new();
        let mut chunks = 0..count;
        let mut finished = 0;
        while finished < count {
            // The guest fills its ring and kicks.
            while flying.len() < usize::from(DEPTH) {
                let Some(chunk) = chunks.next() else { break };
                let token = self.driver.submit(&work.request(chunk, &mut data))?;
                flying.push((token, chunk));
            }
            self.kicks += u64::from(self.driver.publish()?);
            // The VMM's event loop: serve until there is nothing to do.
            while self.queue.service(64) == Service::More {}
            // The guest's interrupt handler.
            while let Some(done) = self.driver.poll()? {
                let at = flying.iter().position(|(token, _)| *token == done.token);
                let (_, chunk) = flying.swap_remove(at.ok_or("an answer to no request")?);
                if !work.check(&self.driver, &done, chunk, &mut data) {
                    return Err(
                        format!("{name}: chunk {chunk} failed, status {}", done.status).into(),
                    );
                }
                finished += 1;
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        if count == 1 {
            println!("{name:<9} ok, {:.0} µs", seconds * 1e6);
        } else {
            let mib = (count * u64::from(CHUNK)) as f64 / f64::from(1 << 20);
            println!(
                "{name:<9} {count} requests of {} KiB ok, {:.0} MiB/s",
                CHUNK >> 10,
                mib / seconds
            );
        }
        Ok(())
    }
}
