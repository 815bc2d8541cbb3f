// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the vDPA layer costs, and a translation: see `cargo xtask bench --vdpa`.
//!
//! A driver in this process puts 4 KiB requests on a memory disk into a ring, one or 32 per kick, and verifies
//! the data of each. [`serve`] is the device's work from the kick to the used entries: a `QueueRunner` on
//! plain memory (`--layer none`), or a stepped `BlkSim`. [`translate`] looks guest ranges up. Both are for
//! callgrind to count, as in `request-cost`.

use std::error::Error;
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand, ValueEnum};
use sim_backend::{BlkSim, SimOptions};
use vdpa_bus::VdpaDevice;
use virtio_blk_core::device::{Device, DeviceOptions};
use virtio_blk_core::disk::Disk;
use virtio_blk_core::memory::{
    DeviceMemory, GuestMap, HostMemory, Iotlb, IotlbMapping, IotlbTable, Permissions,
};
use virtio_blk_core::runner::{QueueRunner, QueueSetup, Service, Stop};
use virtio_blk_disks::MemoryDisk;
use virtio_blk_driver::request::{Arena, ArenaConfig, Driver, Request};
use virtio_blk_driver::ring::{RingConfig, SplitLayout};
use virtio_blk_driver::vdpa::{Setup, VdpaDriver};
use vm_memory::iommu::{Error as IommuError, Iotlb as VmIotlb, IotlbIterator, IovaRange};
use vm_memory::{GuestAddress, GuestMemoryMmap, Iommu, IommuMemory};

type Memory = Arc<GuestMemoryMmap<()>>;
type Outcome<T> = Result<T, Box<dyn Error>>;

/// Bytes of a request, and of a range that is looked up.
const DATA: u32 = 4096;
/// Requests go round this many places on the disk.
const PLACES: u64 = 64;

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Requests; prints how many there were in a second.
    Requests {
        /// What stands between driver and queue.
        #[arg(long, value_enum)]
        layer: Layer,
        /// Writes instead of reads.
        #[arg(long)]
        write: bool,
        /// Requests per kick.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
        batch: u16,
        /// Kicks; 0: as many as fit into `--seconds`.
        #[arg(long, default_value_t = 0)]
        batches: u64,
        /// How long.
        #[arg(long, default_value_t = 1.0)]
        seconds: f64,
    },
    /// Lookups of 4 KiB each.
    Lookups {
        /// Where.
        #[arg(long, value_enum)]
        memory: Kind,
        /// Ranges that are mapped.
        #[arg(long)]
        ranges: u64,
        /// Each in another range than the one before.
        #[arg(long)]
        scattered: bool,
        /// How many.
        #[arg(long)]
        lookups: u64,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Layer {
    None,
    Strict,
    Compat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// A memory map of so many regions.
    Plain,
    /// Our table.
    Iotlb,
    /// vm-memory's.
    Iommu,
}

/// The device's side.
enum Target {
    Queue(Box<QueueRunner<Memory>>),
    Sim(Arc<BlkSim>),
}

/// From the kick to the used entries.
#[inline(never)]
fn serve(target: &mut Target) {
    match black_box(target) {
        Target::Queue(queue) => while queue.service(64) == Service::More {},
        Target::Sim(sim) => {
            sim.kick_vq(0);
            while sim.step_queue(0, 64) {}
        }
    }
}

/// Translates ranges.
#[inline(never)]
fn translate<M: DeviceMemory>(map: &GuestMap<M>, ranges: &[u64]) -> u64 {
    let mut sum = 0u64;
    for &addr in black_box(ranges) {
        let found = map.translate(addr, DATA as usize, Permissions::Write, |base, len| {
            sum = sum.wrapping_add(black_box(base) as u64 ^ len as u64);
        });
        sum = sum.wrapping_add(u64::from(found.is_ok()));
    }
    sum
}

fn main() -> ExitCode {
    let result = match Cli::parse().what {
        What::Requests {
            layer,
            write,
            batch,
            batches,
            seconds,
        } => requests(layer, write, batch, batches, seconds),
        What::Lookups {
            memory,
            ranges,
            scattered,
            lookups,
        } => look_up(memory, ranges, scattered, lookups),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vdpa-cost: {error}");
            ExitCode::FAILURE
        }
    }
}

fn requests(layer: Layer, write: bool, batch: u16, batches: u64, seconds: f64) -> Outcome<()> {
    let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&[(
        GuestAddress(0),
        16 << 20,
    )])?);
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new(PLACES * u64::from(DATA))?);
    let arena = ArenaConfig {
        slots: 64,
        data_len: DATA,
        data_align: DATA,
        ..ArenaConfig::default()
    };
    let (mut driver, mut target) = match layer {
        Layer::None => queue(disk.clone(), memory, arena)?,
        Layer::Strict => sim(disk.clone(), SimOptions::strict(), memory, arena)?,
        Layer::Compat => sim(disk.clone(), SimOptions::compat(), memory, arena)?,
    };
    let mut data = vec![0; DATA as usize];
    // Every place holds its own pattern before the first read.
    for place in 0..PLACES {
        fill(&mut data, place, 0);
        driver.submit(&Request::write(sector(place), &data))?;
        driver.publish()?;
        serve(&mut target);
        driver
            .poll()?
            .filter(|done| done.is_ok())
            .ok_or("a write failed")?;
    }
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let start = Instant::now();
    let mut rounds = vec![0u64; PLACES as usize];
    let mut kicks = 0;
    let mut expected = vec![0; DATA as usize];
    let mut tokens = Vec::new();
    while kicks < batches || batches == 0 && Instant::now() < end {
        for index in 0..u64::from(batch) {
            let place = (kicks + index * 7) % PLACES;
            let round = &mut rounds[place as usize];
            let token = if write {
                *round += 1;
                fill(&mut data, place, *round);
                driver.submit(&Request::write(sector(place), &data))?
            } else {
                driver.submit(&Request::read(sector(place), DATA))?
            };
            tokens.push((token, place));
        }
        driver.publish()?;
        serve(&mut target);
        for (token, place) in tokens.drain(..) {
            let done = driver
                .poll()?
                .filter(|done| done.is_ok() && done.token == token);
            let done = done.ok_or("a request failed")?;
            if !write {
                driver.read_data(done.token, 0, &mut data)?;
                fill(&mut expected, place, rounds[place as usize]);
                if data != expected {
                    return Err(format!("place {place} holds something else").into());
                }
            }
        }
        kicks += 1;
    }
    let rate = (kicks * u64::from(batch)) as f64 / start.elapsed().as_secs_f64();
    // What was written is read back.
    for place in 0..PLACES {
        driver.submit(&Request::read(sector(place), DATA))?;
        driver.publish()?;
        serve(&mut target);
        let done = driver
            .poll()?
            .filter(|done| done.is_ok())
            .ok_or("a read failed")?;
        driver.read_data(done.token, 0, &mut data)?;
        fill(&mut expected, place, rounds[place as usize]);
        if data != expected {
            return Err(format!("place {place} holds something else at the end").into());
        }
    }
    // Each target can be stopped: a queue that never is would be compiled into its only caller.
    match target {
        Target::Queue(queue) => {
            drop(queue.stop(Stop::Drain));
            disk.deactivate()?;
        }
        Target::Sim(sim) => sim.free(),
    }
    println!("{rate:.0}");
    Ok(())
}

const fn sector(place: u64) -> u64 {
    place * DATA as u64 / 512
}

/// What a place holds after it was written so often.
fn fill(data: &mut [u8], place: u64, round: u64) {
    data.fill((place * 31 + round * 7) as u8);
    data[..8].copy_from_slice(&(place << 32 | round & 0xffff_ffff).to_le_bytes());
}

/// A queue alone.
fn queue(
    disk: Arc<dyn Disk>,
    memory: Memory,
    arena: ArenaConfig,
) -> Outcome<(Driver<Memory>, Target)> {
    let device = Device::new(disk, DeviceOptions::default())?;
    device.accept(device.offered())?;
    let setup = Setup::default();
    let layout = SplitLayout::contiguous(setup.queue_size, setup.base)?;
    let ring = RingConfig {
        event_idx: true,
        indirect: true,
        start: 0,
    };
    let driver = Driver::new(
        memory.clone(),
        layout,
        ring,
        Arena::new(GuestAddress(0x1_0000), arena)?,
    )?;
    device.disk().activate()?;
    let queue = device.start_queue(0, QueueSetup::new(memory, || {}), driver.state())?;
    Ok((driver, Target::Queue(Box::new(queue))))
}

/// A simulator.
fn sim(
    disk: Arc<dyn Disk>,
    options: SimOptions,
    memory: Memory,
    arena: ArenaConfig,
) -> Outcome<(Driver<Memory>, Target)> {
    let sim = Arc::new(BlkSim::new(disk, options.stepped())?);
    let mut table = IotlbTable::new();
    for (address, part) in HostMemory::of_map(&memory) {
        table.insert(IotlbMapping::new(address, part, Permissions::ReadWrite)?)?;
    }
    let setup = Setup {
        arena,
        maps: &[(0, table)],
        ..Setup::default()
    };
    let driver = VdpaDriver::start(sim.clone(), memory, &setup)?;
    sim.run();
    let queue = driver.into_queues().pop().ok_or("no queue")?;
    Ok((queue, Target::Sim(sim)))
}

/// An IOMMU that knows everything from the start.
#[derive(Debug)]
struct Known(Arc<VmIotlb>);

impl Iommu for Known {
    type IotlbGuard<'a> = Arc<VmIotlb>;

    fn translate(
        &self,
        iova: GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<IotlbIterator<Arc<VmIotlb>>, IommuError> {
        VmIotlb::lookup(self.0.clone(), iova, length, access).map_err(|_| {
            IommuError::CannotResolve {
                iova_range: IovaRange { base: iova, length },
                reason: "it is not mapped".into(),
            }
        })
    }
}

/// Where range `number` lies: each with a gap behind it.
const fn range_at(number: u64) -> u64 {
    (1 << 32) + number * 2 * DATA as u64
}

fn look_up(kind: Kind, ranges: u64, scattered: bool, lookups: u64) -> Outcome<()> {
    let step = if scattered { 1021 } else { 0 };
    let addresses: Vec<_> = (0..lookups).map(|n| range_at(n * step % ranges)).collect();
    let bytes = ranges as usize * DATA as usize;
    let sum = match kind {
        Kind::Plain => {
            let regions: Vec<_> = (0..ranges)
                .map(|n| (GuestAddress(range_at(n)), DATA as usize))
                .collect();
            let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&regions)?);
            translate(&GuestMap::new(memory), &addresses)
        }
        Kind::Iotlb => {
            let memory: Memory =
                Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes)])?);
            let (_, all) = HostMemory::of_map(&memory).pop().ok_or("no memory")?;
            let mut table = IotlbTable::new();
            for n in 0..ranges {
                let part = all.slice((n * u64::from(DATA)) as usize, DATA as usize);
                let part = part.ok_or("a range outside")?;
                table.insert(IotlbMapping::new(
                    range_at(n),
                    part,
                    Permissions::ReadWrite,
                )?)?;
            }
            translate(&GuestMap::new(Iotlb::new(table)), &addresses)
        }
        Kind::Iommu => {
            let mut iotlb = VmIotlb::new();
            for n in 0..ranges {
                iotlb.set_mapping(
                    GuestAddress(range_at(n)),
                    GuestAddress(n * u64::from(DATA)),
                    DATA as usize,
                    Permissions::ReadWrite,
                )?;
            }
            let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), bytes)])?;
            let memory = IommuMemory::new(memory, Known(Arc::new(iotlb)), true, ());
            translate(&GuestMap::new(Arc::new(memory)), &addresses)
        }
    };
    println!("{sum:x}");
    Ok(())
}
