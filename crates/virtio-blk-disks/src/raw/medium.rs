// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The open file and what is known about it, shared by the disk and its queues.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use virtio_blk_core::disk::{Caps, DiskError, DiskEvent, OpKind, SECTOR_SIZE};

use super::bounce::Chunk;
use super::durable::Durability;
use super::error::OpenError;
use super::host_file::HostFile;
use super::probe;
use super::sys;
use crate::admit::Bounds;
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

    pub fn lost(&self) {
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
    /// As found at opening; the capacity in it is not kept up to date.
    caps: Caps,
    direct: bool,
    block_device: bool,
    /// Bytes.
    capacity: AtomicU64,
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
        can: Abilities,
        direct: bool,
        block_device: bool,
    ) -> Self {
        let durability = if caps.read_only {
            Durability::read_only()
        } else {
            Durability::new(&file)
        };
        let in_memory = !block_device && sys::is_in_memory(file.file());
        Self {
            file,
            path,
            can,
            in_memory,
            listeners: Listeners::default(),
            durability,
            caps,
            direct,
            block_device,
            capacity: AtomicU64::new(caps.capacity_bytes()),
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

    pub const fn is_read_only(&self) -> bool {
        self.caps.read_only
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
    /// `ReadOnly`, `OutOfRange`, `Misaligned`, `Unsupported` or `FlushLost`.
    #[inline]
    pub fn admit(&self, kind: &OpKind, len: usize) -> Result<(), DiskError> {
        Bounds {
            capacity: self.capacity.load(Ordering::Acquire),
            block: self.caps.align.guest_block,
            read_only: self.caps.read_only,
        }
        .check(kind, len)?;
        let offered = match kind {
            OpKind::Read { .. } | OpKind::Write { fua: false, .. } => true,
            OpKind::Write { .. } | OpKind::Flush => {
                self.durability.check()?;
                true
            }
            OpKind::Discard { .. } => self.caps.discard.is_some(),
            OpKind::WriteZeroes { fua, .. } => {
                if *fua {
                    self.durability.check()?;
                }
                self.caps.write_zeroes.is_some()
            }
            OpKind::SecureErase { .. } => self.caps.secure_erase.is_some(),
            _ => false,
        };
        if offered {
            Ok(())
        } else {
            Err(DiskError::Unsupported)
        }
    }

    /// Looks at the size again.
    ///
    /// # Errors
    /// It can't be found out, or is no multiple of the block size; the old one stays.
    pub fn refresh(&self) -> Result<(), OpenError> {
        let _order = self
            .refreshing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let size = probe::size(self.file.file(), self.block_device)
            .map_err(|source| OpenError::io("find the size of", &self.path, source))?;
        let block = self.caps.align.guest_block;
        let size = probe::usable_size(size, block, self.block_device, &self.path)?;
        if self.capacity.swap(size, Ordering::AcqRel) != size {
            self.listeners.tell(DiskEvent::Resized {
                capacity: size / SECTOR_SIZE,
            });
        }
        Ok(())
    }
}
