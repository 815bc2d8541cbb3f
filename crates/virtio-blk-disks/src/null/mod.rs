// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A disk that keeps nothing: what is left of a benchmark is the path to the disk.

use virtio_blk_core::disk::{
    Bounds, Caps, Completion, Disk, DiskError, EraseLimits, Execute, IoBuf, IoQueue, Op, OpKind,
    SECTOR_SIZE, Submit, Token, Wait, ZeroLimits,
};

/// Most sectors in one segment of an erasing request: 8 GiB.
const MAX_ERASE_SECTORS: u32 = 1 << 24;
/// Most segments in one erasing request.
const MAX_ERASE_SEGMENTS: u32 = 32;

/// A disk that forgets what is written and reads as zeroes.
///
/// For benchmarks: everything completes inside `submit`, at the cost of a few comparisons.
#[derive(Clone, Copy, Debug)]
pub struct NullDisk {
    sectors: u64,
    zero_fill: bool,
    read_only: bool,
}

impl NullDisk {
    /// A writable disk of `bytes` bytes, a multiple of 512.
    ///
    /// # Errors
    /// [`DiskError::Config`]: not a multiple of 512, or beyond 2^63.
    pub fn new(bytes: u64) -> Result<Self, DiskError> {
        if !bytes.is_multiple_of(SECTOR_SIZE) {
            return Err(DiskError::Config(format!(
                "a null disk can't have {bytes} bytes: use a multiple of {SECTOR_SIZE}"
            )));
        }
        let disk = Self {
            sectors: bytes / SECTOR_SIZE,
            zero_fill: true,
            read_only: false,
        };
        disk.caps().validate()?;
        Ok(disk)
    }

    /// Whether a read fills its buffer with zeroes (the default). Without it a read leaves the buffer
    /// as it was, as QEMU's `null-co` driver does unless told otherwise: for comparisons with that one
    /// only, because the reader gets whatever its memory held. Write-zeroes is then not offered.
    #[must_use]
    pub const fn zero_fill(mut self, yes: bool) -> Self {
        self.zero_fill = yes;
        self
    }

    /// Whether changes are refused (not the default).
    #[must_use]
    pub const fn read_only(mut self, yes: bool) -> Self {
        self.read_only = yes;
        self
    }
}

impl Disk for NullDisk {
    fn caps(&self) -> Caps {
        let discard = EraseLimits {
            max_sectors: MAX_ERASE_SECTORS,
            max_segments: MAX_ERASE_SEGMENTS,
            alignment: 1,
        };
        let zeroes = ZeroLimits {
            max_sectors: MAX_ERASE_SECTORS,
            max_segments: MAX_ERASE_SEGMENTS,
            may_unmap: true,
        };
        Caps {
            flush: true,
            read_only: self.read_only,
            discard: (!self.read_only).then_some(discard),
            write_zeroes: (!self.read_only && self.zero_fill).then_some(zeroes),
            ..Caps::basic(self.sectors)
        }
    }

    fn open_queue(&self, _depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        let caps = self.caps();
        Ok(Box::new(NullQueue {
            bounds: Bounds {
                capacity: caps.capacity_bytes(),
                block: caps.align.guest_block,
                read_only: caps.read_only,
            },
            zero_fill: self.zero_fill,
        }))
    }
}

/// A data path into a [`NullDisk`].
struct NullQueue {
    bounds: Bounds,
    zero_fill: bool,
}

impl NullQueue {
    #[inline]
    fn run(&self, kind: &OpKind, buf: &IoBuf) -> Result<(), DiskError> {
        self.bounds.check(kind, buf.len())?;
        match kind {
            OpKind::Read { .. } => {
                if self.zero_fill {
                    buf.fill(0, buf.len(), 0);
                }
                Ok(())
            }
            OpKind::Write { .. } | OpKind::Flush | OpKind::Discard { .. } => Ok(()),
            OpKind::WriteZeroes { .. } if self.zero_fill => Ok(()),
            _ => Err(DiskError::Unsupported),
        }
    }
}

impl IoQueue for NullQueue {
    fn submit(&mut self, op: Op) -> Submit {
        let result = self.run(&op.kind, &op.buf);
        Submit::Done(op.complete(result))
    }

    fn execute(&mut self, kind: &OpKind, buf: &IoBuf, _token: Option<Token>) -> Execute {
        Execute::Done(self.run(kind, buf))
    }

    fn reap(&mut self, _done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        Ok(0)
    }

    fn wait(&self) -> Wait<'_> {
        Wait::Inline
    }
}

#[cfg(test)]
mod tests;
