// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An image as a disk.

use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use virtio_blk_core::disk::{Caps, Disk, DiskError, DiskListener, Extent, IoQueue, SECTOR_SIZE};

use crate::api::{self, Api};
use crate::error::errno;
use crate::extents::extents;
use crate::image::{Image, OPEN_PATIENCE};
use crate::queue::RbdQueue;
use crate::{RbdError, RbdOptions};

/// How long a look at the size waits for the cluster. It has nothing to wait for if nothing has changed.
const REFRESH_PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 1000 });

/// An image of a Ceph cluster, or a snapshot of one, as a disk.
///
/// All queues share one handle of the library: two would fight for the image's exclusive lock. Each queue has a
/// descriptor of its own; what has ended is put there by the library's threads. The library keeps no cache, so a write
/// that has completed is stable on all copies.
///
/// **The exclusive lock** is taken by the library with the first write, and given to another client that asks for it.
/// A process that is killed keeps it for half a minute, unless its successor finds out that it has ended:
/// [`RbdOptions::state`].
///
/// **Other clients** may write while the lock is theirs, also while this disk is in use; [`Disk::handover`] does not tell
/// of that, as the disk never lets go of the image. A layer that remembers what changed sees its own writes only.
///
/// **Stops.** An operation that the cluster does not finish can't be cancelled, so dropping a queue waits for it; with
/// [`RbdOptions::timeout`] that has an end. Its buffer stays mapped until then, whatever becomes of the queue.
pub struct RbdDisk {
    image: Arc<Image>,
}

impl RbdDisk {
    /// Connects to the cluster, and opens the image. Waits 30 seconds for the cluster at most.
    ///
    /// # Errors
    /// The library is missing, the cluster can't be reached, or it has no such image. The message says what to do.
    pub fn open(options: &RbdOptions) -> Result<Self, DiskError> {
        Ok(Self::open_with(api::load()?, options, OPEN_PATIENCE)?)
    }

    /// The same with a library that is loaded already.
    pub(crate) fn open_with(
        api: &'static Api,
        options: &RbdOptions,
        patience: Duration,
    ) -> Result<Self, RbdError> {
        let image = Image::open(api, options, patience)?;
        let caps = image.shape().caps(image.size().capacity());
        caps.validate()
            .map_err(|error| RbdError::Image(error.to_string()))?;
        Ok(Self {
            image: Arc::new(image),
        })
    }
}

impl Disk for RbdDisk {
    fn caps(&self) -> Caps {
        self.image.shape().caps(self.image.size().capacity())
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        Ok(Box::new(RbdQueue::open(self.image.clone(), depth)?))
    }

    fn refresh(&self) -> Result<(), DiskError> {
        Ok(self.image.look(REFRESH_PATIENCE)?)
    }

    fn resize(&self, bytes: u64) -> Result<(), DiskError> {
        if self.image.shape().read_only {
            return Err(DiskError::ReadOnly);
        }
        let now = self.image.size().capacity() * SECTOR_SIZE;
        if !bytes.is_multiple_of(SECTOR_SIZE) || bytes < now || i64::try_from(bytes).is_err() {
            return Err(DiskError::Config(format!(
                "rbd: {bytes} bytes are no size for an image of {now}: a multiple of {SECTOR_SIZE}, and not smaller"
            )));
        }
        let target = self.image.target();
        // SAFETY: this disk keeps the image open; `silent` needs no data.
        let code = unsafe {
            (target.api.rbd_resize2)(target.handle, bytes, false, silent, std::ptr::null_mut())
        };
        if code < 0 {
            return Err(DiskError::from_errno(errno(code.into())));
        }
        Ok(self.image.look(OPEN_PATIENCE)?)
    }

    fn extents(&self, range: Range<u64>, most: usize) -> Result<Vec<Extent>, DiskError> {
        if range.start >= range.end || range.end > self.image.size().capacity() * SECTOR_SIZE {
            return Err(DiskError::OutOfRange);
        }
        // SAFETY: this disk keeps the image open.
        unsafe { extents(self.image.target(), range, most) }
    }

    fn listen(&self, listener: DiskListener) {
        self.image.size().listen(listener);
    }
}

/// Hears of the progress of a resize.
unsafe extern "C" fn silent(_: u64, _: u64, _: *mut c_void) -> c_int {
    0
}
