// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory of a few pages, in which a place is a number that always means something.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use malformed_queues::testmem::{self, FragmentedMemory, PAGE, Space};
use virtio_blk_driver::Memory;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

input! {
    /// Kinds of guest memory.
    pub enum Kind {
        /// One region.
        Single,
        /// Three regions with a gap.
        Gapped,
        /// Shuffled pages behind an IOMMU.
        Fragmented {
            /// How they are shuffled.
            seed: u8,
        },
        /// The same with an IOMMU that checks nothing.
        Naive,
    }
}

input! {
    /// A guest address.
    pub enum Place {
        /// Where the thing in question usually is.
        Home,
        /// So far into memory, gaps left out.
        At {
            /// Bytes.
            offset: u16,
        },
        /// So many bytes before the end of memory.
        End {
            /// Bytes.
            back: u8,
        },
        /// So many bytes before the end of the address space.
        Top {
            /// Bytes, less one.
            back: u8,
        },
        /// Anywhere.
        Raw {
            /// The address.
            addr: u64,
        },
    }
}

/// Guest memory of whole pages.
pub struct Image<M> {
    pub mem: Arc<M>,
    /// Guest addresses of the pages, ascending.
    pages: Vec<u64>,
    /// Behind an IOMMU: the memory again, and where each page lies in the memory behind.
    iommu: Option<(Arc<FragmentedMemory>, Vec<u64>)>,
    end: u64,
}

/// How the pages of [`Kind::Naive`] lie.
pub const NAIVE_SEED: u8 = 3;

/// Something to do with whatever memory a [`Kind`] asks for.
pub trait OnMemory {
    fn call<M: GuestMemory + Send + Sync + 'static>(self, image: &Image<M>, space: Space);
}

/// Makes memory of `pages` pages and does something with it.
pub fn with_memory(kind: &Kind, pages: usize, what: impl OnMemory) {
    let len = pages * PAGE;
    match kind {
        Kind::Single => plain(testmem::single(len).unwrap(), what),
        Kind::Gapped => plain(testmem::gapped(len).unwrap(), what),
        Kind::Fragmented { seed } => {
            behind_iommu(testmem::fragmented(len, u64::from(*seed)).unwrap(), what)
        }
        Kind::Naive => behind_iommu(
            testmem::fragmented_naive(len, NAIVE_SEED.into()).unwrap(),
            what,
        ),
    }
}

fn pages_of(space: &Space) -> Vec<u64> {
    let mut space = space.clone();
    std::iter::from_fn(|| space.take(PAGE as u64, PAGE as u64).ok())
        .map(|addr| addr.0)
        .collect()
}

fn plain((mem, space): (GuestMemoryMmap<()>, Space), what: impl OnMemory) {
    let image = Image {
        mem: Arc::new(mem),
        pages: pages_of(&space),
        iommu: None,
        end: space.edge().0,
    };
    what.call(&image, space);
}

fn behind_iommu((mem, space): (FragmentedMemory, Space), what: impl OnMemory) {
    let mem = Arc::new(mem);
    let pages = pages_of(&space);
    let target = |page: &u64| mem.iommu().target(GuestAddress(*page)).unwrap().0;
    let targets = pages.iter().map(target).collect();
    let image = Image {
        mem: mem.clone(),
        iommu: Some((mem.clone(), targets)),
        pages,
        end: space.edge().0,
    };
    what.call(&image, space);
}

impl<M: GuestMemory> Image<M> {
    /// The guest address `offset` bytes into memory.
    pub fn addr(&self, offset: u64) -> u64 {
        let page = (offset / PAGE as u64) as usize % self.pages.len();
        self.pages[page] + offset % PAGE as u64
    }

    /// The address of a place whose home is so far into memory.
    pub fn place(&self, place: &Place, home: u64) -> u64 {
        match *place {
            Place::Home => self.addr(home),
            Place::At { offset } => self.addr(u64::from(offset)),
            Place::End { back } => self.end - u64::from(back),
            Place::Top { back } => u64::MAX - u64::from(back),
            Place::Raw { addr } => addr,
        }
    }

    /// Writes what can be written; a driver's own memory may not be there either.
    pub fn write(&self, addr: u64, bytes: &[u8]) {
        let _ = self.mem.write_at(GuestAddress(addr), bytes);
    }

    /// Stores a number, if there is memory for it.
    pub fn store_u16(&self, addr: u64, value: u16) {
        let _ = self
            .mem
            .store_u16(GuestAddress(addr), value, Ordering::Release);
    }

    /// Stores 16 bytes in two halves, each at once, as a device reads them.
    pub fn store_halves(&self, addr: u64, bytes: [u8; 16]) {
        let value = u128::from_le_bytes(bytes);
        let Some(second) = addr.checked_add(8).filter(|a| a.checked_add(8).is_some()) else {
            return;
        };
        for (addr, half) in [(addr, value as u64), (second, (value >> 64) as u64)] {
            let _ = self
                .mem
                .store(half.to_le(), GuestAddress(addr), Ordering::Relaxed);
        }
    }

    /// Sets what may be done with a page, behind an IOMMU. Returns whether that changed anything.
    pub fn protect(&self, page: u8, permissions: Permissions) -> bool {
        let Some((mem, targets)) = &self.iommu else {
            return false;
        };
        let index = usize::from(page) % self.pages.len();
        let page = GuestAddress(self.pages[index]);
        // Also pages that are not mapped now.
        mem.iommu()
            .map_pages([(page, GuestAddress(targets[index]))]);
        mem.iommu().protect(page, PAGE, permissions);
        true
    }

    /// Pages that may not be written to.
    pub fn sealed(&self) -> Vec<u64> {
        let writable = |page: u64| {
            self.mem
                .check_range(GuestAddress(page), PAGE, Permissions::Write)
        };
        let pages = self.pages.iter().copied();
        pages.filter(|page| !writable(*page)).collect()
    }

    /// All pages with their guest addresses and content, whatever may be done with them.
    pub fn snapshot(&self) -> Vec<(u64, Vec<u8>)> {
        let read = |page: u64, target: u64| {
            let mut bytes = vec![0; PAGE];
            let result = match &self.iommu {
                Some((mem, _)) => mem.get_backend().read_at(GuestAddress(target), &mut bytes),
                None => self.mem.read_at(GuestAddress(page), &mut bytes),
            };
            result.unwrap();
            (page, bytes)
        };
        match &self.iommu {
            Some((_, targets)) => self
                .pages
                .iter()
                .zip(targets)
                .map(|(p, t)| read(*p, *t))
                .collect(),
            None => self.pages.iter().map(|p| read(*p, *p)).collect(),
        }
    }
}
