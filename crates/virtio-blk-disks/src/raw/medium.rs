// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The open file and what is known about it, shared by the disk and its queues.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use virtio_blk_core::disk::{Bounds, Caps, DiskError, DiskEvent, OpKind, SECTOR_SIZE};

use super::bounce::Chunk;
use super::durable::Durability;
use super::error::OpenError;
use super::host_file::HostFile;
use super::probe;
use super::sys;
use crate::listeners::Listeners;

/// Something that works until it is found not to.
#[derive(Debug)]
pub(super) struct Ability(AtomicBool);

impl Ability {
    const fn new(there: bool) -> Self {
        Self(AtomicBool::new(there))
    }

    #[inline]
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Notes that it does not work, for good.
    pub fn disable(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// What the file can do, as far as it is known.
#[derive(Debug)]
pub(super) struct Abilities {
    /// `fallocate` with `PUNCH_HOLE`.
    pub punch: Ability,
    /// `fallocate` with `ZERO_RANGE`.
    pub zero_range: Ability,
    /// Copies from or to the page cache through a mapping.
    pub map: Ability,
    /// `RWF_DSYNC`.
    pub dsync: Ability,
    /// Reads with `RWF_NOWAIT`.
    #[cfg(feature = "io-uring")]
    pub nowait: Ability,
}

impl Abilities {
    /// Everything that is found out by doing it; holes and mappings if they are possible and wanted.
    pub const fn new(punch: bool, map: bool) -> Self {
        Self {
            punch: Ability::new(punch),
            zero_range: Ability::new(true),
            map: Ability::new(map),
            dsync: Ability::new(true),
            #[cfg(feature = "io-uring")]
            nowait: Ability::new(true),
        }
    }
}

/// The open file and what is known about it.
#[derive(Debug)]
pub(super) struct Medium {
    pub file: HostFile,
    pub path: PathBuf,
    pub can: Abilities,
    /// The page cache is the medium itself (tmpfs), and no I/O waits for a device.
    pub in_memory: bool,
    pub listeners: Listeners,
    pub durability: Durability,
    /// A file that ends within a block is made longer.
    pub extends: bool,
    /// As found at opening; the capacity in it is not kept up to date.
    caps: Caps,
    /// Whether operations may change it.
    writable: bool,
    direct: bool,
    block_device: bool,
    /// Bytes.
    capacity: AtomicU64,
    /// Bytes: where the file ends within the last block, which is read as if zeroes followed. Else `u64::MAX`.
    end: AtomicU64,
    /// Why io_uring is not used where it would be.
    without_io_uring: OnceLock<String>,
    zeroes: OnceLock<Chunk>,
    /// Held while the size is looked at, so that events come in order.
    refreshing: Mutex<()>,
}

impl Medium {
    /// Puts together what was found out. `caps` are valid.
    pub fn new(
        file: HostFile,
        path: PathBuf,
        caps: Caps,
        writable: bool,
        can: Abilities,
        direct: bool,
        block_device: bool,
    ) -> Self {
        let durability = if writable {
            Durability::new(&file)
        } else {
            Durability::read_only()
        };
        let in_memory = !block_device && sys::is_in_memory(file.file());
        Self {
            file,
            path,
            can,
            in_memory,
            listeners: Listeners::default(),
            durability,
            extends: false,
            writable,
            caps,
            direct,
            block_device,
            end: AtomicU64::new(u64::MAX),
            capacity: AtomicU64::new(caps.capacity_bytes()),
            without_io_uring: OnceLock::new(),
            zeroes: OnceLock::new(),
            refreshing: Mutex::new(()),
        }
    }

    /// What the medium can do now.
    pub fn caps(&self) -> Caps {
        Caps {
            capacity: self.capacity.load(Ordering::Acquire) / SECTOR_SIZE,
            ..self.caps
        }
    }

    /// Whether a direct write can make itself stable. Through the page cache it would use up the errors of others,
    /// and one flush for many writes costs less.
    pub fn can_dsync(&self) -> bool {
        self.direct && self.durability.is_separate() && self.can.dsync.get()
    }

    /// Whether operations may change it, which the capabilities of a disk that is only looked at don't tell.
    pub const fn is_writable(&self) -> bool {
        self.writable
    }

    /// Whether the file ends at `offset`, within its last block.
    pub fn ends_at(&self, offset: u64) -> bool {
        self.end.load(Ordering::Acquire) == offset
    }

    /// Takes over a size of whole blocks, and where the file ends if that is within the last.
    pub fn set_end(&self, size: probe::Usable) {
        let padded = size.bytes > size.found;
        let end = if padded { size.found } else { u64::MAX };
        self.end.store(end, Ordering::Release);
    }

    /// Notes, and says once, that some queue makes system calls though io_uring would be better.
    pub fn does_without_io_uring(&self, why: &str) {
        if self.without_io_uring.set(why.to_owned()).is_ok() {
            log::warn!(
                "{}: no io_uring ({why}): system calls are made instead, in which what waits for the device holds up \
                 its queue",
                self.path.display()
            );
        }
    }

    /// Why some queue does without io_uring.
    pub fn engine_note(&self) -> Option<&str> {
        self.without_io_uring.get().map(String::as_str)
    }

    pub const fn is_block_device(&self) -> bool {
        self.block_device
    }

    pub const fn is_direct(&self) -> bool {
        self.direct
    }

    /// Bytes: what offsets in the file must be a multiple of.
    pub const fn host_offset(&self) -> u32 {
        self.caps.align.host_offset
    }

    /// Bytes: an alignment that suits every transfer.
    pub fn bounce_align(&self) -> usize {
        self.caps.align.host_memory.max(self.caps.align.host_offset) as usize
    }

    /// Whether the kernel takes these segments as they are.
    #[inline]
    pub fn takes(&self, segments: &[libc::iovec]) -> bool {
        if !self.direct {
            return true;
        }
        let memory = self.caps.align.host_memory as usize - 1;
        let offset = self.caps.align.host_offset as usize - 1;
        segments
            .iter()
            .all(|s| (s.iov_base as usize & memory) | (s.iov_len & offset) == 0)
    }

    /// Aligned zeroes. Made when first needed.
    ///
    /// # Errors
    /// The host is out of memory.
    pub fn zeroes(&self) -> Result<&Chunk, DiskError> {
        if let Some(chunk) = self.zeroes.get() {
            return Ok(chunk);
        }
        let chunk = Chunk::new(self.bounce_align())?;
        Ok(self.zeroes.get_or_init(|| chunk))
    }

    /// Whether an operation on a buffer of `len` bytes may be tried.
    ///
    /// # Errors
    /// `ReadOnly`, `OutOfRange`, `Misaligned` or `Unsupported`.
    #[inline]
    pub fn check_bounds(&self, kind: &OpKind, len: usize) -> Result<(), DiskError> {
        Bounds {
            capacity: self.capacity.load(Ordering::Acquire),
            block: self.caps.align.guest_block,
            read_only: !self.writable,
        }
        .check(kind, len)?;
        let offered = match kind {
            OpKind::Read { .. } | OpKind::Write { .. } | OpKind::Flush => true,
            OpKind::Discard { .. } => self.caps.discard.is_some(),
            OpKind::WriteZeroes { .. } => self.caps.write_zeroes.is_some(),
            OpKind::SecureErase { .. } => self.caps.secure_erase.is_some(),
            _ => false,
        };
        if offered {
            Ok(())
        } else {
            Err(DiskError::Unsupported)
        }
    }

    /// Looks at the size again. A file that is to be made longer up to a block's end is, unless others may have it.
    ///
    /// # Errors
    /// It can't be found out, or is no multiple of the block size; the old one stays.
    pub fn refresh(&self, is_ours: bool) -> Result<(), OpenError> {
        let _order = self.order();
        self.look_again(is_ours)
    }

    fn order(&self) -> MutexGuard<'_, ()> {
        self.refreshing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn look_again(&self, is_ours: bool) -> Result<(), OpenError> {
        let block = self.caps.align.guest_block;
        let extend = (self.extends && is_ours).then_some(block);
        let size = probe::found_size(&self.file, self.block_device, extend)
            .map_err(|source| OpenError::io("find the size of", &self.path, source))?;
        let rest = match self.extends && !is_ours {
            true => probe::Rest::Pad,
            false => probe::Rest::of(self.block_device, self.caps.read_only),
        };
        let size = probe::usable_size(size, block, rest, &self.path)?;
        self.set_end(size);
        let size = size.bytes;
        if self.capacity.swap(size, Ordering::AcqRel) != size {
            self.listeners.tell(DiskEvent::Resized {
                capacity: size / SECTOR_SIZE,
            });
        }
        Ok(())
    }

    /// Makes the file larger, through the open descriptor.
    ///
    /// # Errors
    /// `ReadOnly`; `Config` with what is wrong; the host's.
    pub fn resize(&self, bytes: u64) -> Result<(), DiskError> {
        let _order = self.order();
        let path = self.path.display();
        if !self.writable {
            return Err(DiskError::ReadOnly);
        }
        if self.block_device {
            return Err(DiskError::Config(format!(
                "{path} is a block device: resize it with its own tools (lvextend, for example), then refresh the disk"
            )));
        }
        let block = self.caps.align.guest_block;
        if !bytes.is_multiple_of(block.into()) {
            return Err(DiskError::Config(format!(
                "{bytes} bytes is not a multiple of the block size of {path}, {block}"
            )));
        }
        let now = probe::size(self.file.file(), false)?;
        if bytes < now {
            return Err(DiskError::Config(format!(
                "{path} has {now} bytes: making it smaller would lose what lies behind {bytes}. If that is wanted,                  shrink the guest's file system, truncate the file and refresh the disk"
            )));
        }
        self.file.set_len(bytes)?;
        Ok(self.look_again(true)?)
    }
}
