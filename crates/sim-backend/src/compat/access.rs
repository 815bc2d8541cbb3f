// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Access to the driver's memory: by the I/O TLB, each time anew, as the kernel's vringh does.

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress, GuestMemory};

/// Something that is not mapped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault;

pub(super) fn read<M: GuestMemory>(memory: &M, addr: u64, data: &mut [u8]) -> Result<(), Fault> {
    if data.is_empty() {
        return Ok(());
    }
    memory
        .read_slice(data, GuestAddress(addr))
        .map_err(|_| Fault)
}

pub(super) fn write<M: GuestMemory>(memory: &M, addr: u64, data: &[u8]) -> Result<(), Fault> {
    if data.is_empty() {
        return Ok(());
    }
    memory
        .write_slice(data, GuestAddress(addr))
        .map_err(|_| Fault)
}

/// A 16-bit number; in one access where it is aligned.
pub(super) fn read_u16<M: GuestMemory>(memory: &M, addr: u64) -> Result<u16, Fault> {
    if let Ok(value) = memory.load::<u16>(GuestAddress(addr), Ordering::Acquire) {
        return Ok(u16::from_le(value));
    }
    let mut bytes = [0; 2];
    read(memory, addr, &mut bytes)?;
    Ok(u16::from_le_bytes(bytes))
}

/// As [`read_u16`].
pub(super) fn write_u16<M: GuestMemory>(memory: &M, addr: u64, value: u16) -> Result<(), Fault> {
    memory
        .store(value.to_le(), GuestAddress(addr), Ordering::Release)
        .or_else(|_| write(memory, addr, &value.to_le_bytes()))
}

/// One buffer of a chain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Iov {
    pub(super) addr: u64,
    pub(super) len: usize,
}

/// The buffers of one direction, and how far they were used.
#[derive(Debug, Default)]
pub(super) struct Stream {
    pub(super) iov: Vec<Iov>,
    at: usize,
}

impl Stream {
    pub(super) fn clear(&mut self) {
        self.iov.clear();
        self.at = 0;
    }

    /// Bytes that are left. Empty buffers count as none.
    pub(super) fn left(&self) -> usize {
        self.iov
            .get(self.at..)
            .unwrap_or_default()
            .iter()
            .map(|iov| iov.len)
            .sum()
    }

    /// Calls `each` with the address and length of each piece of the next `len` bytes, at most. A piece is used
    /// up once `each` was content with it. Returns the number of bytes used.
    pub(super) fn each<E>(
        &mut self,
        len: usize,
        mut each: impl FnMut(u64, usize) -> Result<(), E>,
    ) -> Result<usize, E> {
        let mut done = 0;
        while done < len
            && let Some(iov) = self.iov.get_mut(self.at)
        {
            let part = iov.len.min(len - done);
            each(iov.addr, part)?;
            iov.addr = iov.addr.wrapping_add(part as u64);
            iov.len -= part;
            done += part;
            if iov.len == 0 {
                self.at += 1;
            }
        }
        Ok(done)
    }

    /// Copies out of the buffers. Returns the number of bytes copied, fewer than asked for where they end.
    pub(super) fn pull<M: GuestMemory>(
        &mut self,
        memory: &M,
        data: &mut [u8],
    ) -> Result<usize, Fault> {
        let mut done = 0;
        self.each(data.len(), |addr, len| {
            let part = data.get_mut(done..done + len).ok_or(Fault)?;
            done += len;
            read(memory, addr, part)
        })
    }

    /// Copies into the buffers, as [`Stream::pull`].
    pub(super) fn push<M: GuestMemory>(&mut self, memory: &M, data: &[u8]) -> Result<usize, Fault> {
        let mut done = 0;
        self.each(data.len(), |addr, len| {
            let part = data.get(done..done + len).ok_or(Fault)?;
            done += len;
            write(memory, addr, part)
        })
    }

    /// Skips bytes.
    pub(super) fn advance(&mut self, len: usize) {
        let _ = self.each(len, |_, _| Ok::<_, Fault>(()));
    }
}
