// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest on a vDPA block device, moved between the device's two paths while the guest verifies its data.
//!
//! The device is a `BlkSim` over a disk in memory. Where KVM runs a guest, the guest is mini-vmm's built-in one, which
//! drives the device through virtio-mmio registers; elsewhere, or with `--in-process`, a driver in this process does the
//! same work. Both know the device only through `PathSwitch`, as they would know one of the kernel's.

#[cfg(target_arch = "x86_64")]
mod guest;
mod in_process;
mod moves;
mod stages;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests;

use std::error::Error;
use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sim_backend::{BlkSim, SimOptions, SimProfile, StrictOptions};
use vdpa_bus::VdpaDevice;
use virtio_blk_core::disk::Disk;
use virtio_blk_disks::MemoryDisk;

use moves::Moves;
use stages::Failure;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Bytes of the disk.
const DISK: u64 = 64 << 20;
/// KiB that the driver moves with one request.
const CHUNK_KIB: u64 = 64;
/// How long KVM may take until its guest runs.
const START: Duration = Duration::from_secs(5);
/// How long all that comes after may take, on a machine that is busy with other things as well.
const PATIENCE: Duration = Duration::from_secs(100);

/// What a driver and its VMM saw.
struct Seen {
    moves: Moves,
    /// Chunks that the driver read back and compared.
    compared: u64,
}

fn main() -> ExitCode {
    let in_process = std::env::args().skip(1).any(|word| word == "--in-process");
    match run(in_process) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If stderr is gone the status has to do.
            let _ = writeln!(io::stderr(), "quickstart: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(in_process: bool) -> Outcome<()> {
    let start = Instant::now();
    let guest = if in_process {
        Err(Failure::NoGuest("--in-process was given".to_owned()))
    } else {
        in_guest()
    };
    let (driver, seen) = match guest {
        Ok(seen) => ("A guest's driver", seen),
        Err(Failure::NoGuest(why)) => {
            say(format_args!(
                "No virtual machine: {why}.
A driver in this process does the same work."
            ))?;
            let device = device(Arc::new(MemoryDisk::new(DISK)?))?;
            let seen = stages::bounded(START, PATIENCE, move |stages| {
                stages.running();
                in_process::run(&device)
            })?;
            ("The driver", seen)
        }
        Err(failure) => return Err(failure.into()),
    };
    explain(driver, &seen, start.elapsed())
}

/// The form with a virtual machine.
#[cfg(target_arch = "x86_64")]
fn in_guest() -> Result<Seen, Failure> {
    let disk = MemoryDisk::new(DISK).map_err(|error| Failure::Work(error.into()))?;
    let device = device(Arc::new(disk)).map_err(Failure::Work)?;
    stages::bounded(START, PATIENCE, move |stages| guest::run(device, stages))
}

#[cfg(not(target_arch = "x86_64"))]
fn in_guest() -> Result<Seen, Failure> {
    let why = "mini-vmm is for x86_64 only";
    Err(Failure::NoGuest(why.to_owned()))
}

/// A simulated vDPA device with one queue.
fn device(disk: Arc<dyn Disk>) -> Outcome<Arc<dyn VdpaDevice>> {
    let mut profile = StrictOptions::default();
    profile.device.serial = "quickstart".to_owned();
    let mut options = SimOptions::strict();
    options.profile = SimProfile::Strict(profile);
    Ok(Arc::new(BlkSim::new(disk, options)?))
}

/// Says what was seen.
fn explain(driver: &str, seen: &Seen, took: Duration) -> Outcome<()> {
    let Seen { moves, compared } = seen;
    let Moves {
        fast_requests,
        slow_requests,
        with_in_flight,
        most_in_flight,
        ..
    } = moves;
    let (count, mib) = (moves.pauses.len(), (compared * CHUNK_KIB) >> 10);
    let millis = |pause: Duration| pause.as_secs_f64() * 1e3;
    let (median, longest) = (millis(moves.median_pause()), millis(moves.longest_pause()));
    let (seconds, executed) = (took.as_secs_f64(), compared * 2);
    say(format_args!(
        "
What you saw, in {seconds:.1} s:
  {driver} wrote, flushed, read back and compared {mib} MiB on a virtio-blk device.
  Meanwhile its disk, a simulated vDPA device, was moved {count} times between two paths:
    fast   the device works on the driver's own rings ({fast_requests} requests)
    slow   each request passes through the VMM, where layers can limit, record or copy it ({slow_requests} requests)
  At each move the device was stopped, reset and set up for the other path; the driver kept its rings.
  {with_in_flight} moves began with requests in flight, {most_in_flight} at most. A move took {median:.1} ms (median; longest {longest:.1} ms).
  Every byte was what had been written, no request failed, and the device executed {executed} reads and
  writes, as many as were asked for."
    ))
}

/// Prints a line. A reader that is gone is an error, not a panic.
fn say(line: fmt::Arguments<'_>) -> Outcome<()> {
    Ok(writeln!(io::stdout(), "{line}")?)
}
