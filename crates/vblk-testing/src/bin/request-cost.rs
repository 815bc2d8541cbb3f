// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a request costs the device, for callgrind to count: see `cargo xtask bench`.
//!
//! A driver puts requests of three descriptors (header, 4 KiB of data, status) into a ring, a batch at
//! a time; [`serve`] is the device's work between the kick and the used entries, and the only part to
//! count:
//!
//! ```text
//! valgrind --tool=callgrind --collect-atstart=no --toggle-collect='request_cost::serve*' \
//!     request-cost --disk null --batches 1000
//! ```
//!
//! Two counts with different `--batches` give the cost of one request: the rest of the work is the same.

use std::error::Error;
use std::fs::File;
use std::hint::black_box;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, ValueEnum};
use malformed_queues::testmem::{self, Space};
use virtio_blk_core::device::{Device, DeviceOptions};
use virtio_blk_core::disk::Disk;
use virtio_blk_core::memory::DeviceMemory;
use virtio_blk_core::runner::{QueueRunner, QueueSetup, Service};
use virtio_blk_disks::stack::{Groups, LayerArg, Stack};
use virtio_blk_disks::{Engine, MemoryDisk, NullDisk, RawDisk, RawOptions};
use virtio_blk_driver::Memory;
use virtio_blk_driver::request::{Arena, ArenaConfig, Driver, In, Out, Request};
use virtio_blk_driver::ring::{RingConfig, SplitLayout};
use virtio_blk_driver::wire;
use virtio_blk_qcow2::{CreateOptions, Qcow2File, create};
use vm_memory::GuestMemory;

/// Entries of the ring.
const QUEUE_SIZE: u16 = 256;
/// Bytes of data of a request.
const DATA: u32 = 4096;
/// Requests go round this many places on the disk.
const PLACES: u64 = 64;
/// Bytes of guest memory.
const MEMORY: usize = 16 << 20;

/// Requests for callgrind to count.
#[derive(Clone, Debug, Parser)]
struct Cli {
    /// What is served.
    #[arg(long, value_enum)]
    disk: DiskKind,
    /// Layers on it, from the medium upwards.
    #[arg(long, value_name = "LAYER[,LAYER…]", value_delimiter = ',')]
    layers: Vec<LayerArg>,
    /// The layers could be changed while the disk is in use.
    #[arg(long)]
    live: bool,
    /// The disk alone, without what puts layers on it.
    #[arg(long, conflicts_with_all = ["layers", "live"])]
    bare: bool,
    /// Guest memory behind an IOMMU, in scattered pages.
    #[arg(long)]
    iommu: bool,
    /// Descriptors in an indirect table.
    #[arg(long)]
    indirect: bool,
    /// Writes instead of reads.
    #[arg(long)]
    write: bool,
    /// Requests per kick.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    batch: u16,
    /// Kicks.
    #[arg(long)]
    batches: u64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DiskKind {
    /// `null:…,zero=off`.
    Null,
    /// `null:…`: reads fill the guest's memory with zeroes.
    NullZero,
    /// `memory:…`.
    Memory,
    /// `raw:…,engine=sync`, in the page cache.
    Raw,
    /// `qcow2:…,engine=sync`, the same.
    Qcow2,
}

/// From the kick to the used entries.
#[inline(never)]
fn serve<M: DeviceMemory>(queue: &mut QueueRunner<M>) {
    while black_box(&mut *queue).service(64) == Service::More {}
}

/// The same, not counted: with another budget, so that the compiler does not make it one function with [`serve`].
#[inline(never)]
fn prepare<M: DeviceMemory>(queue: &mut QueueRunner<M>) {
    while black_box(&mut *queue).service(63) == Service::More {}
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = if cli.iommu {
        testmem::fragmented(MEMORY, 1)
            .map_err(Into::into)
            .and_then(|(memory, space)| run(&cli, &Arc::new(memory), space))
    } else {
        testmem::single(MEMORY)
            .map_err(Into::into)
            .and_then(|(memory, space)| run(&cli, &Arc::new(memory), space))
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("request-cost: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The disk, with a file in `dir` if it has one.
fn disk(kind: DiskKind, dir: &Path) -> Result<Arc<dyn Disk>, Box<dyn Error>> {
    let bytes = PLACES * u64::from(DATA);
    let image = dir.join("disk");
    Ok(match kind {
        DiskKind::Null => Arc::new(NullDisk::new(bytes)?.zero_fill(false)),
        DiskKind::NullZero => Arc::new(NullDisk::new(bytes)?),
        DiskKind::Memory => Arc::new(MemoryDisk::new(bytes)?),
        DiskKind::Raw => {
            File::create(&image)?.set_len(bytes)?;
            Arc::new(RawDisk::open(&RawOptions::new(image).engine(Engine::Sync))?)
        }
        DiskKind::Qcow2 => {
            File::create(&image)?;
            let file: Arc<dyn Disk> = Arc::new(RawDisk::open(&RawOptions::new(&image))?);
            create(&file, None, &CreateOptions::new(bytes), &mut |_, _| ())?;
            drop(file);
            Arc::new(Qcow2File::new(image).engine(Engine::Sync).open()?)
        }
    })
}

fn run<G>(cli: &Cli, memory: &Arc<G>, mut space: Space) -> Result<(), Box<dyn Error>>
where
    G: GuestMemory + Memory + Send + Sync + 'static,
    Arc<G>: DeviceMemory,
{
    let dir = tempfile::tempdir()?;
    let (base, groups) = (disk(cli.disk, dir.path())?, Groups::default());
    let disk = if cli.bare {
        base
    } else if cli.live {
        Stack::live(base, &cli.layers, groups)?.disk()
    } else {
        Stack::fixed(base, &cli.layers, groups)?.disk()
    };
    let device = Device::new(disk, DeviceOptions::default())?;
    device.accept(device.offered())?;
    let layout = SplitLayout::contiguous(QUEUE_SIZE, space.take(0x4000, 0x1000)?)?;
    let arena = ArenaConfig {
        slots: 64,
        data_len: DATA,
        data_align: DATA,
        ..ArenaConfig::default()
    };
    let arena = Arena::new(space.take(arena.footprint(), 0x1000)?, arena)?;
    let ring = RingConfig {
        event_idx: true,
        indirect: true,
        start: 0,
    };
    let mut driver = Driver::new(Arc::clone(memory), layout, ring, arena)?;
    let setup = QueueSetup::new(Arc::clone(memory), || {});
    device.disk().activate()?;
    let mut queue = device.start_queue(0, setup, driver.state())?;
    // Reads of a memory disk find data, and those of a file find it in the page cache.
    for write in [true, false] {
        for place in 0..PLACES {
            let request = |_| request(write, false, place);
            batch(&mut driver, &mut queue, 1, prepare, request)?;
        }
    }
    for kick in 0..cli.batches {
        batch(&mut driver, &mut queue, cli.batch, serve, |index| {
            let place = (kick + u64::from(index) * 7) % PLACES;
            request(cli.write, cli.indirect, place)
        })?;
    }
    drop(queue);
    device.disk().deactivate()?;
    Ok(())
}

fn request(write: bool, indirect: bool, place: u64) -> Request<'static> {
    let kind = if write { wire::T_OUT } else { wire::T_IN };
    let request = Request::new(kind, place * u64::from(DATA) / 512).indirect(indirect);
    if write {
        request.with_out(Out::InPlace(DATA))
    } else {
        request.with_input(In::Len(DATA))
    }
}

/// Submits, has it served, and takes the completions.
fn batch<G>(
    driver: &mut Driver<Arc<G>>,
    queue: &mut QueueRunner<Arc<G>>,
    count: u16,
    serve: impl Fn(&mut QueueRunner<Arc<G>>),
    request: impl Fn(u16) -> Request<'static>,
) -> Result<(), Box<dyn Error>>
where
    G: GuestMemory + Memory,
    Arc<G>: DeviceMemory,
{
    for index in 0..count {
        driver.submit(&request(index))?;
    }
    driver.publish()?;
    serve(queue);
    let mut left = count;
    while left > 0 {
        match driver.poll()? {
            Some(done) if done.is_ok() => left -= 1,
            // The first write to an image begins on a thread of its own.
            None if queue.in_flight() != 0 => serve(queue),
            other => return Err(format!("the device answered {other:?}").into()),
        }
    }
    Ok(())
}
