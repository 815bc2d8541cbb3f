// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A mapped range of a file.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, OnceLock};

use crate::registry::{self, Area, Slot};
use crate::signal;

/// Why a range can't be mapped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// No bytes, or more than there are addresses.
    #[error("can't map {len} bytes at {offset}: give a range that is not empty and does not wrap")]
    Range {
        /// First byte in the file.
        offset: u64,
        /// Bytes.
        len: usize,
    },
    /// The system refused.
    #[error("can't map {len} bytes at {offset}: {source}")]
    Map {
        /// First byte in the file.
        offset: u64,
        /// Bytes.
        len: usize,
        /// The system's error.
        source: io::Error,
    },
    /// There is no handler for `SIGBUS`, so that the mapping would not be safe to use.
    #[error("can't install a handler for SIGBUS: {0}")]
    Handler(#[source] io::Error),
    /// There is no file to put in the memory's place, so that it could not be taken away again.
    #[error("can't make an empty file in memory, which revoking needs: {0}")]
    Empty(#[source] io::Error),
}

impl From<MapError> for io::Error {
    fn from(error: MapError) -> Self {
        let kind = match &error {
            MapError::Range { .. } => io::ErrorKind::InvalidInput,
            MapError::Map { source, .. } | MapError::Handler(source) | MapError::Empty(source) => {
                source.kind()
            }
        };
        Self::new(kind, error)
    }
}

/// What a mapping is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Writing to it is a fault (`SIGSEGV`).
    Read,
    /// The file must be open for both.
    ReadWrite,
}

impl Protection {
    const fn bits(self) -> i32 {
        match self {
            Self::Read => libc::PROT_READ,
            Self::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        }
    }
}

/// A range of a file, mapped shared, that can be touched whatever happens to the file.
///
/// The memory may be changed by others at any moment: it is only ever copied or accessed by volatile or
/// atomic accesses, never borrowed. It stays mapped until this is dropped.
#[derive(Debug)]
pub struct Mapping {
    area: Area,
    /// Bytes in front of the first one asked for, for the alignment.
    lead: usize,
    len: usize,
    slot: &'static Slot,
    alarm: Option<Arc<OwnedFd>>,
}

impl Mapping {
    /// Maps `len` bytes from `offset` of `fd` on; neither needs an alignment. The range may lie beyond the
    /// end of the file: what is not there when it is touched poisons the mapping.
    ///
    /// # Errors
    /// [`MapError`]; among others the descriptor can't be mapped, or not for this protection.
    pub fn new(
        fd: impl AsFd,
        offset: u64,
        len: usize,
        protection: Protection,
    ) -> Result<Self, MapError> {
        signal::install().map_err(MapError::Handler)?;
        empty_file().map_err(MapError::Empty)?;
        let fd = fd.as_fd();
        let page = page_size(fd);
        let range = || MapError::Range { offset, len };
        let lead = (offset % page as u64) as usize;
        let whole = (lead.checked_add(len))
            .and_then(|end| end.checked_next_multiple_of(page))
            .filter(|&whole| len != 0 && isize::try_from(whole).is_ok())
            .ok_or_else(range)?;
        let first = libc::off_t::try_from(offset - lead as u64).map_err(|_| range())?;
        first.checked_add(whole as libc::off_t).ok_or_else(range)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                whole,
                protection.bits(),
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                fd.as_raw_fd(),
                first,
            )
        };
        if base == libc::MAP_FAILED {
            let source = io::Error::last_os_error();
            return Err(MapError::Map {
                offset,
                len,
                source,
            });
        }
        let area = Area {
            start: base as usize,
            len: whole,
            page,
            protection: protection.bits(),
        };
        Ok(Self {
            area,
            lead,
            len,
            slot: registry::register(&area),
            alarm: None,
        })
    }

    /// Signals an eventfd when the mapping becomes poisoned, from within the signal's handler. It
    /// must be non-blocking.
    #[must_use]
    pub fn with_alarm(mut self, eventfd: Arc<OwnedFd>) -> Self {
        self.slot.set_alarm(eventfd.as_raw_fd());
        self.alarm = Some(eventfd);
        self
    }

    /// Takes the file's memory away from code that still has addresses in the mapping: once this returns, no
    /// access through them reaches the file any more. The processor's find a page of zeroes of their own
    /// (without an alarm), system calls fail with `EFAULT`, also those that are under way and did not copy
    /// yet. Not undone: devices that were given the pages before (direct I/O) continue using them.
    ///
    /// Needs no descriptor: the first mapping of a process has opened the file that takes the memory's place.
    ///
    /// # Errors
    /// The system is out of memory for the change. The mapping counts as poisoned, and the file can still be
    /// reached through it.
    pub fn revoke(&self) -> io::Result<()> {
        let empty = empty_file()?;
        self.slot.set_alarm(registry::NONE);
        // Before anybody can read zeroes.
        self.slot.set_poisoned();
        // SAFETY: the range is this mapping's alone; who has addresses in it expects any content. A file
        // without pages takes its place, so that each touch is a fault, which the handler deals with.
        let base = unsafe {
            libc::mmap(
                self.area.pointer(),
                self.area.len,
                self.area.protection,
                libc::MAP_FIXED | libc::MAP_SHARED | libc::MAP_NORESERVE,
                empty.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// The first byte asked for.
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.area.start + self.lead)
    }

    /// Bytes, as asked for.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: an empty range can't be mapped.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes in a page: what is replaced by zeroes at a time.
    pub fn page_size(&self) -> usize {
        self.area.page
    }

    /// Whether a page that was touched was not there and has become zeroes, or the mapping was revoked. Asked after a
    /// copy from the mapping, it says whether the copy can be relied on.
    #[inline]
    pub fn is_poisoned(&self) -> bool {
        // What was read before came from before the flag, or from before the page was replaced.
        fence(Ordering::Acquire);
        self.slot.is_poisoned()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        registry::unregister(self.slot);
        // SAFETY: the range was mapped by `new` and is this mapping's alone; who still has an address in
        // it broke the contract.
        unsafe { libc::munmap(self.area.pointer(), self.area.len) };
    }
}

/// The file that takes the place of memory that is taken away: it has no pages and never gets any. One for the
/// whole process, opened before there is anything to take away.
fn empty_file() -> io::Result<&'static OwnedFd> {
    static EMPTY: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(file) = EMPTY.get() {
        return Ok(file);
    }
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"guarded-mmap".as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else has.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    let seals = libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
    // SAFETY: takes a number.
    if unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(EMPTY.get_or_init(|| file))
}

/// The size of the pages a file is mapped in.
fn page_size(fd: BorrowedFd<'_>) -> usize {
    // SAFETY: only asks for a number.
    let usual = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    // SAFETY: `statfs` is plain data.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, the pointer valid.
    let known = unsafe { libc::fstatfs(fd.as_raw_fd(), &raw mut stat) } == 0;
    // The types differ between C libraries and architectures.
    if known && stat.f_type as u64 & 0xffff_ffff == HUGETLBFS_MAGIC {
        let huge = stat.f_bsize as usize;
        if huge.is_power_of_two() && huge >= usual {
            return huge;
        }
    }
    usual
}

/// `HUGETLBFS_MAGIC` of `linux/magic.h`.
const HUGETLBFS_MAGIC: u64 = 0x958458f6;
