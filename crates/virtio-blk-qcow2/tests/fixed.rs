// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Images on what does not grow, as a block device: it is used to its end, and full is not broken.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../virtio-blk-disks/tests/common/mod.rs"]
mod common;
mod files;
#[path = "../../virtio-blk-disks/tests/common/qemu.rs"]
mod qemu;

use std::sync::Arc;

use common::{directory, read, run, write};
use files::{Setup, path};
use virtio_blk_core::disk::{Caps, Disk, DiskError, IoBuf, IoQueue, OpKind};
use virtio_blk_disks::MemoryDisk;

const CLUSTER: usize = 64 << 10;
const GUEST: usize = 8 << 20;

/// It says how it could be made larger, as a block device does.
struct Device(MemoryDisk);

impl Disk for Device {
    fn caps(&self) -> Caps {
        self.0.caps()
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        self.0.open_queue(depth)
    }

    fn resize(&self, _: u64) -> Result<(), DiskError> {
        Err(DiskError::Config("use its own tools".into()))
    }
}

#[test]
fn a_device_is_used_to_its_end() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    qemu::create(&image, "cluster_size=64k", GUEST);
    let mut bytes = std::fs::read(&image).unwrap();
    // Not a whole number of clusters.
    bytes.resize((5 << 20) + 512, 0);
    let below = Arc::new(Device(MemoryDisk::new(bytes.len() as u64).unwrap()));
    write(&mut *below.open_queue(1).unwrap(), 0, bytes.clone()).unwrap();
    let disk = Setup::over(below.clone(), &Setup::new(&image)).unwrap();
    let mut queue = disk.open_queue(1).unwrap();
    let mut model = vec![0; GUEST];
    let mut fill = |queue: &mut dyn IoQueue, value: u8| {
        let mut full = 0;
        for (number, part) in model.chunks_mut(CLUSTER).enumerate() {
            match write(queue, (number * CLUSTER) as u64, vec![value; CLUSTER]) {
                Ok(()) => part.fill(value),
                Err(error) => {
                    assert!(error.is_no_space(), "{error}");
                    full += 1;
                }
            }
        }
        full
    };
    let full = fill(&mut *queue, 1);
    // Five of the 80 clusters are tables.
    assert!((53..60).contains(&full), "{full}");
    // What is there can be written again, and what is given back is used again.
    assert_eq!(fill(&mut *queue, 2), full);
    let (offset, len) = (0, 10 * CLUSTER as u64);
    run(&mut *queue, OpKind::Discard { offset, len }, IoBuf::new())
        .result
        .unwrap();
    run(&mut *queue, OpKind::Flush, IoBuf::new())
        .result
        .unwrap();
    model[..len as usize].fill(0);
    for number in 100..110 {
        write(&mut *queue, (number * CLUSTER) as u64, vec![3; CLUSTER]).unwrap();
        model[number * CLUSTER..][..CLUSTER].fill(3);
    }
    assert!(read(&mut *queue, 0, GUEST).unwrap() == model);
    drop((queue, disk));
    let left = read(&mut *below.open_queue(1).unwrap(), 0, bytes.len()).unwrap();
    std::fs::write(&image, left).unwrap();
    qemu::check(&image);
    qemu::compare(&image, &model);
}
