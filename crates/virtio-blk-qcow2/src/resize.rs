// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Makes an image larger while it is in use.

use virtio_blk_core::disk::{DiskError, DiskEvent, SECTOR_SIZE};

use crate::disk::Qcow2Disk;
use crate::format::{Entry, Place};
use crate::image::Image;
use crate::lane::Lane;
use crate::sync::lock;

/// Most bytes of the L1 table, as QEMU has it.
const MAX_L1: u64 = 32 << 20;

impl Image {
    /// Checks that the image can be `bytes` long for the guest.
    ///
    /// # Errors
    /// `ReadOnly`; `Config`: a size that is impossible, with the reason.
    fn admit_size(&self, bytes: u64) -> Result<(), DiskError> {
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
        if bytes.div_ceil(geometry.table_reach()) * 8 > MAX_L1 {
            return refuse(format!(
                "{bytes} bytes are too many for clusters of {} bytes",
                geometry.cluster()
            ));
        }
        Ok(())
    }

    /// The part of the guest's last cluster that lies behind the end of the disk: its first byte and its length.
    fn behind_the_end(&self) -> (u64, u64) {
        let now = self.size();
        (
            now,
            now.next_multiple_of(self.base.geometry.cluster()) - now,
        )
    }

    /// Whether something other than zeroes may lie in the guest's last cluster behind the end of the disk: who made an image
    /// smaller leaves it there.
    ///
    /// # Errors
    /// The disk's; a damaged image.
    fn has_rest(&self, lane: &mut Lane) -> Result<bool, DiskError> {
        let (now, len) = self.behind_the_end();
        if len == 0 {
            return Ok(false);
        }
        let geometry = self.base.geometry;
        let cluster = now >> geometry.cluster_bits;
        let units = self.units(now & (geometry.cluster() - 1), len);
        let path = self.epochs.path();
        let turn = self.epochs.enter(&path);
        let entry = self.find_entry(lane, cluster);
        path.leave(turn);
        let entry = entry?;
        // What is below does not reach behind the end.
        let is_there = |unit| {
            let place = self.place(entry, cluster, unit);
            matches!(place, Place::Data(_) | Place::Compressed)
        };
        Ok((0..geometry.units()).any(|unit| units >> unit & 1 != 0 && is_there(unit)))
    }

    /// The entry of a guest cluster. The caller has entered an epoch.
    fn find_entry(&self, lane: &mut Lane, cluster: u64) -> Result<Entry, DiskError> {
        let (number, index) = self.tables.place(cluster);
        let slice = self.tables.slice(number);
        let mut state = lock(&slice.state);
        self.tables.load(lane, &slice, &mut state)?;
        self.entry(&state, index)
    }

    /// Has an external data file that is longer than the disk read as zeroes behind the disk's end, as far as it is going to
    /// be seen, and stably so.
    ///
    /// # Errors
    /// The disk's.
    fn clear_data_file(&self, bytes: u64) -> Result<(), DiskError> {
        let (now, rest) = self.behind_the_end();
        // A raw one is the guest's disk byte for byte; of another, what no entry refers to is never seen.
        let end = if self.raw_external {
            bytes.max(now + rest)
        } else {
            now + rest
        };
        let end = end.min(self.data.len());
        if now >= end {
            return Ok(());
        }
        let mut lane = self.data.lane()?;
        lane.zero(now, end - now, true)?;
        lane.flush()
    }

    /// Makes the image `bytes` long for the guest, which is possible; what lies behind the end reads as zeroes.
    ///
    /// # Errors
    /// The disk's. The size is the old one then.
    fn grow(&self, bytes: u64) -> Result<(), DiskError> {
        let entries = bytes.div_ceil(self.base.geometry.table_reach());
        let mut lane = self.base.medium.lane()?;
        self.base.begin_changes(&mut lane)?;
        if self.base.external {
            self.clear_data_file(bytes)?;
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
        // The file says so now. It may still be made to say so stably later, as with every change.
        match self.base.barrier(&mut lane) {
            Ok(()) => {
                self.set_size(bytes);
                // Stably so: nothing refers to the old table, and it is only ever written.
                if let Some(run) = moved
                    && let Err(error) =
                        lock(&self.refcounts).release(&mut lane, run, &mut Vec::new())
                {
                    log::warn!(
                        "the old L1 table of a qcow2 image stays counted ({error}): a check frees it"
                    );
                }
            }
            Err(error) => {
                self.base.changes.check()?;
                self.set_size(bytes);
                log::warn!(
                    "a qcow2 image has grown, but not stably so before its next flush ({error})"
                );
                self.retire(moved);
            }
        }
        Ok(())
    }
}

impl Qcow2Disk {
    /// Makes the disk `bytes` long; the new part reads as zeroes. Nobody else does meanwhile.
    ///
    /// # Errors
    /// `ReadOnly`; `Config`: a size that is impossible, with the reason; the disk's. The size is the old one then.
    pub(super) fn grow(&self, bytes: u64) -> Result<(), DiskError> {
        let image = self.image()?;
        image.admit_size(bytes)?;
        if bytes == image.size() {
            return Ok(());
        }
        if !image.base.external && image.has_rest(&mut image.base.medium.lane()?)? {
            let (offset, len) = image.behind_the_end();
            self.queue(1)?.0.clear(offset, len)?;
        }
        image.resize_with_bitmaps(|| image.grow(bytes))?;
        let capacity = bytes / SECTOR_SIZE;
        self.tell(DiskEvent::Resized { capacity });
        Ok(())
    }
}
