// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Opens a file and finds out what it can do, without changing it.

mod block;
mod direct;

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use virtio_blk_core::disk::{Alignments, Caps, EraseLimits, SECTOR_SIZE, Topology, ZeroLimits};

use super::error::OpenError;
use super::host_file::HostFile;
use super::lock::{self, Lock};
use super::medium::{Abilities, Medium};
use super::options::RawOptions;
use super::sys;
use block::{BlockQueue, SYSFS};

/// Most segments in one erasing request.
const MAX_ERASE_SEGMENTS: u32 = 32;
/// Most sectors in one segment where the host does the work: 2 GiB.
const MAX_ERASE_SECTORS: u32 = 1 << 22;
/// The largest block a guest can be told, in bytes.
const MAX_BLOCK: u32 = 1 << 21;
/// The largest physical block taken from a file's preferred I/O size, which means less.
const MAX_FILE_PHYSICAL: u32 = 64 << 10;

/// Opens, locks and examines a file.
pub(super) fn open(options: &RawOptions) -> Result<Medium, OpenError> {
    let path = options.path();
    let (file, metadata) = open_file(options)?;
    let is_device = metadata.file_type().is_block_device();
    if options.lock == Lock::On && !options.inspect {
        lock::lock(&file, !options.read_only, lock::OPEN_PATIENCE, path)?;
    }
    let device = if is_device {
        let error = |source| OpenError::io("ask the block device", path, source);
        if !options.read_only && sys::is_read_only_device(&file).map_err(error)? {
            return Err(OpenError::ReadOnlyDevice {
                path: path.to_owned(),
            });
        }
        Some(sys::block_info(&file).map_err(error)?)
    } else {
        None
    };
    let direct = if options.direct {
        direct::align(&file, device.as_ref(), path)?
    } else {
        direct::Align::NONE
    };
    let least = device
        .map_or(0, |info| info.logical)
        .max(direct.offset)
        .max(SECTOR_SIZE as u32);
    let guest_block = choose_block(options.block, least, path)?;
    let file = HostFile::new(file, options);
    let extend = options.extend && options.is_writable() && !is_device;
    // With the lock of a hand-over that is done when it was taken.
    let extend_now = extend && options.lock != Lock::Handover;
    let bytes = found_size(&file, is_device, extend_now.then_some(guest_block))
        .map_err(|source| OpenError::io("find the size of", path, source))?;
    let rest = match extend && !extend_now {
        true => Rest::Pad,
        false => Rest::of(is_device, options.read_only),
    };
    let size = usable_size(bytes, guest_block, rest, path)?;
    let capacity = size.bytes / SECTOR_SIZE;

    let mut caps = Caps {
        align: Alignments {
            guest_block,
            host_offset: direct.offset,
            host_memory: direct.memory,
        },
        topology: device.map_or_else(
            || file_topology(guest_block, metadata.blksize()),
            |info| block::topology(guest_block, &info),
        ),
        read_only: options.read_only,
        flush: true,
        ..Caps::basic(capacity)
    };
    let mut punch = false;
    if !options.read_only {
        if options.discard {
            caps.discard = match device {
                Some(_) => BlockQueue::read(Path::new(SYSFS), metadata.rdev()).discard_limits(),
                None => sys::may_punch(file.file()).then(|| EraseLimits {
                    max_sectors: MAX_ERASE_SECTORS,
                    max_segments: MAX_ERASE_SEGMENTS,
                    alignment: sectors(metadata.blksize()),
                }),
            };
            punch = caps.discard.is_some();
        }
        if device.is_some() && sys::can_secure_erase(file.file()) {
            caps.secure_erase = Some(caps.discard.unwrap_or(EraseLimits {
                max_sectors: MAX_ERASE_SECTORS,
                max_segments: MAX_ERASE_SEGMENTS,
                alignment: guest_block / SECTOR_SIZE as u32,
            }));
        }
        caps.write_zeroes = Some(ZeroLimits {
            max_sectors: MAX_ERASE_SECTORS,
            max_segments: MAX_ERASE_SEGMENTS,
            may_unmap: punch,
        });
    }
    caps.validate().map_err(|error| OpenError::Block {
        path: path.to_owned(),
        block: guest_block,
        why: error.to_string(),
    })?;
    let map = options.mmap && !options.direct && (is_device || sys::has_local_cache(file.file()));
    let can = Abilities::new(punch, map);
    let path = path.to_owned();
    let mut medium = Medium::new(
        file,
        path,
        caps,
        options.is_writable(),
        can,
        options.direct,
        is_device,
    );
    medium.set_end(size);
    medium.extends = extend;
    Ok(medium)
}

/// Opens the file and makes sure it is of a kind that can be a disk.
fn open_file(options: &RawOptions) -> Result<(File, Metadata), OpenError> {
    let path = options.path();
    let direct = if options.direct { libc::O_DIRECT } else { 0 };
    let open = |flags| {
        // O_NONBLOCK: opening a pipe must not wait for somebody at its other end.
        OpenOptions::new()
            .read(true)
            .write(options.is_writable())
            .custom_flags(direct | libc::O_NONBLOCK | flags)
            .open(path)
    };
    // Only the owner of a file may leave its access time alone.
    let untouched = options.inspect.then(|| open(libc::O_NOATIME));
    let file = match untouched {
        Some(Ok(file)) => Ok(file),
        _ => open(0),
    }
    .map_err(|source| match source.raw_os_error() {
        Some(libc::EINVAL) if options.direct => OpenError::NoDirect {
            path: path.to_owned(),
        },
        _ => OpenError::io("open", path, source),
    })?;
    let metadata = file
        .metadata()
        .map_err(|source| OpenError::io("examine", path, source))?;
    let kind = metadata.file_type();
    let found = if kind.is_file() || kind.is_block_device() {
        sys::make_blocking(&file)
            .map_err(|source| OpenError::io("set the flags of", path, source))?;
        return Ok((file, metadata));
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_char_device() {
        "a character device"
    } else if kind.is_fifo() {
        "a pipe"
    } else {
        "a special file"
    };
    Err(OpenError::Kind {
        path: path.to_owned(),
        found,
    })
}

/// The size of the file in bytes.
pub(super) fn size(file: &File, is_device: bool) -> io::Result<u64> {
    if is_device {
        sys::block_size_bytes(file)
    } else {
        Ok(file.metadata()?.len())
    }
}

/// The size of an open file in bytes, after it was made longer up to a multiple of `extend` bytes, if that is wanted.
pub(super) fn found_size(file: &HostFile, is_device: bool, extend: Option<u32>) -> io::Result<u64> {
    let found = size(file.file(), is_device)?;
    let whole = extend.map_or(found, |block| found.next_multiple_of(block.into()));
    if whole == found {
        return Ok(found);
    }
    lengthen(file, found, whole - found)?;
    size(file.file(), is_device)
}

/// Makes a file that ends at `from` longer by `len` bytes. Somebody without our lock may make it longer at the same moment:
/// neither call cuts that off, as setting a size would.
fn lengthen(file: &HostFile, from: u64, len: u64) -> io::Result<()> {
    match -file.fallocate(0, from, len) {
        0 => Ok(()),
        libc::EOPNOTSUPP => {
            let zeroes = vec![0; usize::try_from(len).unwrap_or(0)];
            file.file().write_all_at(&zeroes, from)
        }
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// What becomes of a last block that is not whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// It is left out: a device's size can't be changed by its user.
    Cut,
    /// Zeroes follow it: what is only read need not be changed for that.
    Pad,
    /// The file is refused: what a guest writes there would have no place.
    Refuse,
}

impl Rest {
    pub const fn of(is_device: bool, read_only: bool) -> Self {
        match (is_device, read_only) {
            (true, _) => Self::Cut,
            (false, true) => Self::Pad,
            (false, false) => Self::Refuse,
        }
    }
}

/// A size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Usable {
    /// The file's.
    pub found: u64,
    /// That of the disk: whole blocks.
    pub bytes: u64,
}

/// The size of the disk.
pub(super) fn usable_size(
    found: u64,
    block: u32,
    rest: Rest,
    path: &Path,
) -> Result<Usable, OpenError> {
    let odd = found % u64::from(block);
    let bytes = match rest {
        _ if odd == 0 => found,
        Rest::Cut => found - odd,
        Rest::Pad => found - odd + u64::from(block),
        Rest::Refuse => {
            return Err(OpenError::OddSize {
                path: path.to_owned(),
                size: found,
                block,
            });
        }
    };
    Ok(Usable { found, bytes })
}

/// The guest's block size: what was asked for, if it is possible, else the least possible.
fn choose_block(asked: Option<u32>, least: u32, path: &Path) -> Result<u32, OpenError> {
    let Some(block) = asked else {
        return Ok(least);
    };
    let refuse = |why: String| {
        Err(OpenError::Block {
            path: path.to_owned(),
            block,
            why,
        })
    };
    if !block.is_power_of_two() || !(SECTOR_SIZE as u32..=MAX_BLOCK).contains(&block) {
        return refuse(format!(
            "use a power of two from {SECTOR_SIZE} to {MAX_BLOCK}"
        ));
    }
    if block < least {
        return refuse(format!(
            "the host takes I/O in units of {least} bytes here: use block={least} or more, or a file \
             through the page cache (direct=off)"
        ));
    }
    Ok(block)
}

/// Whole sectors in `bytes`, at least one.
fn sectors(bytes: u64) -> u32 {
    u32::try_from(bytes / SECTOR_SIZE).unwrap_or(1).max(1)
}

/// Hints for a file: its preferred I/O size stands for the physical block.
fn file_topology(guest_block: u32, preferred: u64) -> Topology {
    let physical = u32::try_from(preferred)
        .ok()
        .filter(|size| size.is_power_of_two() && *size <= MAX_FILE_PHYSICAL)
        .map_or(guest_block, |size| size.max(guest_block));
    Topology {
        physical_block_exp: (physical / guest_block).ilog2() as u8,
        alignment_offset: 0,
        min_io_size: u16::try_from(physical / guest_block).unwrap_or(1),
        opt_io_size: 0,
    }
}

#[cfg(test)]
mod tests;
