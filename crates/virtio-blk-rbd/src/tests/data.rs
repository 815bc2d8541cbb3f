// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What operations do.

use virtio_blk_core::disk::DiskError;

use super::*;

/// A buffer of several segments.
fn scattered(parts: &[&[u8]]) -> (IoBuf, Vec<IoBuf>) {
    let owners: Vec<IoBuf> = parts
        .iter()
        .map(|part| IoBuf::from_vec(part.to_vec()))
        .collect();
    let mut buf = IoBuf::new();
    for segment in owners.iter().flat_map(IoBuf::segments) {
        // SAFETY: the owners outlive the operation, as the test keeps them.
        unsafe { buf.push(segment.iov_base.cast(), segment.iov_len) };
    }
    (buf, owners)
}

#[test]
fn data_goes_there_and_back_in_pieces() {
    let rig = Rig::new();
    let disk = rig.open();
    let mut queue = Queue::of(&disk);
    let (buf, owners) = scattered(&[&[1; 512], &[2; 100], &[3; 412]]);
    let write = OpKind::Write {
        offset: 4096,
        fua: false,
    };
    queue.run(write, buf).result.unwrap();
    drop(owners);
    let mut expected = vec![1; 512];
    expected.extend([2; 100]);
    expected.extend([3; 412]);
    assert_eq!(rig.fake.data.lock().unwrap()[4096..5120], expected);
    let (buf, owners) = scattered(&[&[0; 700], &[0; 324]]);
    queue
        .run(OpKind::Read { offset: 4096 }, buf)
        .result
        .unwrap();
    let read: Vec<u8> = owners.iter().flat_map(IoBuf::to_vec).collect();
    assert_eq!(read, expected);
}

#[test]
fn each_operation_is_the_call_that_it_should_be() {
    let rig = Rig::new();
    let disk = rig.open();
    let mut queue = Queue::of(&disk);
    let (offset, len) = (4096, 8192);
    let zeroes = |unmap, fua| OpKind::WriteZeroes {
        offset,
        len,
        unmap,
        fua,
    };
    let data = || IoBuf::zeroed(512);
    let cases: [(OpKind, IoBuf, &[&str]); 8] = [
        (OpKind::Read { offset }, data(), &["rbd_aio_readv"]),
        (
            OpKind::Write { offset, fua: false },
            data(),
            &["rbd_aio_writev"],
        ),
        (
            OpKind::Write { offset, fua: true },
            data(),
            &["rbd_aio_writev", "rbd_aio_flush"],
        ),
        (OpKind::Flush, IoBuf::new(), &["rbd_aio_flush"]),
        (
            OpKind::Discard { offset, len },
            IoBuf::new(),
            &["rbd_aio_discard"],
        ),
        (zeroes(true, false), IoBuf::new(), &["rbd_aio_write_zeroes"]),
        (
            zeroes(false, false),
            IoBuf::new(),
            &["rbd_aio_write_zeroes thick"],
        ),
        (
            zeroes(true, true),
            IoBuf::new(),
            &["rbd_aio_write_zeroes", "rbd_aio_flush"],
        ),
    ];
    for (kind, buf, expected) in cases {
        rig.fake.take_calls();
        queue.run(kind, buf).result.unwrap();
        let mut calls = rig.fake.take_calls();
        calls.retain(|call| !call.starts_with("late "));
        assert_eq!(calls, expected, "{kind:?}");
    }
}

#[test]
fn what_cannot_be_is_refused_without_a_call() {
    let rig = Rig::new();
    let disk = rig.open();
    let snapshot = rig.options().read_only(true);
    let read_only = rig.try_open(&snapshot).unwrap();
    let (mut queue, mut reader) = (Queue::of(&disk), Queue::of(&read_only));
    rig.fake.take_calls();
    let end = LEN as u64;
    let write = |offset| OpKind::Write { offset, fua: false };
    let refused = |completion: Completion| completion.result.unwrap_err();
    let data = || IoBuf::zeroed(512);
    for kind in [
        OpKind::Read { offset: end },
        write(end - 256),
        write(u64::MAX - 511),
    ] {
        let error = refused(queue.run(kind, data()));
        assert!(matches!(error, DiskError::OutOfRange), "{kind:?}: {error}");
    }
    let error = refused(queue.run(write(1), data()));
    assert!(matches!(error, DiskError::Misaligned), "{error}");
    let error = refused(queue.run(OpKind::Lifetime, data()));
    assert!(matches!(error, DiskError::Unsupported), "{error}");
    let erase = OpKind::SecureErase {
        offset: 0,
        len: 512,
    };
    let error = refused(queue.run(erase, IoBuf::new()));
    assert!(matches!(error, DiskError::Unsupported), "{error}");
    let error = refused(reader.run(write(0), data()));
    assert!(matches!(error, DiskError::ReadOnly), "{error}");
    // There is nothing to do.
    reader.run(OpKind::Flush, IoBuf::new()).result.unwrap();
    queue
        .run(OpKind::Read { offset: end }, IoBuf::new())
        .result
        .unwrap();
    assert_eq!(rig.fake.take_calls(), [""; 0]);
    assert_eq!(reader.read(0, 512), [0; 512]);
}

#[test]
fn a_queue_takes_its_depth_and_no_more() {
    let rig = Rig::new();
    let disk = rig.open();
    let mut queue = Queue::of(&disk);
    rig.fake.hold();
    for token in 0..8 {
        let read = OpKind::Read {
            offset: token * 512,
        };
        assert!(queue.submit(token, read, IoBuf::zeroed(512)).is_none());
    }
    let op = Op {
        token: Token(8),
        kind: OpKind::Flush,
        buf: IoBuf::new(),
    };
    assert!(matches!(queue.0.submit(op), Submit::Full(_)));
    assert!(!queue.is_ready(Duration::ZERO));
    rig.fake.release();
    assert!(queue.is_ready(PATIENCE));
    let mut done = Vec::new();
    assert_eq!(queue.0.reap(&mut done).unwrap(), 8);
    // The newest were done first.
    assert_eq!(done.first().map(|done| done.token), Some(Token(7)));
    assert!(!queue.is_ready(Duration::ZERO), "nothing is left");
    assert!(queue.submit(9, OpKind::Flush, IoBuf::new()).is_none());
    assert_eq!(queue.next().token, Token(9));
}

#[test]
fn queues_get_what_is_theirs() {
    let rig = Rig::new();
    let disk = rig.open();
    std::thread::scope(|scope| {
        for number in 0..4_u64 {
            let disk = &disk;
            scope.spawn(move || {
                let mut queue = Queue::of(disk);
                for round in 0..200 {
                    let offset = number * 65536 + round % 64 * 512;
                    let data = vec![(number * 50 + round % 50) as u8; 512];
                    let fua = round % 3 == 0;
                    let buf = IoBuf::from_vec(data.clone());
                    let done = queue.run(OpKind::Write { offset, fua }, buf);
                    done.result.unwrap();
                    assert_eq!(queue.read(offset, 512), data);
                }
            });
        }
    });
    drop(disk);
    assert_eq!(rig.fake.opened(), [0; 5]);
}
