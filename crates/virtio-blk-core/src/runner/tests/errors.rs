// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the embedder is told when something goes wrong.

use std::sync::Mutex;

use malformed_queues::HostileRing;
use virtio_blk_driver::wire::{Descriptor, Range as WireRange, S_IOERR, S_OK, S_UNSUPP};

use super::*;
use crate::testdisk::Break;

type Told = Arc<Mutex<Vec<String>>>;

fn rig(mode: Mode, wait: WaitKind) -> (Rig<Plain>, Told) {
    let (mem, mut space) = malformed_queues::testmem::single(MEMORY).unwrap();
    let rig = Rig::new(&Arc::new(mem), &mut space, disk(mode, wait));
    let told = Told::default();
    let list = told.clone();
    rig.device.on_request_error(move |error| {
        let errno = match error.cause {
            ErrorCause::Operation { error, .. } => error.errno(),
            _ => None,
        };
        list.lock().unwrap().push(format!("{error} [{errno:?}]"));
    });
    (rig, told)
}

fn take(told: &Told) -> Vec<String> {
    std::mem::take(&mut *told.lock().unwrap())
}

const MODES: [(Mode, WaitKind); 5] = [
    (Mode::Inline, WaitKind::Inline),
    (Mode::Execute, WaitKind::Inline),
    (Mode::AtFlush, WaitKind::Fd),
    (Mode::AtFlush, WaitKind::Poll),
    (Mode::Taken, WaitKind::Fd),
];

#[test]
fn the_hosts_errno_comes_with_operation_offset_and_length() {
    let range = |sector, num_sectors| WireRange {
        sector,
        num_sectors,
        flags: 0,
    };
    let list = [range(4, 1), range(10, 3)];
    for (mode, wait) in MODES {
        let (mut rig, told) = rig(mode, wait);
        rig.disk.set_fault(|kind| match kind {
            // The first range goes well.
            OpKind::Discard { offset: 2048, .. } => None,
            OpKind::WriteZeroes { .. } => Some(DiskError::Unsupported),
            OpKind::SecureErase { .. } => Some(DiskError::FlushLost { errno: libc::EIO }),
            OpKind::Write { .. } => Some(DiskError::from_errno(libc::ENOSPC)),
            _ => Some(DiskError::from_errno(libc::EIO)),
        });
        let mut expect = |request: &Request<'_>, status: u8, text: &str| {
            assert_eq!(rig.ask(request).status, status, "{mode:?}");
            let told = take(&told);
            assert_eq!(told.len(), 1, "{mode:?} {told:?}");
            assert!(told[0].starts_with(text), "{mode:?} {told:?}");
            told[0].clone()
        };
        for direct in [false, true] {
            let shape = |request: Request<'static>| request.indirect(!direct);
            let text = expect(
                &shape(Request::read(3, 1024)),
                S_IOERR,
                "queue 0: read of 1024 bytes at byte 1536 failed: disk I/O failed: ",
            );
            assert!(text.ends_with("[Some(5)]"), "{text}");
            let text = expect(
                &shape(Request::write(7, &[1; 512])),
                S_IOERR,
                "queue 0: write of 512 bytes at byte 3584 failed: ",
            );
            assert!(text.ends_with("[Some(28)]"), "{text}");
        }
        expect(&Request::flush(), S_IOERR, "queue 0: flush failed: ");
        expect(
            &Request::get_lifetime(),
            S_IOERR,
            "queue 0: lifetime failed",
        );
        let text = "queue 0: discard of 1536 bytes at byte 5120 failed: ";
        expect(&Request::discard(&list), S_IOERR, text);
        let text = "queue 0: write-zeroes of 512 bytes at byte 2048 failed: the disk does not";
        expect(&Request::write_zeroes(&list), S_UNSUPP, text);
        let text = expect(
            &Request::secure_erase(&list),
            S_IOERR,
            "queue 0: secure-erase of 512 bytes at byte 2048 failed: an earlier flush failed",
        );
        assert!(text.ends_with("[Some(5)]"), "{text}");
    }
}

#[test]
fn nothing_is_told_of_what_goes_well_or_is_the_drivers_fault() {
    for (mode, wait) in MODES {
        let (mut rig, told) = rig(mode, wait);
        assert_eq!(rig.ask(&Request::read(0, 512)).status, S_OK);
        assert_eq!(rig.ask(&Request::write(0, &[0; 512])).status, S_OK);
        assert_eq!(rig.ask(&Request::read(SECTORS, 512)).status, S_IOERR);
        assert_eq!(rig.ask(&Request::new(99, 0)).status, S_UNSUPP);
        assert_eq!(take(&told), [""; 0]);
    }
}

#[test]
fn a_broken_queue_is_told_once() {
    for how in [Break::Flush, Break::Reap] {
        let (mut rig, told) = rig(Mode::AtFlush, WaitKind::Fd);
        rig.disk.set_break(how);
        rig.queue(&Request::read(0, 512));
        for _ in 0..3 {
            assert_eq!(rig.settle(), Service::Fatal);
        }
        let told = take(&told);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with("queue 0: the disk's queue is broken: "));
    }
    // A ring that makes no sense.
    let (mut rig, told) = rig(Mode::Inline, WaitKind::Inline);
    let avail = rig.driver.ring_mut().0.layout().avail();
    vm_memory::Bytes::write_obj(&*rig.mem, 0x7777u16, vm_memory::GuestAddress(avail.0 + 2))
        .unwrap();
    assert_eq!(rig.settle(), Service::Fatal);
    assert_eq!(
        take(&told),
        [
            "queue 0: the virtqueue is broken: the available index jumped from 0 to 30583 in a queue of 32 [None]"
        ]
    );
}

#[test]
fn listeners_that_come_later_are_called_too() {
    let (mut rig, told) = rig(Mode::Inline, WaitKind::Inline);
    let count = Arc::new(AtomicU64::new(0));
    let counter = count.clone();
    let device = Arc::downgrade(&rig.device);
    rig.device.on_request_error(move |error| {
        assert_eq!(error.queue, 0);
        if counter.fetch_add(1, Ordering::SeqCst) == 0 {
            // One may add another from within.
            let device = device.upgrade().unwrap();
            device.on_request_error(|_| {});
        }
    });
    rig.disk
        .set_fault(|_| Some(DiskError::from_errno(libc::EIO)));
    rig.ask(&Request::read(0, 512));
    rig.ask(&Request::read(0, 512));
    assert_eq!(count.load(Ordering::SeqCst), 2);
    assert_eq!(take(&told).len(), 2);
}

/// What a chain of `list` makes of status, used length, health and what is told.
fn offer(
    queue_size: u16,
    indirect: bool,
    list: impl FnOnce(&mut HostileRing<'_>) -> (Vec<Descriptor>, vm_memory::GuestAddress),
) -> (u8, Option<u32>, Service, Vec<String>) {
    let (mem, space) = malformed_queues::testmem::single(4 << 20).unwrap();
    let mem = Arc::new(mem);
    let options = DeviceOptions {
        queue_size,
        ..DeviceOptions::default()
    };
    let disk = TestDisk::new(Caps::basic(1 << 12));
    let device = Device::new(Arc::new(disk), options).unwrap();
    let masked = if indirect {
        0
    } else {
        feature::RING_INDIRECT_DESC
    };
    device.accept(device.offered() & !masked).unwrap();
    let told = Told::default();
    let sink = told.clone();
    device.on_request_error(move |error| {
        sink.lock().unwrap().push(error.to_string());
    });
    let mut hostile = HostileRing::new(&*mem, space, 128, 0, true).unwrap();
    let (list, status) = list(&mut hostile);
    for (index, desc) in list.into_iter().enumerate() {
        hostile.descriptor(index as u16, desc).unwrap();
    }
    hostile.avail_entry(0, 0).unwrap();
    hostile.avail_idx(1).unwrap();
    let setup = QueueSetup::new(mem.clone(), || {});
    let mut runner = device.start_queue(0, setup, hostile.state).unwrap();
    let service = runner.service(64);
    let mut byte = [0];
    virtio_blk_driver::Memory::read_at(&*mem, status, &mut byte).unwrap();
    let used = (hostile.used_idx().unwrap() == 1).then(|| hostile.used_entry(0).unwrap().1);
    let told = take(&told);
    let malformed = runner.counters().malformed.get();
    assert_eq!(malformed, told.len() as u64);
    (byte[0], used, service, told)
}

/// A write of 320 segments in an indirect table, as a driver makes it that was told a `seg_max` by a device
/// with larger queues.
fn long_write(ring: &mut HostileRing<'_>, more: u32) -> (Vec<Descriptor>, vm_memory::GuestAddress) {
    let header = virtio_blk_driver::wire::header(virtio_blk_driver::wire::T_OUT, 0, 0);
    let header = ring.readable(&header).unwrap();
    let data = ring.readable(&[7; 4096]).unwrap();
    let status = ring.writable(1).unwrap();
    let mut list = vec![header];
    list.resize(321, data);
    list.resize(321 + more as usize, Descriptor::readable(data.addr, 0));
    list.push(status);
    (vec![ring.table(&list).unwrap()], status.addr)
}

#[test]
fn a_chain_that_can_not_be_taken_is_never_taken_for_done() {
    // Longer than any ring of this device.
    for queue_size in [128, 256, 1024] {
        let (status, used, service, told) = offer(queue_size, true, |ring| long_write(ring, 0));
        assert_eq!((status, used, service), (S_OK, Some(1), Service::Idle));
        assert_eq!(told, [""; 0]);
    }
    // Longer than what is safe. Looking at it used up the pass's budget.
    let (status, used, service, told) = offer(256, true, |ring| long_write(ring, 32_768));
    assert_eq!((status, used, service), (S_IOERR, Some(1), Service::More));
    assert_eq!(
        told,
        ["queue 0: a request can't be taken: the chain loops, or has more than 32768 descriptors"]
    );
    // Where the driver can't be told, the queue breaks.
    let unwritten = virtio_blk_driver::wire::S_UNWRITTEN;
    let (status, used, service, told) = offer(256, false, |ring| long_write(ring, 0));
    assert_eq!((status, used, service), (unwritten, None, Service::Fatal));
    assert_eq!(
        told,
        [
            "queue 0: the virtqueue is broken: the chain of descriptor 0 can't be answered: an indirect \
          descriptor without VIRTIO_F_INDIRECT_DESC"
        ]
    );
    // Where it does not ask, it need not.
    let (_, used, service, told) = offer(256, true, |ring| {
        let (_, status) = long_write(ring, 0);
        (vec![ring.readable(&[0; 16]).unwrap()], status)
    });
    assert_eq!((used, service), (Some(0), Service::Idle));
    assert_eq!(
        told,
        ["queue 0: a request can't be taken: the chain has no writable byte for the status"]
    );
}

#[test]
fn what_was_finished_before_a_chain_that_breaks_the_queue_is_returned() {
    let (mut rig, told) = rig(Mode::Inline, WaitKind::Inline);
    rig.submit(&Request::read(0, 512));
    let good = rig.queue(&Request::read(1, 512));
    let bad = rig.queue(&Request::read(2, 512));
    // The table of the third is taken away.
    let layout = rig.driver.ring_mut().0.layout();
    let head: u16 = vm_memory::Bytes::read_obj(
        &*rig.mem,
        vm_memory::GuestAddress(layout.avail().0 + 4 + 2 * 2),
    )
    .unwrap();
    let at = vm_memory::GuestAddress(layout.desc().0 + 16 * u64::from(head));
    vm_memory::Bytes::write_obj(&*rig.mem, u64::MAX - 4096, at).unwrap();
    assert_eq!(rig.settle(), Service::Fatal);
    let answers = rig.answers();
    assert_eq!(answers.len(), 2);
    assert_eq!(answers[1].token, good);
    assert_ne!(answers[1].token, bad);
    assert_eq!(take(&told).len(), 1);
}
