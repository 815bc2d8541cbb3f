// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Metadata that can't be written is kept in memory to be written later, up to a bound.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../virtio-blk-disks/tests/common/mod.rs"]
mod common;
mod files;
#[path = "../../virtio-blk-disks/tests/common/qemu.rs"]
mod qemu;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{directory, read, run, write};
use files::gate::{Fate, Gate};
use files::{Setup, path};
use virtio_blk_core::disk::{Disk, DiskError, DiskEvent, IoBuf, OpKind};

/// Bytes of the guest that a table holds, in clusters of 512 bytes.
const REACH: u64 = 32 << 10;
/// What the documentation says may be kept, in blocks, and a few more.
const MOST: u64 = 4096;
const TABLES: u64 = MOST + 4;

/// As many blocks of tables that can't be written as are kept do no harm; one more, and nothing is changed any more, so
/// that no more memory is taken.
#[test]
fn tables_that_can_not_be_written_end_all_changes() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    qemu::create(&image, "cluster_size=512", (TABLES * REACH) as usize);
    let mut bytes = std::fs::read(&image).unwrap();
    bytes.resize(10 << 20, 0);
    let gate = Arc::new(Gate::new(bytes));
    let disk = Setup::over(gate.clone(), &Setup::new(&image)).unwrap();
    let events = Arc::new(AtomicU64::new(0));
    let count = events.clone();
    disk.listen(Arc::new(move |event| {
        assert!(matches!(event, DiskEvent::MediaError));
        count.fetch_add(1, Ordering::SeqCst);
    }));
    let mut queue = disk.open_queue(1).unwrap();
    for number in 0..TABLES {
        write(&mut *queue, number * REACH, vec![1; 512]).unwrap();
    }
    run(&mut *queue, OpKind::Flush, IoBuf::new())
        .result
        .unwrap();
    let content = gate.content();
    let be64 = |at: usize| u64::from_be_bytes(content[at..at + 8].try_into().unwrap());
    let l1 = be64(40) as usize;
    let entries = (0..TABLES as usize).map(|number| be64(l1 + number * 8));
    let tables: HashSet<u64> = entries.map(|entry| entry & 0x00ff_ffff_ffff_fe00).collect();
    assert_eq!(tables.len() as u64, TABLES);
    gate.close(move |kind, _| match kind {
        OpKind::Write { offset, .. } if tables.contains(offset) => Fate::Refuse,
        _ => Fate::Pass,
    });
    let is_frozen = |error: &DiskError| matches!(error, DiskError::FlushLost { errno: libc::EIO });
    for number in 0..=MOST {
        assert!(disk.flush_error().is_none(), "{number}");
        let error = write(&mut *queue, number * REACH + 512, vec![2; 512]).unwrap_err();
        assert_eq!(is_frozen(&error), number == MOST, "{number}: {error}");
    }
    assert_eq!(events.load(Ordering::SeqCst), 1);
    gate.open();
    assert!(is_frozen(&write(&mut *queue, 0, vec![3; 512]).unwrap_err()));
    let flush = run(&mut *queue, OpKind::Flush, IoBuf::new()).result;
    assert!(is_frozen(&flush.unwrap_err()));
    assert!(is_frozen(&disk.flush_error().unwrap()));
    assert!(read(&mut *queue, REACH, 512).unwrap() == [1; 512]);
    drop((queue, disk));
    // What was flushed is there.
    let disk = Setup::over(gate.clone(), &Setup::new(&image)).unwrap();
    let mut queue = disk.open_queue(1).unwrap();
    for number in 0..TABLES {
        assert!(read(&mut *queue, number * REACH, 512).unwrap() == [1; 512]);
    }
    drop((queue, disk));
    std::fs::write(&image, gate.content()).unwrap();
    qemu::check_after_crash(&image);
}
