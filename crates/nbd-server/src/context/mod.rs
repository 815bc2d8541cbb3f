// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Contexts of block status: what an export can be asked about its content.

use std::ops::Range;

use virtio_blk_core::disk::{Allocation, Disk, DiskError, Extent, Extents};
use virtio_blk_nbd::proto::{self, BASE_ALLOCATION, QEMU_DIRTY_BITMAP, StatusExtent};

/// A part of a disk whose blocks have all changed, or all not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marked {
    /// Bytes. Not 0.
    pub len: u64,
    /// Whether they count as changed.
    pub dirty: bool,
}

/// The dirty bitmaps of a disk, which clients see as the contexts `qemu:dirty-bitmap:NAME`. Bitmaps may come and go.
pub trait Bitmaps: Send + Sync {
    /// The names of all.
    fn names(&self) -> Vec<String>;

    /// What counts as changed in a range, which is not empty and lies inside the disk: at least one part and at most
    /// `most`, the first at the range's start, each other one where the one before ends. `None` if there is no such bitmap
    /// (any more).
    fn marks(&self, name: &str, range: Range<u64>, most: usize) -> Option<Vec<Marked>>;
}

/// A context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Context {
    Allocation,
    Bitmap(String),
}

impl Context {
    /// Its name on the wire.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Allocation => BASE_ALLOCATION.to_owned(),
            Self::Bitmap(name) => format!("{QEMU_DIRTY_BITMAP}{name}"),
        }
    }

    /// Those of an export with these bitmaps.
    pub(crate) fn all(bitmaps: Option<&dyn Bitmaps>) -> Vec<Self> {
        let names = bitmaps.map(Bitmaps::names).unwrap_or_default();
        let fits = |name: &String| QEMU_DIRTY_BITMAP.len() + name.len() <= proto::MAX_STRING;
        let bitmaps = names.into_iter().filter(fits).map(Self::Bitmap);
        std::iter::once(Self::Allocation).chain(bitmaps).collect()
    }

    /// Whether a query of a list asks for it. One that ends with a colon stands for all that begin so.
    pub(crate) fn is_listed(&self, query: &str) -> bool {
        let name = self.name();
        name == query || query.ends_with(':') && name.starts_with(query)
    }
}

/// What a disk holds, at most `most` extents, with bounds at whole blocks: a block that is data in part is data.
///
/// # Errors
/// The disk's.
pub(crate) fn allocation(
    disk: &dyn Disk,
    range: Range<u64>,
    block: u64,
    most: usize,
) -> Result<Vec<StatusExtent>, DiskError> {
    let found = disk.extents(range.clone(), most)?;
    let found = whole_blocks(found, range, block, most);
    Ok(found.into_iter().map(status_of).collect())
}

fn status_of(extent: Extent) -> StatusExtent {
    let state = match extent.allocation {
        Allocation::Hole => (true, true),
        Allocation::Zero => (false, true),
        // Whatever kinds come later are data until they are known here.
        _ => (false, false),
    };
    let (hole, zero) = state;
    StatusExtent {
        length: extent.len,
        flags: proto::Allocation { hole, zero }.flags(),
    }
}

/// Moves the bounds between extents to bounds of blocks.
fn whole_blocks(found: Vec<Extent>, range: Range<u64>, block: u64, most: usize) -> Vec<Extent> {
    let mut extents = Extents::new(most);
    // How far the disk has told, and how far that was taken over.
    let (mut told, mut at) = (range.start, range.start);
    for extent in found {
        told = told.saturating_add(extent.len).min(range.end);
        let is_data = !matches!(extent.allocation, Allocation::Hole | Allocation::Zero);
        let end = match is_data {
            true => told.checked_next_multiple_of(block).unwrap_or(range.end),
            false => told - told % block,
        };
        let end = end.min(range.end);
        if end > at {
            if !extents.push(end - at, extent.allocation) {
                break;
            }
            at = end;
        } else if !is_data && end < at {
            continue;
        }
        // The rest of a hole within a block belongs to what follows, which is taken for data.
        if !is_data && told > end {
            let next = (end + block).min(range.end);
            if next > at {
                if !extents.push(next - at, Allocation::Data) {
                    break;
                }
                at = next;
            }
        }
    }
    match extents.into_vec() {
        // A disk that says nothing.
        none if none.is_empty() => vec![Extent {
            len: range.end - range.start,
            allocation: Allocation::Data,
        }],
        extents => extents,
    }
}

#[cfg(test)]
mod tests;
