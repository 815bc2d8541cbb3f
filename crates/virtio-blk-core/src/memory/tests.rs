// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::num::NonZeroUsize;
use std::sync::atomic::Ordering;
use std::sync::{Arc, RwLock, RwLockReadGuard};

use proptest::prelude::*;
use vm_memory::bitmap::{AtomicBitmap, BS, Bitmap};
use vm_memory::iommu::{Error as IommuError, Iotlb, IotlbIterator, IovaRange};
use vm_memory::region::GuestMemoryRegionBytes;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap,
    GuestMemoryRegion, GuestRegionCollection, GuestUsize, Iommu, IommuMemory, MemoryRegionAddress,
    MmapRegion, VolatileMemory, VolatileSlice,
};

use super::*;

const PAGE: usize = 4096;

type Plain = GuestMemoryMmap<()>;

/// Two adjacent regions, a gap, and a third.
fn gapped() -> Arc<Plain> {
    let ranges = [(0x1000, PAGE), (0x2000, 2 * PAGE), (0x10_0000, PAGE)];
    let memory = Plain::from_ranges(&ranges.map(|(addr, len)| (GuestAddress(addr), len))).unwrap();
    Arc::new(memory)
}

/// An IOMMU that hands every range to vm-memory's lookup as it comes.
#[derive(Debug)]
struct Naive(RwLock<Iotlb>);

impl Iommu for Naive {
    type IotlbGuard<'a> = RwLockReadGuard<'a, Iotlb>;

    fn translate(
        &self,
        iova: GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<IotlbIterator<RwLockReadGuard<'_, Iotlb>>, IommuError> {
        Iotlb::lookup(self.0.read().unwrap(), iova, length, access).map_err(|_| {
            IommuError::CannotResolve {
                iova_range: IovaRange { base: iova, length },
                reason: "not mapped".to_owned(),
            }
        })
    }
}

const IOVA: u64 = 0x7000_0000;

/// Four pages of I/O virtual memory from `IOVA` on, in reverse order in host memory; the last one can
/// only be read. The page at the end of the address space is mapped too, except for its last byte,
/// which vm-memory can't map.
fn fragmented<B: vm_memory::bitmap::NewBitmap>(
    enabled: bool,
    bitmap: B,
) -> IommuMemory<GuestMemoryMmap<B>, Naive>
where
    GuestMemoryMmap<B>: GuestMemoryBackend<R = vm_memory::GuestRegionMmap<B>>,
{
    let backend = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 8 * PAGE)]).unwrap();
    let mut iotlb = Iotlb::new();
    for page in 0..4u64 {
        let access = match page {
            3 => Permissions::Read,
            _ => Permissions::ReadWrite,
        };
        let page_len = PAGE as u64;
        let (iova, target) = (IOVA + page * page_len, (3 - page) * page_len);
        iotlb
            .set_mapping(GuestAddress(iova), GuestAddress(target), PAGE, access)
            .unwrap();
    }
    let top = GuestAddress(u64::MAX - (PAGE as u64 - 1));
    iotlb
        .set_mapping(
            top,
            GuestAddress(5 * PAGE as u64),
            PAGE - 1,
            Permissions::ReadWrite,
        )
        .unwrap();
    IommuMemory::new(backend, Naive(RwLock::new(iotlb)), enabled, bitmap)
}

/// The lengths of the pieces of a range, or `None`.
fn pieces<M: DeviceMemory>(
    map: &GuestMap<M>,
    addr: u64,
    len: usize,
    access: Permissions,
) -> Option<Vec<usize>> {
    let mut pieces = Vec::new();
    let result = map.translate(addr, len, access, |_, len| pieces.push(len));
    match result {
        Ok(()) => Some(pieces),
        Err(error) => {
            let len = len as u64;
            assert_eq!(error, Unmapped { addr, len });
            None
        }
    }
}

/// The content of a range, read through the host addresses.
fn content<M: DeviceMemory>(map: &GuestMap<M>, addr: u64, len: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    map.translate(addr, len, Permissions::Read, |base, len| {
        // SAFETY: mapped for `len` bytes while `map` lives; nobody writes.
        bytes.extend((0..len).map(|i| unsafe { base.add(i).read_volatile() }));
    })
    .ok()?;
    Some(bytes)
}

#[test]
fn ranges_split_where_regions_meet_and_fail_where_they_end() {
    let map = GuestMap::new(gapped());
    let go = |addr, len| pieces(&map, addr, len, Permissions::ReadWrite);
    assert_eq!(go(0x1000, PAGE), Some(vec![PAGE]));
    assert_eq!(go(0x1ff0, 0x20), Some(vec![0x10, 0x10]));
    assert_eq!(go(0x1000, 3 * PAGE), Some(vec![PAGE, 2 * PAGE]));
    assert_eq!(go(0x3fff, 1), Some(vec![1]));
    assert_eq!(go(0x3fff, 2), None, "into the gap");
    assert_eq!(go(0xfff, 1), None, "before the first region");
    assert_eq!(go(0xfff, 2), None);
    assert_eq!(go(0x5000, 1), None, "in the gap");
    assert_eq!(go(0xf_ffff, 2), None, "from the gap");
    assert_eq!(go(0x3000, 0x10_0000), None, "over the gap");
    assert_eq!(go(0x10_0fff, 1), Some(vec![1]));
    assert_eq!(go(0x10_0fff, 2), None, "behind the last region");
    // Nothing is everywhere.
    assert_eq!(go(0x5000, 0), Some(vec![]));
    assert_eq!(go(u64::MAX, 0), Some(vec![]));
}

#[test]
fn wrapping_ranges_are_refused() {
    let map = GuestMap::new(gapped());
    for (addr, len) in [
        (u64::MAX, 1),
        (u64::MAX, 2),
        (u64::MAX - 15, 16),
        (u64::MAX - 15, 17),
        (0x1000, usize::MAX),
        (u64::MAX, usize::MAX),
    ] {
        assert_eq!(
            pieces(&map, addr, len, Permissions::Read),
            None,
            "{addr:#x}"
        );
        map.mark_dirty(addr, len);
    }
}

proptest! {
    #[test]
    fn plain_translation_agrees_with_vm_memory(
        first in 0..0x5000u64,
        second in 0..0x5000u64,
        len in 1..0x4000usize,
        far: bool,
    ) {
        let memory = gapped();
        for region in memory.iter() {
            let start = region.start_addr();
            for word in 0..region.len() / 8 {
                let at = GuestAddress(start.0 + word * 8);
                memory.write_obj(at.0, at).unwrap();
            }
        }
        let map = GuestMap::new(memory.clone());
        // Two lookups, as the first leaves a hint for the second.
        for addr in [first, second + if far { 0xf_e000 } else { 0 }] {
            let mut expected = vec![0; len];
            let expected = memory
                .read_slice(&mut expected, GuestAddress(addr))
                .ok()
                .map(|()| expected);
            prop_assert_eq!(content(&map, addr, len), expected);
        }
    }
}

/// Memory in which a region reaches the very end of the address space; vm-memory's own can't.
struct Top(MmapRegion<()>);

impl GuestMemoryRegion for Top {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.0.size() as u64
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(u64::MAX - (self.len() - 1))
    }

    fn bitmap(&self) -> BS<'_, ()> {}

    fn get_host_address(&self, addr: MemoryRegionAddress) -> Result<*mut u8, GuestMemoryError> {
        Ok(self.0.as_ptr().wrapping_add(addr.0 as usize))
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, BS<'_, ()>>, GuestMemoryError> {
        Ok(self.0.get_slice(offset.0 as usize, count)?)
    }
}

impl GuestMemoryRegionBytes for Top {}

#[test]
fn a_region_may_end_with_the_address_space() {
    let region = Top(MmapRegion::new(2 * PAGE).unwrap());
    let base = region.0.as_ptr();
    let map = GuestMap::new(Arc::new(
        GuestRegionCollection::from_regions(vec![region]).unwrap(),
    ));
    let go = |addr, len| {
        let mut found = None;
        map.translate(addr, len, Permissions::Write, |host, len| {
            found = Some((host as usize - base as usize, len));
        })
        .ok()?;
        found
    };
    assert_eq!(go(u64::MAX, 1), Some((2 * PAGE - 1, 1)));
    assert_eq!(go(u64::MAX - 15, 16), Some((2 * PAGE - 16, 16)));
    assert_eq!(go(u64::MAX - 15, 17), None);
    assert_eq!(go(u64::MAX - 2 * PAGE as u64, 1), None);
}

#[test]
fn translated_memory_comes_in_pages_and_with_permissions() {
    let memory = fragmented(true, ());
    for page in 0..4u8 {
        let at = GuestAddress(u64::from(page) * PAGE as u64);
        memory.get_backend().write_slice(&[page; PAGE], at).unwrap();
    }
    let map = GuestMap::new(Arc::new(memory));
    let (read, write) = (Permissions::Read, Permissions::Write);
    assert_eq!(pieces(&map, IOVA, 4 * PAGE, read), Some(vec![PAGE; 4]));
    assert_eq!(pieces(&map, IOVA + 1, PAGE, read), Some(vec![PAGE - 1, 1]));
    assert_eq!(content(&map, IOVA + 4095, 2), Some(vec![3, 2]));
    assert_eq!(pieces(&map, IOVA, 3 * PAGE, write), Some(vec![PAGE; 3]));
    assert_eq!(pieces(&map, IOVA, 3 * PAGE + 1, write), None, "read-only");
    assert_eq!(pieces(&map, IOVA, 4 * PAGE + 1, read), None, "not mapped");
    assert_eq!(pieces(&map, IOVA - 1, 2, read), None);
    assert_eq!(pieces(&map, 0, 1, read), None, "not a physical address");
    assert_eq!(pieces(&map, u64::MAX, 0, read), Some(vec![]));
}

/// vm-memory's lookup overflows for a range that reaches the end of the address space: a panic in a
/// debug build, an empty answer in a release build.
#[test]
fn translated_ranges_at_the_end_of_the_address_space_are_refused() {
    let map = GuestMap::new(Arc::new(fragmented(true, ())));
    for access in [Permissions::Read, Permissions::Write] {
        for (addr, len) in [
            (u64::MAX, 1),
            (u64::MAX, 2),
            (u64::MAX - 15, 16),
            (u64::MAX - 15, 17),
            (u64::MAX - 0xfff, 0x1000),
            (u64::MAX - 0xfff, 0x2000),
            (IOVA, usize::MAX),
            (IOVA, usize::MAX - IOVA as usize),
        ] {
            assert_eq!(pieces(&map, addr, len, access), None, "{addr:#x} {len:#x}");
            assert!(RingArea::resolve(&map, addr, len, access, 1).is_err());
        }
        // Right before it is fine.
        assert_eq!(pieces(&map, u64::MAX - 16, 16, access), Some(vec![16]));
    }
    assert!(map.read_array::<16>(u64::MAX - 15).is_err());
    assert!(map.read_array::<16>(u64::MAX - 16).is_ok());
}

#[test]
fn a_translation_that_is_off_is_plain_memory() {
    let map = GuestMap::new(Arc::new(fragmented(false, ())));
    let go = |addr, len| pieces(&map, addr, len, Permissions::Write);
    assert_eq!(go(0, 8 * PAGE), Some(vec![8 * PAGE]));
    assert_eq!(go(IOVA, 1), None);
}

#[test]
fn read_array_crosses_pieces() {
    let memory = gapped();
    memory
        .write_slice(&[1, 2, 3, 4], GuestAddress(0x1ffe))
        .unwrap();
    let map = GuestMap::new(memory);
    assert_eq!(map.read_array(0x1ffe), Ok([1, 2, 3, 4]));
    assert!(map.read_array::<4>(0x3ffe).is_err());
}

#[test]
fn a_replaced_map_is_noticed_and_the_old_one_kept_for_its_users() {
    let old = gapped();
    let weak = Arc::downgrade(&old);
    let space = GuestMemoryAtomic::from(old);
    let mut map = GuestMap::new(space.clone());
    assert!(!map.is_stale());
    let first = map.generation();

    let other = Plain::from_ranges(&[(GuestAddress(0x8000), PAGE)]).unwrap();
    space.lock().unwrap().replace(other);
    assert!(map.is_stale());
    // A snapshot stays what it is until it is renewed.
    assert!(pieces(&map, 0x1000, 1, Permissions::Read).is_some());

    let keep = map.keep().clone();
    map.renew();
    assert!(!map.is_stale());
    assert_ne!(map.generation(), first);
    assert!(pieces(&map, 0x1000, 1, Permissions::Read).is_none());
    assert!(pieces(&map, 0x8000, 1, Permissions::Read).is_some());
    assert!(weak.upgrade().is_some(), "somebody still uses it");
    drop(keep);
    assert!(weak.upgrade().is_none());
}

#[test]
fn dirty_pages_are_those_that_were_named() {
    type Tracked = GuestMemoryMmap<AtomicBitmap>;
    let ranges = [(0x1000, PAGE), (0x2000, 2 * PAGE), (0x10_0000, PAGE)];
    let memory = Tracked::from_ranges(&ranges.map(|(addr, len)| (GuestAddress(addr), len)));
    let memory = Arc::new(memory.unwrap());
    let dirty = || -> Vec<u64> {
        let pages = [0x1000, 0x2000, 0x3000, 0x10_0000].into_iter();
        pages
            .filter(|&at| {
                let slice = memory.get_slice(GuestAddress(at), 1).unwrap();
                slice.bitmap().dirty_at(0)
            })
            .collect()
    };
    let map = GuestMap::new(memory.clone());
    assert!(map.tracks_dirty());
    // Translating alone marks nothing.
    assert!(pieces(&map, 0x1000, 3 * PAGE, Permissions::Write).is_some());
    map.mark_dirty(0x3000, 0);
    assert!(dirty().is_empty());
    map.mark_dirty(0x10_0000, 1);
    assert_eq!(dirty(), [0x10_0000]);
    map.mark_dirty(0x1fff, 2);
    assert_eq!(dirty(), [0x1000, 0x2000, 0x10_0000]);
    // What is not there any more is passed over.
    map.mark_dirty(0x8000, 16);
    map.mark_dirty(u64::MAX, 16);
    assert_eq!(dirty(), [0x1000, 0x2000, 0x10_0000]);
}

#[test]
fn dirty_pages_of_translated_memory_are_counted_by_their_own_addresses() {
    let bitmap = AtomicBitmap::new(IOVA as usize + 4 * PAGE, NonZeroUsize::new(PAGE).unwrap());
    let memory = Arc::new(fragmented(true, bitmap));
    let map = GuestMap::new(memory.clone());
    map.mark_dirty(IOVA + 4095, 2);
    // Can't be written by anyone, is not mapped, or makes vm-memory's lookup overflow.
    map.mark_dirty(IOVA + 3 * 4096, 1);
    map.mark_dirty(0, 1);
    for len in [1, 2, usize::MAX] {
        map.mark_dirty(u64::MAX, len);
    }
    let dirty = |page: u64| memory.bitmap().dirty_at((IOVA + page * 4096) as usize);
    assert_eq!([0, 1, 2, 3].map(dirty), [true, true, false, false]);
}

#[test]
fn memory_without_a_bitmap_tracks_nothing() {
    assert!(!GuestMap::new(gapped()).tracks_dirty());
}

#[test]
fn a_ring_area_finds_its_elements_over_pieces() {
    let memory = Arc::new(fragmented(true, ()));
    let map = GuestMap::new(memory.clone());
    let at = IOVA + 4096 - 32;
    let area = RingArea::resolve(&map, at, 64, Permissions::ReadWrite, 16).unwrap();
    for (offset, value) in [(0, 0x0102), (30, 0x0304), (32, 0x0506), (62, 0x0708)] {
        area.store_u16(offset, value, Ordering::Relaxed).unwrap();
        assert_eq!(area.load_u16(offset, Ordering::Relaxed), Some(value));
    }
    area.store_u32(28, 0x1112_1314).unwrap();
    assert_eq!(area.guest_addr(30), at + 30);
    // Little-endian, at the right places of the I/O address space.
    let mut bytes = [0; 64];
    memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    assert_eq!(bytes[..2], [2, 1]);
    assert_eq!(bytes[28..34], [0x14, 0x13, 0x12, 0x11, 6, 5]);
    assert_eq!(bytes[62..], [8, 7]);
    let halves = area.read_16(32).unwrap().map(u64::to_le_bytes);
    assert_eq!(halves.concat(), bytes[32..48]);
    // Nothing outside.
    assert_eq!(area.load_u16(64, Ordering::Relaxed), None);
    assert_eq!(area.store_u16(64, 1, Ordering::Relaxed), None);
    assert_eq!(area.store_u32(64, 1), None);
    assert_eq!(area.read_16(56), None);
}

#[test]
fn a_ring_area_needs_aligned_pieces() {
    let map = GuestMap::new(Arc::new(fragmented(true, ())));
    let go = |addr, align| RingArea::resolve(&map, addr, 64, Permissions::Read, align).is_ok();
    assert!(go(IOVA + 16, 16));
    assert!(!go(IOVA + 8, 16), "host address");
    assert!(go(IOVA + 4096 - 8, 8));
    assert!(!go(IOVA + 4096 - 8, 16), "second piece");
    assert!(!go(IOVA + 4 * 4096, 16), "not mapped");
    // An area of nothing is none.
    assert!(RingArea::resolve(&map, IOVA, 0, Permissions::Read, 1).is_err());
}
