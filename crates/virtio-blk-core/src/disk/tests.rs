// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// A buffer over pieces of one allocation, in the given order.
fn scattered(pieces: &[(usize, usize)], size: usize) -> (IoBuf, Arc<Box<[u8]>>) {
    let memory: Arc<Box<[u8]>> = Arc::new((0..size).map(|i| i as u8).collect());
    let base = memory.as_ptr().cast_mut();
    let mut buf = IoBuf::new();
    buf.set_keep(memory.clone());
    for &(offset, len) in pieces {
        assert!(offset + len <= size);
        // SAFETY: inside the allocation that `keep` owns; these tests only read through it.
        unsafe { buf.push(base.add(offset), len) };
    }
    (buf, memory)
}

#[test]
fn adjacent_segments_merge_and_empty_ones_vanish() {
    let (buf, _memory) = scattered(&[(0, 4), (4, 4), (9, 0), (10, 2)], 16);
    assert_eq!(buf.segments().len(), 2);
    assert_eq!(buf.len(), 10);
    assert_eq!(buf.to_vec(), [0, 1, 2, 3, 4, 5, 6, 7, 10, 11]);
}

#[test]
fn a_part_is_the_same_memory_and_keeps_it() {
    let (buf, memory) = scattered(&[(0, 4), (6, 4), (12, 4)], 16);
    let part = buf.part(2, 5);
    assert_eq!(part.to_vec(), [2, 3, 6, 7, 8]);
    assert_eq!(Arc::strong_count(&memory), 3);
    drop(buf);
    assert_eq!(Arc::strong_count(&memory), 2);
    assert_eq!(part.part(1, 100).to_vec(), [3, 6, 7, 8]);
    assert!(part.part(5, 1).is_empty());
    assert!(IoBuf::new().part(0, 1).is_empty());
}

#[test]
fn window_respects_both_limits() {
    let (buf, _memory) = scattered(&[(0, 4), (6, 4), (12, 4)], 16);
    let mut out = Vec::new();
    assert_eq!(buf.window(2, 100, 2, &mut out), 6);
    assert_eq!(out.iter().map(|v| v.iov_len).collect::<Vec<_>>(), [2, 4]);
    out.clear();
    assert_eq!(buf.window(5, 4, 8, &mut out), 4);
    assert_eq!(out.iter().map(|v| v.iov_len).collect::<Vec<_>>(), [3, 1]);
    out.clear();
    assert_eq!(buf.window(12, 4, 8, &mut out), 0);
    assert!(out.is_empty());
}

#[test]
fn copies_clip_to_the_buffer() {
    let buf = IoBuf::zeroed(8);
    assert_eq!(buf.copy_in(6, &[1, 2, 3]), 2);
    assert_eq!(buf.fill(0, 2, 9), 2);
    assert_eq!(buf.fill(7, 9, 7), 1);
    assert_eq!(buf.to_vec(), [9, 9, 0, 0, 0, 0, 1, 7]);
    let mut out = [0; 4];
    assert_eq!(buf.copy_out(5, &mut out), 3);
    assert_eq!(out, [0, 1, 7, 0]);
    assert_eq!(buf.copy_out(usize::MAX, &mut out), 0);
}

#[test]
fn alignment_looks_at_address_and_length() {
    let mut buf = IoBuf::from_vec(vec![0; 64]);
    let base = buf.segments()[0].iov_base.cast::<u8>();
    // An allocation of bytes may start anywhere.
    let base = base.wrapping_add(base.align_offset(8));
    buf.clear();
    // SAFETY: inside the buffer's own memory, which `clear` keeps.
    unsafe { buf.push(base, 8) };
    assert!(buf.is_aligned(8));
    buf.clear();
    // SAFETY: as above.
    unsafe { buf.push(base.add(1), 8) };
    assert!(!buf.is_aligned(8));
    buf.clear();
    // SAFETY: as above.
    unsafe { buf.push(base, 9) };
    assert!(!buf.is_aligned(8));
}

#[test]
fn memory_lives_as_long_as_the_buffer() {
    struct Flag(Arc<AtomicBool>);
    impl Drop for Flag {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let dropped = Arc::new(AtomicBool::new(false));
    let mut buf = IoBuf::new();
    buf.set_keep(Arc::new(Flag(dropped.clone())));
    buf.clear();
    assert!(!dropped.load(Ordering::SeqCst));
    let op = Op {
        token: Token(1),
        kind: OpKind::Flush,
        buf,
    };
    let completion = op.complete(Ok(()));
    assert!(!dropped.load(Ordering::SeqCst));
    drop(completion);
    assert!(dropped.load(Ordering::SeqCst));
}

#[test]
fn caps_are_validated() {
    assert!(Caps::basic(0).validate().is_ok());
    assert!(Caps::basic(i64::MAX as u64 / 512).validate().is_ok());
    assert!(Caps::basic(i64::MAX as u64 / 512 + 1).validate().is_err());
    let mut caps = Caps::basic(9);
    caps.align.guest_block = 4096;
    assert!(
        caps.validate().is_err(),
        "capacity not a multiple of the block"
    );
    caps.capacity = 16;
    assert!(caps.validate().is_ok());
    caps.align.host_offset = 8192;
    assert!(caps.validate().is_err());
    let mut caps = Caps::basic(8);
    caps.discard = Some(EraseLimits {
        max_sectors: 0,
        max_segments: 1,
        alignment: 1,
    });
    assert!(caps.validate().is_err());
    caps.discard = None;
    caps.max_queues = 0;
    assert!(caps.validate().is_err());
}

#[test]
fn contains_is_free_of_overflow() {
    let caps = Caps::basic(8);
    assert!(caps.contains(0, 4096));
    assert!(caps.contains(4096, 0));
    assert!(!caps.contains(4096, 1));
    assert!(!caps.contains(1, u64::MAX));
    assert!(!caps.contains(u64::MAX, u64::MAX));
    assert!(!caps.contains(u64::MAX, 0));
}

#[test]
fn lifetime_never_carries_reserved_values() {
    let good = Lifetime {
        pre_eol_info: 3,
        device_lifetime_est_typ_a: 11,
        device_lifetime_est_typ_b: 0,
    };
    assert_eq!(Lifetime::from_bytes(good.to_bytes()), Some(good));
    assert_eq!(Lifetime::from_bytes([4, 0, 0, 0, 0, 0]), None);
    assert_eq!(Lifetime::from_bytes([0, 0, 12, 0, 0, 0]), None);
    assert_eq!(Lifetime::from_bytes([0, 0, 0, 0, 0, 1]), None);
}

#[test]
fn op_ranges() {
    assert_eq!(OpKind::Read { offset: 4 }.range(8), Some((4, 8)));
    assert_eq!(OpKind::Discard { offset: 4, len: 6 }.range(0), Some((4, 6)));
    assert_eq!(OpKind::Flush.range(0), None);
    assert!(!OpKind::Flush.is_write());
    assert!(OpKind::SecureErase { offset: 0, len: 1 }.is_write());
}

#[test]
fn each_check_has_its_error() {
    let bounds = Bounds {
        capacity: 8192,
        block: 4096,
        read_only: false,
    };
    let read = |offset| OpKind::Read { offset };
    assert!(bounds.check(&read(4096), 4096).is_ok());
    assert!(bounds.check(&read(8192), 0).is_ok());
    for (offset, len) in [(4096, 8192), (u64::MAX, 4096), (8192, 1), (u64::MAX, 0)] {
        let got = bounds.check(&read(offset), len);
        assert!(matches!(got, Err(DiskError::OutOfRange)), "{got:?}");
    }
    for (offset, len) in [(512, 4096), (0, 512)] {
        let got = bounds.check(&read(offset), len);
        assert!(matches!(got, Err(DiskError::Misaligned)), "{got:?}");
    }
    assert!(bounds.check(&OpKind::Flush, 0).is_ok());
}

#[test]
fn read_only_refuses_changes_and_nothing_else() {
    let bounds = Bounds {
        capacity: 4096,
        block: 512,
        read_only: true,
    };
    assert!(bounds.check(&OpKind::Read { offset: 0 }, 512).is_ok());
    assert!(bounds.check(&OpKind::Flush, 0).is_ok());
    let write = OpKind::Write {
        offset: 0,
        fua: false,
    };
    assert!(matches!(
        bounds.check(&write, 512),
        Err(DiskError::ReadOnly)
    ));
}
