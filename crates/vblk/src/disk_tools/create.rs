// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vblk disk create`.

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use clap::Args;
use rustix::fs::{FallocateFlags, fallocate};
use serde::Serialize;
use virtio_blk_core::disk::{Disk, DiskError, SECTOR_SIZE};
use virtio_blk_qcow2::{Access, CreateOptions, Preallocation, Qcow2Disk, Qcow2Options, create};

use super::arg::{Backing, Format, NewImage};
use super::unfinished::Unfinished;
use super::{open, open_named};
use crate::output;
use crate::progress::Progress;

/// What `--help` says at its end.
pub const HELP: &str = "\
A DISK names its format, always:
  raw:PATH,size=SIZE[,OPTION…]    a raw image
      preallocation=off|falloc|full  set its space aside, or write it (off)
  qcow2:PATH,size=SIZE[,OPTION…]  a qcow2 image
      preallocation=off|metadata|falloc|full  give every cluster its place,
                          set space aside for it, or write it (off)
      backing=FILE        what it shows until it is written: a path from the
                          image's directory on; size may be left out then
      backing_format=raw|qcow2  always given with it
      cluster=SIZE        512 to 2M (64K)
      extended_l2=on      clusters have 32 subclusters each (off)
      compression=zlib|zstd  of clusters that are compressed later (zlib)
      refcount_bits=N     1, 2, 4, 8, 16, 32 or 64 (16)
      lazy_refcounts=on   QEMU may leave refcounts out of date (off)
      data_file=FILE      keep the data there, which is made, too
      data_file_raw=on    that file is a raw image by itself (off)
SIZE takes K, M, G, T (binary). A comma in a path is written twice.

The image has its name only when it is complete: until then it is called
PATH.unfinished-PID, and is removed if it is interrupted.

Examples:
  vblk disk create qcow2:disk.qcow2,size=20G
  vblk disk create qcow2:fast.qcow2,size=20G,preallocation=falloc,cluster=1M
  vblk disk create qcow2:child.qcow2,backing=disk.qcow2,backing_format=qcow2
  vblk disk create raw:disk.img,size=8G,preallocation=full --json";

/// Options of `disk create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// The image; see below.
    #[arg(value_name = "DISK")]
    disk: NewImage,
    /// Replace files that are there, unless they are in use.
    #[arg(long)]
    force: bool,
}

/// What was made. Field names are the JSON's.
#[derive(Serialize)]
struct Created {
    disk: String,
    size: String,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_file: Option<String>,
}

/// Bytes that the host sets aside, or that are written, between two looks at the progress.
const STEP: u64 = 256 << 20;
const PIECE: u64 = 1 << 20;

/// Makes an image.
pub fn run(args: &CreateArgs, json: bool) -> Result<(), Box<dyn Error>> {
    let new = &args.disk;
    let mut progress = Progress::new("creating", json);
    let mut tell = |done, all| progress.tell(done, all);
    let created = match new.format {
        Format::Raw => create_raw(new, args.force, &mut tell)?,
        Format::Qcow2 => create_qcow2(new, args.force, &mut tell)?,
    };
    drop(progress);
    output::print(&created, json)?;
    Ok(())
}

fn create_raw(
    new: &NewImage,
    force: bool,
    tell: &mut dyn FnMut(u64, u64),
) -> Result<Created, Box<dyn Error>> {
    let size = new.size.unwrap_or_default();
    let unfinished = Unfinished::new()?;
    let path = unfinished.add(&new.path, force)?;
    let made = File::options()
        .write(true)
        .open(&path)
        .and_then(|file| fill(&file, size, new.preallocation, tell));
    made.map_err(|error| about(&new.path, error))?;
    unfinished.finish()?;
    Ok(Created {
        disk: format!("raw:{}", new.path.display()),
        size: output::size(size),
        bytes: size,
        data_file: None,
    })
}

/// An error with the file that it is about.
fn about(path: &Path, source: io::Error) -> Failed {
    Failed {
        path: path.display().to_string(),
        source,
    }
}

/// A file can't be made.
#[derive(Debug, thiserror::Error)]
#[error("{path} can't be made: {source}")]
struct Failed {
    path: String,
    source: io::Error,
}

/// Makes a file `size` bytes long, with its space if that is wanted.
fn fill(
    file: &File,
    size: u64,
    what: Preallocation,
    tell: &mut dyn FnMut(u64, u64),
) -> io::Result<()> {
    file.set_len(size)?;
    let zeroes = vec![0; PIECE as usize];
    let step = if what == Preallocation::Full {
        PIECE
    } else {
        STEP
    };
    let mut at = 0;
    while at < size && what != Preallocation::Off {
        let len = step.min(size - at);
        if what == Preallocation::Full {
            let piece = zeroes.get(..len as usize).unwrap_or_default();
            file.write_all_at(piece, at)?;
        } else {
            fallocate(file, FallocateFlags::empty(), at, len).map_err(|error| match error {
                rustix::io::Errno::OPNOTSUPP => io::Error::other(
                    "its file system can't set space aside: use preallocation=full",
                ),
                error => error.into(),
            })?;
        }
        at += len;
        tell(at, size);
    }
    file.sync_all()
}

fn create_qcow2(
    new: &NewImage,
    force: bool,
    tell: &mut dyn FnMut(u64, u64),
) -> Result<Created, Box<dyn Error>> {
    let below = match &new.backing {
        Some(backing) => Some(size_of(backing, &new.path)?),
        None => None,
    };
    let size = new.size.or(below).unwrap_or_default();
    let mut options = CreateOptions::new(size)
        .subclusters(new.extended_l2)
        .zstd(new.zstd)
        .lazy_refcounts(new.lazy_refcounts)
        .preallocation(new.preallocation);
    if let Some(bytes) = new.cluster {
        options = options.cluster(bytes);
    }
    if let Some(bits) = new.refcount_bits {
        options = options.refcount_bits(bits);
    }
    if let Some(backing) = &new.backing {
        options = options.backing(&backing.name, backing.format_name());
    }
    let unfinished = Unfinished::new()?;
    let mut data_file = None;
    let data = match &new.data_file {
        Some(path) => {
            // QEMU looks for it from its own directory on.
            let full = std::path::absolute(path)?;
            let name = full
                .to_str()
                .ok_or_else(|| DiskError::Config("the name of a data file must be UTF-8".into()))?;
            options = options.data_file(name, new.data_file_raw);
            data_file = Some(name.to_owned());
            let temporary = unfinished.add(&full, force)?;
            Some(open_named(&temporary, Access::Write)?)
        }
        None => None,
    };
    let path = unfinished.add(&new.path, force)?;
    let disk = open_named(&path, Access::Write)?;
    create(&disk, data.as_ref(), &options, tell)?;
    // Its name is not to belong to somebody who still has it locked.
    drop((disk, data));
    if new.backing.is_some() && data_file.is_none() {
        // Whatever would be refused later is refused now: how names are written, and how long chains are.
        let look = Qcow2Options::new().inspect(true).backing(true);
        Qcow2Disk::open(&path, Arc::new(open), look)?;
    }
    unfinished.finish()?;
    Ok(Created {
        disk: format!("qcow2:{}", new.path.display()),
        size: output::size(size),
        bytes: size,
        data_file,
    })
}

/// Bytes of a backing file, as a guest would see it.
fn size_of(backing: &Backing, image: &Path) -> Result<u64, Box<dyn Error>> {
    let directory = image.parent().unwrap_or(Path::new(""));
    let path = directory.join(&backing.name);
    let disk: Arc<dyn Disk> = match backing.format {
        Format::Raw => open_named(&path, Access::Look)?,
        Format::Qcow2 => {
            let look = Qcow2Options::new().inspect(true).backing(true);
            Arc::new(Qcow2Disk::open(path, Arc::new(open), look)?)
        }
    };
    Ok(disk.caps().capacity_bytes().next_multiple_of(SECTOR_SIZE))
}
