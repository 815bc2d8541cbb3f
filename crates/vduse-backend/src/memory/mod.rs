// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The driver's memory: the regions of the device's address space, mapped.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, thread};

use guarded_mmap::{Mapping, Protection};
use rustix::fs::FileType;
use virtio_blk_core::memory::{HostMemory, Iotlb, IotlbMapping, IotlbTable, Permissions};

use crate::kernel::{DeviceFile, Region};

/// More regions than this are not a driver's but a mistake; each is a mapping, of which the system allows
/// a process some 65,000.
const MAX_REGIONS: usize = 32768;

/// Between two looks at whether memory is still in use.
const PAUSE: Duration = Duration::from_micros(200);

/// What tells a file's memory from another's: device, inode, offset. Only files of a file system (guest
/// memory) have it: all anonymous files share one inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    offset: u64,
}

/// A region that is mapped.
#[derive(Clone, Debug)]
struct Part {
    first: u64,
    len: usize,
    permissions: Permissions,
    identity: Option<Identity>,
    /// See [`Region::domain`].
    domain: bool,
    mapping: Arc<Mapping>,
}

/// A device's address space as its queues use it.
pub(crate) struct AddressSpace {
    iotlb: Iotlb,
    parts: Vec<Part>,
    /// Signalled when memory that was touched is gone.
    alarm: Arc<OwnedFd>,
}

/// Mappings that are no longer part of an address space, and may still be used by requests in flight.
#[derive(Default)]
pub(crate) struct Removed(Vec<Arc<Mapping>>);

impl Removed {
    /// Waits until nobody uses them any more, or takes them away at `deadline`: late accesses by address
    /// reach nothing then. Returns whether that was needed.
    pub(crate) fn settle(mut self, deadline: Instant) -> io::Result<bool> {
        loop {
            self.0.retain(|mapping| Arc::strong_count(mapping) > 1);
            if self.0.is_empty() {
                return Ok(false);
            }
            if Instant::now() >= deadline {
                break;
            }
            thread::sleep(PAUSE);
        }
        for mapping in &self.0 {
            mapping.revoke()?;
        }
        Ok(true)
    }
}

/// Whether a segment lies in a mapping.
fn is_in(mapping: &Mapping, segment: &libc::iovec) -> bool {
    let offset = (segment.iov_base as usize).wrapping_sub(mapping.as_ptr() as usize);
    offset < mapping.len()
}

fn identity(region: &Region) -> Option<Identity> {
    let stat = rustix::fs::fstat(&region.file).ok()?;
    (FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile).then_some(Identity {
        // The types differ between architectures.
        #[allow(clippy::unnecessary_cast)]
        device: stat.st_dev as u64,
        #[allow(clippy::unnecessary_cast)]
        inode: stat.st_ino as u64,
        offset: region.offset,
    })
}

/// Lists the address space in the log, as the kernel tells it without a descriptor for each region.
fn tell(file: &dyn DeviceFile) {
    let mut first = 0;
    for _ in 0..MAX_REGIONS {
        let Ok(Some(info)) = file.region_info(first) else {
            return;
        };
        let what = if info.bounce {
            ": the bounce buffer"
        } else {
            ""
        };
        log::debug!("memory from {:#x} to {:#x}{what}", info.first, info.last);
        match info.last.checked_add(1) {
            Some(next) if next > first => first = next,
            _ => return,
        }
    }
}

impl AddressSpace {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        Ok(Self {
            iotlb: Iotlb::new(IotlbTable::new()),
            parts: Vec::new(),
            alarm: Arc::new(rustix::event::eventfd(0, flags)?),
        })
    }

    /// What queues work on; follows later changes.
    pub(crate) fn iotlb(&self) -> Iotlb {
        self.iotlb.clone()
    }

    /// Readable once memory that was touched was gone.
    pub(crate) fn alarm(&self) -> &Arc<OwnedFd> {
        &self.alarm
    }

    /// Takes over the address space as the kernel has it now. Queues go over to it when they are next
    /// served.
    ///
    /// virtio-vdpa's bounce buffer becomes a region with the driver's first request, after DRIVER_OK, and
    /// the kernel does not tell. It lies at 0 of the file that has the rings, so it is mapped with them: its
    /// pages are looked up when they are touched.
    ///
    /// A user of vhost-vdpa that ends without taking its memory back (it was killed) leaves it in the kernel's table:
    /// neither the end of vhost-vdpa's file nor a reset clears it, and virtio-vdpa adds its own to that. So where there
    /// are virtio-vdpa's rings, everything else is left over, and hides the bounce buffer. While vhost-vdpa is in use
    /// there are none: its first mapping replaces the whole table.
    pub(crate) fn walk(&mut self, file: &dyn DeviceFile, bounce: u64) -> io::Result<Removed> {
        if log::log_enabled!(log::Level::Debug) {
            tell(file);
        }
        let mut parts = Vec::new();
        let mut next = Some(0);
        let mut below = u64::MAX;
        let mut domain = None;
        while let Some(first) = next {
            let Some(region) = file.region(first)? else {
                break;
            };
            if region.last < first || region.last < region.first || parts.len() >= MAX_REGIONS {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!(
                        "region {:#x} to {:#x} of the address space, after {} others up to {first:#x}",
                        region.first,
                        region.last,
                        parts.len()
                    ),
                ));
            }
            next = region.last.checked_add(1);
            self.take(&region, &mut parts);
            if region.domain {
                below = below.min(region.first);
                domain.get_or_insert(region.file);
            }
        }
        if domain.is_some() {
            let all = parts.len();
            parts.retain(|part| part.domain);
            if parts.len() != all {
                log::warn!("a user of vhost-vdpa left its memory in the kernel: it is not used");
            }
        }
        let bounce = bounce.min(below);
        if let (Some(file), Some(last)) = (domain, bounce.checked_sub(1)) {
            let region = Region {
                file,
                offset: 0,
                first: 0,
                last,
                permissions: Permissions::ReadWrite,
                domain: true,
            };
            self.take(&region, &mut parts);
        }
        self.publish(parts)
    }

    /// Maps a region, or finds it mapped. One that can't be mapped is left out: requests that need it fail.
    fn take(&self, region: &Region, parts: &mut Vec<Part>) {
        let len = (region.last - region.first).checked_add(1);
        let Some(len) = len.and_then(|len| usize::try_from(len).ok()) else {
            log::warn!("a region of all addresses can't be mapped");
            return;
        };
        let identity = identity(region);
        let known = self.parts.iter().find(|part| {
            identity.is_some()
                && part.identity == identity
                && (part.first, part.len) == (region.first, len)
                && part.permissions == region.permissions
                && !part.mapping.is_poisoned()
        });
        let protection = match region.permissions {
            Permissions::No => return,
            Permissions::Read => Protection::Read,
            _ => Protection::ReadWrite,
        };
        let mapping = match known {
            Some(part) => part.mapping.clone(),
            None => match Mapping::new(region.file.as_fd(), region.offset, len, protection) {
                Ok(mapping) => Arc::new(mapping.with_alarm(self.alarm.clone())),
                Err(error) => {
                    log::warn!("memory at {:#x} can't be used: {error}", region.first);
                    return;
                }
            },
        };
        parts.push(Part {
            first: region.first,
            len,
            permissions: region.permissions,
            identity,
            domain: region.domain,
            mapping,
        });
    }

    fn publish(&mut self, parts: Vec<Part>) -> io::Result<Removed> {
        let mut table = IotlbTable::new();
        for part in &parts {
            // SAFETY: the mapping has these bytes as long as it lives, for reading, and for writing where
            // the region is; nobody has references into it.
            let memory =
                unsafe { HostMemory::new(part.mapping.as_ptr(), part.len, part.mapping.clone()) };
            let mapping = IotlbMapping::new(part.first, memory, part.permissions);
            let inserted = mapping.and_then(|mapping| table.insert(mapping));
            if let Err(error) = inserted {
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
        let mappings: Vec<_> = parts.iter().map(|part| part.mapping.clone()).collect();
        table.ask_intact(move |segments| {
            let mut poisoned = mappings.iter().filter(|mapping| mapping.is_poisoned());
            !poisoned.any(|mapping| segments.iter().any(|segment| is_in(mapping, segment)))
        });
        table.publish(&self.iotlb);
        let old = std::mem::replace(&mut self.parts, parts);
        let still = |part: &Part| {
            let kept = self.parts.iter().map(|kept| &kept.mapping);
            kept.into_iter()
                .any(|kept| Arc::ptr_eq(kept, &part.mapping))
        };
        let removed = old.iter().filter(|part| !still(part));
        Ok(Removed(removed.map(|part| part.mapping.clone()).collect()))
    }

    /// Takes all memory away from requests that are still in flight: late accesses by address reach nothing.
    pub(crate) fn revoke(&mut self) -> io::Result<()> {
        for part in &self.parts {
            part.mapping.revoke()?;
        }
        self.parts.clear();
        IotlbTable::new().publish(&self.iotlb);
        Ok(())
    }

    /// Forgets the alarm.
    pub(crate) fn acknowledge(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.alarm, &mut count);
    }
}

#[cfg(test)]
mod tests;
