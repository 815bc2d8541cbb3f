// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Makes an image larger while it is in use.

use virtio_blk_core::disk::DiskError;

use crate::image::Image;
use crate::lane::Lane;
use crate::sync::lock;

/// Most bytes of the L1 table, as QEMU has it.
const MAX_L1: u64 = 32 << 20;

impl Image {
    /// Makes the image `bytes` long for the guest; the new part reads as zeroes.
    ///
    /// # Errors
    /// `ReadOnly`; `Config`: a size that is impossible, with the reason; the disk's. The size is the old one then.
    pub fn resize(&self, bytes: u64) -> Result<(), DiskError> {
        if self.read_only {
            return Err(DiskError::ReadOnly);
        }
        let (geometry, now) = (self.base.geometry, self.size());
        let block = self.data.block() as u64;
        let refuse = |why: String| Err(DiskError::Config(why));
        if !bytes.is_multiple_of(block) {
            return refuse(format!(
                "{bytes} bytes is not a multiple of {block}, the block size of the image"
            ));
        }
        if bytes < now {
            return refuse(format!(
                "the image has {now} bytes: making it smaller would lose what lies behind {bytes}. If that is wanted, \
                 shrink the guest's file system, stop, and use `qemu-img resize --shrink`"
            ));
        }
        if self.backing.as_ref().is_some_and(|(_, len)| *len > now) && bytes > now {
            return refuse(
                "the image is smaller than its backing file, whose end would show: stop, and use `qemu-img resize`"
                    .into(),
            );
        }
        if self.base.version < 3 && self.base.snapshots > 0 && bytes > now {
            // They don't say how large the disk was.
            return refuse(
                "it has snapshots, and is of version 2, which does not keep their size: stop, and use `qemu-img amend -o \
                 compat=v3`"
                    .into(),
            );
        }
        let entries = bytes.div_ceil(geometry.table_reach());
        if entries * 8 > MAX_L1 {
            return refuse(format!(
                "{bytes} bytes are too many for clusters of {} bytes",
                geometry.cluster()
            ));
        }
        if bytes == now {
            return Ok(());
        }
        let mut lane = self.base.medium.lane()?;
        self.base.begin_changes(&mut lane)?;
        if self.base.external {
            self.data.ensure(bytes)?;
        }
        let grow = |lane: &mut Lane| (self.tables).grow(lane, &self.refcounts, entries, bytes);
        let moved = match grow(&mut lane) {
            Err(error) if error.is_no_space() => {
                // What was made ready for data may be what is missing.
                let ready = self.reserve.recall();
                let mut refcounts = lock(&self.refcounts);
                for run in ready {
                    refcounts.release(&mut lane, run, &mut Vec::new())?;
                }
                drop(refcounts);
                grow(&mut lane)?
            }
            other => other?,
        };
        self.set_size(bytes);
        // Stably so: nothing refers to the old table, and it is only ever written.
        if let Some(run) = moved
            && let Err(error) = lock(&self.refcounts).release(&mut lane, run, &mut Vec::new())
        {
            log::warn!(
                "the old L1 table of a qcow2 image stays counted ({error}): a check frees it"
            );
        }
        Ok(())
    }
}
