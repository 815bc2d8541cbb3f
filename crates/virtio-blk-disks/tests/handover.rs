// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What layers know of a disk's content, while others may change it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::times::{TimedDirectory, keeps_times};
use common::{directory, image, read, write};
use virtio_blk_core::disk::{Caps, ContentStamp, Disk, DiskError, Handover, IoQueue};
use virtio_blk_disks::dirty::{DirtyBitmap, DirtyDisk, PersistOptions};
use virtio_blk_disks::stack::{Groups, StackArg};
use virtio_blk_disks::verify::{Mismatch, VerifyDisk};
use virtio_blk_disks::{Lock, MemoryDisk, RawDisk, RawOptions};

const SIZE: usize = 1 << 20;
const BLOCK: u64 = 4096;

fn stamp(number: u64) -> Option<ContentStamp> {
    Some(ContentStamp([1, 2, 3, number]))
}

/// A disk in memory that says of itself what the test wants.
struct Turned {
    memory: MemoryDisk,
    state: Mutex<Handover>,
    /// How it is found, and left.
    stamps: Mutex<[Option<ContentStamp>; 2]>,
    /// It can't be released.
    stays: Mutex<bool>,
    /// It is released, but some of its data is lost.
    loses: Mutex<bool>,
}

impl Turned {
    fn new(state: Handover) -> Arc<Self> {
        Arc::new(Self {
            memory: MemoryDisk::new(SIZE as u64).unwrap(),
            state: Mutex::new(state),
            stamps: Mutex::default(),
            stays: Mutex::default(),
            loses: Mutex::default(),
        })
    }

    /// Others have the disk for a while, which is found so, having been left so.
    fn round(&self, disk: &dyn Disk, left: Option<ContentStamp>, found: Option<ContentStamp>) {
        *self.stamps.lock().unwrap() = [found, left];
        disk.deactivate().unwrap();
        disk.activate().unwrap();
    }
}

impl Disk for Turned {
    fn caps(&self) -> Caps {
        self.memory.caps()
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        self.memory.open_queue(depth)
    }

    fn activate(&self) -> Result<(), DiskError> {
        let [found, _] = *self.stamps.lock().unwrap();
        let mut state = self.state.lock().unwrap();
        if let Handover::Released(_) = *state {
            *state = Handover::Held(found);
        }
        Ok(())
    }

    fn deactivate(&self) -> Result<(), DiskError> {
        if *self.stays.lock().unwrap() {
            return Err(DiskError::Config("busy".to_owned()));
        }
        let [_, left] = *self.stamps.lock().unwrap();
        *self.state.lock().unwrap() = Handover::Released(left);
        if *self.loses.lock().unwrap() {
            return Err(DiskError::Config("lost".to_owned()));
        }
        Ok(())
    }

    fn handover(&self) -> Handover {
        *self.state.lock().unwrap()
    }
}

fn is_incomplete(bitmap: &DirtyBitmap) -> bool {
    let changes = bitmap.changes();
    if changes.incomplete.is_some() {
        assert_eq!(changes.ranges, [(0, SIZE as u64)]);
        assert_eq!(bitmap.dirty_bytes(), SIZE as u64);
    }
    changes.incomplete.is_some()
}

/// A backup of all that is marked.
fn back_up(bitmap: &DirtyBitmap) -> Vec<(u64, u64)> {
    let take = bitmap.take();
    bitmap.commit(take.token).unwrap();
    take.changes.ranges
}

/// Left, found, and whether that proves that nobody was there.
const ROUNDS: [(Option<u64>, Option<u64>, bool); 4] = [
    (Some(1), Some(1), true),
    (Some(1), Some(2), false),
    (None, None, false),
    (Some(1), None, false),
];

#[test]
fn a_bitmap_vouches_for_nothing_while_others_may_write() {
    let base = Turned::new(Handover::Held(stamp(0)));
    let disk = DirtyDisk::new(base.clone());
    let bitmap = disk.start("a", BLOCK).unwrap();
    for (left, found, is_same) in ROUNDS {
        let mut queue = disk.open_queue(1).unwrap();
        write(&mut *queue, 0, vec![1; 512]).unwrap();
        drop(queue);
        *base.stamps.lock().unwrap() = [found, left].map(|number| number.and_then(stamp));
        disk.deactivate().unwrap();
        // A backup now does not end it: more may be changed after it.
        assert!(is_incomplete(&bitmap));
        let take = bitmap.take();
        assert_eq!(take.changes.ranges, [(0, SIZE as u64)]);
        assert!(take.changes.incomplete.is_some());
        bitmap.abort(take.token).unwrap();
        disk.deactivate().unwrap();
        disk.activate().unwrap();
        disk.activate().unwrap();
        assert_eq!(is_incomplete(&bitmap), !is_same, "{left:?} {found:?}");
        let all = if is_same { BLOCK } else { SIZE as u64 };
        assert_eq!(back_up(&bitmap), [(0, all)]);
        assert!(!is_incomplete(&bitmap));
    }
    disk.deactivate().unwrap();
    back_up(&bitmap);
    bitmap.clear().unwrap();
    assert!(is_incomplete(&bitmap));
    disk.activate().unwrap();
    assert!(is_incomplete(&bitmap));
    // Kept away from others after all.
    bitmap.clear().unwrap();
    *base.stays.lock().unwrap() = true;
    disk.deactivate().unwrap_err();
    assert!(!is_incomplete(&bitmap));
}

#[test]
fn a_bitmap_that_starts_while_others_may_write_vouches_for_nothing() {
    let base = Turned::new(Handover::Released(None));
    let disk = DirtyDisk::new(base.clone());
    let bitmap = disk.start("a", BLOCK).unwrap();
    assert!(is_incomplete(&bitmap));
    disk.activate().unwrap();
    assert!(is_incomplete(&bitmap));
    back_up(&bitmap);
    assert!(!is_incomplete(&bitmap));
    // Saved meanwhile, or ended and started again when the disk is in use already.
    let copy = DirtyBitmap::new(SIZE as u64, BLOCK).unwrap();
    base.round(&disk, stamp(1), stamp(1));
    copy.load(&bitmap.save("a")).unwrap();
    assert!(!is_incomplete(&copy));
    disk.deactivate().unwrap();
    copy.load(&bitmap.save("a")).unwrap();
    assert!(is_incomplete(&copy));
    let stopped = disk.stop("a").unwrap();
    disk.activate().unwrap();
    disk.attach("a", stopped.clone()).unwrap();
    assert!(is_incomplete(&stopped));
}

fn persist(path: &Path) -> Option<PersistOptions> {
    Some(PersistOptions {
        path: path.to_owned(),
        sync: false,
    })
}

#[test]
fn a_bitmaps_file_knows_of_others_too() {
    let directory = directory();
    let path = directory.path().join("bitmap");
    let open = |base: &Arc<Turned>, path: &Path| {
        DirtyDisk::open(base.clone(), "a", BLOCK, persist(path).as_ref()).unwrap()
    };
    let incomplete = |disk: &DirtyDisk<Turned>| is_incomplete(&disk.bitmap("a").unwrap());
    for (left, found, is_same) in ROUNDS {
        for killed in [false, true] {
            let base = Turned::new(Handover::Held(None));
            let disk = open(&base, &path);
            disk.bitmap("a").unwrap().clear().unwrap();
            base.stamps.lock().unwrap()[1] = left.and_then(stamp);
            disk.deactivate().unwrap();
            let next = directory.path().join("next");
            if killed {
                std::fs::copy(&path, &next).unwrap();
            }
            drop(disk);
            if !killed {
                std::fs::copy(&path, &next).unwrap();
            }
            // A server that comes later: with the same kind of lock, or with one that it keeps.
            base.stamps.lock().unwrap()[0] = found.and_then(stamp);
            let other = directory.path().join("other");
            std::fs::copy(&next, &other).unwrap();
            let disk = open(&base, &next);
            assert!(incomplete(&disk));
            disk.activate().unwrap();
            assert_eq!(incomplete(&disk), !is_same, "{left:?} {found:?} {killed}");
            drop(disk);
            let always = open(&Turned::new(Handover::Never), &other);
            assert!(incomplete(&always));
            drop(always);
            for path in [&next, &other] {
                std::fs::remove_file(path).unwrap();
            }
        }
    }
    // Killed while in use: nobody knows who has it next.
    let base = Turned::new(Handover::Held(stamp(1)));
    let disk = open(&base, &path);
    disk.bitmap("a").unwrap().clear().unwrap();
    let copy = directory.path().join("copy");
    std::fs::copy(&path, &copy).unwrap();
    let base = Turned::new(Handover::Released(None));
    base.stamps.lock().unwrap()[0] = stamp(1);
    let always = directory.path().join("always");
    std::fs::copy(&copy, &always).unwrap();
    let disk = open(&base, &copy);
    disk.activate().unwrap();
    assert!(incomplete(&disk));
    // By a server that keeps its lock: others may have had the disk in between.
    assert!(incomplete(&open(&Turned::new(Handover::Never), &always)));
}

/// The stamp may be that of another disk of a stack than the one that failed.
#[test]
fn a_stamp_of_a_disk_that_lost_data_proves_nothing() {
    let base = Turned::new(Handover::Held(None));
    let (bitmaps, checked) = (DirtyDisk::new(base.clone()), VerifyDisk::new(base.clone()));
    let bitmap = bitmaps.start("a", BLOCK).unwrap();
    write(&mut *checked.open_queue(1).unwrap(), 0, vec![1; 512]).unwrap();
    *base.stamps.lock().unwrap() = [stamp(1); 2];
    *base.loses.lock().unwrap() = true;
    bitmaps.deactivate().unwrap_err();
    bitmaps.activate().unwrap();
    assert!(is_incomplete(&bitmap));
    checked.deactivate().unwrap_err();
    checked.activate().unwrap();
    // What was lost.
    write(&mut *base.open_queue(1).unwrap(), 0, vec![2; 512]).unwrap();
    read(&mut *checked.open_queue(1).unwrap(), 0, 512).unwrap();
    assert_eq!(checked.mismatch(), None);
}

/// Has all open descriptors of a file write to one that is full.
fn fill_up(path: &Path) {
    let full = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let path = path.canonicalize().unwrap();
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let entry = entry.unwrap();
        if std::fs::read_link(entry.path()).is_ok_and(|found| found == path) {
            let number: i32 = entry.file_name().to_str().unwrap().parse().unwrap();
            // SAFETY: no pointers; the descriptor stays open.
            assert!(unsafe { libc::dup2(full.as_raw_fd(), number) } >= 0);
        }
    }
}

/// It is not the disk's data that is lost.
#[test]
fn a_bitmaps_file_that_cannot_be_written_is_no_failure_of_the_disk() {
    let directory = directory();
    let path = directory.path().join("bitmap");
    let base = Turned::new(Handover::Held(stamp(1)));
    let disk = DirtyDisk::open(base.clone(), "a", BLOCK, persist(&path).as_ref()).unwrap();
    let bitmap = disk.bitmap("a").unwrap();
    bitmap.clear().unwrap();
    fill_up(&path);
    base.round(&disk, stamp(1), stamp(1));
    assert!(
        !is_incomplete(&bitmap),
        "it knows, though its file does not"
    );
    base.round(&disk, stamp(1), stamp(2));
    assert!(is_incomplete(&bitmap));
    drop((disk, bitmap));
    for state in [Handover::Never, Handover::Held(stamp(1))] {
        let next = directory.path().join("next");
        std::fs::copy(&path, &next).unwrap();
        let base = Turned::new(state);
        let disk = DirtyDisk::open(base.clone(), "a", BLOCK, persist(&next).as_ref()).unwrap();
        assert!(is_incomplete(&disk.bitmap("a").unwrap()), "{state:?}");
    }
}

/// Whatever a listener holds or waits for, it may ask whether the disk is in use: as attaching a bitmap does.
#[test]
fn listeners_may_ask_for_the_state_of_the_lock() {
    let directory = directory();
    let path = image(directory.path(), SIZE);
    let disk = Arc::new(RawDisk::open(&RawOptions::new(&path).lock(Lock::Handover)).unwrap());
    let (told, heard) = channel();
    let asked = Arc::downgrade(&disk);
    disk.listen(Arc::new(move |_| {
        told.send(asked.upgrade().unwrap().handover()).unwrap();
    }));
    let grow = |bytes: usize| {
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(bytes as u64).unwrap();
    };
    let next = || heard.recv_timeout(Duration::from_secs(20)).unwrap();
    grow(2 * SIZE);
    let worker = disk.clone();
    let done = std::thread::spawn(move || {
        worker.activate().unwrap();
        worker.resize(3 * SIZE as u64).unwrap();
        worker
    });
    assert_eq!(next(), Handover::Released(None));
    assert!(matches!(next(), Handover::Held(_)));
    let worker = done.join().unwrap();
    grow(4 * SIZE);
    worker.refresh().unwrap();
    assert!(matches!(next(), Handover::Held(_)));
    worker.deactivate().unwrap();
}

#[test]
fn checksums_are_forgotten_when_others_may_have_written() {
    for (left, found, is_same) in ROUNDS {
        let base = Turned::new(Handover::Held(None));
        let disk = VerifyDisk::new(base.clone());
        let mut queue = disk.open_queue(1).unwrap();
        write(&mut *queue, 0, vec![1; 512]).unwrap();
        drop(queue);
        let mut below = base.open_queue(1).unwrap();
        write(&mut *below, 0, vec![2; 512]).unwrap();
        base.round(&disk, left.and_then(stamp), found.and_then(stamp));
        let mut queue = disk.open_queue(1).unwrap();
        assert_eq!(read(&mut *queue, 0, 512).is_err(), is_same);
        assert_eq!(disk.mismatch(), is_same.then_some(Mismatch { sector: 0 }));
    }
}

/// An image that goes from one server to another and back, and one that nobody else had.
#[test]
fn an_image_that_was_away_is_looked_at_anew() {
    // On other file systems nothing is proven.
    let memory = tempfile::tempdir_in("/dev/shm").ok();
    let memory = memory.as_ref().map(tempfile::TempDir::path);
    if let Some(directory) = memory.filter(|path| !keeps_times(path)) {
        an_image_is_looked_at_anew(directory, false);
    }
    if let Some(directory) = TimedDirectory::new() {
        an_image_is_looked_at_anew(directory.path(), true);
    }
}

fn an_image_is_looked_at_anew(directory: &Path, is_stamped: bool) {
    let path = image(directory, SIZE);
    let options = RawOptions::new(&path).lock(Lock::Handover);
    let text = format!(
        "raw:{},lock=handover,verify,dirty=a/granularity:4K",
        path.display()
    );
    let spec: StackArg = text.parse().unwrap();
    let stack = spec.open_live(false, &Groups::default()).unwrap();
    let disk = stack.disk();
    let bitmap = stack.dirty("a").unwrap().bitmap("a").unwrap();
    let change = |disk: &dyn Disk, byte: u8| {
        disk.activate().unwrap();
        let mut queue = disk.open_queue(1).unwrap();
        write(&mut *queue, BLOCK, vec![byte; 512]).unwrap();
        drop(queue);
    };
    change(&*disk, 1);
    back_up(&bitmap);
    disk.deactivate().unwrap();
    // Though its last change was a moment ago.
    assert_eq!(disk.handover() != Handover::Released(None), is_stamped);
    disk.activate().unwrap();
    assert_eq!(is_incomplete(&bitmap), !is_stamped);
    back_up(&bitmap);
    disk.deactivate().unwrap();

    let other = RawDisk::open(&options).unwrap();
    change(&other, 2);
    other.deactivate().unwrap();
    disk.activate().unwrap();
    assert!(is_incomplete(&bitmap));
    let mut queue = disk.open_queue(1).unwrap();
    assert_eq!(read(&mut *queue, BLOCK, 512).unwrap(), [2; 512]);
    assert_eq!(stack.verify().unwrap().mismatch(), None);
}

/// Who changes an image at once after it was let go of changes its time, too, which kernels before 6.13 take from a clock
/// that stands still for milliseconds. (`lab/vduse-abuse` has such a kernel.)
#[test]
fn a_change_right_after_a_hand_over_is_seen() {
    let Some(directory) = TimedDirectory::new() else {
        return;
    };
    let path = image(directory.path(), SIZE);
    let disk = RawDisk::open(&RawOptions::new(&path).lock(Lock::Handover)).unwrap();
    let other = File::options().write(true).open(&path).unwrap();
    for round in 0..20 {
        disk.activate().unwrap();
        let mut queue = disk.open_queue(1).unwrap();
        write(&mut *queue, BLOCK, vec![round; 512]).unwrap();
        drop(queue);
        disk.deactivate().unwrap();
        other.write_all_at(&[round; 512], 2 * BLOCK).unwrap();
        let Handover::Released(Some(left)) = disk.handover() else {
            panic!("{:?}", disk.handover());
        };
        disk.activate().unwrap();
        assert_ne!(disk.handover(), Handover::Held(Some(left)), "round {round}");
        disk.deactivate().unwrap();
    }
}
