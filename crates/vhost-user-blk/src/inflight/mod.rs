// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The file behind the in-flight area (vhost-user: "Inflight I/O tracking"), which the client keeps for the
//! next server.

use std::fs::File;
use std::io;

use rustix::fs::{MemfdFlags, SealFlags};
use virtio_blk_core::runner::InFlightArea;

use crate::shared_file::{Alarm, SharedFile};

/// Makes a new area of zeroes as a client asks for it, with room for rings of up to `largest` descriptors: firmware
/// may make larger ones than QEMU asks for. Returns the file to hand to the client and its size in bytes.
pub(crate) fn create(
    queues: u16,
    queue_size: u16,
    largest: u16,
    alarm: &Alarm,
) -> io::Result<(InFlightArea, File, u64)> {
    let size = InFlightArea::bytes_for_larger(queues, queue_size, largest) as u64;
    let fd = rustix::fs::memfd_create(
        "vblk-inflight",
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )?;
    let file = File::from(fd);
    file.set_len(size)?;
    // Nobody can take the memory away from under our stores.
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    let area = open(&file, 0, size, queues, queue_size, alarm)?;
    Ok((area, file, size))
}

/// Maps an area that the client kept.
///
/// # Errors
/// It is too small for what it should hold, or can't be mapped.
pub(crate) fn open(
    file: &File,
    offset: u64,
    size: u64,
    queues: u16,
    queue_size: u16,
    alarm: &Alarm,
) -> io::Result<InFlightArea> {
    // A client may have rounded the size up. What an area can't need is not mapped.
    let meta = file.metadata()?;
    let there = match meta.is_file() {
        true => size.min(meta.len().saturating_sub(offset)),
        false => size,
    };
    let bytes = usize::try_from(there).unwrap_or(usize::MAX);
    let size = InFlightArea::used_bytes(queues, queue_size, bytes) as u64;
    let memory = SharedFile::map(file, offset, size, alarm)?.into_memory();
    InFlightArea::new(memory, queues, queue_size)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

#[cfg(test)]
mod tests;
