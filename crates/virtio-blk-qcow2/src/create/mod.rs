// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Makes a new image.

mod header;
mod options;
mod plan;

use std::sync::Arc;

use virtio_blk_core::disk::{Disk, DiskError, IoBuf};

pub use options::{CreateOptions, Preallocation};
use plan::Plan;

use crate::format::Header;
use crate::lane::Lane;
use crate::medium::Medium;

/// Bytes that the host sets aside between two reports of progress, and bytes of zeroes that are written in one call.
const STEP: u64 = 256 << 20;
const PIECE: u64 = 1 << 20;

/// How much is done, and who wants to know.
struct Done<'a> {
    bytes: u64,
    all: u64,
    tell: &'a mut dyn FnMut(u64, u64),
}

impl Done<'_> {
    fn add(&mut self, bytes: u64) {
        self.bytes = (self.bytes + bytes).min(self.all);
        (self.tell)(self.bytes, self.all);
    }
}

/// Makes a new image on a disk, from its first byte on: a new, empty file. What was there is lost. The image is stable
/// when this returns, and never looks like one before it is complete. `data` is the external data file, if the options
/// name one: a new, empty file, too. `progress` is called now and then with how many bytes are done, and of how many.
///
/// # Errors
/// `Config`: options that are impossible, with the reason; the disks'.
pub fn create(
    disk: &Arc<dyn Disk>,
    data: Option<&Arc<dyn Disk>>,
    options: &CreateOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), DiskError> {
    if let Some(fault) = options.fault() {
        return Err(DiskError::Config(fault));
    }
    if data.is_some() != options.is_external() {
        return Err(DiskError::Config(
            "a data file is opened if the options name one, and only then".into(),
        ));
    }
    let plan = Plan::new(options).ok_or_else(|| {
        DiskError::Config("too many clusters for the refcount table: use larger ones".into())
    })?;
    let medium = Arc::new(Medium::new(disk.clone())?);
    medium.ensure(plan.at(plan.total))?;
    let mut lane = medium.lane()?;
    let header = header::header(&plan, options);
    // No image until it is one.
    lane.write(0, &vec![0; header.len()])?;
    lane.flush()?;
    let filled = match options.preallocation {
        Preallocation::Falloc | Preallocation::Full => options.size,
        Preallocation::Off | Preallocation::Metadata => 0,
    };
    let mut done = Done {
        bytes: 0,
        all: plan.written() + filled,
        tell: progress,
    };
    if let Some(data) = data {
        let medium = Arc::new(Medium::new(data.clone())?);
        let len = options.size.next_multiple_of(medium.block() as u64);
        medium.ensure(len)?;
        let mut lane = medium.lane()?;
        fill(&mut lane, 0, len, options.preallocation, &mut done)?;
        lane.flush()?;
    } else if options.has_places() {
        let at = plan.at(plan.data_at());
        let len = plan.at(plan.total) - at;
        fill(&mut lane, at, len, options.preallocation, &mut done)?;
    }
    plan.write_counts(&mut lane, &mut done)?;
    plan.write_map(&mut lane, &mut done)?;
    lane.flush()?;
    debug_assert!(Header::parse(&header, plan.at(plan.total)).is_ok());
    lane.write(0, &header)?;
    lane.flush()
}

/// Makes the place of the data what it is to be: zeroes, with or without space.
fn fill(
    lane: &mut Lane,
    from: u64,
    len: u64,
    what: Preallocation,
    done: &mut Done<'_>,
) -> Result<(), DiskError> {
    let zeroes = IoBuf::zeroed(PIECE.min(len) as usize);
    let (mut at, end) = (from, from + len);
    while at < end {
        let len = match what {
            Preallocation::Full => PIECE,
            _ => STEP,
        };
        let len = len.min(end - at);
        match what {
            Preallocation::Full => lane.write_from(at, &zeroes, 0, len as usize)?,
            Preallocation::Falloc => lane.zero(at, len, false)?,
            Preallocation::Off | Preallocation::Metadata => lane.zero(at, len, true)?,
        }
        at += len;
        if matches!(what, Preallocation::Full | Preallocation::Falloc) {
            done.add(len);
        }
    }
    Ok(())
}
