// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vblk disk check`.

use std::error::Error;

use clap::{Args, ValueEnum};
use serde::Serialize;
use virtio_blk_qcow2::{Access, Checked, OpenError, Repair, check};

use super::arg::{Format, Image};
use super::open_named;
use crate::output;
use crate::progress::Progress;

/// What `--help` says at its end.
pub const HELP: &str = "\
A DISK is qcow2:PATH. Only the image itself is looked at, not the files that
it names. Nobody may change it meanwhile: it is locked.

Exit status, as qemu-img check has it:
  0   the image is sound, or everything was repaired
  1   it could not be checked; standard error says why
  2   it is damaged: data is lost, or can be (or the command line can't be
      understood, which standard error says)
  3   it is sound, but space in it is lost: --repair=leaks frees it
  63  the format has nothing that could be checked

Examples:
  vblk disk check qcow2:disk.qcow2
  vblk disk check --repair qcow2:disk.qcow2
  vblk disk check --repair=leaks --json qcow2:disk.qcow2";

const DAMAGED: u8 = 2;
const LEAKS: u8 = 3;

/// What is repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RepairArg {
    /// Space that is lost.
    Leaks,
    /// All refcounts, and the mark of an image that was not closed.
    All,
}

/// Options of `disk check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The image; see below.
    #[arg(value_name = "DISK")]
    disk: Image,
    /// Repair what can be repaired: all refcounts, or leaks alone.
    #[arg(long, value_name = "WHAT", num_args = 0..=1, require_equals = true, default_missing_value = "all")]
    repair: Option<RepairArg>,
}

/// What was found. Field names are the JSON's.
#[derive(Serialize)]
struct Found {
    disk: String,
    result: &'static str,
    corruptions: u64,
    corruptions_fixed: u64,
    leaks: u64,
    leaks_fixed: u64,
    /// Marked as not closed.
    dirty: bool,
    total_clusters: u64,
    allocated_clusters: u64,
    compressed_clusters: u64,
    fragmented_clusters: u64,
    image_end_offset: u64,
    /// The first faults in words.
    faults: Vec<String>,
}

impl Found {
    fn new(disk: String, found: Checked) -> (Self, u8) {
        let (result, status) = if found.corruptions_left() > 0 || found.dirty {
            ("damaged", DAMAGED)
        } else if found.leaks_left() > 0 {
            ("space is lost", LEAKS)
        } else {
            ("sound", 0)
        };
        let this = Self {
            disk,
            result,
            corruptions: found.corruptions,
            corruptions_fixed: found.corruptions_fixed,
            leaks: found.leaks,
            leaks_fixed: found.leaks_fixed,
            dirty: found.dirty,
            total_clusters: found.clusters,
            allocated_clusters: found.allocated,
            compressed_clusters: found.compressed,
            fragmented_clusters: found.fragmented,
            image_end_offset: found.end,
            faults: found.told,
        };
        (this, status)
    }
}

/// The format has nothing to check.
#[derive(Debug, thiserror::Error)]
#[error("a raw image has no tables that could be checked")]
pub struct NothingToCheck;

/// Checks an image. Returns the exit status.
pub fn run(args: &CheckArgs, json: bool) -> Result<u8, Box<dyn Error>> {
    let path = &*args.disk.path;
    if args.disk.format == Format::Raw {
        return Err(NothingToCheck.into());
    }
    let repair = match args.repair {
        None => Repair::Nothing,
        Some(RepairArg::Leaks) => Repair::Leaks,
        Some(RepairArg::All) => Repair::Counts,
    };
    let access = match repair {
        Repair::Nothing => Access::Read,
        _ => Access::Write,
    };
    let file = open_named(path, access)?;
    let mut progress = Progress::new("checking", json);
    let found = check(&file, path, repair, &mut |done, all| {
        progress.tell(done, all);
    });
    drop(progress);
    let disk = format!("qcow2:{}", path.display());
    let (found, status) = match found {
        Ok(found) => Found::new(disk, found),
        // Nothing more can be said of it.
        Err(error @ (OpenError::Damaged { .. } | OpenError::Marked { .. })) => {
            let found = Checked {
                corruptions: 1,
                told: vec![error.to_string()],
                ..Checked::default()
            };
            Found::new(disk, found)
        }
        Err(error) => return Err(error.into()),
    };
    print(&found, json)?;
    Ok(status)
}

/// With the faults on lines of their own, where people read them.
fn print(found: &Found, json: bool) -> Result<(), output::OutputError> {
    if json {
        return output::print(found, true);
    }
    let lines: String = found
        .faults
        .iter()
        .map(|line| format!("{line}\n"))
        .collect();
    output::write(&lines)?;
    let rest = Found {
        disk: found.disk.clone(),
        faults: Vec::new(),
        ..*found
    };
    output::print(&rest, false)
}
