// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Looks whether an image is sound, and mends its counts.

mod compare;
mod walk;

use std::path::Path;
use std::sync::Arc;

use virtio_blk_core::disk::{Disk, DiskError};

use crate::base::Base;
use crate::error::OpenError;
use crate::format::{field, incompatible, put};
use crate::head;
use crate::lane::Lane;
use crate::layout::Layout;
use crate::medium::Medium;
use crate::refcounts::Refcounts;
use walk::Walk;

/// Clusters that are counted in one pass: 64 MiB of memory.
const WINDOW: u64 = 1 << 25;
/// Most faults that are told in words.
const MAX_TOLD: usize = 100;

/// What is mended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Repair {
    /// Nothing: the image is only read.
    #[default]
    Nothing,
    /// Clusters that are counted but not used become free.
    Leaks,
    /// All counts become what they should be, and the mark of an image that was not closed is taken away if nothing else
    /// is wrong.
    Counts,
}

/// What was found in an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Clusters of the guest's disk.
    pub clusters: u64,
    /// Those of them that have a place in the file.
    pub allocated: u64,
    /// Those of them that are compressed.
    pub compressed: u64,
    /// Those of them that don't follow the one before them in the file, as far as one L2 table has both. Compressed ones
    /// count as such.
    pub fragmented: u64,
    /// Bytes of the file up to the end of the last cluster that is used or counted.
    pub end: u64,
    /// Clusters of the file that are counted more often than they are used: space that is lost.
    pub leaks: u64,
    /// Faults that can lose data: clusters counted too seldom, entries that can't be right.
    pub corruptions: u64,
    /// Leaks that were mended.
    pub leaks_fixed: u64,
    /// Faults that were mended.
    pub corruptions_fixed: u64,
    /// The image is marked as not closed (dirty).
    pub dirty: bool,
    /// The first faults in words.
    pub told: Vec<String>,
}

impl Checked {
    /// Whether nothing is wrong, or all that was wrong was mended.
    pub const fn is_sound(&self) -> bool {
        self.leaks_left() == 0 && self.corruptions_left() == 0 && !self.dirty
    }

    /// Leaks that were not mended.
    pub const fn leaks_left(&self) -> u64 {
        self.leaks.saturating_sub(self.leaks_fixed)
    }

    /// Faults that were not mended.
    pub const fn corruptions_left(&self) -> u64 {
        self.corruptions.saturating_sub(self.corruptions_fixed)
    }

    fn tell(&mut self, what: impl FnOnce() -> String) {
        if self.told.len() < MAX_TOLD {
            self.told.push(what());
        }
    }

    fn corrupt(&mut self, what: impl FnOnce() -> String) {
        self.corruptions += 1;
        self.tell(what);
    }
}

/// Looks whether the image on a disk is sound; `path` is its name in errors. Nobody else may use it meanwhile. `progress`
/// is called now and then with how much is done, and of how much.
///
/// # Errors
/// The image can't be read, or lies in a way that nothing can be said: see [`OpenError`].
pub fn check(
    disk: &Arc<dyn Disk>,
    path: &Path,
    repair: Repair,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Checked, OpenError> {
    let failed = |error| OpenError::file(path, error);
    let medium = Arc::new(Medium::new(disk.clone()).map_err(failed)?);
    let mut lane = medium.lane().map_err(failed)?;
    let len = medium.len();
    let (header, first) = head::read(&mut lane, len, path)?;
    let layout = Layout::read(&header, len, &mut lane).map_err(|error| error.of(path))?;
    let tables = layout.tables.clone();
    let base = Arc::new(Base::new(
        medium.clone(),
        &header,
        first,
        layout.tables,
        Arc::default(),
    ));
    let mut refcounts = Refcounts::open(base.clone(), &header, &mut lane).map_err(failed)?;
    let mut checked = Checked {
        clusters: header.geometry.clusters(header.size),
        dirty: header.dirty,
        ..Checked::default()
    };
    let all = header.geometry.clusters(len);
    let mut from = 0;
    while from < all {
        let window = from..(from + WINDOW).min(all);
        let mut walk = Walk::new(&header, &base, window.clone(), all, from == 0);
        walk.all(&mut lane, &layout.l1, &tables, &mut checked)
            .map_err(failed)?;
        let counts = walk.into_counts();
        compare::compare(
            &mut refcounts,
            &mut lane,
            window.start,
            &counts,
            repair,
            &mut checked,
        )
        .map_err(failed)?;
        progress(window.end, all);
        from = window.end;
    }
    checked.end <<= header.geometry.cluster_bits;
    walk::marks(&header, &mut lane, &layout.l1, &mut refcounts, &mut checked).map_err(failed)?;
    if repair != Repair::Nothing {
        finish(&base, &mut lane, repair, &mut checked).map_err(failed)?;
    }
    Ok(checked)
}

/// Makes what was mended stable, and takes the mark away.
fn finish(
    base: &Base,
    lane: &mut Lane,
    repair: Repair,
    checked: &mut Checked,
) -> Result<(), DiskError> {
    base.barrier(lane)?;
    let mended = checked.leaks_left() + checked.corruptions_left() == 0;
    if checked.dirty && repair == Repair::Counts && mended {
        base.update_header(lane, |head| {
            let features = crate::format::be64(head, field::INCOMPATIBLE);
            let features = features & !incompatible::DIRTY;
            put(head, field::INCOMPATIBLE, &features.to_be_bytes());
        })?;
        base.barrier(lane)?;
        checked.dirty = false;
    }
    Ok(())
}
