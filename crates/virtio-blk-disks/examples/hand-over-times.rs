// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether a change right after a hand-over is seen: `hand-over-times DIRECTORY`, which is on ext4, XFS or Btrfs.
//!
//! For the lab, whose kernel is older than 6.13: from there on the kernel makes finer times for files that are looked at,
//! and the wait for its coarse clock can't be missed.

use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use virtio_blk_core::disk::{Disk, Handover};
use virtio_blk_disks::{Lock, RawDisk, RawOptions};

const SIZE: u64 = 1 << 20;
const ROUNDS: u8 = 100;

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args_os().nth(1).map(PathBuf::from);
    let directory = directory.ok_or("give a directory")?;
    let path = directory.join("handed-over.img");
    let other = File::create(&path)?;
    other.set_len(SIZE)?;
    let disk = RawDisk::open(&RawOptions::new(&path).lock(Lock::Handover))?;
    for round in 0..ROUNDS {
        disk.activate()?;
        other.write_all_at(&[round; 512], 0)?;
        disk.deactivate()?;
        other.write_all_at(&[round; 512], 512)?;
        let left = match disk.handover() {
            Handover::Released(Some(left)) => left,
            state => {
                return Err(
                    format!("the times of {} prove nothing: {state:?}", path.display()).into(),
                );
            }
        };
        disk.activate()?;
        let found = disk.handover();
        disk.deactivate()?;
        if found == Handover::Held(Some(left)) {
            return Err(format!("in round {round} a change was not seen").into());
        }
    }
    println!("{ROUNDS} changes right after a hand-over, all seen");
    Ok(())
}
