// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest that rewrites descriptors and requests while the device works on them.

use std::sync::atomic::AtomicBool;

use malformed_queues::testmem::{self, PAGE};
use malformed_queues::{HostileRing, Planned, Racer, Target};
use virtio_blk_driver::Memory as GuestAccess;
use virtio_blk_driver::wire::{Descriptor, Range as WireRange, header};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion, Permissions};

use super::*;

const SIZE: u16 = 32;
const LEN: usize = 256 * 1024;
/// Each is a handful of requests.
const ROUNDS: u16 = 1000;

/// Chains in a ring, and what a racer may change of them.
struct Prey {
    targets: Vec<Target>,
    heads: Vec<u16>,
    state: QueueState,
}

/// Requests of all kinds, direct and in tables.
fn prey(ring: &mut HostileRing<'_>) -> Prey {
    // A racer flips bits of addresses below 8 KiB: buffers must not turn into the ring that way, which the
    // device would then overwrite as it was told.
    let block = |at: GuestAddress| at.0 / 0x2000;
    while block(ring.writable(512).unwrap().addr) == block(ring.layout().desc()) {}
    let mut targets = vec![Target::Descriptors {
        addr: ring.layout().desc(),
        count: SIZE,
    }];
    let mut heads = Vec::new();
    let segments = [1, 0, 2].map(|num_sectors| WireRange {
        sector: 4,
        num_sectors,
        flags: 0,
    });
    let segments: Vec<u8> = segments.iter().flat_map(|s| s.to_bytes()).collect();
    for (nth, kind) in [0, 1, 4, 8, 10, 11, 13, 0].into_iter().enumerate() {
        let head_bytes = ring.readable(&header(kind, 0, 3)).unwrap();
        targets.push(Target::Header {
            addr: head_bytes.addr,
        });
        let data = match kind {
            0 | 8 | 10 => ring.writable(1024).unwrap(),
            11 | 13 => {
                let data = ring.readable(&segments).unwrap();
                targets.push(Target::Bytes {
                    addr: data.addr,
                    len: segments.len() as u32,
                });
                data
            }
            _ => ring.readable(&[7; 1024]).unwrap(),
        };
        let status = ring.writable(1).unwrap();
        let list = [head_bytes, data, status];
        let head = nth as u16 * 4;
        if nth % 2 == 0 {
            ring.chain(head, &list).unwrap();
        } else {
            let table = ring.table(&list).unwrap();
            targets.push(Target::Descriptors {
                addr: table.addr,
                count: 3,
            });
            ring.descriptor(head, table).unwrap();
        }
        heads.push(head);
    }
    Prey {
        targets,
        heads,
        state: ring.state.into(),
    }
}

/// Stops the racer, also when the test fails.
struct Stopping<'a>(&'a AtomicBool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Whatever the racer does to chains and requests, every head comes back at most once, round after round, and
/// exactly once unless a chain can't be answered.
fn race<M: GuestMemory + Send + Sync + 'static>(
    mem: &Arc<M>,
    space: Space,
    (mode, wait): (Mode, WaitKind),
    seed: u64,
) {
    let mut ring = HostileRing::new(&**mem, space, SIZE, 65_000, true).unwrap();
    let prey = prey(&mut ring);
    let disk = disk(mode, wait);
    let device = device(&disk);
    let setup = QueueSetup::new(mem.clone(), || {});
    let mut runner = device.start_queue(0, setup, &prey.state).unwrap();
    let stop = AtomicBool::new(false);
    let mut racer = Racer::new(&**mem, &prey.targets, seed).unwrap();
    std::thread::scope(|scope| {
        let racing = scope.spawn(|| racer.run(&stop).unwrap());
        let stopping = Stopping(&stop);
        let mut used = prey.state.next_used;
        for round in 0..ROUNDS {
            for &head in &prey.heads {
                let planned = Planned {
                    head,
                    status: None,
                    max_len: 0,
                };
                ring.offer(planned).unwrap();
            }
            let mut open = prey.heads.clone();
            let mut passes = 0;
            while !open.is_empty() {
                let service = runner.service(5);
                while ring.used_idx().unwrap() != used {
                    let (id, len) = ring.used_entry(used).unwrap();
                    let place = open.iter().position(|head| u32::from(*head) == id);
                    open.swap_remove(place.expect("a head that was given"));
                    assert!(len < u32::MAX);
                    used = used.wrapping_add(1);
                }
                if service == Service::Fatal {
                    // A chain without a place for its status. The driver resets the queue.
                    let error = runner.error();
                    let chain = matches!(error, Some(QueueError::Ring(RingError::Chain { .. })));
                    assert!(chain, "{error:?}");
                    let state = QueueState {
                        next_avail: ring.next(),
                        next_used: used,
                        ..prey.state
                    };
                    let setup = QueueSetup::new(mem.clone(), || {});
                    runner = device.start_queue(0, setup, &state).unwrap();
                    open.clear();
                }
                passes += 1;
                assert!(passes < 1000, "round {round} does not end");
            }
            disk.take_log();
        }
        drop(stopping);
        assert!(racing.join().unwrap() > 0);
    });
    // And afterwards all is well.
    racer.restore().unwrap();
    assert_eq!(runner.in_flight(), 0);
    assert_eq!(runner.counters().spurious_completions.get(), 0);
    for &head in &prey.heads {
        let planned = Planned {
            head,
            status: None,
            max_len: 0,
        };
        ring.offer(planned).unwrap();
    }
    let errors = runner.counters().errors.get() + runner.counters().malformed.get();
    let stopped = {
        while runner.service(5) == Service::More || runner.in_flight() != 0 {}
        let now = runner.counters().errors.get() + runner.counters().malformed.get();
        assert_eq!(now, errors, "good requests are served");
        runner.stop(Stop::Drain)
    };
    assert!(stopped.error.is_none() && stopped.in_flight.is_empty());
}

const KINDS: [(Mode, WaitKind); 4] = [
    (Mode::Inline, WaitKind::Inline),
    (Mode::Execute, WaitKind::Inline),
    (Mode::AtFlush, WaitKind::Fd),
    (Mode::Taken, WaitKind::Fd),
];

/// Guest memory with a strip of host memory on each side that belongs to nobody.
fn between_strips() -> (Arc<Plain>, Space, *mut u8) {
    let len = 3 * LEN;
    let whole: MmapRegion<()> = MmapRegion::new(len).unwrap();
    let base = whole.as_ptr();
    // SAFETY: three times as long.
    unsafe { base.write_bytes(0xc5, len) };
    // Mapped for the rest of the test run.
    std::mem::forget(whole);
    // SAFETY: the middle of the mapping, which is never unmapped.
    let region = unsafe {
        MmapRegion::build_raw(
            base.wrapping_add(LEN),
            LEN,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        )
    };
    let at = GuestAddress(0x10_0000);
    let region = GuestRegionMmap::new(region.unwrap(), at).unwrap();
    let mem = Arc::new(GuestMemoryMmap::from_regions(vec![region]).unwrap());
    (mem, Space::new(&[(at, LEN as u64)]), base)
}

#[test]
fn racing_rewrites_of_plain_memory_leave_the_host_alone() {
    for (seed, kind) in KINDS.into_iter().enumerate() {
        let (mem, space, base) = between_strips();
        race(&mem, space, kind, seed as u64);
        for at in (0..LEN).chain(2 * LEN..3 * LEN) {
            // SAFETY: inside the mapping.
            let byte = unsafe { base.wrapping_add(at).read_volatile() };
            assert_eq!(byte, 0xc5, "the device wrote outside of guest memory");
        }
    }
}

#[test]
fn racing_rewrites_of_several_regions_leave_the_host_alone() {
    for (seed, kind) in KINDS.into_iter().enumerate() {
        let (mem, space) = testmem::gapped(LEN).unwrap();
        race(&Arc::new(mem), space, kind, 10 + seed as u64);
    }
}

#[test]
fn racing_rewrites_behind_an_iommu_reach_only_mapped_memory() {
    for (seed, kind) in KINDS.into_iter().enumerate() {
        let (mem, mut space) = testmem::fragmented_naive(LEN, 5).unwrap();
        // Every second page of the first ones is out of reach or can't be written. Their neighbours are
        // where a stray bit in an address leads.
        let base = space.take(16 * PAGE as u64, PAGE as u64).unwrap();
        let pages: Vec<_> = (0..16u64)
            .map(|n| GuestAddress(base.0 + n * PAGE as u64))
            .collect();
        let secret: Vec<_> = pages
            .iter()
            .map(|&page| mem.iommu().target(page).unwrap())
            .collect();
        for (n, &page) in pages.iter().enumerate() {
            mem.write_slice(&[0xc5; PAGE], page).unwrap();
            let access = [Permissions::Read, Permissions::No][n % 2];
            mem.iommu().protect(page, PAGE, access);
        }
        let mem = Arc::new(mem);
        race(&mem, space, kind, 20 + seed as u64);
        for &at in &secret {
            let mut bytes = [0; PAGE];
            mem.get_backend().read_slice(&mut bytes, at).unwrap();
            assert!(bytes.iter().all(|&byte| byte == 0xc5));
        }
    }
}

/// The available ring changes as well: then the queue may stop, and nothing else.
#[test]
fn rewriting_the_available_ring_stops_the_queue_at_worst() {
    for seed in 0..40 {
        let (mem, space) = testmem::fragmented_naive(LEN, seed).unwrap();
        let mem = Arc::new(mem);
        let mut ring = HostileRing::new(&*mem, space, SIZE, 65_530, seed % 2 == 0).unwrap();
        let mut prey = prey(&mut ring);
        for &head in &prey.heads {
            let planned = Planned {
                head,
                status: None,
                max_len: 0,
            };
            ring.offer(planned).unwrap();
        }
        prey.targets.push(Target::Bytes {
            addr: ring.layout().avail(),
            len: 8 + 2 * u32::from(SIZE),
        });
        let (mode, wait) = KINDS[seed as usize % KINDS.len()];
        let disk = disk(mode, wait);
        let device = device(&disk);
        let setup = QueueSetup::new(mem.clone(), || {});
        let mut runner = device.start_queue(0, setup, prey.state).unwrap();
        let mut racer = Racer::new(&*mem, &prey.targets, seed).unwrap();
        for _ in 0..300 {
            racer.step().unwrap();
            if runner.service(3) == Service::Fatal {
                break;
            }
        }
        let latched = runner.error().is_some();
        let stopped = runner.stop(Stop::Drain);
        assert_eq!(stopped.error.is_some(), latched);
        assert!(latched || stopped.in_flight.is_empty());
    }
}

/// A header is looked at once: what the device checked is what it does.
#[test]
fn a_request_is_what_it_was_when_it_was_taken() {
    let (mem, space) = testmem::single(LEN).unwrap();
    let mem = Arc::new(mem);
    let mut ring = HostileRing::new(&*mem, space, SIZE, 0, true).unwrap();
    let read = ring.readable(&header(0, 0, 9)).unwrap();
    let data = ring.writable(512).unwrap();
    let status = ring.writable(1).unwrap();
    ring.chain(0, &[read, data, status]).unwrap();
    let planned = Planned {
        head: 0,
        status: Some(status.addr),
        max_len: 513,
    };
    ring.offer(planned).unwrap();
    let disk = disk(Mode::Held, WaitKind::Fd);
    let device = device(&disk);
    let setup = QueueSetup::new(mem.clone(), || {});
    let mut runner = device.start_queue(0, setup, ring.state).unwrap();
    while runner.service(5) == Service::More {}
    assert_eq!(disk.held(), 1);
    // Everything about it becomes another request while it is in flight.
    mem.write_at(read.addr, &header(1, 0, 0)).unwrap();
    let elsewhere = ring.writable(512).unwrap();
    let list = [Descriptor::writable(elsewhere.addr, 512); 3];
    ring.chain(0, &list).unwrap();
    disk.release(1);
    while runner.service(5) == Service::More {}
    assert_eq!(ring.used_entry(0).unwrap(), (0, 513));
    let mut bytes = [0; 512];
    mem.read_at(data.addr, &mut bytes).unwrap();
    assert_eq!(bytes, [9; 512]);
    mem.read_at(elsewhere.addr, &mut bytes).unwrap();
    assert_eq!(bytes, [virtio_blk_driver::wire::S_UNWRITTEN; 512]);
}
