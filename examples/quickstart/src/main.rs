// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A driver and a vDPA block device in one process, without kernel, hardware or privileges.
//!
//! The device is a `BlkSim` over a disk in memory; the driver knows it only as a `VdpaDevice`, and would
//! drive another one the same way. Each of two queues has a thread of its own that writes half of the disk,
//! reads it back, discards and zeroes. What it prints was checked byte by byte.

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use sim_backend::{BlkSim, SimOptions};
use vdpa_bus::{Callback, VdpaDevice};
use virtio_blk_core::memory::{HostMemory, IotlbMapping, IotlbTable, Permissions};
use virtio_blk_core::spec::config::{self, Config};
use virtio_blk_core::spec::feature;
use virtio_blk_disks::MemoryDisk;
use virtio_blk_driver::request::{ArenaConfig, Done, Driver, Request};
use virtio_blk_driver::vdpa::{Setup, VdpaDriver};
use virtio_blk_driver::wire;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

type Memory = Arc<GuestMemoryMmap<()>>;
type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const DISK: u64 = 256 << 20;
const CHUNK: u32 = 64 << 10;
const SECTORS: u64 = CHUNK as u64 / 512;
const QUEUES: u16 = 2;
/// Chunks of the disk that belong to one queue.
const CHUNKS: u64 = DISK / CHUNK as u64 / QUEUES as u64;
const DEPTH: u16 = 32;

fn main() -> Outcome<()> {
    // The device, served by a thread of its own. From here on it is any vDPA device.
    let disk = Arc::new(MemoryDisk::new(DISK)?);
    let device: Arc<dyn VdpaDevice> =
        Arc::new(BlkSim::new(disk, SimOptions::strict_queues(QUEUES))?);
    println!(
        "device    {} queues of up to {}, {} address space, offers {}",
        device.nvqs(),
        device.get_vq_num_max(),
        device.nas(),
        feature::names(device.get_device_features()).join(" ")
    );
    let mut bytes = [0; config::SIZE];
    device.get_config(0, &mut bytes)?;
    let config = Config::from_bytes(&bytes);
    println!(
        "config    {} MiB, blocks of {}, seg_max {}, {} queues, discard up to {} sectors, writeback {}",
        config.capacity >> 11,
        config.blk_size,
        config.seg_max,
        config.num_queues,
        config.max_discard_sectors,
        config.writeback
    );

    // What a VMM does for its guest: memory, mapped where the guest has it, and an interrupt per queue.
    let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&[(
        GuestAddress(0),
        16 << 20,
    )])?);
    let mut table = IotlbTable::new();
    for (address, part) in HostMemory::of_map(&memory) {
        table.insert(IotlbMapping::new(address, part, Permissions::ReadWrite)?)?;
    }
    let mut interrupts = Vec::new();
    for _ in 0..QUEUES {
        interrupts.push(Arc::new(EventFd::new(0)?));
    }
    // What a driver does: features, queues, DRIVER_OK, first kicks.
    let setup = Setup {
        queues: QUEUES,
        arena: ArenaConfig {
            slots: DEPTH,
            data_len: CHUNK,
            ..ArenaConfig::default()
        },
        maps: &[(0, table)],
        callback: &|vq| {
            let interrupt = interrupts.get(usize::from(vq))?;
            Some(Callback::Trigger(interrupt.clone()))
        },
        ..Setup::default()
    };
    let driver = VdpaDriver::start(device.clone(), memory, &setup)?;
    println!(
        "driver    status {:#x}, uses {}",
        device.get_status(),
        feature::names(driver.features()).join(" ")
    );
    let mut queues: Vec<_> = (0..)
        .zip(driver.into_queues())
        .zip(interrupts)
        .map(|((vq, driver), interrupt)| Queue {
            vq,
            driver,
            interrupt,
            device: device.clone(),
        })
        .collect();

    for (name, work, count) in [
        ("write", Work::Write, CHUNKS),
        ("read", Work::Read(pattern), CHUNKS),
        ("discard", Work::DiscardHalf, 1),
        ("zero", Work::ZeroHalf, 1),
        ("read", Work::Read(half_zeroed), CHUNKS),
        ("flush", Work::Flush, 1),
    ] {
        stage(&mut queues, name, work, count)?;
    }

    // Nothing is in flight once it is suspended, and every kick that comes meanwhile is remembered.
    device.suspend()?;
    for vq in 0..QUEUES {
        println!("suspended queue {vq} at {:?}", device.get_vq_state(vq)?);
    }
    device.resume()?;
    stage(&mut queues, "read", Work::Read(half_zeroed), CHUNKS)?;
    for vq in 0..QUEUES {
        let stats = device.get_vendor_vq_stats(vq)?;
        let shown: Vec<_> = stats
            .iter()
            .filter(|(_, value)| *value != 0)
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        println!("queue {vq}   {}", shown.join(", "));
    }
    device.free();
    Ok(())
}

/// What every byte of a chunk is after the first stage.
fn pattern(chunk: u64) -> u8 {
    (chunk * 37 + 11) as u8 | 1
}

/// What it is once the first half of each queue's part was zeroed.
fn half_zeroed(chunk: u64) -> u8 {
    if chunk % CHUNKS < CHUNKS / 2 {
        0
    } else {
        pattern(chunk)
    }
}

/// What is asked for.
#[derive(Clone, Copy)]
enum Work {
    Write,
    /// Read, and expect every byte of a chunk to be this.
    Read(fn(u64) -> u8),
    DiscardHalf,
    ZeroHalf,
    Flush,
}

/// One queue's driver.
struct Queue {
    vq: u16,
    driver: Driver<Memory>,
    interrupt: Arc<EventFd>,
    device: Arc<dyn VdpaDevice>,
}

/// Runs `count` requests on each queue, all queues at once.
fn stage(queues: &mut [Queue], name: &str, work: Work, count: u64) -> Outcome<()> {
    let start = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = queues
            .iter_mut()
            .map(|queue| scope.spawn(move || queue.run(work, count)))
            .collect();
        threads.into_iter().try_for_each(|thread| {
            let outcome = thread.join().map_err(|_| "a driver panicked")?;
            outcome.map_err(|error| format!("{name}: {error}").into())
        })
    })
    .map_err(|error: Box<dyn Error + Send + Sync>| error)?;
    let seconds = start.elapsed().as_secs_f64();
    if count == 1 {
        println!("{name:<9} ok, {:.0} µs", seconds * 1e6);
    } else {
        let total = count * u64::from(QUEUES);
        let mib = (total * u64::from(CHUNK)) as f64 / f64::from(1 << 20);
        println!(
            "{name:<9} {total} requests of {} KiB ok, {:.0} MiB/s",
            CHUNK >> 10,
            mib / seconds
        );
    }
    Ok(())
}

impl Queue {
    /// Runs `count` requests, [`DEPTH`] at a time, and checks each answer.
    fn run(&mut self, work: Work, count: u64) -> Outcome<()> {
        let mut data = vec![0; CHUNK as usize];
        let mut flying = Vec::new();
        let first = u64::from(self.vq) * CHUNKS;
        let mut chunks = first..first + count;
        let mut finished = 0;
        while finished < count {
            while flying.len() < usize::from(DEPTH) {
                let Some(chunk) = chunks.next() else { break };
                let token = self.submit(work, chunk, &mut data)?;
                flying.push((token, chunk));
            }
            if self.driver.publish()? {
                self.device.kick_vq(self.vq);
            }
            let before = finished;
            while let Some(done) = self.driver.poll()? {
                let at = flying.iter().position(|(token, _)| *token == done.token);
                let (_, chunk) = flying.swap_remove(at.ok_or("an answer to no request")?);
                self.check(work, &done, chunk, &mut data)?;
                finished += 1;
            }
            // Asks for an interrupt, and sleeps unless there is an answer already.
            let (ring, memory) = self.driver.ring_mut();
            if finished == before && !ring.enable_interrupts(memory)? {
                self.interrupt.read()?;
            }
        }
        Ok(())
    }

    fn submit(
        &mut self,
        work: Work,
        chunk: u64,
        data: &mut [u8],
    ) -> Outcome<virtio_blk_driver::request::Token> {
        let sector = chunk * SECTORS;
        let half = wire::Range {
            sector,
            num_sectors: (CHUNKS / 2 * SECTORS) as u32,
            flags: 0,
        };
        let unmap = wire::Range {
            flags: wire::RANGE_F_UNMAP,
            ..half
        };
        let token = match work {
            Work::Write => {
                data.fill(pattern(chunk));
                self.driver.submit(&Request::write(sector, data))
            }
            Work::Read(_) => self.driver.submit(&Request::read(sector, CHUNK)),
            Work::DiscardHalf => self.driver.submit(&Request::discard(&[half])),
            Work::ZeroHalf => self.driver.submit(&Request::write_zeroes(&[unmap])),
            Work::Flush => self.driver.submit(&Request::flush()),
        };
        Ok(token?)
    }

    fn check(&self, work: Work, done: &Done, chunk: u64, data: &mut [u8]) -> Outcome<()> {
        if !done.is_ok() {
            return Err(format!("chunk {chunk}: status {}", done.status).into());
        }
        if let Work::Read(expected) = work {
            self.driver.read_data(done.token, 0, data)?;
            if data.iter().any(|byte| *byte != expected(chunk)) {
                return Err(format!("chunk {chunk} holds something else").into());
            }
        }
        Ok(())
    }
}
