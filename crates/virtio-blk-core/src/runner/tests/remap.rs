// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory that changes below a running queue, and pages that must be copied again.

use std::sync::Weak;
use std::sync::atomic::AtomicBool;

use malformed_queues::testmem;
use virtio_blk_driver::Segment as Piece;
use virtio_blk_driver::request::In;
use virtio_blk_driver::wire::{S_IOERR, S_OK, T_IN};
use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap,
};

use super::*;

const RING: GuestAddress = GuestAddress(0x1000);
const EXTRA: GuestAddress = GuestAddress(0x100_0000);
const EXTRA_LEN: usize = 0x4000;

/// A queue over memory of two regions, of which the second can be taken away.
struct Hotplug {
    space: GuestMemoryAtomic<Plain>,
    regions: [Arc<GuestRegionMmap<()>>; 2],
    disk: TestDisk,
    driver: Driver<Arc<Plain>>,
    runner: QueueRunner<GuestMemoryAtomic<Plain>>,
}

fn hotplug(mode: Mode, wait: WaitKind) -> Hotplug {
    let make = |at, len| Arc::new(GuestRegionMmap::from_range(at, len, None).unwrap());
    let regions = [make(RING, MEMORY), make(EXTRA, EXTRA_LEN)];
    let mem = Arc::new(Plain::from_arc_regions(regions.to_vec()).unwrap());
    let mut space = Space::new(&[(RING, MEMORY as u64)]);
    let disk = disk(mode, wait);
    let config = RingConfig {
        event_idx: true,
        indirect: true,
        start: 0,
    };
    // The driver works on the first region alone, and holds nothing of the second.
    let first = Plain::from_arc_regions(vec![regions[0].clone()]).unwrap();
    let driver = space.driver(Arc::new(first), 32, config, ARENA).unwrap();
    let space = GuestMemoryAtomic::from(mem);
    let device = device(&disk);
    let setup = QueueSetup::new(space.clone(), || {});
    let runner = device.start_queue(0, setup, driver.state()).unwrap();
    Hotplug {
        space,
        regions,
        disk,
        driver,
        runner,
    }
}

impl Hotplug {
    fn submit(&mut self, request: &Request<'_>) {
        self.driver.submit(&request.indirect(true)).unwrap();
        self.driver.publish().unwrap();
    }

    fn settle(&mut self) -> Service {
        loop {
            match self.runner.service(64) {
                Service::More => {}
                other => return other,
            }
        }
    }

    /// Takes the region away whose index is given. Returns a handle on it.
    fn unplug(&mut self, index: usize) -> Weak<GuestRegionMmap<()>> {
        let gone = Arc::downgrade(&self.regions[index]);
        let rest = self.regions[1 - index].clone();
        self.regions = [rest.clone(), rest.clone()];
        let map = Plain::from_arc_regions(vec![rest]).unwrap();
        self.space.lock().unwrap().replace(map);
        gone
    }
}

fn read_into(pieces: &[Piece]) -> Request<'_> {
    Request::new(T_IN, 5).with_input(In::Segments(pieces))
}

#[test]
fn old_memory_lives_exactly_as_long_as_requests_use_it() {
    for mode in HELD {
        let mut plug = hotplug(mode, WaitKind::Fd);
        let pieces = [Piece::new(EXTRA, 512)];
        for _ in 0..3 {
            plug.submit(&read_into(&pieces));
        }
        plug.settle();
        assert_eq!(plug.disk.held(), 3);
        let gone = plug.unplug(1);
        assert!(gone.upgrade().is_some());
        // Nothing was serviced since: the device has not even noticed.
        plug.disk.release(1);
        plug.settle();
        let done = plug.driver.poll().unwrap().unwrap();
        assert_eq!((done.status, done.len), (S_OK, 513));
        let region = gone.upgrade().expect("two requests still use it");
        // The late read went where the driver once wanted it.
        let mut bytes = [0; 512];
        region
            .read_slice(&mut bytes, vm_memory::MemoryRegionAddress(0))
            .unwrap();
        assert_eq!(bytes, [5; 512]);
        drop(region);
        plug.disk.release(1);
        plug.settle();
        assert!(gone.upgrade().is_some(), "one request still uses it");
        plug.disk.release(1);
        plug.settle();
        assert!(gone.upgrade().is_none(), "no request uses it any more");
        // From now on it is not there.
        plug.submit(&read_into(&pieces));
        plug.settle();
        let statuses: Vec<u8> = std::iter::from_fn(|| plug.driver.poll().unwrap())
            .map(|done| done.status)
            .collect();
        assert_eq!(statuses, [S_OK, S_OK, S_IOERR]);
    }
}

#[test]
fn idle_queues_let_old_memory_go_at_once() {
    for (mode, wait) in [
        (Mode::Held, WaitKind::Fd),
        (Mode::TakenHeld, WaitKind::Fd),
        (Mode::Inline, WaitKind::Inline),
        (Mode::Execute, WaitKind::Inline),
    ] {
        let mut plug = hotplug(mode, wait);
        let pieces = [Piece::new(EXTRA, 512)];
        for _ in 0..5 {
            plug.submit(&read_into(&pieces));
        }
        plug.settle();
        plug.disk.release(5);
        plug.settle();
        assert_eq!(plug.runner.in_flight(), 0);
        let gone = plug.unplug(1);
        plug.settle();
        assert!(gone.upgrade().is_none());
    }
}

#[test]
fn a_ring_that_is_not_mapped_any_more_stops_the_queue() {
    for mode in HELD {
        let mut plug = hotplug(mode, WaitKind::Fd);
        plug.submit(&Request::read(1, 512));
        plug.settle();
        plug.unplug(0);
        assert_eq!(plug.settle(), Service::Fatal);
        assert!(matches!(
            plug.runner.error(),
            Some(QueueError::Ring(RingError::NotMapped { .. }))
        ));
        // What is in flight ends without touching anything the driver sees.
        assert_eq!(plug.disk.held(), 0, "cancelled");
        assert_eq!(plug.settle(), Service::Fatal);
        assert_eq!(plug.runner.in_flight(), 0);
        let stopped = plug.runner.stop(Stop::Drain);
        assert!(stopped.in_flight.is_empty());
        assert!(plug.driver.poll().unwrap().is_none());
    }
}

#[test]
fn a_translation_that_changes_moves_new_requests_only() {
    for mode in HELD {
        let (mem, mut space) = testmem::fragmented(MEMORY, 3).unwrap();
        let mem = Arc::new(mem);
        let data = space.take(4096, 4096).unwrap();
        let spare = space.take(4096, 4096).unwrap();
        let mut rig = Rig::new(&mem, &mut space, disk(mode, WaitKind::Fd));
        let pieces = [Piece::new(data, 512)];
        rig.queue(&read_into(&pieces));
        rig.settle();

        // The page now lies where another one does.
        let (old, new) = (mem.iommu().target(data), mem.iommu().target(spare));
        let (old, new) = (old.unwrap(), new.unwrap());
        mem.iommu().map_pages([(data, new)]);
        rig.runner.remap().unwrap();
        rig.disk.release(1);
        rig.queue(&read_into(&pieces));
        rig.settle();
        rig.disk.release(1);
        rig.run();
        assert_eq!(rig.answers().len(), 2);
        for at in [old, new] {
            let mut bytes = [0; 512];
            mem.get_backend().read_slice(&mut bytes, at).unwrap();
            assert_eq!(bytes, [5; 512]);
        }
        // Unmapped, and then only for reading.
        for access in [vm_memory::Permissions::Read, vm_memory::Permissions::No] {
            assert_eq!(mem.iommu().protect(data, 1, access), 1);
            rig.runner.remap().unwrap();
            rig.queue(&read_into(&pieces));
            rig.run();
            let answers = rig.answers();
            assert_eq!((answers[0].status, answers[0].len), (S_IOERR, 0));
        }
    }
}

#[test]
fn a_ring_moves_with_its_translation() {
    let (mem, mut space) = testmem::fragmented(MEMORY, 3).unwrap();
    let mem = Arc::new(mem);
    let spare = space.take(4096, 4096).unwrap();
    // Its page can move alone.
    space.take(1, 4096).unwrap();
    let mut rig = Rig::new(&mem, &mut space, disk(Mode::Inline, WaitKind::Inline));
    assert!(rig.ask(&Request::read(1, 512)).is_ok());

    let page = GuestAddress(rig.driver.state().desc_table & !0xfff);
    let target = mem.iommu().target(spare).unwrap();
    let mut bytes = [0; 4096];
    mem.read_slice(&mut bytes, page).unwrap();
    mem.get_backend().write_slice(&bytes, target).unwrap();
    mem.iommu().map_pages([(page, target)]);
    rig.runner.remap().unwrap();
    assert!(rig.ask(&Request::read(2, 512)).is_ok());
    rig.audit();

    assert_eq!(mem.iommu().protect(page, 1, vm_memory::Permissions::No), 1);
    assert!(rig.runner.remap().is_err());
    assert_eq!(rig.settle(), Service::Fatal);
}

#[test]
fn pages_are_dirty_when_they_were_written_and_not_before() {
    type Tracked = GuestMemoryMmap<AtomicBitmap>;
    let mem = Arc::new(Tracked::from_ranges(&[(RING, MEMORY)]).unwrap());
    let mut space = Space::new(&[(RING, MEMORY as u64)]);
    let input = space.take(3 * 4096, 4096).unwrap();
    space.take(1, 4096).unwrap();
    let mut rig = Rig::new(&mem, &mut space, disk(Mode::Held, WaitKind::Fd));
    rig.settle();
    let clean = || mem.iter().for_each(|region| region.bitmap().reset());
    let dirty = || -> Vec<u64> {
        (0..MEMORY as u64 / 4096)
            .map(|page| RING.0 + page * 4096)
            .filter(|&at| {
                let slice = mem.get_slice(GuestAddress(at), 1).unwrap();
                slice.bitmap().dirty_at(0)
            })
            .collect()
    };
    let used = rig.driver.state().used_ring & !0xfff;
    let pieces = [Piece::new(GuestAddress(input.0 + 4096 - 256), 512)];
    let token = rig.queue(&read_into(&pieces));
    clean();
    rig.settle();
    assert!(!dirty().contains(&input.0), "not at submission");
    rig.disk.release(1);
    clean();
    rig.settle();
    // The status lies in the slot of the request, its data before it.
    let status = rig.driver.data(token).unwrap().addr.0 & !0xfff;
    let mut expected = vec![input.0, input.0 + 4096, used, status];
    expected.sort_unstable();
    expected.dedup();
    assert_eq!(dirty(), expected);

    // A write changes its status and the ring alone; a request that is refused too.
    for request in [Request::write(0, &[0; 512]), Request::new(77, 0)] {
        let token = rig.queue(&request);
        clean();
        rig.settle();
        rig.disk.release(1);
        rig.settle();
        let status = rig.driver.data(token).unwrap().addr.0 & !0xfff;
        let mut expected = vec![used, status];
        expected.sort_unstable();
        expected.dedup();
        assert_eq!(dirty(), expected);
    }
    // A disk that completes inside the call marks no more and no less.
    rig.disk.set_mode(Mode::Inline);
    rig.runner = {
        let disk = rig.disk.clone().with_mode(Mode::Execute, WaitKind::Inline);
        let setup = QueueSetup::new(mem.clone(), || {});
        rig.answers();
        let state = rig.driver.state();
        device(&disk).start_queue(0, setup, state).unwrap()
    };
    let pieces = [Piece::new(GuestAddress(input.0 + 4096 - 256), 512)];
    let token = rig.queue(&read_into(&pieces));
    clean();
    rig.settle();
    let status = rig.driver.data(token).unwrap().addr.0 & !0xfff;
    let mut expected = vec![input.0, input.0 + 4096, used, status];
    expected.sort_unstable();
    expected.dedup();
    assert_eq!(dirty(), expected);
    // A read that is refused was filled with zeroes.
    let pieces = [Piece::new(GuestAddress(input.0 + 2 * 4096), 512)];
    rig.queue(&Request::new(T_IN, SECTORS).with_input(In::Segments(&pieces)));
    clean();
    rig.settle();
    assert!(dirty().contains(&(input.0 + 2 * 4096)));
}

#[test]
fn whatever_is_written_to_the_used_ring_is_marked() {
    type Tracked = GuestMemoryMmap<AtomicBitmap>;
    const PAGE: u64 = 4096;
    const LEN: usize = 1 << 20;
    for event_idx in [false, true] {
        let mem = Arc::new(Tracked::from_ranges(&[(GuestAddress(0), LEN)]).unwrap());
        let options = DeviceOptions {
            queue_size: 1024,
            ..DeviceOptions::default()
        };
        let disk = disk(Mode::Inline, WaitKind::Inline);
        let device = Device::new(Arc::new(disk), options).unwrap();
        let without = if event_idx {
            0
        } else {
            feature::RING_EVENT_IDX
        };
        device.accept(device.offered() & !without).unwrap();
        // Flags and index in the first of three pages, `avail_event` in the last.
        let used = 0x20 * PAGE;
        let state = QueueState {
            max_size: 1024,
            size: 1024,
            ready: true,
            desc_table: 0x8 * PAGE,
            avail_ring: 0x10 * PAGE,
            used_ring: used,
            ..QueueState::default()
        };
        let tracking = Arc::new(AtomicBool::new(true));
        let mut setup = QueueSetup::new(mem.clone(), || {});
        setup.tracking = Some(tracking.clone());
        let take_dirty = || -> Vec<u64> {
            let region = mem.iter().next().unwrap();
            let pages = (0..LEN as u64 / PAGE).filter(|page| {
                let at = (page * PAGE) as usize;
                region.bitmap().dirty_at(at)
            });
            let pages = pages.collect();
            region.bitmap().reset();
            pages
        };
        mem.iter().for_each(|region| region.bitmap().reset());
        let mut runner = device.start_queue(0, setup, state).unwrap();
        // What an earlier owner wrote without getting to its mark.
        assert_eq!(take_dirty(), [0x20, 0x21, 0x22]);
        let event = if event_idx { vec![0x22] } else { vec![] };
        let flags = if event_idx { vec![] } else { vec![0x20] };
        runner.service(16);
        let first = [vec![0x20], event.clone()].concat();
        assert_eq!(take_dirty(), first, "flags are written once in any case");
        runner.service(16);
        assert_eq!(take_dirty(), [flags, event.clone()].concat());
        // A flush.
        let put = |at: u64, bytes: &[u8]| mem.write_slice(bytes, GuestAddress(at)).unwrap();
        use virtio_blk_driver::wire::{Descriptor, T_FLUSH, header};
        put(0x40 * PAGE, &header(T_FLUSH, 0, 0));
        let at = |page| GuestAddress(page * PAGE);
        put(
            0x8 * PAGE,
            &Descriptor::readable(at(0x40), 16).then(1).to_bytes(),
        );
        put(
            0x8 * PAGE + 16,
            &Descriptor::writable(at(0x41), 1).to_bytes(),
        );
        put(0x10 * PAGE + 2, &1u16.to_le_bytes());
        take_dirty();
        runner.service(16);
        let expected = [vec![0x20], event, vec![0x41]].concat();
        assert_eq!(take_dirty(), expected);
        tracking.store(false, Ordering::Relaxed);
        runner.service(16);
        assert_eq!(take_dirty(), [0; 0]);
        tracking.store(true, Ordering::Relaxed);
        runner.stop(Stop::Drain);
        assert_eq!(take_dirty(), first, "what is left for the next owner");
    }
}
