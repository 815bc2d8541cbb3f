// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::Mutex;

use virtio_blk_core::disk::{Allocation, IoBuf, Token};
use virtio_blk_core::testdisk::removable_buffer;

use super::*;

const MIB: u64 = 1 << 20;

fn run(queue: &mut dyn IoQueue, kind: OpKind, buf: IoBuf) -> (Result<(), DiskError>, IoBuf) {
    let op = Op {
        token: Token(7),
        kind,
        buf,
    };
    match queue.submit(op) {
        Submit::Done(completion) => {
            assert_eq!(completion.token, Token(7));
            (completion.result, completion.buf)
        }
        other => panic!("not inline: {other:?}"),
    }
}

fn write(queue: &mut dyn IoQueue, offset: u64, data: Vec<u8>) -> Result<(), DiskError> {
    run(
        queue,
        OpKind::Write { offset, fua: false },
        IoBuf::from_vec(data),
    )
    .0
}

fn read(queue: &mut dyn IoQueue, offset: u64, len: usize) -> Vec<u8> {
    let (result, buf) = run(
        queue,
        OpKind::Read { offset },
        IoBuf::from_vec(vec![0xEE; len]),
    );
    result.unwrap();
    buf.to_vec()
}

#[test]
fn the_largest_disk_uses_memory_only_for_what_was_written() {
    let bytes = i64::MAX as u64 / 512 * 512;
    let disk = MemoryDisk::new(bytes).unwrap();
    let mut queue = disk.open_queue(1).unwrap();
    for offset in [0, MIB, bytes - 512] {
        write(&mut *queue, offset, vec![3; 512]).unwrap();
        assert_eq!(read(&mut *queue, offset, 512), [3; 512]);
    }
    assert_eq!(disk.allocated_bytes(), 3 * CHUNK as u64);
    // Everything at once, in time that depends on what is there.
    let everything = OpKind::Discard {
        offset: 0,
        len: bytes,
    };
    run(&mut *queue, everything, IoBuf::new()).0.unwrap();
    assert_eq!(disk.allocated_bytes(), 0);
    assert_eq!(read(&mut *queue, bytes - 512, 512), [0; 512]);
}

#[test]
fn sizes_are_checked() {
    assert!(matches!(MemoryDisk::new(513), Err(DiskError::Config(text)) if text.contains("513")));
    assert!(MemoryDisk::new(1 << 63).is_err());
    assert!(MemoryDisk::new(0).is_ok());
    let disk = MemoryDisk::new(512).unwrap();
    assert!(disk.with_block_size(4096).is_err());
}

#[test]
fn erasing_frees_whole_chunks_and_zeroes_the_edges() {
    let chunk = CHUNK as u64;
    let kinds: [fn(u64, u64) -> OpKind; 3] = [
        |offset, len| OpKind::Discard { offset, len },
        |offset, len| OpKind::WriteZeroes {
            offset,
            len,
            unmap: true,
            fua: false,
        },
        |offset, len| OpKind::SecureErase { offset, len },
    ];
    for kind in kinds {
        for (offset, len, left) in [
            (0, 4 * chunk, 0),
            (512, 3 * chunk, 2),
            (512, 512, 4),
            (chunk, chunk, 3),
            (chunk - 512, 1024, 4),
            (0, 512, 4),
            (3 * chunk + 512, chunk - 512, 4),
            (512, 0, 4),
        ] {
            let disk = MemoryDisk::new(4 * chunk).unwrap();
            let mut queue = disk.open_queue(1).unwrap();
            write(&mut *queue, 0, vec![9; 4 * CHUNK]).unwrap();
            run(&mut *queue, kind(offset, len), IoBuf::new()).0.unwrap();
            assert_eq!(disk.allocated_bytes(), left * chunk, "{offset} {len}");
            let mut expected = vec![9; 4 * CHUNK];
            expected[offset as usize..(offset + len) as usize].fill(0);
            assert!(
                read(&mut *queue, 0, 4 * CHUNK) == expected,
                "{offset} {len}"
            );
        }
    }
}

#[test]
fn zeroing_without_unmap_takes_no_memory_for_what_was_never_written() {
    let disk = MemoryDisk::new(1 << 40).unwrap();
    let mut queue = disk.open_queue(1).unwrap();
    let zero = OpKind::WriteZeroes {
        offset: 0,
        len: 1 << 40,
        unmap: false,
        fua: true,
    };
    run(&mut *queue, zero, IoBuf::new()).0.unwrap();
    assert_eq!(disk.allocated_bytes(), 0);
}

#[test]
fn resize_tells_and_what_was_cut_off_does_not_come_back() {
    let disk = MemoryDisk::new(4 * MIB).unwrap();
    let events = Arc::new(Mutex::new(Vec::new()));
    let log = events.clone();
    disk.listen(Arc::new(move |event| log.lock().unwrap().push(event)));
    let mut queue = disk.open_queue(1).unwrap();
    write(&mut *queue, 0, vec![5; 4 << 20]).unwrap();
    // Not on a chunk's edge.
    let small = MIB + 512;
    disk.resize(small / 512).unwrap();
    assert_eq!(disk.caps().capacity, small / 512);
    assert!(matches!(
        write(&mut *queue, small, vec![1; 512]),
        Err(DiskError::OutOfRange)
    ));
    disk.resize(8 * MIB / 512).unwrap();
    disk.resize(8 * MIB / 512).unwrap();
    assert_eq!(
        read(&mut *queue, 0, small as usize),
        vec![5; small as usize]
    );
    let rest = (8 * MIB - small) as usize;
    assert!(read(&mut *queue, small, rest) == vec![0; rest]);
    let expected = [small / 512, 8 * MIB / 512].map(|capacity| DiskEvent::Resized { capacity });
    assert_eq!(*events.lock().unwrap(), expected);
    assert!(disk.resize(u64::MAX).is_err());
}

#[test]
fn a_write_racing_with_a_shrink_leaves_nothing_beyond_the_end() {
    let disk = MemoryDisk::new(4 * MIB).unwrap();
    std::thread::scope(|scope| {
        for number in 0..2 {
            let mut queue = disk.open_queue(1).unwrap();
            scope.spawn(move || {
                for round in 0..2000_u64 {
                    let offset = 3 * MIB + (round * 2 + number) % 64 * 4096;
                    // Fails while the disk is small.
                    let _ = write(&mut *queue, offset, vec![1; 4096]);
                }
            });
        }
        for _ in 0..200 {
            disk.resize(MIB / 512).unwrap();
            disk.resize(4 * MIB / 512).unwrap();
        }
    });
    disk.resize(MIB / 512).unwrap();
    disk.resize(4 * MIB / 512).unwrap();
    let mut queue = disk.open_queue(1).unwrap();
    assert!(read(&mut *queue, MIB, 3 << 20) == vec![0; 3 << 20]);
}

#[test]
fn queues_work_at_once_without_mixing_their_data() {
    let disk = MemoryDisk::new(64 * MIB).unwrap();
    std::thread::scope(|scope| {
        for number in 0..4_u64 {
            let mut queue = disk.open_queue(1).unwrap();
            scope.spawn(move || {
                // Interleaved sectors: all queues share every chunk.
                for round in 0..4000_u64 {
                    let offset = (round * 4 + number) * 512;
                    let data = vec![(round ^ number) as u8; 512];
                    write(&mut *queue, offset, data.clone()).unwrap();
                    assert_eq!(read(&mut *queue, offset, 512), data);
                }
            });
        }
    });
    let mut queue = disk.open_queue(1).unwrap();
    for sector in 0..16_000_u64 {
        let expected = vec![((sector / 4) ^ (sector % 4)) as u8; 512];
        assert_eq!(read(&mut *queue, sector * 512, 512), expected);
    }
}

#[test]
fn read_only_offers_no_changes() {
    let disk = MemoryDisk::new(MIB).unwrap().read_only().unwrap();
    let caps = disk.caps();
    assert!(caps.read_only && caps.flush);
    assert!(caps.discard.is_none() && caps.write_zeroes.is_none() && caps.secure_erase.is_none());
    let mut queue = disk.open_queue(1).unwrap();
    assert!(matches!(
        write(&mut *queue, 0, vec![0; 512]),
        Err(DiskError::ReadOnly)
    ));
    run(&mut *queue, OpKind::Flush, IoBuf::new()).0.unwrap();
    assert_eq!(read(&mut *queue, 0, 512), [0; 512]);
}

#[test]
fn lifetime_is_reported_only_when_set() {
    let plain = MemoryDisk::new(MIB).unwrap();
    let mut queue = plain.open_queue(1).unwrap();
    let (result, _) = run(&mut *queue, OpKind::Lifetime, IoBuf::zeroed(6));
    assert!(matches!(result, Err(DiskError::Unsupported)));
    assert!(!plain.caps().lifetime);

    let wear = Lifetime {
        pre_eol_info: 2,
        device_lifetime_est_typ_a: 5,
        device_lifetime_est_typ_b: 11,
    };
    let worn = MemoryDisk::new(MIB).unwrap().with_lifetime(wear).unwrap();
    assert!(worn.caps().lifetime);
    let mut queue = worn.open_queue(1).unwrap();
    let (result, buf) = run(&mut *queue, OpKind::Lifetime, IoBuf::zeroed(8));
    result.unwrap();
    assert_eq!(buf.to_vec()[..6], wear.to_bytes());
    let (result, _) = run(&mut *queue, OpKind::Lifetime, IoBuf::zeroed(5));
    assert!(matches!(result, Err(DiskError::Misaligned)));
}

#[test]
fn a_queue_outlives_the_disk() {
    let disk = MemoryDisk::new(MIB).unwrap();
    let mut queue = disk.open_queue(1).unwrap();
    drop(disk);
    write(&mut *queue, 0, vec![1; 512]).unwrap();
    assert_eq!(read(&mut *queue, 0, 512), [1; 512]);
    assert!(matches!(queue.wait(), Wait::Inline));
    assert_eq!(queue.reap(&mut Vec::new()).unwrap(), 0);
}

#[test]
fn hostile_operations_are_refused() {
    let disk = MemoryDisk::new(MIB).unwrap().with_block_size(4096).unwrap();
    let mut queue = disk.open_queue(1).unwrap();
    let far = OpKind::Discard {
        offset: u64::MAX - 511,
        len: u64::MAX,
    };
    let (result, _) = run(&mut *queue, far, IoBuf::new());
    assert!(matches!(result, Err(DiskError::OutOfRange)));
    assert!(matches!(
        write(&mut *queue, 512, vec![0; 4096]),
        Err(DiskError::Misaligned)
    ));
}

#[test]
fn data_that_was_taken_away_is_not_stored() {
    let disk = MemoryDisk::new(MIB).unwrap();
    let mut queue = disk.open_queue(1).unwrap();
    write(&mut *queue, 512, vec![3; 512]).unwrap();
    let there = Arc::new(std::sync::atomic::AtomicBool::new(true));
    for (intact, expected) in [(false, 3), (true, 0)] {
        there.store(intact, Ordering::SeqCst);
        let asked = there.clone();
        let buf = removable_buffer(&[0; 512], move || asked.load(Ordering::SeqCst));
        assert_eq!(buf.is_intact(), intact);
        let kind = OpKind::Write {
            offset: 512,
            fua: false,
        };
        let (result, _) = run(&mut *queue, kind, buf);
        assert_eq!(result.is_ok(), intact, "{result:?}");
        assert_eq!(read(&mut *queue, 512, 512), [expected; 512]);
    }
}

#[test]
fn chunks_that_are_there_are_data() {
    let disk = MemoryDisk::new(1 << 20).unwrap();
    let mut queue = disk.open_queue(1).unwrap();
    let write = OpKind::Write {
        offset: 512,
        fua: false,
    };
    let wrote = queue.execute(&write, &IoBuf::zeroed(512), None);
    assert!(matches!(wrote, Execute::Done(Ok(()))));
    let found = disk.extents(0..1 << 20, 9).unwrap();
    let (first, rest) = (CHUNK as u64, (1 << 20) - CHUNK as u64);
    let lens: Vec<_> = found.iter().map(|e| (e.len, e.allocation)).collect();
    assert_eq!(lens, [(first, Allocation::Data), (rest, Allocation::Hole)]);
    assert_eq!(disk.extents(1024..2048, 1).unwrap(), found_data(1024));
    let beyond = disk.extents(0..(1 << 20) + 1, 1);
    assert!(matches!(beyond, Err(DiskError::OutOfRange)));
}

fn found_data(len: u64) -> [Extent; 1] {
    [Extent {
        len,
        allocation: Allocation::Data,
    }]
}
