// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an image holds.

use std::ffi::{c_int, c_void};
use std::ops::Range;

use virtio_blk_core::disk::{Allocation, DiskError, Extent};

use crate::error::errno;
use crate::image::Target;

/// What the library is asked to stop with once there are extents enough.
const ENOUGH: c_int = -libc::ECANCELED;

/// Extents as far as they are known.
struct Found {
    extents: Vec<Extent>,
    most: usize,
    /// Where the last extent ends.
    at: u64,
    end: u64,
    /// The library has named a range that can't be: nothing that it said counts.
    confused: bool,
}

impl Found {
    /// Adds what lies between the last extent and `until`.
    fn add(&mut self, until: u64, allocation: Allocation) {
        let len = until.saturating_sub(self.at);
        if len == 0 {
            return;
        }
        self.at = until;
        match self.extents.last_mut() {
            Some(last) if last.allocation == allocation => last.len += len,
            _ => self.extents.push(Extent { len, allocation }),
        }
    }

    const fn is_full(&self) -> bool {
        // One more may be joined to the last.
        self.extents.len() > self.most
    }
}

/// What lies in a range of an image. All of it counts as data if the library does not name ranges in their order: those
/// of an image whose stripes are not whole objects come by objects.
///
/// # Safety
/// The image is open until this has returned.
///
/// # Errors
/// The cluster's.
pub(crate) unsafe fn extents(
    target: &Target,
    range: Range<u64>,
    most: usize,
) -> Result<Vec<Extent>, DiskError> {
    let mut found = Found {
        extents: Vec::new(),
        most,
        at: range.start,
        end: range.end,
        confused: false,
    };
    // From no snapshot: all that was ever written. With the parent's data, as what is read comes from there, too. Not by
    // whole objects, though the library then knows them from the object map without asking each: before 16.2.8 it named
    // wrong ranges for a start inside an object, and left out the parent's.
    let (with_parent, whole_objects) = (1, 0);
    // SAFETY: the image is open, as the caller guarantees; `note` is given what it is called for, and not after the call.
    let code = unsafe {
        (target.api.rbd_diff_iterate2)(
            target.handle,
            std::ptr::null(),
            range.start,
            range.end.saturating_sub(range.start),
            with_parent,
            whole_objects,
            note,
            (&raw mut found).cast::<c_void>(),
        )
    };
    if found.confused {
        return Ok(vec![Extent {
            len: range.end.saturating_sub(range.start),
            allocation: Allocation::Data,
        }]);
    }
    if code < 0 && !found.is_full() {
        return Err(DiskError::from_errno(errno(code.into())));
    }
    if !found.is_full() {
        found.add(range.end, Allocation::Hole);
    }
    found.extents.truncate(most);
    Ok(found.extents)
}

/// Called by the library for each range, in their order.
unsafe extern "C" fn note(offset: u64, len: usize, exists: c_int, found: *mut c_void) -> c_int {
    // SAFETY: the address that `extents` gave, inside its call.
    let found = unsafe { &mut *found.cast::<Found>() };
    let until = offset.checked_add(len as u64);
    let Some(until) = until.filter(|until| offset >= found.at && *until <= found.end) else {
        found.confused = true;
        return ENOUGH;
    };
    found.add(offset, Allocation::Hole);
    let allocation = if exists == 0 {
        Allocation::Hole
    } else {
        Allocation::Data
    };
    found.add(until, allocation);
    if found.is_full() { ENOUGH } else { 0 }
}
