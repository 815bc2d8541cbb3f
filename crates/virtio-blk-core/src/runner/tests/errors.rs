// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the embedder is told when something goes wrong.

use std::sync::Mutex;

use virtio_blk_driver::wire::{Range as WireRange, S_IOERR, S_OK, S_UNSUPP};

use super::*;
use crate::testdisk::Break;

type Told = Arc<Mutex<Vec<String>>>;

fn rig(mode: Mode, wait: WaitKind) -> (Rig<Plain>, Told) {
    let (mem, mut space) = virtio_blk_driver::testmem::single(MEMORY).unwrap();
    let rig = Rig::new(&Arc::new(mem), &mut space, disk(mode, wait));
    let told = Told::default();
    let list = told.clone();
    rig.device.on_request_error(Box::new(move |error| {
        let errno = match error.cause {
            ErrorCause::Operation { error, .. } => error.errno(),
            _ => None,
        };
        list.lock().unwrap().push(format!("{error} [{errno:?}]"));
    }));
    (rig, told)
}

fn take(told: &Told) -> Vec<String> {
    std::mem::take(&mut *told.lock().unwrap())
}

const MODES: [(Mode, WaitKind); 4] = [
    (Mode::Inline, WaitKind::Inline),
    (Mode::Execute, WaitKind::Inline),
    (Mode::AtFlush, WaitKind::Fd),
    (Mode::AtFlush, WaitKind::Poll),
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
    rig.device.on_request_error(Box::new(move |error| {
        assert_eq!(error.queue, 0);
        if counter.fetch_add(1, Ordering::SeqCst) == 0 {
            // One may add another from within.
            let device = device.upgrade().unwrap();
            device.on_request_error(Box::new(|_| {}));
        }
    }));
    rig.disk
        .set_fault(|_| Some(DiskError::from_errno(libc::EIO)));
    rig.ask(&Request::read(0, 512));
    rig.ask(&Request::read(0, 512));
    assert_eq!(count.load(Ordering::SeqCst), 2);
    assert_eq!(take(&told).len(), 2);
}
