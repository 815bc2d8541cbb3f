// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use virtio_blk_core::disk::{IoBuf, Token};

use super::*;

fn run(disk: &NullDisk, kind: OpKind, buf: IoBuf) -> (Result<(), DiskError>, IoBuf) {
    let mut queue = disk.open_queue(1).unwrap();
    let token = Token(1);
    match queue.submit(Op { token, kind, buf }) {
        Submit::Done(completion) => (completion.result, completion.buf),
        other => panic!("not inline: {other:?}"),
    }
}

#[test]
fn reads_give_zeroes_unless_told_otherwise() {
    let disk = NullDisk::new(1 << 20).unwrap();
    let read = OpKind::Read { offset: 0 };
    let (result, buf) = run(&disk, read, IoBuf::from_vec(vec![7; 512]));
    result.unwrap();
    assert_eq!(buf.to_vec(), [0; 512]);

    let disk = disk.zero_fill(false);
    let (result, buf) = run(&disk, read, IoBuf::from_vec(vec![7; 512]));
    result.unwrap();
    assert_eq!(buf.to_vec(), [7; 512]);
}

#[test]
fn what_is_offered_works_and_the_rest_is_refused() {
    let zero = OpKind::WriteZeroes {
        offset: 0,
        len: 512,
        unmap: true,
        fua: true,
    };
    let discard = OpKind::Discard {
        offset: 0,
        len: 512,
    };
    let disk = NullDisk::new(1 << 20).unwrap();
    disk.caps().validate().unwrap();
    assert!(disk.caps().write_zeroes.is_some());
    for kind in [zero, discard, OpKind::Flush] {
        run(&disk, kind, IoBuf::new()).0.unwrap();
    }
    let erase = OpKind::SecureErase {
        offset: 0,
        len: 512,
    };
    for kind in [erase, OpKind::Lifetime] {
        let (result, _) = run(&disk, kind, IoBuf::zeroed(8));
        assert!(matches!(result, Err(DiskError::Unsupported)), "{kind:?}");
    }
    // Without zeroes on reading it can't promise zeroes.
    let disk = disk.zero_fill(false);
    assert!(disk.caps().write_zeroes.is_none());
    let (result, _) = run(&disk, zero, IoBuf::new());
    assert!(matches!(result, Err(DiskError::Unsupported)));
}

#[test]
fn limits_are_kept() {
    let disk = NullDisk::new(1 << 20).unwrap().read_only(true);
    assert!(disk.caps().discard.is_none());
    let write = OpKind::Write {
        offset: 0,
        fua: false,
    };
    let (result, _) = run(&disk, write, IoBuf::zeroed(512));
    assert!(matches!(result, Err(DiskError::ReadOnly)));
    let (result, _) = run(&disk, OpKind::Read { offset: 1 << 20 }, IoBuf::zeroed(512));
    assert!(matches!(result, Err(DiskError::OutOfRange)));
    assert!(NullDisk::new(100).is_err());
    assert!(NullDisk::new(u64::MAX - 511).is_err());
}
