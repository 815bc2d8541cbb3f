// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

//! The slow path over a device that breaks the rules of the ring: every request ends once, whatever that says.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use common::device::{Profile, TestDevice};
use common::ways::{Way, on_both_ways};
use vdpa_bus::VqAddress;
use vhost_vdpa_frontend::{SlowOptions, SlowPath};
use virtio_blk_core::disk::{Completion, DiskError, IoBuf, IoQueue, Op, OpKind, Submit, Token};
use virtio_blk_core::memory::HostMemory;
use virtio_blk_core::spec::feature;
use virtio_blk_disks::MemoryDisk;
use virtio_blk_driver::wire::{
    DESC_F_INDIRECT, DESC_F_NEXT, DESC_LEN, Descriptor, S_IOERR, S_OK, S_UNSUPP,
};

/// Entries of the ring.
const SIZE: u16 = 16;
/// Requests in flight.
const REQUESTS: u16 = 5;
const LEN: usize = 512;

/// A device whose used ring the test writes.
struct Puppet {
    device: Arc<TestDevice>,
    ring: VqAddress,
    path: SlowPath,
    memory: HostMemory,
    /// Used entries so far.
    used: u16,
}

impl Puppet {
    fn new(features: u64) -> Self {
        Self::with_timeout(features, None)
    }

    fn with_timeout(features: u64, timeout: Option<Duration>) -> Self {
        let profile = Profile {
            stepped: true,
            features,
            ..Profile::default()
        };
        let disk = Arc::new(MemoryDisk::new(1 << 20).unwrap());
        let device = TestDevice::new(disk, profile);
        let options = SlowOptions {
            queue_size: SIZE,
            timeout,
            ..SlowOptions::default()
        };
        let path = SlowPath::new(device.clone(), options).unwrap();
        let bytes = vec![0u64; LEN * usize::from(SIZE) / 8];
        let base = bytes.as_ptr().cast_mut().cast();
        // SAFETY: the allocation lives as long as its owner, and is only reached through the device and `IoBuf`.
        let memory = unsafe { HostMemory::new(base, LEN * usize::from(SIZE), Arc::new(bytes)) };
        path.set_memory(&[(0x10_0000, memory.clone())]).unwrap();
        Self {
            ring: device.ring(0),
            device,
            path,
            memory,
            used: 0,
        }
    }

    fn start(&self, queue: &mut dyn IoQueue, token: u64) {
        let kind = match token % 2 {
            0 => OpKind::Read { offset: 0 },
            _ => OpKind::Write {
                offset: 0,
                fua: false,
            },
        };
        self.start_as(queue, token, kind, 1);
    }

    /// An operation on a buffer of so many segments.
    fn start_as(&self, queue: &mut dyn IoQueue, token: u64, kind: OpKind, segments: usize) {
        let mut buf = IoBuf::new();
        buf.set_keep(self.memory.keep().clone());
        for segment in 0..segments {
            // Neighbours would be one segment.
            let offset = LEN * ((token as usize + 2 * segment) % usize::from(SIZE));
            // SAFETY: inside the memory that `keep` owns.
            unsafe { buf.push(self.memory.as_ptr().wrapping_add(offset), LEN) };
        }
        let op = Op {
            token: Token(token),
            kind,
            buf,
        };
        assert!(matches!(queue.submit(op), Submit::Queued));
    }

    fn word(&self, iova: u64) -> &AtomicU16 {
        let at = self.device.host(iova, 2).cast();
        // SAFETY: in the window, which is mapped as long as the path lives.
        unsafe { AtomicU16::from_ptr(at) }
    }

    /// The heads that the driver has made available, all in all.
    fn heads(&self) -> Vec<u16> {
        let count = self.word(self.ring.driver + 2).load(Ordering::Acquire);
        let entry = |index| self.ring.driver + 4 + 2 * u64::from(index % SIZE);
        (0..count)
            .map(|index| self.word(entry(index)).load(Ordering::Relaxed))
            .collect()
    }

    fn descriptor(&self, table: u64, index: u16) -> Descriptor {
        let at = self.device.host(table + DESC_LEN * u64::from(index), 16);
        // SAFETY: in the window.
        Descriptor::from_bytes(unsafe { at.cast::<[u8; 16]>().read() })
    }

    /// Writes the status byte of the chain of `head`.
    fn set_status(&self, head: u16, status: u8) {
        let mut table = self.ring.desc;
        let mut desc = self.descriptor(table, head);
        if desc.flags & DESC_F_INDIRECT != 0 {
            table = desc.addr.0;
            desc = self.descriptor(table, 0);
        }
        while desc.flags & DESC_F_NEXT != 0 {
            desc = self.descriptor(table, desc.next);
        }
        // SAFETY: in the window.
        unsafe { self.device.host(desc.addr.0, 1).write(status) };
    }

    /// Writes the next used entry, which the driver does not see yet.
    fn put(&mut self, id: u32, len: u32) {
        let at = self.ring.device + 4 + 8 * u64::from(self.used % SIZE);
        let at = self.device.host(at, 8).cast::<[u32; 2]>();
        // SAFETY: in the window.
        unsafe { at.write_unaligned([id, len]) };
        self.used += 1;
    }

    fn show(&self, used: u16) {
        self.word(self.ring.device + 2)
            .store(used, Ordering::Release);
    }
}

/// What a device does with the heads that it has, and whether it is given up for that.
type Deed = (&'static str, bool, fn(&mut Puppet, &[u16]));

const DEEDS: &[Deed] = &[
    ("a head that there is not", true, |puppet, _| {
        puppet.put(SIZE.into(), 0);
    }),
    ("a head of more than 16 bits", true, |puppet, heads| {
        puppet.put(u32::from(heads[0]) | 1 << 16, 0);
    }),
    ("a head that it does not have", true, |puppet, heads| {
        let free = (0..SIZE).rev().find(|head| !heads.contains(head)).unwrap();
        puppet.put(free.into(), 0);
    }),
    ("a head twice", true, |puppet, heads| {
        puppet.set_status(heads[1], S_OK);
        puppet.put(heads[1].into(), 0);
        puppet.put(heads[1].into(), 0);
    }),
    ("more than there was room for", true, |puppet, heads| {
        // The even ones read.
        puppet.set_status(heads[0], S_OK);
        puppet.put(heads[0].into(), LEN as u32 + 2);
    }),
    ("the most that there is", true, |puppet, heads| {
        puppet.set_status(heads[1], S_OK);
        puppet.put(heads[1].into(), u32::MAX);
    }),
    ("an index too far ahead", true, |puppet, _| {
        puppet.used = REQUESTS + 1;
    }),
    ("an index that goes back", true, |puppet, _| {
        puppet.used = u16::MAX;
    }),
    ("no status", false, |puppet, heads| {
        puppet.put(heads[0].into(), 0);
    }),
    ("a status of its own", false, |puppet, heads| {
        puppet.set_status(heads[1], 77);
        puppet.put(heads[1].into(), 0);
    }),
    ("its errors, in any order", false, |puppet, heads| {
        for (head, status) in [(heads[2], S_IOERR), (heads[0], S_UNSUPP), (heads[1], S_OK)] {
            puppet.set_status(head, status);
            puppet.put(head.into(), 1);
        }
    }),
];

/// Collects until all requests have ended; then once more.
fn collect(queue: &mut dyn IoQueue, done: &mut Vec<Completion>, count: usize) {
    for _ in 0..100 {
        queue.reap(done).unwrap();
        queue.flush_batch().unwrap();
    }
    assert_eq!(done.len(), count);
}

#[test]
fn every_request_ends_once_whatever_the_device_says() {
    for features in [u64::MAX, !feature::RING_EVENT_IDX] {
        on_both_ways(|way| DEEDS.iter().for_each(|deed| commit(deed, way, features)));
    }
}

fn commit(&(what, is_given_up, deed): &Deed, way: Way, features: u64) {
    let mut puppet = Puppet::new(features);
    let mut queue = way.open(&puppet.path, 8);
    let queue = queue.as_mut();
    for token in 0..u64::from(REQUESTS) {
        puppet.start(queue, token);
    }
    queue.flush_batch().unwrap();
    let heads = puppet.heads();
    assert_eq!(heads.len(), usize::from(REQUESTS));
    let mut done = Vec::new();
    assert_eq!(queue.reap(&mut done).unwrap(), 0, "{what}");
    deed(&mut puppet, &heads);
    puppet.show(puppet.used);
    queue.reap(&mut done).unwrap();
    assert_eq!(puppet.path.is_broken(), is_given_up, "{what}");
    if !is_given_up {
        // The rest is as it should be.
        assert_eq!(done.len(), usize::from(puppet.used), "{what}");
        let ended: Vec<_> = done.iter().map(|done| done.token.0).collect();
        for (head, _) in (heads.iter().zip(0..)).filter(|(_, token)| !ended.contains(token)) {
            puppet.set_status(*head, S_OK);
            puppet.put((*head).into(), 1);
        }
        puppet.show(puppet.used);
    }
    collect(queue, &mut done, REQUESTS.into());
    let results: BTreeMap<u64, _> = done
        .into_iter()
        .map(|done| (done.token.0, done.result))
        .collect();
    assert_eq!(results.len(), usize::from(REQUESTS), "{what}: one twice");
    let failed = |errno| {
        let is = |result: &&Result<(), DiskError>| matches!(result, Err(DiskError::Io(error)) if error.raw_os_error() == Some(errno));
        results.values().filter(is).count()
    };
    let well = results.values().filter(|result| result.is_ok()).count();
    match what {
        "no status" | "a status of its own" => {
            assert_eq!((well, failed(libc::EIO)), (usize::from(REQUESTS) - 1, 1));
        }
        "its errors, in any order" => {
            assert!(matches!(results[&0], Err(DiskError::Unsupported)));
            assert_eq!(
                (well, failed(libc::EIO)),
                (usize::from(REQUESTS) - 2, 1),
                "{what}"
            );
        }
        "a head twice" => assert_eq!((well, failed(libc::ENODEV)), (1, usize::from(REQUESTS) - 1)),
        _ => assert_eq!(failed(libc::ENODEV), usize::from(REQUESTS), "{what}"),
    }
}

/// An operation of more than one request waits for room between two of them when the device is given up: it holds
/// nothing of the request that ended.
#[test]
fn an_operation_that_waits_in_the_middle_ends_once_with_the_device() {
    let write = |fua| OpKind::Write { offset: 0, fua };
    let read = OpKind::Read { offset: 0 };
    for features in [u64::MAX, !feature::RING_INDIRECT_DESC] {
        // What is left is the flush, or the second segment of a device that takes one.
        give_up_in_the_middle(features, write(true), 1);
        give_up_in_the_middle(features & !feature::SEG_MAX, write(false), 2);
        give_up_in_the_middle(features & !feature::SEG_MAX, read, 2);
    }
}

fn give_up_in_the_middle(features: u64, first: OpKind, segments: usize) {
    on_both_ways(|way| {
        let mut puppet = Puppet::new(features);
        // More than the ring has room for.
        let count = u64::from(SIZE) + 1;
        let mut queue = way.open(&puppet.path, 2 * SIZE);
        let queue = queue.as_mut();
        puppet.start_as(queue, 0, first, segments);
        (1..count).for_each(|token| puppet.start(queue, token));
        queue.flush_batch().unwrap();
        let heads = puppet.heads();
        assert!(heads.len() < count as usize, "none waits");
        puppet.set_status(heads[0], S_OK);
        let len = if first.is_write() { 1 } else { LEN as u32 + 1 };
        puppet.put(heads[0].into(), len);
        puppet.show(puppet.used);
        let mut done = Vec::new();
        let ended = queue.reap(&mut done).unwrap();
        let given = puppet.heads().len();
        puppet.device.vanish();
        let _ = virtio_blk_core::disk::Disk::refresh(&puppet.path);
        assert!(puppet.path.is_broken());
        assert_eq!(ended, 0, "there is more of {first:?}: {done:?}");
        assert_eq!(given, heads.len() + 1, "another has its place");
        collect(queue, &mut done, count as usize);
        let mut tokens: Vec<u64> = done.iter().map(|done| done.token.0).collect();
        tokens.sort_unstable();
        assert_eq!(tokens, (0..count).collect::<Vec<_>>());
    });
}

/// How long a device may take in the tests that look at that.
const TIMEOUT: Duration = Duration::from_millis(20);

/// A device that takes all its time for each request of an operation works, however long the operation takes.
#[test]
fn a_device_that_finishes_parts_of_an_operation_works() {
    const PARTS: usize = 4;
    let mut puppet = Puppet::with_timeout(!feature::SEG_MAX, Some(TIMEOUT));
    let mut queue = Way::Submitted.open(&puppet.path, 1);
    let queue = queue.as_mut();
    let write = OpKind::Write {
        offset: 0,
        fua: false,
    };
    puppet.start_as(queue, 0, write, PARTS);
    queue.flush_batch().unwrap();
    let mut done = Vec::new();
    // The second looks at the clock; the device had no time before the first.
    queue.reap(&mut done).unwrap();
    queue.reap(&mut done).unwrap();
    for part in 0..PARTS {
        std::thread::sleep(TIMEOUT);
        let Some(head) = puppet.heads().get(part).copied() else {
            break;
        };
        puppet.set_status(head, S_OK);
        puppet.put(head.into(), 1);
        puppet.show(puppet.used);
        queue.reap(&mut done).unwrap();
    }
    assert!(!puppet.path.is_broken(), "given up in the middle");
    assert_eq!(done.len(), 1);
    done.remove(0).result.unwrap();
}

/// Operations that are cancelled before the device has them say nothing of it.
#[test]
fn what_is_cancelled_is_no_work_of_the_device() {
    const CANCELLED: u64 = 4;
    on_both_ways(|way| {
        let puppet = Puppet::with_timeout(u64::MAX, Some(TIMEOUT));
        let mut queue = way.open(&puppet.path, 2 * SIZE);
        let queue = queue.as_mut();
        let room = u64::from(SIZE);
        (0..room + CANCELLED).for_each(|token| puppet.start(queue, token));
        queue.flush_batch().unwrap();
        let mut done = Vec::new();
        for token in room..room + CANCELLED {
            queue.cancel(Token(token));
            std::thread::sleep(TIMEOUT);
            queue.reap(&mut done).unwrap();
        }
        let given_up = puppet.path.is_broken();
        puppet.device.vanish();
        let _ = virtio_blk_core::disk::Disk::refresh(&puppet.path);
        assert!(given_up, "it finished nothing");
        collect(queue, &mut done, (room + CANCELLED) as usize);
    });
}

/// A device that writes anything, while the driver continues: no request ends twice, and none is forgotten.
#[test]
fn a_device_at_random_ends_no_request_twice() {
    let mut state = 7u64;
    let mut random = move |below: u64| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) % below
    };
    for round in 0..300 {
        let way = [Way::Submitted, Way::Offered][round % 2];
        let mut puppet = Puppet::new(u64::MAX);
        let mut queue = way.open(&puppet.path, SIZE);
        let mut done = Vec::new();
        let mut given = 0;
        for _ in 0..40 {
            while given - (done.len() as u64) < random(u64::from(SIZE)) && !puppet.path.is_broken()
            {
                puppet.start(queue.as_mut(), given);
                given += 1;
            }
            queue.flush_batch().unwrap();
            let heads = puppet.heads();
            for _ in 0..random(4) {
                let latest = heads.len().saturating_sub(usize::from(SIZE));
                if heads.is_empty() {
                    break;
                }
                let head = heads[latest + random((heads.len() - latest) as u64) as usize];
                puppet.set_status(head, random(3) as u8);
                // Mostly one that it may have.
                let id = match random(100) {
                    0 => random(1 << 32) as u32,
                    _ => head.into(),
                };
                puppet.put(id, random(2) as u32);
            }
            if !puppet.path.is_broken() {
                puppet.show(puppet.used);
            }
            queue.reap(&mut done).unwrap();
        }
        // One that hangs is given up at last.
        puppet.device.vanish();
        let _ = virtio_blk_core::disk::Disk::refresh(&puppet.path);
        collect(queue.as_mut(), &mut done, given as usize);
        let mut tokens: Vec<u64> = done.iter().map(|done| done.token.0).collect();
        tokens.sort_unstable();
        assert_eq!(tokens, (0..given).collect::<Vec<_>>(), "round {round}");
    }
}
