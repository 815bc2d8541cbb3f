// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The counts that an image has beside those that it should have.

use virtio_blk_core::disk::DiskError;

use super::{Checked, Repair};
use crate::lane::Lane;
use crate::refcounts::{Refcounts, Run};

/// Compares the counts of the clusters from `first` on with how often they are used, and mends them. The end is told in
/// clusters. A cluster that is used more often than can be counted is not mended.
pub(super) fn compare(
    refcounts: &mut Refcounts,
    lane: &mut Lane,
    first: u64,
    used: &[u16],
    repair: Repair,
    checked: &mut Checked,
) -> Result<(), DiskError> {
    let per_block = refcounts.per_block();
    let mut start = 0;
    // A block at a time.
    while start < used.len() {
        let cluster = first + start as u64;
        let len = (per_block - cluster % per_block) as usize;
        let part = used.get(start..(start + len).min(used.len()));
        let part = part.unwrap_or_default();
        compare_block(refcounts, lane, cluster, part, repair, checked)?;
        start += len;
    }
    Ok(())
}

fn compare_block(
    refcounts: &mut Refcounts,
    lane: &mut Lane,
    first: u64,
    used: &[u16],
    repair: Repair,
    checked: &mut Checked,
) -> Result<(), DiskError> {
    let (mut leaks, mut lost, mut stay) = (0, 0, 0);
    let max = refcounts.max();
    for (cluster, used) in (first..).zip(used) {
        let (used, counted) = (u64::from(*used), refcounts.get(lane, cluster)?);
        if used + counted > 0 {
            checked.end = cluster + 1;
        }
        // Uses are not counted beyond that.
        let many = used == u64::from(u16::MAX);
        if counted > used && !many {
            leaks += 1;
            checked.tell(|| format!("cluster {cluster} is counted {counted} times, used {used}"));
        } else if counted < used {
            lost += 1;
            stay += u64::from(many || used > max);
            checked.tell(|| format!("cluster {cluster} is used {used} times, counted {counted}"));
        }
    }
    checked.leaks += leaks;
    checked.corruptions += lost;
    let raise = repair == Repair::Counts;
    if repair == Repair::Nothing || leaks + if raise { lost } else { 0 } == 0 {
        return Ok(());
    }
    if !refcounts.reaches(first) {
        // A larger table would lie behind what this one counts, where everything is that is not counted.
        checked.tell(|| format!("the refcount table is too small for cluster {first}"));
        return Ok(());
    }
    if !refcounts.has_block(first) {
        // The counts of a whole block are missing: it gets one, in a cluster that nothing uses.
        let free = used.iter().position(|used| *used == 0);
        let place = free.map_or(first + used.len() as u64, |free| first + free as u64);
        if place / refcounts.per_block() != first / refcounts.per_block() {
            checked.tell(|| format!("no cluster is free for the counts from cluster {first} on"));
            return Ok(());
        }
        refcounts.place_block(lane, first, place)?;
    }
    let run = Run {
        first,
        count: used.len() as u64,
    };
    refcounts.mend(lane, run, raise, &|index| {
        used.get(index).copied().map_or(0, u64::from)
    })?;
    checked.leaks_fixed += leaks;
    checked.corruptions_fixed += if raise { lost - stay } else { 0 };
    Ok(())
}
