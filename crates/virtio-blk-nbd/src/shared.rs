// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the connections of a disk share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use virtio_blk_core::disk::{
    Alignments, Caps, DiskEvent, DiskListener, EraseLimits, SECTOR_SIZE, Topology, ZeroLimits,
};

use crate::durability::Durability;
use crate::fence::Fence;
use crate::handshake::Export;
use crate::options::NbdOptions;
use crate::proto::ExportFlags;
use crate::{Address, NbdError};

/// Most sectors of one discard or write-zeroes: they become several requests where they are longer than one holds.
const MAX_ERASE_SECTORS: u32 = 1 << 22;

/// What an export may not be without after a reconnect, if it was there at first.
const LASTING: [(ExportFlags, &str); 5] = [
    (ExportFlags::SEND_FLUSH, "flushes"),
    (ExportFlags::SEND_FUA, "FUA"),
    (ExportFlags::SEND_TRIM, "trims"),
    (ExportFlags::SEND_WRITE_ZEROES, "write zeroes"),
    (ExportFlags::CAN_MULTI_CONN, "several connections"),
];

/// What the connections of a disk share.
pub(crate) struct Shared {
    pub options: NbdOptions,
    pub address: Address,
    /// Lost connections are made anew.
    pub redials: bool,
    /// What the first connection agreed upon; the size is not kept up to date.
    first: Export,
    /// As at first; the capacity is not kept up to date.
    caps: Caps,
    /// Sectors.
    capacity: AtomicU64,
    pub fence: Fence,
    pub durability: Durability,
    listeners: Mutex<Vec<DiskListener>>,
}

impl Shared {
    /// Of a disk whose first connection agreed upon `export`.
    ///
    /// # Errors
    /// [`NbdError::Export`]: no disk can be made of it.
    pub(crate) fn new(
        options: NbdOptions,
        address: Address,
        export: Export,
        redials: bool,
    ) -> Result<Self, NbdError> {
        let caps = caps_of(&export, options.is_read_only());
        caps.validate()
            .map_err(|error| NbdError::Export(error.to_string()))?;
        if caps.capacity_bytes() != export.size {
            log::warn!(
                "nbd:{address}: the export has {} bytes, of which the last {} are not used: they are no whole block",
                export.size,
                export.size - caps.capacity_bytes()
            );
        }
        Ok(Self {
            options,
            address,
            redials,
            first: export,
            caps,
            capacity: AtomicU64::new(caps.capacity),
            fence: Fence::default(),
            durability: Durability::default(),
            listeners: Mutex::default(),
        })
    }

    pub(crate) fn caps(&self) -> Caps {
        Caps {
            capacity: self.capacity.load(Ordering::Acquire),
            ..self.caps
        }
    }

    /// Whether the export can do something.
    pub(crate) const fn can(&self, flag: ExportFlags) -> bool {
        self.first.can(flag)
    }

    /// Whether the server tells what is allocated.
    pub(crate) const fn tells_allocation(&self) -> bool {
        self.first.allocation.is_some()
    }

    /// Whether a connection to an export like this can take the place of the first one.
    ///
    /// # Errors
    /// [`NbdError::Export`] with what is different.
    pub(crate) fn admits(&self, export: &Export) -> Result<(), NbdError> {
        let different = |what: &str| {
            Err(NbdError::Export(format!(
                "it {what} since the disk was opened"
            )))
        };
        if export.can(ExportFlags::READ_ONLY) && !self.caps.read_only {
            return different("has become read-only");
        }
        if export.sizes.minimum > self.caps.align.guest_block {
            return different("has larger blocks");
        }
        for (flag, name) in LASTING {
            if self.can(flag) && !export.can(flag) {
                return different(&format!("no longer has {name}"));
            }
        }
        Ok(())
    }

    /// A connection of the epoch `before` has a successor that may lead to another server.
    pub(crate) fn replaced(&self, before: u64) {
        if self.durability.replaced(before, self.options.trusts()) {
            log::error!(
                "nbd:{}: writes had completed that no flush covers, and this may be another server: they may be \
                 lost. Every flush fails from now on: stop the disk, check its content and open it again. With \
                 unflushed=trust the server is trusted to keep them",
                self.address
            );
        }
    }

    pub(crate) fn listen(&self, listener: DiskListener) {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(listener);
    }

    /// The export has this size now. Listeners are told if that is new; the caller holds no lock.
    pub(crate) fn set_size(&self, bytes: u64) {
        let capacity = whole_blocks(bytes, self.caps.align.guest_block);
        let before = self.capacity.swap(capacity, Ordering::AcqRel);
        if before == capacity {
            return;
        }
        let (old, new) = (before * SECTOR_SIZE, capacity * SECTOR_SIZE);
        log::info!(
            "nbd:{}: the export has {new} bytes now, {old} before",
            self.address
        );
        let listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for listener in listeners {
            listener(DiskEvent::Resized { capacity });
        }
    }
}

/// Sectors of the whole blocks in so many bytes.
const fn whole_blocks(bytes: u64, block: u32) -> u64 {
    (bytes - bytes % block as u64) / SECTOR_SIZE
}

fn caps_of(export: &Export, read_only: bool) -> Caps {
    // Both are powers of two.
    let block = export.sizes.minimum.max(SECTOR_SIZE as u32);
    let preferred = export.sizes.preferred.clamp(block, block << 7) / block;
    let read_only = read_only || export.can(ExportFlags::READ_ONLY);
    let offers = |flag| !read_only && export.can(flag);
    Caps {
        capacity: whole_blocks(export.size, block),
        align: Alignments {
            guest_block: block,
            host_offset: export.sizes.minimum.min(block),
            host_memory: 1,
        },
        topology: Topology {
            physical_block_exp: preferred.trailing_zeros() as u8,
            alignment_offset: 0,
            min_io_size: preferred as u16,
            opt_io_size: 0,
        },
        read_only,
        flush: offers(ExportFlags::SEND_FLUSH),
        discard: offers(ExportFlags::SEND_TRIM).then_some(EraseLimits {
            max_sectors: MAX_ERASE_SECTORS,
            max_segments: 256,
            alignment: preferred * (block / SECTOR_SIZE as u32),
        }),
        write_zeroes: offers(ExportFlags::SEND_WRITE_ZEROES).then_some(ZeroLimits {
            max_sectors: MAX_ERASE_SECTORS,
            max_segments: 256,
            may_unmap: true,
        }),
        secure_erase: None,
        lifetime: false,
        max_queues: u16::MAX,
    }
}
