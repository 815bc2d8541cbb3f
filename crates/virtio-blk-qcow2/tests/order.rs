// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The order in which an image's file is written and flushed, where a power cut would show another.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../virtio-blk-disks/tests/common/mod.rs"]
mod common;
mod files;
#[path = "../../virtio-blk-disks/tests/common/qemu.rs"]
mod qemu;

use std::path::Path;
use std::sync::{Arc, Mutex};

use common::{directory, read, write};
use files::{Setup, path};
use virtio_blk_core::disk::{Caps, Completion, Disk, DiskError, IoQueue, Op, OpKind, Submit, Wait};
use virtio_blk_disks::MemoryDisk;

/// Places in entries of L2 tables.
const PLACE: u64 = 0x00ff_ffff_ffff_fe00;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// Bytes from the first to the second were written.
    Write(u64, u64),
    Flush,
}

/// A disk in memory that notes what is done.
struct Noted {
    inner: MemoryDisk,
    events: Arc<Mutex<Vec<Event>>>,
}

struct NotedQueue {
    inner: Box<dyn IoQueue>,
    events: Arc<Mutex<Vec<Event>>>,
}

impl Noted {
    /// The image at `path`, in `size` bytes.
    fn new(path: &Path, size: usize) -> Arc<Self> {
        let mut bytes = std::fs::read(path).unwrap();
        bytes.resize(size, 0);
        let inner = MemoryDisk::new(size as u64).unwrap();
        write(&mut *inner.open_queue(1).unwrap(), 0, bytes).unwrap();
        let events = Arc::default();
        Arc::new(Self { inner, events })
    }

    fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.events.lock().unwrap())
    }

    fn be64(&self, at: u64) -> u64 {
        let block = at - at % 512;
        let bytes = read(&mut *self.inner.open_queue(1).unwrap(), block, 512).unwrap();
        u64::from_be_bytes(bytes[(at - block) as usize..][..8].try_into().unwrap())
    }
}

impl Disk for Noted {
    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        Ok(Box::new(NotedQueue {
            inner: self.inner.open_queue(depth)?,
            events: self.events.clone(),
        }))
    }
}

impl IoQueue for NotedQueue {
    fn submit(&mut self, op: Op) -> Submit {
        let event = match op.kind {
            OpKind::Write { offset, .. } => {
                Some(Event::Write(offset, offset + op.buf.len() as u64))
            }
            OpKind::WriteZeroes { offset, len, .. } => Some(Event::Write(offset, offset + len)),
            OpKind::Flush => Some(Event::Flush),
            _ => None,
        };
        // In one order with what is done.
        let mut events = self.events.lock().unwrap();
        events.extend(event);
        self.inner.submit(op)
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        self.inner.reap(done)
    }

    fn wait(&self) -> Wait<'_> {
        self.inner.wait()
    }
}

/// Else zeroes would show instead of what was compressed.
#[test]
fn what_replaces_a_compressed_cluster_is_stable_before_it_shows() {
    const CLUSTER: usize = 4096;
    let directory = directory();
    let (raw, image) = (path(&directory, "raw"), path(&directory, "disk.qcow2"));
    let content: Vec<u8> = (0..64 * CLUSTER).map(|at| (at / 100) as u8 | 1).collect();
    std::fs::write(&raw, content).unwrap();
    let (from, to) = (raw.to_str().unwrap(), image.to_str().unwrap());
    let setup = ["-f", "raw", "-O", "qcow2", "-o", "cluster_size=4k"];
    qemu::ok(&[&["convert", "-c"][..], &setup, &[from, to]].concat());
    let below = Noted::new(&image, 4 << 20);
    let disk = Setup::over(below.clone(), &Setup::new(&image)).unwrap();
    let mut queue = disk.open_queue(1).unwrap();
    let l2 = below.be64(below.be64(40)) & PLACE;
    let table = l2..l2 + CLUSTER as u64;
    let (mut odd, mut even) = (0, 0);
    for number in 0..64 {
        let entry = below.be64(l2 + 8 * number);
        assert_eq!(entry >> 62 & 1, 1, "compressed");
        if entry & 1 == 0 {
            even += 1;
        } else {
            odd += 1;
        }
        below.take();
        write(&mut *queue, number * CLUSTER as u64, vec![9; CLUSTER]).unwrap();
        let events = below.take();
        let place = below.be64(l2 + 8 * number) & PLACE;
        let find = |wanted: &dyn Fn(&Event) -> bool| events.iter().position(wanted).unwrap();
        let data = find(&|event| matches!(event, Event::Write(at, _) if *at == place));
        let entry = find(&|event| matches!(event, Event::Write(at, _) if table.contains(at)));
        assert!(
            events[data..entry].contains(&Event::Flush),
            "{entry:x}: {events:x?}"
        );
    }
    assert!(odd > 10 && even > 10, "{odd} {even}");
}

/// The header may still name the old one.
#[test]
fn an_old_refcount_table_is_not_used_again_before_the_new_one_is_stable() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    let size = 8 << 20;
    qemu::create(&image, "cluster_size=512,refcount_bits=64", size);
    let below = Noted::new(&image, 16 << 20);
    let disk = Setup::over(below.clone(), &Setup::new(&image)).unwrap();
    let mut queue = disk.open_queue(1).unwrap();
    below.take();
    let mut seen = Vec::new();
    let mut roots = vec![(below.be64(48), below.be64(56) >> 32)];
    for at in (0..size).step_by(8192) {
        write(&mut *queue, at as u64, vec![1; 8192])
            .unwrap_or_else(|error| panic!("{at}: {error}"));
        seen.extend(below.take());
        let now = (below.be64(48), below.be64(56) >> 32);
        if roots.last() != Some(&now) {
            roots.push(now);
        }
    }
    assert!(roots.len() > 2, "{roots:x?}");
    drop((queue, disk));
    seen.extend(below.take());
    // From the write of the header that names its successor to the next flush.
    let mut names = roots.iter().skip(1);
    let mut old = roots.iter().copied();
    let mut waiting: Option<(u64, u64)> = None;
    for event in seen {
        match event {
            Event::Flush => waiting = None,
            Event::Write(0, _) if names.next().is_some() => {
                waiting = old.next().map(|(at, clusters)| (at, at + clusters * 512));
            }
            Event::Write(from, to) => {
                if let Some((start, end)) = waiting {
                    assert!(to <= start || from >= end, "{from:x} in {start:x}..{end:x}");
                }
            }
        }
    }
    let left = read(&mut *below.inner.open_queue(1).unwrap(), 0, 16 << 20).unwrap();
    std::fs::write(&image, left).unwrap();
    qemu::check(&image);
}
