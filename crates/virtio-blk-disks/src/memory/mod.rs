// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A disk in memory: sparse, of any size, gone with the process.

mod chunks;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use virtio_blk_core::disk::{
    Bounds, Caps, Completion, Disk, DiskError, DiskEvent, DiskListener, EraseLimits, Execute,
    Extent, IoBuf, IoQueue, Lifetime, Op, OpKind, SECTOR_SIZE, Submit, Token, Wait, ZeroLimits,
};

use crate::listeners::Listeners;
use chunks::{CHUNK, Chunks};

/// Most sectors in one segment of an erasing request: 8 GiB.
const MAX_ERASE_SECTORS: u32 = 1 << 24;
/// Most segments in one erasing request.
const MAX_ERASE_SEGMENTS: u32 = 32;

/// A disk in memory.
///
/// Memory is used, in chunks of 64 KiB, only for what was written; discarding or zeroing whole chunks
/// gives it back. Everything completes inside `submit`. Any number of queues may work at once: two
/// operations meet only where they touch the same part of the disk, and reads never keep reads waiting.
/// A guest can make it grow to the disk's capacity: choose the capacity accordingly.
#[derive(Debug)]
pub struct MemoryDisk {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    chunks: Chunks,
    /// Bytes.
    capacity: AtomicU64,
    caps: Caps,
    lifetime: Option<Lifetime>,
    listeners: Listeners,
    /// Held while the size changes, so that events come in order.
    resizing: Mutex<()>,
}

impl MemoryDisk {
    /// A writable disk of `bytes` bytes, a multiple of 512, that reads as zeroes.
    ///
    /// # Errors
    /// [`DiskError::Config`]: not a multiple of 512, or beyond 2^63.
    pub fn new(bytes: u64) -> Result<Self, DiskError> {
        if !bytes.is_multiple_of(SECTOR_SIZE) {
            return Err(DiskError::Config(format!(
                "a memory disk can't have {bytes} bytes: use a multiple of {SECTOR_SIZE}"
            )));
        }
        let erase = EraseLimits {
            max_sectors: MAX_ERASE_SECTORS,
            max_segments: MAX_ERASE_SEGMENTS,
            alignment: (CHUNK as u64 / SECTOR_SIZE) as u32,
        };
        let caps = Caps {
            // Nothing survives the process, so a flush has nothing to do; it is offered so that guests
            // see the same device as on a file.
            flush: true,
            discard: Some(erase),
            secure_erase: Some(erase),
            write_zeroes: Some(ZeroLimits {
                max_sectors: MAX_ERASE_SECTORS,
                max_segments: MAX_ERASE_SEGMENTS,
                may_unmap: true,
            }),
            ..Caps::basic(bytes / SECTOR_SIZE)
        };
        caps.validate()?;
        Ok(Self {
            shared: Arc::new(Shared {
                chunks: Chunks::new(),
                capacity: AtomicU64::new(bytes),
                caps,
                lifetime: None,
                listeners: Listeners::default(),
                resizing: Mutex::new(()),
            }),
        })
    }

    /// The same disk, refusing changes.
    ///
    /// # Errors
    /// As [`MemoryDisk::new`]; in practice none.
    pub fn read_only(self) -> Result<Self, DiskError> {
        self.change(|shared| {
            shared.caps = Caps {
                read_only: true,
                discard: None,
                secure_erase: None,
                write_zeroes: None,
                ..shared.caps
            };
        })
    }

    /// The same disk with logical blocks of `bytes` bytes.
    ///
    /// # Errors
    /// [`DiskError::Config`]: not a power of two from 512 to 2 MiB, or the capacity is no multiple.
    pub fn with_block_size(self, bytes: u32) -> Result<Self, DiskError> {
        self.change(|shared| shared.caps.align.guest_block = bytes)
    }

    /// The same disk, reporting this wear to [`OpKind::Lifetime`].
    ///
    /// # Errors
    /// As [`MemoryDisk::new`]; in practice none.
    pub fn with_lifetime(self, lifetime: Lifetime) -> Result<Self, DiskError> {
        self.change(|shared| {
            shared.caps.lifetime = true;
            shared.lifetime = Some(lifetime);
        })
    }

    /// Applies a setting. The disk is not shared yet: its methods take `self`, and queues are opened
    /// from `&self` by a disk that then stays where it is.
    fn change(mut self, set: impl FnOnce(&mut Shared)) -> Result<Self, DiskError> {
        let Some(shared) = Arc::get_mut(&mut self.shared) else {
            return Err(DiskError::Config(
                "a memory disk can't be set up anew while a queue is open on it".into(),
            ));
        };
        set(shared);
        shared.caps.validate()?;
        Ok(self)
    }

    /// Changes the capacity to `sectors` sectors of 512 bytes and tells the listeners. What is cut off
    /// is lost; what is added reads as zeroes.
    ///
    /// # Errors
    /// [`DiskError::Config`]: not a multiple of the block size, or beyond 2^63 bytes.
    pub fn resize(&self, sectors: u64) -> Result<(), DiskError> {
        let caps = Caps {
            capacity: sectors,
            ..self.shared.caps
        };
        caps.validate()?;
        let _order = self
            .shared
            .resizing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let new = caps.capacity_bytes();
        let old = self.shared.capacity.swap(new, Ordering::SeqCst);
        if old == new {
            return Ok(());
        }
        // Also after growing: a write that was on its way during an earlier shrink has left nothing
        // behind, see `Chunks::write`.
        if new < old {
            self.shared.chunks.cut(new);
        }
        self.shared
            .listeners
            .tell(DiskEvent::Resized { capacity: sectors });
        Ok(())
    }

    /// Bytes of memory that hold data now.
    pub fn allocated_bytes(&self) -> u64 {
        self.shared.chunks.count() as u64 * CHUNK as u64
    }
}

impl Disk for MemoryDisk {
    fn caps(&self) -> Caps {
        Caps {
            capacity: self.shared.capacity.load(Ordering::SeqCst) / SECTOR_SIZE,
            ..self.shared.caps
        }
    }

    fn open_queue(&self, _depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        Ok(Box::new(MemoryQueue {
            shared: self.shared.clone(),
        }))
    }

    fn resize(&self, bytes: u64) -> Result<(), DiskError> {
        if !bytes.is_multiple_of(SECTOR_SIZE) || bytes < self.caps().capacity_bytes() {
            return Err(DiskError::Config(format!(
                "{bytes} bytes: give a multiple of {SECTOR_SIZE}, at least the {} that the disk has",
                self.caps().capacity_bytes()
            )));
        }
        Self::resize(self, bytes / SECTOR_SIZE)
    }

    fn extents(&self, range: Range<u64>, most: usize) -> Result<Vec<Extent>, DiskError> {
        if range.end > self.shared.capacity.load(Ordering::Acquire) {
            return Err(DiskError::OutOfRange);
        }
        Ok(self.shared.chunks.extents(range, most))
    }

    fn listen(&self, listener: DiskListener) {
        self.shared.listeners.add(listener);
    }
}

/// A data path into a [`MemoryDisk`].
struct MemoryQueue {
    shared: Arc<Shared>,
}

impl Shared {
    fn run(&self, kind: &OpKind, buf: &IoBuf) -> Result<(), DiskError> {
        Bounds {
            capacity: self.capacity.load(Ordering::Acquire),
            block: self.caps.align.guest_block,
            read_only: self.caps.read_only,
        }
        .check(kind, buf.len())?;
        match *kind {
            OpKind::Read { offset } => {
                self.chunks.read(offset, buf);
                Ok(())
            }
            OpKind::Write { offset, .. } => {
                // Zeroes in place of data that is gone must not be stored; nor may that go unnoticed where it
                // went meanwhile.
                let lost = || (!buf.is_intact()).then(|| DiskError::from_errno(libc::EFAULT));
                lost().map_or(Ok(()), Err)?;
                self.chunks.write(offset, buf, &self.capacity)?;
                lost().map_or(Ok(()), Err)
            }
            OpKind::Flush => Ok(()),
            OpKind::Discard { offset, len } | OpKind::WriteZeroes { offset, len, .. } => {
                // Absent chunks stay absent also without `unmap`: memory in proportion to the length
                // of one request is what this disk never takes.
                self.chunks.clear(offset, len, false, &self.capacity);
                Ok(())
            }
            OpKind::SecureErase { offset, len } => {
                self.chunks.clear(offset, len, true, &self.capacity);
                Ok(())
            }
            OpKind::Lifetime => {
                let lifetime = self.lifetime.ok_or(DiskError::Unsupported)?;
                if buf.copy_in(0, &lifetime.to_bytes()) < Lifetime::SIZE {
                    return Err(DiskError::Misaligned);
                }
                Ok(())
            }
            _ => Err(DiskError::Unsupported),
        }
    }
}

impl IoQueue for MemoryQueue {
    fn submit(&mut self, op: Op) -> Submit {
        let result = self.shared.run(&op.kind, &op.buf);
        Submit::Done(op.complete(result))
    }

    fn execute(&mut self, kind: &OpKind, buf: &IoBuf, _token: Option<Token>) -> Execute {
        Execute::Done(self.shared.run(kind, buf))
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
