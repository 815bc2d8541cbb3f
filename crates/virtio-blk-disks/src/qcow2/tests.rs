// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The order of writes and syncs, on a host that grows and notes them.

use std::path::PathBuf;
use std::sync::MutexGuard;

use virtio_blk_core::disk::{IoBuf, OpKind};

use super::*;
use crate::qcow2::host::Host;

#[path = "../../tests/common/qemu.rs"]
mod qemu;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// Bytes from the first to the second were written.
    Write(u64, u64),
    Sync,
}

/// A file in memory.
#[derive(Debug, Default)]
struct Noted {
    content: Mutex<Vec<u8>>,
    events: Mutex<Vec<Event>>,
}

impl Noted {
    fn content(&self) -> MutexGuard<'_, Vec<u8>> {
        self.content.lock().unwrap()
    }

    fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.events.lock().unwrap())
    }

    fn note(&self, event: Event) {
        self.events.lock().unwrap().push(event);
    }

    fn be64(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.read(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    }
}

impl Host for Noted {
    fn size(&self) -> std::io::Result<u64> {
        Ok(self.content().len() as u64)
    }

    fn grows(&self) -> bool {
        true
    }

    fn resize(&self, size: u64) -> std::io::Result<()> {
        self.content().resize(size as usize, 0);
        Ok(())
    }

    fn read(&self, data: &mut [u8], offset: u64) -> std::io::Result<()> {
        let content = self.content();
        let from = content.get(offset as usize..).unwrap_or_default();
        let there = from.len().min(data.len());
        data[..there].copy_from_slice(&from[..there]);
        data[there..].fill(0);
        Ok(())
    }

    fn write(&self, data: &[u8], offset: u64) -> std::io::Result<()> {
        self.note(Event::Write(offset, offset + data.len() as u64));
        let mut content = self.content();
        let end = offset as usize + data.len();
        if content.len() < end {
            content.resize(end, 0);
        }
        content[offset as usize..end].copy_from_slice(data);
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.write(&vec![0; len as usize], offset)
    }

    fn punch(&self, _: u64, _: u64) -> bool {
        false
    }

    fn sync(&self) -> std::io::Result<()> {
        self.note(Event::Sync);
        Ok(())
    }

    fn lost(&self) -> Option<i32> {
        None
    }

    fn read_buf(&self, buf: &IoBuf, done: usize, len: usize, at: u64) -> Result<(), DiskError> {
        let mut data = vec![0; len];
        self.read(&mut data, at)?;
        buf.copy_in(done, &data);
        Ok(())
    }

    fn write_buf(&self, buf: &IoBuf, done: usize, len: usize, at: u64) -> Result<(), DiskError> {
        let mut data = vec![0; len];
        buf.copy_out(done, &mut data);
        Ok(self.write(&data, at)?)
    }

    fn open_queue(&self, _: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        Err(DiskError::Unsupported)
    }
}

fn open_noted(path: &Path) -> (Arc<Noted>, Image) {
    let host = Arc::new(Noted::default());
    *host.content() = std::fs::read(path).unwrap();
    let options = Qcow2Options::new(path);
    let opened = chain::open_on(host.clone(), &options).unwrap();
    let control = Arc::new(Control::new(opened.header.size));
    (host, Image::new(opened, control, true))
}

fn write(image: &Image, offset: u64, data: Vec<u8>) {
    let kind = OpKind::Write { offset, fua: false };
    image
        .execute(&kind, &IoBuf::from_vec(data), &|| false)
        .unwrap();
    image.write_out().unwrap();
}

fn directory() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.qcow2");
    (directory, path)
}

/// After a power cut the table may be there and the data not: then zeroes would show instead of what was compressed.
#[test]
fn what_replaces_a_compressed_cluster_is_stable_before_it_shows() {
    const CLUSTER: usize = 4096;
    let (directory, path) = directory();
    let raw = directory.path().join("raw");
    let content: Vec<u8> = (0..64 * CLUSTER).map(|at| (at / 100) as u8 | 1).collect();
    std::fs::write(&raw, content).unwrap();
    let (from, to) = (raw.to_str().unwrap(), path.to_str().unwrap());
    qemu::ok(&[
        "convert",
        "-c",
        "-f",
        "raw",
        "-O",
        "qcow2",
        "-o",
        "cluster_size=4k",
        from,
        to,
    ]);
    let (host, image) = open_noted(&path);
    let l2 = host.be64(host.be64(40)) & 0x00ff_ffff_ffff_fe00;
    // Counts some clusters ahead, with a barrier of its own.
    write(&image, 0, vec![9; CLUSTER]);
    let (mut odd, mut even) = (0, 0);
    for number in 1..64 {
        let entry = host.be64(l2 + 8 * number);
        assert_eq!(entry >> 62 & 1, 1, "compressed");
        if entry & 1 == 0 {
            even += 1;
        } else {
            odd += 1;
        }
        host.take();
        write(&image, number * CLUSTER as u64, vec![9; CLUSTER]);
        let events = host.take();
        let place = host.be64(l2 + 8 * number) & 0x00ff_ffff_ffff_fe00;
        let find = |wanted: &dyn Fn(&Event) -> bool| events.iter().position(wanted).unwrap();
        let data = find(&|event| matches!(event, Event::Write(at, _) if *at == place));
        let table = find(
            &|event| matches!(event, Event::Write(at, _) if (l2..l2 + CLUSTER as u64).contains(at)),
        );
        assert!(
            events[data..table].contains(&Event::Sync),
            "{entry:x}: {events:x?}"
        );
    }
    assert!(odd > 10 && even > 10, "{odd} {even}");
}

/// After a power cut the header may name the old one.
#[test]
fn an_old_refcount_table_is_not_used_again_before_the_new_one_is_stable() {
    let (_directory, path) = directory();
    qemu::create(&path, "cluster_size=512,refcount_bits=64", 8 << 20);
    let (host, image) = open_noted(&path);
    let mut old = Vec::new();
    let mut roots = (host.be64(48), host.be64(56) >> 32);
    let mut changes = 0;
    for at in (0..8 << 20).step_by(8192) {
        write(&image, at, vec![1; 8192]);
        let now = (host.be64(48), host.be64(56) >> 32);
        let moved = roots != now;
        for event in host.take() {
            match event {
                Event::Sync => old.clear(),
                Event::Write(0, _) if moved => {
                    old = vec![(roots.0, roots.0 + roots.1 * 512)];
                    changes += 1;
                }
                Event::Write(from, to) => {
                    for (start, end) in &old {
                        assert!(to <= *start || from >= *end, "{from:x} in {old:x?}");
                    }
                }
            }
        }
        roots = now;
    }
    assert!(changes > 1, "{changes}");
    drop(image);
    std::fs::write(&path, &*host.content()).unwrap();
    qemu::check(&path);
}

/// A queue that is dropped waits for one part of an erase, not for all.
#[test]
fn an_erase_that_nobody_waits_for_ends_early() {
    let (_directory, path) = directory();
    qemu::create(&path, "cluster_size=512", 1 << 20);
    let (host, image) = open_noted(&path);
    write(&image, 0, vec![1; 1 << 20]);
    host.take();
    let asked = std::cell::Cell::new(0);
    let gone = || asked.replace(asked.get() + 1) == 3;
    let (offset, len) = (0, 1 << 20);
    let kind = OpKind::Discard { offset, len };
    let result = image.execute(&kind, &IoBuf::new(), &gone);
    assert!(matches!(result, Err(DiskError::Cancelled)), "{result:?}");
    assert_eq!(asked.get(), 4);
    let buf = IoBuf::from_vec(vec![0; 1 << 20]);
    let kind = OpKind::Read { offset };
    image.execute(&kind, &buf, &|| true).unwrap();
    // One L2 table for each part.
    let (erased, kept) = ((3 * 32) << 10, 1);
    let found = buf.to_vec();
    assert!(found[..erased].iter().all(|byte| *byte == 0));
    assert!(found[erased..].iter().all(|byte| *byte == kept));
}

/// A queue whose file the host does not wait for: `epoll` takes no regular files.
struct Unwatched(std::fs::File);

impl IoQueue for Unwatched {
    fn submit(&mut self, op: virtio_blk_core::disk::Op) -> virtio_blk_core::disk::Submit {
        virtio_blk_core::disk::Submit::Full(op)
    }

    fn reap(&mut self, _: &mut Vec<virtio_blk_core::disk::Completion>) -> Result<usize, DiskError> {
        Ok(0)
    }

    fn wait(&self) -> virtio_blk_core::disk::Wait<'_> {
        virtio_blk_core::disk::Wait::Fd(std::os::fd::AsFd::as_fd(&self.0))
    }
}

/// The disk is let go of while its only queue is being made, which fails then.
#[test]
fn a_queue_that_cannot_be_made_lets_go_of_the_image() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.qcow2");
    qemu::create(&path, "cluster_size=64k", 1 << 20);
    let disk = Qcow2Disk::open(&Qcow2Options::new(&path).lock(Lock::Handover)).unwrap();
    disk.activate().unwrap();
    let (image, pool) = {
        let mut state = disk.state();
        let open = state.as_mut().unwrap();
        (open.image.clone(), open.pool().unwrap())
    };
    disk.deactivate().unwrap();
    assert!(disk.state().is_some());
    let leave = Leave(disk.medium.clone());
    let inner = Box::new(Unwatched(std::fs::File::open(&path).unwrap()));
    assert!(Qcow2Queue::new(leave, image, pool, inner, 1).is_err());
    assert!(disk.state().is_none(), "it is still open and locked");
}
