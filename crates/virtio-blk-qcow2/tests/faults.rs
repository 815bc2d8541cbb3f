// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What fails under a qcow2 image is told, and never forgotten; and a process that is killed at any write leaves a
//! sound image.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../virtio-blk-disks/tests/common/mod.rs"]
mod common;
mod files;
#[path = "../../virtio-blk-disks/tests/common/qemu.rs"]
mod qemu;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use common::{directory, read, run, wait, write};
use files::Setup;
use virtio_blk_core::disk::{
    Caps, Completion, Disk, DiskError, DiskEvent, IoBuf, IoQueue, Op, OpKind, Submit, Token, Wait,
};
use virtio_blk_disks::MemoryDisk;
use virtio_blk_disks::fault::{FaultDisk, FaultPlan, Kind, Rule};
use virtio_blk_qcow2::Qcow2Disk;

/// Bytes of the disk that an image lies on.
const HOST: usize = 1 << 20;
const KIB: u64 = 1 << 10;

fn memory(content: &[u8]) -> Arc<MemoryDisk> {
    let disk = Arc::new(MemoryDisk::new(content.len() as u64).unwrap());
    write(&mut *disk.open_queue(1).unwrap(), 0, content.to_vec()).unwrap();
    disk
}

fn flush(queue: &mut dyn IoQueue) -> Result<(), DiskError> {
    run(queue, OpKind::Flush, IoBuf::new()).result
}

/// An image's bytes, long enough for all that a test writes.
fn image(path: &Path, options: &str, size: u64) -> Vec<u8> {
    qemu::create(path, options, size as usize);
    let mut bytes = std::fs::read(path).unwrap();
    bytes.resize(HOST, 0);
    bytes
}

/// Has QEMU look at a state of the image. Lost clusters are allowed.
fn check(directory: &Path, state: &[u8]) -> Result<(), String> {
    let copy = directory.join("copy.qcow2");
    std::fs::write(&copy, state).unwrap();
    let output = qemu::run(&["check", "-f", "qcow2", copy.to_str().unwrap()]);
    match output.status.code() {
        Some(0 | 3) => Ok(()),
        _ => Err(String::from_utf8_lossy(&output.stdout).into_owned()),
    }
}

/// One call below fails, once: from then on nothing is acknowledged that the file does not have, and the image stays
/// readable.
fn freezes(what: &str, lost: bool, rule: impl Fn(u64) -> Rule) {
    let directory = directory();
    let path = directory.path().join("disk.qcow2");
    let bytes = image(&path, "cluster_size=4k", 8 << 20);
    let l1 = u64::from_be_bytes(bytes[40..48].try_into().unwrap());
    let below = memory(&bytes);
    let plan = FaultPlan::new(1).rule(rule(l1));
    let faulty = Arc::new(FaultDisk::<dyn Disk>::new(below.clone(), plan));
    faulty.arm(false);
    let options = Setup::new(&path);
    let disk = Setup::over(faulty.clone(), &options).unwrap();
    let events = Arc::new(AtomicU64::new(0));
    let count = events.clone();
    disk.listen(Arc::new(move |event| {
        assert!(matches!(event, DiskEvent::MediaError));
        count.fetch_add(1, Ordering::SeqCst);
    }));
    let (mut queue, mut other) = (disk.open_queue(4).unwrap(), disk.open_queue(4).unwrap());
    for queue in [&mut queue, &mut other] {
        write(&mut **queue, 0, vec![7; 8192]).unwrap();
        flush(&mut **queue).unwrap();
        // Both know the place now, and would write there directly.
        write(&mut **queue, 0, vec![7; 8192]).unwrap();
        flush(&mut **queue).unwrap();
    }
    assert!(disk.flush_error().is_none());
    faulty.arm(true);
    // A part of the disk that has no table yet.
    let first = write(&mut *queue, 4 << 20, vec![1; 4096]).and_then(|()| flush(&mut *queue));
    assert!(first.is_err(), "{what}");
    assert_eq!(faulty.errors(), 1, "{what}");
    for queue in [&mut queue, &mut other] {
        let zeroes = OpKind::WriteZeroes {
            offset: 0,
            len: 4096,
            unmap: false,
            fua: false,
        };
        let discard = OpKind::Discard {
            offset: 0,
            len: 4096,
        };
        for offset in [4 << 20, 1 << 20, 0] {
            let result = write(&mut **queue, offset, vec![2; 4096]);
            assert!(result.is_err(), "{what}: {offset}");
        }
        for kind in [OpKind::Flush, zeroes, discard] {
            let error = run(&mut **queue, kind, IoBuf::new()).result.unwrap_err();
            let is_lost = matches!(error, DiskError::FlushLost { errno: libc::EIO });
            assert_eq!(is_lost, lost, "{what}: {error}");
            assert!(lost || error.to_string().contains("frozen"), "{error}");
        }
        // What was known before, and what was never written.
        assert!(read(&mut **queue, 0, 8192).unwrap() == [7; 8192]);
        assert!(read(&mut **queue, 2 << 20, 4096).unwrap() == [0; 4096]);
    }
    assert!(disk.flush_error().is_some());
    assert_eq!(events.load(Ordering::SeqCst), 1);
    let before = read(&mut *below.open_queue(1).unwrap(), 0, HOST).unwrap();
    drop((queue, other, disk));
    // Not even the end writes.
    let after = read(&mut *below.open_queue(1).unwrap(), 0, HOST).unwrap();
    assert!(before == after, "{what}");
    check(directory.path(), &after).unwrap();
    let disk = Setup::over(below, &options).unwrap();
    let mut queue = disk.open_queue(4).unwrap();
    assert!(read(&mut *queue, 0, 8192).unwrap() == [7; 8192]);
}

#[test]
fn a_failed_flush_ends_all_changes() {
    let eio = || Rule::errno(libc::EIO).times(1);
    freezes("a barrier", true, |_| eio().kind(Kind::Flush));
    freezes("a flush that was done", true, |_| {
        eio().kind(Kind::Flush).after_effect()
    });
}

/// A flush's error is not used up: not by another flush, nor by a barrier, nor by another queue.
#[test]
fn a_failed_flush_fails_all_later_ones() {
    let directory = directory();
    let path = directory.path().join("disk.qcow2");
    let bytes = image(&path, "cluster_size=4k", 8 << 20);
    for skip in 0..4 {
        let plan = FaultPlan::new(1).rule(
            Rule::errno(libc::ENOSPC)
                .kind(Kind::Flush)
                .skip(skip)
                .times(1),
        );
        let faulty = Arc::new(FaultDisk::<dyn Disk>::new(memory(&bytes), plan));
        let disk = Setup::over(faulty.clone(), &Setup::new(&path)).unwrap();
        let (mut queue, mut other) = (disk.open_queue(4).unwrap(), disk.open_queue(4).unwrap());
        for turn in 0..8 {
            let written = write(&mut *queue, turn * 4096, vec![1; 4096]);
            // A barrier may fail beside the flush, before or after it.
            let before = disk.flush_error().is_some();
            let flushed = flush(if turn % 2 == 0 {
                &mut *queue
            } else {
                &mut *other
            });
            let failed = disk.flush_error().is_some();
            assert!(flushed.is_err() || !before, "{skip}: {turn}");
            assert!((flushed.is_ok() && written.is_ok()) || failed);
            if let Err(error) = flushed {
                let errno = libc::ENOSPC;
                assert!(matches!(error, DiskError::FlushLost { errno: e } if e == errno));
            }
        }
        assert!(faulty.errors() > 0 && flush(&mut *queue).is_err(), "{skip}");
    }
}

/// What fails in a guest's own data is told and nothing else: the mapping of a new cluster is taken back.
#[test]
fn an_error_in_data_is_the_requests_own() {
    let directory = directory();
    let path = directory.path().join("disk.qcow2");
    let base = directory.path().join("base.img");
    std::fs::write(&base, vec![9; 64 << 10]).unwrap();
    let options = "cluster_size=4k,backing_file=base.img,backing_fmt=raw";
    let bytes = image(&path, options, 64 * KIB);
    let used = std::fs::metadata(&path).unwrap().len();
    let below = memory(&bytes);
    // All new clusters lie behind what is in the file, and the first of them is for a table.
    let data = used + 4096..HOST as u64;
    let rule = Rule::errno(libc::ENOSPC).kind(Kind::Write).bytes(data);
    let plan = FaultPlan::new(1).rule(rule);
    let faulty = Arc::new(FaultDisk::<dyn Disk>::new(below.clone(), plan));
    faulty.arm(false);
    let options = Setup::new(&path).backing(true);
    let disk = Setup::over(faulty.clone(), &options).unwrap();
    let mut queue = disk.open_queue(4).unwrap();
    write(&mut *queue, 0, vec![1; 4096]).unwrap();
    for round in 0..3 {
        faulty.arm(true);
        // A part of a cluster, whose rest is copied up, and a whole one.
        for (offset, len) in [(8192, 512), (16384, 4096)] {
            let error = write(&mut *queue, offset, vec![2; len]).unwrap_err();
            assert!(error.is_no_space(), "{round}: {error}");
        }
        flush(&mut *queue).unwrap();
        assert!(read(&mut *queue, 8192, 12288).unwrap() == [9; 12288]);
    }
    faulty.arm(false);
    write(&mut *queue, 8192, vec![2; 512]).unwrap();
    write(&mut *queue, 16384, vec![2; 4096]).unwrap();
    flush(&mut *queue).unwrap();
    drop((queue, disk));
    let left = read(&mut *below.open_queue(1).unwrap(), 0, HOST).unwrap();
    let copy = directory.path().join("copy.qcow2");
    std::fs::write(&copy, &left).unwrap();
    qemu::check(&copy);
    let mut model = vec![9; 64 << 10];
    model[..4096].fill(1);
    model[8192..8704].fill(2);
    model[16384..20480].fill(2);
    qemu::compare(&copy, &model);
}

/// A bitmap's promise is taken back, stable, before any data that breaks it.
#[test]
fn bitmaps_are_given_up_before_the_first_data() {
    let directory = directory();
    let path = directory.path().join("disk.qcow2");
    qemu::create(&path, "cluster_size=4k", 64 << 10);
    let disk = Setup::open(&Setup::new(&path)).unwrap();
    write(&mut *disk.open_queue(1).unwrap(), 0, vec![5; 8192]).unwrap();
    drop(disk);
    qemu::ok(&["bitmap", "--add", path.to_str().unwrap(), "b0"]);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.resize(HOST, 0);
    assert_eq!(bytes[88..96], [0, 0, 0, 0, 0, 0, 0, 1]);
    let below = memory(&bytes);
    let plan = FaultPlan::new(1).rule(Rule::errno(libc::EIO).kind(Kind::Flush).times(1));
    let faulty = Arc::new(FaultDisk::<dyn Disk>::new(below.clone(), plan));
    let disk = Setup::over(faulty, &Setup::new(&path)).unwrap();
    let mut queue = disk.open_queue(4).unwrap();
    read(&mut *queue, 0, 8192).unwrap();
    assert!(write(&mut *queue, 0, vec![6; 8192]).is_err());
    assert!(write(&mut *queue, 4096, vec![6; 512]).is_err());
    drop((queue, disk));
    let left = read(&mut *below.open_queue(1).unwrap(), 0, HOST).unwrap();
    // No more than the bitmap's mark: somebody uses it.
    let differs = |at: &usize| left[*at] != bytes[*at];
    let changed: Vec<_> = (0..HOST).filter(differs).collect();
    assert_eq!(changed.len(), 1, "{changed:x?}");
    assert_eq!(left[changed[0]], bytes[changed[0]] | 1);
}

type Writes = Arc<Mutex<Vec<(u64, Vec<u8>)>>>;

/// A disk that remembers every write.
struct Recorder {
    inner: Arc<MemoryDisk>,
    writes: Writes,
}

struct RecorderQueue {
    inner: Box<dyn IoQueue>,
    writes: Writes,
}

impl Disk for Recorder {
    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        Ok(Box::new(RecorderQueue {
            inner: self.inner.open_queue(depth)?,
            writes: self.writes.clone(),
        }))
    }
}

impl IoQueue for RecorderQueue {
    fn submit(&mut self, op: Op) -> Submit {
        let mut writes = self.writes.lock().unwrap();
        match op.kind {
            OpKind::Write { offset, .. } => writes.push((offset, op.buf.to_vec())),
            OpKind::WriteZeroes { offset, len, .. } => {
                writes.push((offset, vec![0; len as usize]));
            }
            _ => {}
        }
        drop(writes);
        self.inner.submit(op)
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        self.inner.reap(done)
    }

    fn wait(&self) -> Wait<'_> {
        self.inner.wait()
    }
}

/// An image on a recorder.
struct Killed {
    directory: tempfile::TempDir,
    path: PathBuf,
    backing: bool,
    below: Arc<MemoryDisk>,
    writes: Writes,
    disk: Qcow2Disk,
}

impl Killed {
    fn new(options: &str, size: u64, base: Option<u8>) -> Self {
        let directory = directory();
        let path = directory.path().join("disk.qcow2");
        let mut options = options.to_owned();
        if let Some(value) = base {
            let base = directory.path().join("base.img");
            std::fs::write(base, vec![value; size as usize]).unwrap();
            options += ",backing_file=base.img,backing_fmt=raw";
        }
        let below = memory(&image(&path, &options, size));
        let writes = Writes::default();
        let recorder: Arc<dyn Disk> = Arc::new(Recorder {
            inner: below.clone(),
            writes: writes.clone(),
        });
        let setup = Setup::new(&path).backing(base.is_some());
        let disk = Setup::over(recorder, &setup).unwrap();
        Self {
            directory,
            path,
            backing: base.is_some(),
            below,
            writes,
            disk,
        }
    }

    /// What the file holds now; recording starts anew.
    fn state(&self) -> Vec<u8> {
        self.writes.lock().unwrap().clear();
        read(&mut *self.below.open_queue(1).unwrap(), 0, HOST).unwrap()
    }

    /// Goes through the states after each write since, from `state` on. QEMU looks at every `each`th, and `found` is
    /// called with the guest's disk of each of those.
    fn at_each_write(&self, mut state: Vec<u8>, each: usize, mut found: impl FnMut(Vec<u8>)) {
        let writes = self.writes.lock().unwrap().clone();
        assert!(!writes.is_empty());
        for (number, (offset, data)) in writes.iter().enumerate() {
            state[*offset as usize..][..data.len()].copy_from_slice(data);
            if number % each != 0 {
                continue;
            }
            let about = format!("write {number} of {} at {offset:#x}", writes.len());
            check(self.directory.path(), &state).unwrap_or_else(|e| panic!("{about}: {e}"));
            let options = Setup::new(&self.path).backing(self.backing);
            let disk = Setup::over(memory(&state), &options)
                .unwrap_or_else(|error| panic!("{about}: {error}"));
            let size = disk.caps().capacity_bytes() as usize;
            found(read(&mut *disk.open_queue(1).unwrap(), 0, size).unwrap());
        }
    }
}

/// A range over two L2 tables: what the first gives up must not become the second while the file's first still refers
/// to it.
#[test]
fn a_kill_in_the_middle_of_an_erase_over_two_tables() {
    let (offset, len) = (0, 64 * KIB);
    for kind in [
        OpKind::Discard { offset, len },
        OpKind::WriteZeroes {
            offset,
            len,
            unmap: true,
            fua: false,
        },
    ] {
        let image = Killed::new("cluster_size=512", 256 * KIB, Some(7));
        let mut queue = image.disk.open_queue(4).unwrap();
        write(&mut *queue, 0, vec![0xaa; 32 << 10]).unwrap();
        flush(&mut *queue).unwrap();
        let state = image.state();
        run(&mut *queue, kind, IoBuf::new()).result.unwrap();
        image.at_each_write(state, 1, |found| {
            // Old or zero.
            let (first, second) = found[..64 << 10].split_at(32 << 10);
            assert!(first.iter().all(|byte| [0, 0xaa].contains(byte)));
            assert!(second.iter().all(|byte| [0, 7].contains(byte)));
            assert!(found[64 << 10..].iter().all(|byte| *byte == 7));
        });
    }
}

/// Discards and allocations in flight at once, each allocation in a part of the disk that has no table yet.
#[test]
fn a_kill_among_discards_and_allocations() {
    const TURNS: u64 = 3;
    let mut states = 0;
    for turn in 0..TURNS {
        let image = Killed::new("cluster_size=512", 4 << 20, None);
        let mut queue = image.disk.open_queue(64).unwrap();
        write(&mut *queue, 0, vec![0xaa; 32 << 10]).unwrap();
        flush(&mut *queue).unwrap();
        let state = image.state();
        let mut ops = Vec::new();
        for index in 0..8 {
            ops.push((
                OpKind::Discard {
                    offset: index * 4096,
                    len: 4096,
                },
                IoBuf::new(),
            ));
            let offset = (index + 2) * 32 * KIB;
            let data = vec![index as u8 + 1; 512];
            ops.push((OpKind::Write { offset, fua: false }, IoBuf::from_vec(data)));
        }
        ops.rotate_left(turn as usize);
        let mut flight = 0;
        for (token, (kind, buf)) in (0..).map(Token).zip(ops) {
            match queue.submit(Op { token, kind, buf }) {
                Submit::Queued => flight += 1,
                Submit::Done(completion) => completion.result.unwrap(),
                Submit::Full(_) => panic!("full"),
            }
        }
        queue.flush_batch().unwrap();
        let mut done = Vec::new();
        while done.len() < flight {
            wait(&*queue);
            queue.reap(&mut done).unwrap();
        }
        done.into_iter().for_each(|c| c.result.unwrap());
        image.at_each_write(state, 1, |found| {
            states += 1;
            for (at, sector) in found.chunks(512).enumerate() {
                let at = at as u64 * 512;
                let legal = match at / (32 * KIB) {
                    0 => [0, 0xaa],
                    part @ 2..10 if at.is_multiple_of(32 * KIB) => [0, part as u8 - 1],
                    _ => [0, 0],
                };
                assert!(sector.iter().all(|byte| *byte == sector[0]));
                assert!(legal.contains(&sector[0]), "{at:#x}: {}", sector[0]);
            }
        });
    }
    assert!(states > 30, "{states}");
}

/// Compressed clusters that are replaced: what they lay in must not be used again before the file's tables say so.
#[test]
fn a_kill_among_overwrites_of_compressed_clusters() {
    const SIZE: usize = 256 << 10;
    let directory = directory();
    let (raw, path) = (
        directory.path().join("content.raw"),
        directory.path().join("disk.qcow2"),
    );
    let content: Vec<u8> = (0..SIZE).map(|at| (at / 4096 + at % 7) as u8).collect();
    std::fs::write(&raw, &content).unwrap();
    let (from, to) = (raw.to_str().unwrap(), path.to_str().unwrap());
    qemu::ok(&[
        "convert",
        "-q",
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
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.resize(HOST, 0);
    let (below, writes) = (memory(&bytes), Writes::default());
    let recorder: Arc<dyn Disk> = Arc::new(Recorder {
        inner: below.clone(),
        writes: writes.clone(),
    });
    let options = Setup::new(&path);
    let image = Killed {
        disk: Setup::over(recorder, &options).unwrap(),
        directory,
        path,
        backing: false,
        below,
        writes,
    };
    let state = image.state();
    let mut queue = image.disk.open_queue(64).unwrap();
    let mut flight = 0;
    for cluster in 0..(SIZE / 4096) as u64 {
        let offset = cluster * 4096;
        let kind = if cluster % 3 == 0 {
            OpKind::Discard { offset, len: 4096 }
        } else {
            OpKind::Write { offset, fua: false }
        };
        let len = if kind.is_write() && cluster % 3 != 0 {
            4096
        } else {
            0
        };
        let buf = IoBuf::from_vec(vec![0xee; len]);
        let token = Token(cluster);
        flight += usize::from(matches!(
            queue.submit(Op { token, kind, buf }),
            Submit::Queued
        ));
    }
    queue.flush_batch().unwrap();
    let mut done = Vec::new();
    while done.len() < flight {
        wait(&*queue);
        queue.reap(&mut done).unwrap();
    }
    done.into_iter().for_each(|c| c.result.unwrap());
    image.at_each_write(state, 2, |found| {
        for (cluster, data) in found.chunks(4096).enumerate() {
            let new = if cluster % 3 == 0 { 0 } else { 0xee };
            let old = &content[cluster * 4096..][..4096];
            let is_legal = data == old || data.iter().all(|byte| *byte == new);
            assert!(is_legal, "cluster {cluster}: {:x?}", &data[..8]);
        }
    });
}

#[test]
fn a_kill_in_the_middle_of_growth() {
    let image = Killed::new("cluster_size=512", 64 * KIB, None);
    let mut queue = image.disk.open_queue(4).unwrap();
    let mut model = vec![0; 64 << 10];
    model[..20 << 10].fill(0xaa);
    write(&mut *queue, 0, vec![0xaa; 20 << 10]).unwrap();
    flush(&mut *queue).unwrap();
    let state = image.state();
    // Twice: the second L1 table may lie where the first was.
    for size in [8 << 20, 32 << 20] {
        image.disk.resize(size).unwrap();
        write(&mut *queue, size - 512, vec![0xbb; 512]).unwrap();
    }
    let mut sizes = Vec::new();
    image.at_each_write(state, 1, |found| {
        sizes.push(found.len());
        assert!(found[..64 << 10] == model);
        let added = found[64 << 10..].chunks(512);
        let (at_end, rest): (Vec<_>, Vec<_>) = added.enumerate().partition(|(number, _)| {
            let end = (number + 1) * 512 + (64 << 10);
            [8 << 20, 32 << 20].contains(&end)
        });
        assert!(rest.iter().all(|(_, sector)| *sector == [0; 512]));
        assert!(
            at_end
                .iter()
                .all(|(_, sector)| [0, 0xbb].contains(&sector[0]))
        );
    });
    assert!(sizes.is_sorted());
    sizes.dedup();
    assert_eq!(sizes, [64 << 10, 8 << 20, 32 << 20]);
}

/// What could not be made stable when a disk is handed over is told, and the disk is not used again.
#[test]
fn a_failure_at_a_hand_over_is_told_and_stays() {
    let directory = directory();
    let path = directory.path().join("disk.qcow2");
    let bytes = image(&path, "cluster_size=4k", 64 * KIB);
    let plan = FaultPlan::new(1).rule(Rule::errno(libc::EIO).kind(Kind::Flush).times(1));
    let faulty = Arc::new(FaultDisk::<dyn Disk>::new(memory(&bytes), plan));
    faulty.arm(false);
    let disk = Setup::over(faulty.clone(), &Setup::new(&path)).unwrap();
    write(&mut *disk.open_queue(1).unwrap(), 0, vec![1; 4096]).unwrap();
    faulty.arm(true);
    let lost = |error: Option<DiskError>| {
        let error = error.unwrap();
        let is_lost = matches!(error, DiskError::FlushLost { errno: libc::EIO });
        assert!(is_lost, "{error}");
    };
    lost(disk.deactivate().err());
    lost(disk.flush_error());
    lost(disk.activate().err());
    assert!(disk.open_queue(1).is_err());
    disk.deactivate().unwrap();
}
