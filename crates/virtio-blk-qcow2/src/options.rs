// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How an image is to be used.

/// How an image is to be used as a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Qcow2Options {
    pub(crate) read_only: bool,
    pub(crate) backing: bool,
    pub(crate) discard: bool,
    pub(crate) inspect: bool,
    pub(crate) handover: bool,
    pub(crate) repair: bool,
}

impl Default for Qcow2Options {
    fn default() -> Self {
        Self::new()
    }
}

impl Qcow2Options {
    /// Writable, without a backing file, with discard.
    pub const fn new() -> Self {
        Self {
            read_only: false,
            backing: false,
            discard: true,
            inspect: false,
            handover: false,
            repair: false,
        }
    }

    /// Whether the disk is read-only (default: no).
    #[must_use]
    pub const fn read_only(mut self, yes: bool) -> Self {
        self.read_only = yes;
        self
    }

    /// Whether the image may name a backing file (default: no). The image's author chooses that file, and its
    /// content becomes the guest's to read: say yes only for images you trust.
    #[must_use]
    pub const fn backing(mut self, yes: bool) -> Self {
        self.backing = yes;
        self
    }

    /// Whether space that discards free is given back to the host, too (default: yes). The clusters become free inside
    /// the image in any case.
    #[must_use]
    pub const fn discard(mut self, yes: bool) -> Self {
        self.discard = yes;
        self
    }

    /// Whether the image is only looked at (default: no), also while others use it. The disk says what it could do if it
    /// were opened to be used, and completes every change with
    /// [`DiskError::ReadOnly`](virtio_blk_core::disk::DiskError::ReadOnly). What somebody changes meanwhile can make the
    /// image look damaged.
    #[must_use]
    pub const fn inspect(mut self, yes: bool) -> Self {
        self.inspect = yes;
        self
    }

    /// Whether the image is in use only between [`Disk::activate`](virtio_blk_core::disk::Disk::activate) and
    /// [`Disk::deactivate`](virtio_blk_core::disk::Disk::deactivate) (default: no): its tables are read at the one, and
    /// all of it is stable at the other, so that another server can take it over.
    #[must_use]
    pub const fn handover(mut self, yes: bool) -> Self {
        self.handover = yes;
        self
    }

    /// Whether an image that is marked as not closed (dirty: it had lazy refcounts when its last user was killed) has its
    /// counts mended when it is opened for writing (default: no, it is refused). That reads all of its tables, 1 GiB of them
    /// at most, and says in the log how far it is; an image with more of them is refused.
    #[must_use]
    pub const fn repair(mut self, yes: bool) -> Self {
        self.repair = yes;
        self
    }

    /// Whether operations may change the image.
    pub(crate) const fn is_writable(&self) -> bool {
        !self.read_only && !self.inspect
    }
}
