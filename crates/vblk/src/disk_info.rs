// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vblk disk info`.

use std::error::Error;

use serde::Serialize;
use virtio_blk_core::disk::{EraseLimits, SECTOR_SIZE, ZeroLimits};
use virtio_blk_disks::StackArg;

use crate::cli::InfoArgs;
use crate::output;
use crate::source::{Looked, Source};

/// Limits of discard and secure erase.
#[derive(Serialize)]
struct Erase {
    max_bytes: u64,
    max_segments: u32,
    alignment_bytes: u64,
}

/// Limits of write-zeroes.
#[derive(Serialize)]
struct Zero {
    max_bytes: u64,
    max_segments: u32,
    may_unmap: bool,
}

/// A disk as a guest would see it. Field names are the JSON's.
#[derive(Serialize)]
struct Info {
    disk: String,
    /// From the medium upwards; what else is shown is the medium's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    layers: Vec<String>,
    /// How I/O is done, of a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    engine: Option<String>,
    size: String,
    bytes: u64,
    sectors: u64,
    logical_block: u32,
    physical_block: u64,
    optimal_io: u64,
    offset_alignment: u32,
    memory_alignment: u32,
    read_only: bool,
    write_cache: bool,
    discard: Option<Erase>,
    write_zeroes: Option<Zero>,
    secure_erase: Option<Erase>,
    lifetime: bool,
    max_queues: u16,
}

impl From<EraseLimits> for Erase {
    fn from(limits: EraseLimits) -> Self {
        Self {
            max_bytes: u64::from(limits.max_sectors) * SECTOR_SIZE,
            max_segments: limits.max_segments,
            alignment_bytes: u64::from(limits.alignment) * SECTOR_SIZE,
        }
    }
}

impl From<ZeroLimits> for Zero {
    fn from(limits: ZeroLimits) -> Self {
        Self {
            max_bytes: u64::from(limits.max_sectors) * SECTOR_SIZE,
            max_segments: limits.max_segments,
            may_unmap: limits.may_unmap,
        }
    }
}

impl Info {
    fn new(arg: &StackArg<Source>, looked: Looked) -> Self {
        let Looked { caps, engine } = looked;
        let block = caps.align.guest_block;
        Self {
            disk: arg.disk.to_string(),
            layers: arg.layers.iter().map(ToString::to_string).collect(),
            engine,
            size: output::size(caps.capacity_bytes()),
            bytes: caps.capacity_bytes(),
            sectors: caps.capacity,
            logical_block: block,
            physical_block: u64::from(block) << caps.topology.physical_block_exp.min(32),
            optimal_io: u64::from(caps.topology.opt_io_size) * u64::from(block),
            offset_alignment: caps.align.host_offset,
            memory_alignment: caps.align.host_memory,
            read_only: caps.read_only,
            write_cache: caps.flush,
            discard: caps.discard.map(Erase::from),
            write_zeroes: caps.write_zeroes.map(Zero::from),
            secure_erase: caps.secure_erase.map(Erase::from),
            lifetime: caps.lifetime,
            max_queues: caps.max_queues,
        }
    }
}

/// Shows what was probed of a disk. Abilities are those of the disk when it is served writable, where it
/// can be.
pub fn run(args: &InfoArgs, json: bool) -> Result<(), Box<dyn Error>> {
    let looked = args.disk.disk.look()?;
    output::print(&Info::new(&args.disk, looked), json)?;
    Ok(())
}
