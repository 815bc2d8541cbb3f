// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One request, as the kernel's simulator handles it (`vdpasim_blk_handle_req`, 6.12).

use virtio_blk_core::disk::{DiskError, SECTOR_SIZE};
use virtio_blk_core::memory::Permissions;
use virtio_blk_core::spec::{RangeSegment, RequestStatus, SEGMENT_FLAG_UNMAP, SEGMENT_SIZE};
use vm_memory::{GuestAddress, GuestMemory};

use super::access::{Fault, Stream, read, write};
use super::medium::{CHUNK, Medium};
use super::vring::Vring;
use crate::address_space::MissTable;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const HEADER_SIZE: usize = 16;
/// Most sectors of a read or write: meant as bytes, compared with sectors.
const MAX_SECTORS: u64 = 131_072;
const ID: &[u8; 20] = b"vdpa_blk_sim\0\0\0\0\0\0\0\0";

/// What requests need, reused from one to the next.
pub(super) struct Handler {
    readable: Stream,
    writable: Stream,
    chunk: Box<[u8]>,
}

/// Why a request did not do what it was to do.
enum Failure {
    /// It completes with this status.
    Status(RequestStatus),
    /// Data could not be copied.
    Memory,
    /// The disk failed.
    Disk,
}

impl From<Fault> for Failure {
    fn from(Fault: Fault) -> Self {
        Self::Memory
    }
}

impl From<DiskError> for Failure {
    fn from(_: DiskError) -> Self {
        Self::Disk
    }
}

impl Handler {
    pub(super) fn new() -> Self {
        Self {
            readable: Stream::default(),
            writable: Stream::default(),
            chunk: vec![0; CHUNK].into(),
        }
    }

    /// Takes and completes one request. `false` ends the pass without a notification: there was none, or it could not
    /// be completed.
    pub(super) fn handle(
        &mut self,
        vring: &mut Vring,
        memory: &MissTable,
        medium: &mut Medium,
    ) -> bool {
        let Ok(Some(head)) = vring.next_chain(memory, &mut self.readable, &mut self.writable)
        else {
            return false;
        };
        let mut pushed = 0;
        let answered = self.answer(memory, medium, &mut pushed).is_some();
        let returned = vring.complete(memory.table(), head, pushed as u32);
        answered && returned.is_ok()
    }

    /// Executes the request and writes its status. `pushed`: bytes written. `None` if there is no header or no
    /// place for the status.
    fn answer(
        &mut self,
        memory: &MissTable,
        medium: &mut Medium,
        pushed: &mut usize,
    ) -> Option<()> {
        if self.readable.iov.is_empty() || self.writable.iov.last()?.len < 1 {
            return None;
        }
        let to_push = self.writable.left() - 1;
        let mut header = [0; HEADER_SIZE];
        if self.readable.pull(memory, &mut header).ok()? != HEADER_SIZE {
            return None;
        }
        let to_pull = self.readable.left();
        let header = u128::from_le_bytes(header);
        let (kind, sector) = (header as u32, (header >> 64) as u64);
        let result = self.execute(kind, sector, (to_pull, to_push), memory, medium, pushed);
        let (status, skip) = match result {
            Ok(()) => (RequestStatus::Ok, to_push.wrapping_sub(*pushed)),
            Err(Failure::Status(status)) => (status, to_push),
            // From wherever it left off: after a buffer that did well, that leads behind the status.
            Err(Failure::Memory) => (RequestStatus::IoErr, to_push),
            // Unknown to the kernel: the driver gets its answer.
            Err(Failure::Disk) => (RequestStatus::IoErr, self.writable.left().saturating_sub(1)),
        };
        self.writable.advance(skip);
        let written = self.writable.push(memory, &[status as u8]).ok()?;
        *pushed += written;
        (written == 1).then_some(())
    }

    fn execute(
        &mut self,
        kind: u32,
        sector: u64,
        (to_pull, to_push): (usize, usize),
        memory: &MissTable,
        medium: &mut Medium,
        pushed: &mut usize,
    ) -> Result<(), Failure> {
        let refused = Failure::Status(RequestStatus::IoErr);
        if kind != IN && kind != OUT && sector != 0 {
            return Err(refused);
        }
        match kind {
            IN if in_range(medium, sector, to_push) => {
                self.read(sector * SECTOR_SIZE, to_push, memory, medium)?;
                *pushed = to_push;
            }
            OUT if in_range(medium, sector, to_pull) => {
                self.write(sector * SECTOR_SIZE, to_pull, memory, medium)?;
            }
            // All of it, whatever room there is: over the status, if need be.
            GET_ID => *pushed = self.writable.push(memory, ID)?,
            FLUSH => medium.flush()?,
            DISCARD | WRITE_ZEROES => self.range(kind, to_pull, memory, medium)?,
            _ => return Err(refused),
        }
        Ok(())
    }

    /// Data to the driver, buffer by buffer: one that is not mapped as a whole gets nothing.
    fn read(
        &mut self,
        mut offset: u64,
        len: usize,
        memory: &MissTable,
        medium: &mut Medium,
    ) -> Result<(), Failure> {
        let chunk = &mut self.chunk;
        self.writable.each(len, |addr, len| {
            check(memory, addr, len, Permissions::Write)?;
            for (addr, len) in chunks(addr, len) {
                let data = chunk.get_mut(..len).ok_or(Fault)?;
                medium.read(offset, data)?;
                write(memory, addr, data)?;
                offset += len as u64;
            }
            Ok::<_, Failure>(())
        })?;
        Ok(())
    }

    /// Data from the driver, as [`Handler::read`].
    fn write(
        &mut self,
        mut offset: u64,
        len: usize,
        memory: &MissTable,
        medium: &mut Medium,
    ) -> Result<(), Failure> {
        let chunk = &mut self.chunk;
        self.readable.each(len, |addr, len| {
            check(memory, addr, len, Permissions::Read)?;
            for (addr, len) in chunks(addr, len) {
                let data = chunk.get_mut(..len).ok_or(Fault)?;
                read(memory, addr, data)?;
                medium.write(offset, data)?;
                offset += len as u64;
            }
            Ok::<_, Failure>(())
        })?;
        Ok(())
    }

    fn range(
        &mut self,
        kind: u32,
        to_pull: usize,
        memory: &MissTable,
        medium: &mut Medium,
    ) -> Result<(), Failure> {
        let mut bytes = [0; SEGMENT_SIZE];
        if to_pull != SEGMENT_SIZE || self.readable.pull(memory, &mut bytes).is_err() {
            return Err(Failure::Status(RequestStatus::IoErr));
        }
        let range = RangeSegment::from_bytes(&bytes);
        let known = if kind == DISCARD {
            0
        } else {
            SEGMENT_FLAG_UNMAP
        };
        if range.flags & !known != 0 {
            return Err(Failure::Status(RequestStatus::Unsupp));
        }
        let len = u64::from(range.num_sectors) * SECTOR_SIZE;
        if !fits(medium, range.sector, len) {
            return Err(Failure::Status(RequestStatus::IoErr));
        }
        // A discard is forgotten.
        if kind == WRITE_ZEROES {
            medium.zero(range.sector * SECTOR_SIZE, len)?;
        }
        Ok(())
    }
}

/// Whether a read or write is let through. The kernel lets one that starts behind the end through (6.12), and
/// the last bytes of one that is no whole number of sectors: those reach outside its buffer and are refused
/// here.
fn in_range(medium: &Medium, sector: u64, len: usize) -> bool {
    len as u64 / SECTOR_SIZE <= MAX_SECTORS && fits(medium, sector, len as u64)
}

/// Whether `len` bytes from `sector` on lie on the disk.
fn fits(medium: &Medium, sector: u64, len: u64) -> bool {
    let capacity = medium.capacity();
    sector <= capacity / SECTOR_SIZE && len <= capacity - sector * SECTOR_SIZE
}

fn check(memory: &MissTable, addr: u64, len: usize, access: Permissions) -> Result<(), Fault> {
    if len == 0 || memory.check_range(GuestAddress(addr), len, access) {
        return Ok(());
    }
    Err(Fault)
}

/// A buffer in pieces of [`CHUNK`].
fn chunks(addr: u64, len: usize) -> impl Iterator<Item = (u64, usize)> {
    (0..len)
        .step_by(CHUNK)
        .map(move |at| (addr.wrapping_add(at as u64), (len - at).min(CHUNK)))
}
