// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reads of 4 KiB, one at a time, from a ring to a disk and back: `cargo xtask request-path` looks which files they pass.
//!
//! ```text
//! cargo run -p virtio-blk-disks --example request_path -- DISK READS
//! ```
//!
//! `DISK` as for `DiskArg`, for example `raw:/var/tmp/test.img` (at least 4 KiB; nothing of it changes).

use std::error::Error;
use std::sync::Arc;

use virtio_blk_core::device::{Device, DeviceOptions};
use virtio_blk_core::runner::{QueueSetup, Service, Stop};
use virtio_blk_disks::DiskArg;
use virtio_blk_driver::request::{Arena, ArenaConfig, Driver, Request};
use virtio_blk_driver::ring::{RingConfig, SplitLayout};
use vm_memory::{GuestAddress, GuestMemoryMmap};

const BLOCK: u32 = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<_> = std::env::args().collect();
    let [_, disk, reads] = &args[..] else {
        return Err("what is needed: DISK READS".into());
    };
    let disk = disk.parse::<DiskArg>()?.open(true)?;
    let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(
        GuestAddress(0),
        4 << 20,
    )])?);
    let device = Device::new(disk, DeviceOptions::default())?;
    device.accept(device.offered())?;
    let layout = SplitLayout::contiguous(64, GuestAddress(0x1000))?;
    let ring = RingConfig {
        event_idx: true,
        ..RingConfig::default()
    };
    // Data is at a page's start, as in a guest.
    let slots = ArenaConfig {
        data_len: BLOCK,
        ..ArenaConfig::default()
    };
    let arena = Arena::new(GuestAddress(0x10_0000), slots)?;
    let mut driver = Driver::new(memory.clone(), layout, ring, arena)?;
    device.disk().activate()?;
    let mut queue = device.start_queue(0, QueueSetup::new(memory, || {}), driver.state())?;
    for _ in 0..reads.parse()? {
        driver.submit(&Request::read(0, BLOCK))?;
        driver.publish()?;
        let done = loop {
            while queue.service(64) == Service::More {}
            if let Some(done) = driver.poll()? {
                break done;
            }
        };
        if !done.is_ok() {
            return Err("a read failed".into());
        }
    }
    queue.stop(Stop::Drain);
    device.disk().deactivate()?;
    Ok(())
}
