// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an image lies on: a disk, and what of its metadata could not be written.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rustix::event::{EventfdFlags, eventfd};
use virtio_blk_core::disk::{Disk, DiskError, IoBuf, IoQueue, OpKind};

use crate::base::ENOSPC;
use crate::format::put;
use crate::lane::Lane;
use crate::sync::lock;

/// Bytes that are there although nobody was told so, or not there although somebody was: a write of metadata failed,
/// and what it left is not known. The value is what should be there.
type Suspects = BTreeMap<u64, Vec<u8>>;

/// Most blocks and smaller pieces of metadata that are kept to be written again.
const MAX_SUSPECT: usize = 4096;

/// What an image lies on.
pub struct Medium {
    disk: Arc<dyn Disk>,
    /// Bytes: what offsets and lengths must be multiples of.
    block: usize,
    suspects: Mutex<Suspects>,
    suspect: AtomicUsize,
    /// Held while a part of a block is exchanged.
    pub(crate) partial: Mutex<()>,
    /// Readable from the first stop on: then nothing is held back any more below.
    pub(crate) stop: OwnedFd,
}

/// What became of a write of metadata.
#[derive(Debug)]
pub enum Put {
    /// It is in the file.
    Done,
    /// Anything may be in the file; what was there before is written again sooner or later.
    Failed(DiskError),
    /// As after a failure, but it can be tried on a thread that may wait.
    Later,
}

/// A way to write metadata.
pub trait MetaIo {
    /// Writes `data` at `offset`. `None`: not this way, and anything may be there.
    fn put(&mut self, offset: u64, data: &[u8]) -> Option<Result<(), DiskError>>;

    /// Whether the caller may wait for others.
    fn may_wait(&self) -> bool;
}

impl Medium {
    /// # Errors
    /// The host has no more descriptors.
    pub fn new(disk: Arc<dyn Disk>) -> Result<Self, DiskError> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Ok(Self {
            block: disk.caps().align.guest_block as usize,
            disk,
            suspects: Mutex::default(),
            suspect: AtomicUsize::new(0),
            partial: Mutex::default(),
            stop: stop.map_err(io::Error::from)?,
        })
    }

    /// The disk.
    pub fn disk(&self) -> &dyn Disk {
        &*self.disk
    }

    /// Bytes of a block.
    pub const fn block(&self) -> usize {
        self.block
    }

    /// Bytes, as of now.
    pub fn len(&self) -> u64 {
        self.disk.caps().capacity_bytes()
    }

    /// Makes it at least `len` bytes long.
    ///
    /// # Errors
    /// Out of space, if this kind of disk can't grow, or not by itself as a block device; the disk's.
    pub fn ensure(&self, len: u64) -> Result<(), DiskError> {
        if self.len() >= len {
            return Ok(());
        }
        match self.disk.resize(len.next_multiple_of(self.block as u64)) {
            Err(DiskError::Unsupported | DiskError::Config(_)) => {
                Err(DiskError::from_errno(ENOSPC))
            }
            other => other,
        }
    }

    /// A path that waits.
    ///
    /// # Errors
    /// The disk's.
    pub fn lane(self: &Arc<Self>) -> Result<Lane, DiskError> {
        Lane::new(self.clone())
    }

    /// Ends what [`Medium::release_held`] began: there is a new user.
    pub fn hold(&self) {
        let mut count = [0; 8];
        // Nothing to read if nobody has stopped.
        let _ = rustix::io::read(&self.stop, &mut count);
    }

    /// Lets go of what is held back below, now and later.
    pub fn release_held(&self) {
        // Stays readable: later calls need it, too.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
    }

    /// Writes metadata: `new` at `offset`, where `old` is now. If that fails, what the file has is not known, so `old`
    /// is noted, and written before the next flush.
    ///
    /// The caller holds the lock of the table that the bytes belong to.
    pub fn write_meta(&self, io: &mut dyn MetaIo, offset: u64, new: &[u8], old: &[u8]) -> Put {
        // While something is settled, which may be this, nobody else writes.
        let mut held = self.is_suspect().then(|| lock(&self.suspects));
        let put = match io.put(offset, new) {
            Some(Ok(())) => {
                if let Some(suspects) = &mut held {
                    self.note(suspects, offset, new.len(), None);
                }
                return Put::Done;
            }
            Some(Err(error)) => Put::Failed(error),
            None => Put::Later,
        };
        let mut suspects = held.unwrap_or_else(|| lock(&self.suspects));
        self.note(&mut suspects, offset, old.len(), Some(old));
        put
    }

    /// Reads metadata that nobody changes meanwhile. What could not be written is read as it should be.
    ///
    /// The caller holds the lock of the table that the bytes belong to.
    ///
    /// # Errors
    /// The disk's.
    pub fn read_meta(
        &self,
        lane: &mut Lane,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), DiskError> {
        let held = self.is_suspect().then(|| lock(&self.suspects));
        lane.read(offset, data)?;
        let end = offset + data.len() as u64;
        for (at, content) in held.iter().flat_map(|held| held.range(offset..end)) {
            put(data, (at - offset) as usize, content);
        }
        Ok(())
    }

    /// Notes what should be in a range, or that it is there.
    fn note(&self, suspects: &mut Suspects, offset: u64, len: usize, content: Option<&[u8]>) {
        // Everything is noted in pieces that begin and end at blocks, or are as small as what is written.
        let mut at = 0;
        while at < len {
            let place = offset + at as u64;
            let piece = (self.block - (place % self.block as u64) as usize).min(len - at);
            match content.and_then(|all| all.get(at..at + piece)) {
                Some(content) => drop(suspects.insert(place, content.to_vec())),
                None => drop(suspects.remove(&place)),
            }
            at += piece;
        }
        self.suspect.store(suspects.len(), Ordering::Release);
    }

    /// Whether there is metadata that should be written again.
    pub fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Acquire) != 0
    }

    /// Whether so many writes of metadata have failed that no more can be kept in memory.
    pub fn is_past_hope(&self) -> bool {
        self.suspect.load(Ordering::Acquire) > MAX_SUSPECT
    }

    /// Writes again what could not be written: afterwards the file has what it should have.
    ///
    /// # Errors
    /// The first failure; the rest stays noted.
    pub fn settle(&self, lane: &mut Lane) -> Result<(), DiskError> {
        if !self.is_suspect() {
            return Ok(());
        }
        // Held to the end: who changes a table meanwhile waits, and writes after us.
        let mut suspects = lock(&self.suspects);
        let mut result = Ok(());
        while let Some((offset, content)) = suspects.pop_first() {
            if let Err(error) = lane.write(offset, &content) {
                suspects.insert(offset, content);
                result = Err(error);
                break;
            }
        }
        self.suspect.store(suspects.len(), Ordering::Release);
        result
    }
}

impl std::fmt::Debug for Medium {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Medium")
    }
}

/// A queue's own path, for what it finishes inside a call.
pub struct Inline<'a> {
    /// The path.
    pub queue: &'a mut dyn IoQueue,
    /// Room for one block, used again and again.
    pub room: &'a IoBuf,
}

impl MetaIo for Inline<'_> {
    fn put(&mut self, offset: u64, data: &[u8]) -> Option<Result<(), DiskError>> {
        let kind = OpKind::Write { offset, fua: false };
        if data.len() == self.room.len() {
            self.room.copy_in(0, data);
            return self.queue.execute(&kind, self.room, None).done();
        }
        if !data.len().is_multiple_of(self.room.len()) || self.room.is_empty() {
            return None;
        }
        let buf = IoBuf::from_vec(data.to_vec());
        self.queue.execute(&kind, &buf, None).done()
    }

    fn may_wait(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use virtio_blk_disks::MemoryDisk;

    use super::*;

    /// A way on which nothing succeeds.
    struct Broken;

    impl MetaIo for Broken {
        fn put(&mut self, _: u64, _: &[u8]) -> Option<Result<(), DiskError>> {
            Some(Err(DiskError::Unsupported))
        }

        fn may_wait(&self) -> bool {
            true
        }
    }

    #[test]
    fn failed_writes_are_kept_up_to_a_bound() {
        let medium = Arc::new(Medium::new(Arc::new(MemoryDisk::new(4 << 20).unwrap())).unwrap());
        let block = medium.block();
        for number in 0..=MAX_SUSPECT {
            assert!(medium.is_suspect() == (number > 0) && !medium.is_past_hope());
            let offset = (number * block) as u64;
            let (new, old) = (vec![1; block], vec![2; block]);
            let put = medium.write_meta(&mut Broken, offset, &new, &old);
            assert!(matches!(put, Put::Failed(_)));
        }
        assert!(medium.is_past_hope());
        let mut lane = medium.lane().unwrap();
        medium.settle(&mut lane).unwrap();
        assert!(!medium.is_suspect());
        let mut found = vec![0; block];
        lane.read((MAX_SUSPECT * block) as u64, &mut found).unwrap();
        assert!(found.iter().all(|byte| *byte == 2));
    }
}
