// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a request costs a VMM on the slow path of a vDPA device, for callgrind to count.
//!
//! As `request-cost`, with a vDPA device below: [`serve`] is everything between the guest's kick and its used
//! entries except the device's own work, which is done in between. `--direct` has the disk that is behind the
//! device directly below: the difference is the price of the path.
//!
//! ```text
//! valgrind --tool=callgrind --collect-atstart=no --toggle-collect='path_cost::serve*' \
//!     path-cost --batch 32 --batches 1000
//! ```
//!
//! Two counts with different `--batches` give the cost of one request.

use std::error::Error;
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use malformed_queues::testmem;
use sim_backend::{BlkSim, SimOptions};
use vhost_vdpa_frontend::{CompletionMode, SlowOptions, SlowPath};
use virtio_blk_core::device::{Device, DeviceOptions};
use virtio_blk_core::disk::Disk;
use virtio_blk_core::memory::{DeviceMemory, HostMemory};
use virtio_blk_core::runner::{QueueRunner, QueueSetup, Service};
use virtio_blk_disks::NullDisk;
use virtio_blk_driver::request::{Arena, ArenaConfig, Driver, In, Out, Request};
use virtio_blk_driver::ring::{RingConfig, SplitLayout};
use virtio_blk_driver::wire;

/// Bytes of data of a request.
const DATA: u32 = 4096;
/// Requests go round this many places on the disk.
const PLACES: u64 = 64;

/// Requests on the slow path for callgrind to count.
#[derive(Clone, Copy, Debug, Parser)]
struct Cli {
    /// Without a vDPA device in between.
    #[arg(long)]
    direct: bool,
    /// The device does not know the guest's memory: data is copied.
    #[arg(long)]
    bounce: bool,
    /// Look for completions instead of waiting for events.
    #[arg(long)]
    poll: bool,
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

/// The VMM's work.
#[inline(never)]
fn serve<M: DeviceMemory>(queue: &mut QueueRunner<M>) {
    while black_box(&mut *queue).service(64) == Service::More {}
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("path-cost: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<(), Box<dyn Error>> {
    let (memory, mut space) = testmem::single(16 << 20)?;
    let memory = Arc::new(memory);
    let null: Arc<dyn Disk> = Arc::new(NullDisk::new(PLACES * u64::from(DATA))?.zero_fill(false));
    let sim = Arc::new(BlkSim::new(null.clone(), SimOptions::strict().stepped())?);
    let disk: Arc<dyn Disk> = if cli.direct {
        null
    } else {
        let options = SlowOptions {
            completion_mode: if cli.poll {
                CompletionMode::Poll
            } else {
                CompletionMode::Event
            },
            ..SlowOptions::default()
        };
        let path = SlowPath::new(sim.clone(), options)?;
        if !cli.bounce {
            path.set_memory(&HostMemory::of_map(&memory))?;
        }
        Arc::new(path)
    };
    let device = Device::new(disk, DeviceOptions::default())?;
    device.accept(device.offered())?;
    let layout = SplitLayout::contiguous(256, space.take(0x4000, 0x1000)?)?;
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
    let mut driver = Driver::new(memory.clone(), layout, ring, arena)?;
    let setup = QueueSetup::new(memory, || {});
    device.disk().activate()?;
    let mut queue = device.start_queue(0, setup, driver.state())?;
    for kick in 0..cli.batches {
        for index in 0..cli.batch {
            let place = (kick + u64::from(index) * 7) % PLACES;
            driver.submit(&request(cli.write, place))?;
        }
        driver.publish()?;
        serve(&mut queue);
        // More than once where there are fewer bounce buffers than requests.
        while driver.in_flight() != 0 {
            if !cli.direct {
                sim.run();
                serve(&mut queue);
            }
            while let Some(done) = driver.poll()? {
                if !done.is_ok() {
                    return Err(format!("the device answered {done:?}").into());
                }
            }
        }
    }
    drop(queue);
    device.disk().deactivate()?;
    Ok(())
}

fn request(write: bool, place: u64) -> Request<'static> {
    let kind = if write { wire::T_OUT } else { wire::T_IN };
    let request = Request::new(kind, place * u64::from(DATA) / 512).indirect(true);
    if write {
        request.with_out(Out::InPlace(DATA))
    } else {
        request.with_input(In::Len(DATA))
    }
}
