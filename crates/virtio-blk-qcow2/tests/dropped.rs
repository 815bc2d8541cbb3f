// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Queues that end early: one that is dropped while it erases, and one that can't be made.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../virtio-blk-disks/tests/common/mod.rs"]
mod common;
mod files;
#[path = "../../virtio-blk-disks/tests/common/qemu.rs"]
mod qemu;

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use common::{directory, read, write};
use files::{Setup, path};
use virtio_blk_core::disk::{
    Caps, Completion, Disk, DiskError, Handover, IoBuf, IoQueue, Op, OpKind, Submit, Token, Wait,
};
use virtio_blk_disks::MemoryDisk;
use virtio_blk_qcow2::Qcow2Disk;

const SIZE: usize = 1 << 20;
/// Operations at a time on the guest's queue: so is its path below told from those of the threads.
const DEPTH: u16 = 4;

/// The image at `path`, in memory.
fn memory(path: &Path) -> MemoryDisk {
    let mut bytes = std::fs::read(path).unwrap();
    bytes.resize(8 << 20, 0);
    let memory = MemoryDisk::new(bytes.len() as u64).unwrap();
    write(&mut *memory.open_queue(1).unwrap(), 0, bytes).unwrap();
    memory
}

/// Places of tables. Says that a write to one began, and waits for a word.
type Holds = Arc<OnceLock<(Vec<u64>, Sender<()>, Mutex<Receiver<()>>)>>;

/// A disk on which each write to a table waits for a word, once the gate is there, and which tells when the guest's path is dropped.
struct Gate {
    inner: Arc<MemoryDisk>,
    gate: Holds,
    dropped: Sender<()>,
}

struct GateQueue {
    inner: Box<dyn IoQueue>,
    gate: Holds,
    dropped: Option<Sender<()>>,
}

impl Disk for Gate {
    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        Ok(Box::new(GateQueue {
            inner: self.inner.open_queue(depth)?,
            gate: self.gate.clone(),
            dropped: (depth == DEPTH).then(|| self.dropped.clone()),
        }))
    }
}

impl IoQueue for GateQueue {
    fn submit(&mut self, op: Op) -> Submit {
        if let OpKind::Write { offset, .. } = op.kind
            && let Some((tables, began, go)) = self.gate.get()
            && tables.contains(&offset)
        {
            began.send(()).unwrap();
            go.lock().unwrap().recv().unwrap();
        }
        self.inner.submit(op)
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        self.inner.reap(done)
    }

    fn wait(&self) -> Wait<'_> {
        self.inner.wait()
    }
}

impl Drop for GateQueue {
    fn drop(&mut self) {
        if let Some(dropped) = &self.dropped {
            // The test may have ended.
            let _ = dropped.send(());
        }
    }
}

/// It waits for one part of the erase, not for all.
#[test]
fn an_erase_that_nobody_waits_for_ends_early() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    // 32 L2 tables.
    qemu::create(&image, "cluster_size=512", SIZE);
    let ((dropping, dropped), gate) = (channel(), Arc::new(OnceLock::new()));
    let memory = Arc::new(memory(&image));
    let below: Arc<dyn Disk> = Arc::new(Gate {
        inner: memory.clone(),
        gate: gate.clone(),
        dropped: dropping,
    });
    let disk = Setup::over(below, &Setup::new(&image)).unwrap();
    let kept = disk.open_queue(1).unwrap();
    let mut queue = disk.open_queue(DEPTH).unwrap();
    write(&mut *queue, 0, vec![1; SIZE]).unwrap();
    let ((begin, began), (go, may_go)) = (channel(), channel());
    let mut look = memory.open_queue(1).unwrap();
    let header = read(&mut *look, 0, 512).unwrap();
    let l1 = u64::from_be_bytes(header[40..48].try_into().unwrap());
    let l1 = read(&mut *look, l1, 512).unwrap();
    let tables = l1.chunks(8).take(32);
    let tables = tables.map(|entry| u64::from_be_bytes(entry.try_into().unwrap()) & !(1 << 63));
    let holds = (tables.collect(), begin, Mutex::new(may_go));
    assert!(gate.set(holds).is_ok());
    let op = Op {
        token: Token(1),
        kind: OpKind::Discard {
            offset: 0,
            len: SIZE as u64,
        },
        buf: IoBuf::new(),
    };
    assert!(matches!(queue.submit(op), Submit::Queued));
    began.recv().unwrap();
    let (tell, told) = channel();
    let ended = std::thread::spawn(move || {
        tell.send(std::fs::read_link("/proc/thread-self").unwrap())
            .unwrap();
        drop(queue);
    });
    let thread = Path::new("/proc").join(told.recv().unwrap()).join("stat");
    dropped.recv().unwrap();
    // It waits for the erase now.
    while !std::fs::read_to_string(&thread).unwrap().contains(") S ") {
        std::thread::yield_now();
    }
    (0..1000).for_each(|_| go.send(()).unwrap());
    ended.join().unwrap();
    drop(kept);
    let mut queue = disk.open_queue(1).unwrap();
    let found = read(&mut *queue, 0, SIZE).unwrap();
    let erased = found.iter().take_while(|byte| **byte == 0).count();
    assert!((32 << 10..SIZE / 2).contains(&erased), "{erased}");
    assert!(found[erased..].iter().all(|byte| *byte == 1));
    drop(queue);
    drop(disk);
}

/// A disk whose path for the guest can't be waited for (`epoll` takes no regular files), and which lets go of the image
/// meanwhile.
struct Unwatched {
    inner: MemoryDisk,
    above: Arc<OnceLock<Weak<Qcow2Disk>>>,
    let_go: Sender<()>,
}

struct UnwatchedQueue(File);

impl Disk for Unwatched {
    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        if depth != DEPTH {
            return self.inner.open_queue(depth);
        }
        let above = self.above.get().and_then(Weak::upgrade).unwrap();
        above.deactivate()?;
        Ok(Box::new(UnwatchedQueue(File::open("/proc/self/exe")?)))
    }

    fn deactivate(&self) -> Result<(), DiskError> {
        self.let_go.send(()).unwrap();
        Ok(())
    }
}

impl IoQueue for UnwatchedQueue {
    fn submit(&mut self, op: Op) -> Submit {
        Submit::Full(op)
    }

    fn reap(&mut self, _: &mut Vec<Completion>) -> Result<usize, DiskError> {
        Ok(0)
    }

    fn wait(&self) -> Wait<'_> {
        Wait::Fd(self.0.as_fd())
    }
}

/// The disk is let go of while its only queue is being made, which fails then.
#[test]
fn a_queue_that_can_not_be_made_lets_go_of_the_image() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    qemu::create(&image, "cluster_size=64k", SIZE);
    let ((let_go, gone), above) = (channel(), Arc::new(OnceLock::new()));
    let below: Arc<dyn Disk> = Arc::new(Unwatched {
        inner: memory(&image),
        above: above.clone(),
        let_go,
    });
    let disk = Arc::new(Setup::over(below, &Setup::new(&image)).unwrap());
    above.set(Arc::downgrade(&disk)).unwrap();
    disk.activate().unwrap();
    assert!(disk.open_queue(DEPTH).is_err());
    assert_eq!(gone.try_iter().count(), 1);
    assert_eq!(disk.handover(), Handover::Never);
    let error = disk.open_queue(1).err().unwrap().to_string();
    assert!(error.contains("must be activated"), "{error}");
    disk.activate().unwrap();
    disk.open_queue(1).unwrap();
}
