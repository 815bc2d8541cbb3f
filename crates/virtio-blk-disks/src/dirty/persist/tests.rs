// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;

use virtio_blk_core::disk::{
    Caps, Completion, ContentStamp, Disk, IoBuf, IoQueue, Op, OpKind, Submit, Token, Wait,
};

use super::*;
use crate::MemoryDisk;
use crate::dirty::open::{self, beside};
use crate::dirty::{DirtyDisk, format};

const BLOCK: u64 = 4096;
/// Four regions, and a part of one.
const SIZE: u64 = (64 << 20) + BLOCK;
const REGION: u64 = 16 << 20;
const BOOT: format::Boot = Some([1; 16]);

/// A directory with a bitmap's file.
struct Rig {
    dir: tempfile::TempDir,
    sync: bool,
}

impl Rig {
    fn new(sync: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir, sync }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("a.bitmap")
    }

    fn open_at(
        &self,
        path: &Path,
        size: u64,
        boot: format::Boot,
    ) -> Result<(Arc<DirtyBitmap>, Arc<Persist>), BitmapError> {
        let options = PersistOptions {
            path: path.to_owned(),
            sync: self.sync,
        };
        open::open(&options, &named("a", size, BLOCK, boot))
    }

    fn open(&self) -> (Arc<DirtyBitmap>, Arc<Persist>) {
        self.open_at(&self.path(), SIZE, BOOT).unwrap()
    }

    /// A complete and clean one.
    fn clean(&self) -> (Arc<DirtyBitmap>, Arc<Persist>) {
        let opened = self.open();
        opened.0.clear().unwrap();
        opened
    }

    /// What a process finds that comes after this one was killed at this moment, in that boot.
    fn killed(&self, boot: format::Boot) -> Arc<DirtyBitmap> {
        let copy = self.dir.path().join("copy");
        fs::copy(self.path(), &copy).unwrap();
        self.open_at(&copy, SIZE, boot).unwrap().0
    }
}

fn named(name: &str, size: u64, granularity: u64, boot: format::Boot) -> open::New<'_> {
    open::New {
        name,
        size,
        granularity,
        boot,
        hands_over: false,
    }
}

fn change(file: &Persist, offset: u64) {
    file.begin((offset, BLOCK)).unwrap();
    file.bitmap.mark(offset, BLOCK);
    file.end((offset, BLOCK));
}

fn ranges(bitmap: &DirtyBitmap) -> Vec<(u64, u64)> {
    let changes = bitmap.changes();
    assert_eq!(changes.incomplete, None);
    changes.ranges
}

#[test]
fn it_begins_incomplete_and_goes_on_where_it_was_closed() {
    let rig = Rig::new(false);
    let (bitmap, file) = rig.open();
    assert_eq!(bitmap.changes().incomplete, Some("its file is new"));
    change(&file, 0);
    drop((bitmap, file));
    let (bitmap, file) = rig.open();
    assert!(bitmap.is_incomplete().is_some());
    let take = bitmap.take();
    change(&file, BLOCK);
    let generation = bitmap.commit(take.token).unwrap();
    change(&file, 7 * BLOCK);
    let wanted = [(BLOCK, BLOCK), (7 * BLOCK, BLOCK)];
    assert_eq!(ranges(&bitmap), wanted);
    drop((bitmap, file));
    let (bitmap, _file) = rig.open();
    assert_eq!(ranges(&bitmap), wanted);
    assert_eq!(bitmap.changes().generation, generation);
    assert!(!beside(&rig.path()).exists());
}

#[test]
fn a_kill_at_each_step_loses_nothing() {
    for sync in [false, true] {
        let rig = Rig::new(sync);
        let (bitmap, file) = rig.clean();
        assert_eq!(ranges(&rig.killed(BOOT)), []);
        // Begun: it may be on the disk.
        file.begin((BLOCK, 2 * BLOCK)).unwrap();
        assert_eq!(ranges(&rig.killed(BOOT)), [(BLOCK, 2 * BLOCK)]);
        assert_eq!(ranges(&bitmap), []);
        bitmap.mark(BLOCK, 2 * BLOCK);
        file.end((BLOCK, 2 * BLOCK));
        change(&file, REGION);
        let all = [(BLOCK, 2 * BLOCK), (REGION, BLOCK)];
        assert_eq!(ranges(&rig.killed(BOOT)), all);
        // Taken: the one who has it may be gone.
        let take = bitmap.take();
        assert_eq!(ranges(&rig.killed(BOOT)), all);
        // One more in flight in the first region: its old marks stay, too.
        file.begin((0, BLOCK)).unwrap();
        bitmap.commit(take.token).unwrap();
        assert_eq!(ranges(&bitmap), []);
        assert_eq!(ranges(&rig.killed(BOOT)), [(0, 3 * BLOCK)]);
        bitmap.mark(0, BLOCK);
        file.end((0, BLOCK));
        let take = bitmap.take();
        bitmap.commit(take.token).unwrap();
        assert_eq!(ranges(&rig.killed(BOOT)), []);
        // What was removed is written again.
        change(&file, REGION);
        assert_eq!(ranges(&rig.killed(BOOT)), [(REGION, BLOCK)]);
        // Given back.
        let take = bitmap.take();
        bitmap.abort(take.token).unwrap();
        assert_eq!(ranges(&rig.killed(BOOT)), [(REGION, BLOCK)]);
        // Loaded.
        let other = DirtyBitmap::new(SIZE, BLOCK).unwrap();
        other.mark(2 * REGION, 1);
        bitmap.load(&other.save("b")).unwrap();
        let both = [(REGION, BLOCK), (2 * REGION, BLOCK)];
        assert_eq!(ranges(&rig.killed(BOOT)), both);
        // Doubted.
        bitmap.doubt("test").unwrap();
        assert!(rig.killed(BOOT).is_incomplete().is_some());
    }
}

#[test]
fn after_a_power_cut_whole_regions_count_or_everything_does() {
    let plain = Rig::new(false);
    let (_bitmap, file) = plain.clean();
    change(&file, 0);
    for boot in [Some([2; 16]), None] {
        let why = plain.killed(boot).is_incomplete();
        assert!(why.is_some_and(|why| why.contains("sync:on")));
    }
    let rig = Rig::new(true);
    let (bitmap, file) = rig.clean();
    change(&file, 0);
    file.begin((2 * REGION - BLOCK, 2 * BLOCK)).unwrap();
    for boot in [Some([2; 16]), None] {
        assert_eq!(ranges(&rig.killed(boot)), [(0, 3 * REGION)]);
    }
    file.end((2 * REGION - BLOCK, 2 * BLOCK));
    let take = bitmap.take();
    change(&file, SIZE - BLOCK);
    assert_eq!(
        ranges(&rig.killed(None)),
        [(0, 3 * REGION), (4 * REGION, BLOCK)]
    );
    bitmap.commit(take.token).unwrap();
    assert_eq!(ranges(&rig.killed(None)), [(4 * REGION, BLOCK)]);
    // Over a restart: what was marked is in its regions from the start.
    drop((bitmap, file));
    let (_bitmap, _file) = rig.open();
    assert_eq!(ranges(&rig.killed(None)), [(4 * REGION, BLOCK)]);
}

#[test]
fn what_the_disk_grew_by_counts_also_over_a_restart() {
    let rig = Rig::new(true);
    let (bitmap, file) = rig.open_at(&rig.path(), REGION, BOOT).unwrap();
    bitmap.clear().unwrap();
    bitmap.resize(2 * REGION);
    change(&file, REGION + BLOCK);
    let take = bitmap.take();
    assert_eq!(take.changes.ranges, [(REGION, REGION)]);
    bitmap.commit(take.token).unwrap();
    change(&file, 0);
    assert_eq!(ranges(&bitmap), [(0, BLOCK)]);
    // The file is that of the smaller disk.
    drop((bitmap, file));
    let (bitmap, file) = rig.open_at(&rig.path(), 3 * REGION, BOOT).unwrap();
    assert_eq!(ranges(&bitmap), [(0, BLOCK), (REGION, 2 * REGION)]);
    bitmap.clear().unwrap();
    change(&file, 2 * REGION);
    drop((bitmap, file));
    let (bitmap, _file) = rig.open_at(&rig.path(), 3 * REGION, BOOT).unwrap();
    assert_eq!(ranges(&bitmap), [(2 * REGION, BLOCK)]);
}

fn refusal(rig: &Rig, size: u64) -> String {
    match rig.open_at(&rig.path(), size, BOOT) {
        Ok(_) => panic!("it is taken"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn another_file_is_refused_and_left_alone() {
    let rig = Rig::new(false);
    fs::write(rig.path(), "precious").unwrap();
    assert!(refusal(&rig, SIZE).contains("no saved dirty bitmap"));
    assert_eq!(fs::read(rig.path()).unwrap(), b"precious");
    fs::write(rig.path(), "").unwrap();
    let (bitmap, file) = rig.clean();
    assert!(refusal(&rig, SIZE).contains("in use"));
    change(&file, 0);
    drop((bitmap, file));
    let whole = fs::read(rig.path()).unwrap();
    assert!(refusal(&rig, SIZE - 512).contains("smaller"));
    let options = |name: &str, granularity| {
        let options = PersistOptions {
            path: rig.path(),
            sync: false,
        };
        match open::open(&options, &named(name, SIZE, granularity, BOOT)) {
            Ok(_) => panic!("it is taken"),
            Err(error) => error.to_string(),
        }
    };
    assert!(options("b", BLOCK).contains("`a`"));
    assert!(options("a", 512).contains("4096"));
    let mut newer = whole.clone();
    newer[8] += 1;
    fs::write(rig.path(), &newer).unwrap();
    assert!(refusal(&rig, SIZE).contains("version"));
    fs::remove_file(rig.path()).unwrap();
    fs::create_dir(rig.path()).unwrap();
    assert!(refusal(&rig, SIZE).contains("a.bitmap"));
    let nowhere = rig.dir.path().join("none/a.bitmap");
    assert!(rig.open_at(&nowhere, SIZE, BOOT).is_err());
    assert_eq!(fs::read_dir(rig.dir.path()).unwrap().count(), 1);
}

#[test]
fn a_damaged_file_knows_nothing() {
    let rig = Rig::new(false);
    let (bitmap, file) = rig.clean();
    change(&file, BLOCK);
    drop((bitmap, file));
    let whole = fs::read(rig.path()).unwrap();
    let mut cases: Vec<Vec<u8>> = (12..whole.len())
        .step_by(61)
        .map(|at| {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            bytes
        })
        .collect();
    cases.push(whole[..whole.len() - 8].to_vec());
    cases.push(whole[..whole.len() - 1].to_vec());
    cases.push([&whole[..], &[0; 8]].concat());
    for (case, bytes) in cases.iter().enumerate() {
        fs::write(rig.path(), bytes).unwrap();
        let (bitmap, _file) = rig.open();
        let why = bitmap.is_incomplete();
        assert!(
            why.is_some_and(|why| why.contains("damaged")),
            "{case}: {why:?}"
        );
    }
}

/// Looks at the bitmap's file when it is written to.
struct Witness {
    file: PathBuf,
    /// What the file says at each write.
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Disk for Witness {
    fn caps(&self) -> Caps {
        Caps::basic(SIZE / 512)
    }

    fn open_queue(&self, _: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        Ok(Box::new(Self {
            file: self.file.clone(),
            seen: self.seen.clone(),
        }))
    }
}

impl IoQueue for Witness {
    fn submit(&mut self, op: Op) -> Submit {
        *self.seen.lock().unwrap() = fs::read(&self.file).unwrap();
        Submit::Done(op.complete(Ok(())))
    }

    fn reap(&mut self, _: &mut Vec<Completion>) -> Result<usize, DiskError> {
        Ok(0)
    }

    fn wait(&self) -> Wait<'_> {
        Wait::Inline
    }
}

#[test]
fn a_change_is_in_the_file_before_it_is_given_to_the_disk() {
    let rig = Rig::new(true);
    let seen: Arc<Mutex<Vec<u8>>> = Arc::default();
    let witness = Witness {
        file: rig.path(),
        seen: seen.clone(),
    };
    let options = PersistOptions {
        path: rig.path(),
        sync: true,
    };
    let disk = DirtyDisk::open(Arc::new(witness), "a", BLOCK, Some(&options)).unwrap();
    disk.bitmap("a").unwrap().clear().unwrap();
    let mut queue = disk.open_queue(4).unwrap();
    let offset = REGION + 3 * BLOCK;
    let op = Op {
        token: Token(1),
        kind: OpKind::Write { offset, fua: false },
        buf: IoBuf::from_vec(vec![0; 512]),
    };
    assert!(matches!(queue.submit(op), Submit::Done(_)));
    let seen = format::decode(&seen.lock().unwrap()).unwrap();
    assert_eq!(seen.regions[0], 1 << 1);
    let word = (REGION / BLOCK / BITS) as usize;
    assert_eq!(seen.marks.words[word], 1 << 3);
    assert!(seen.in_use.is_some_and(|used| used.synced));
}

#[test]
fn a_file_that_cant_be_written_fails_the_change() {
    let rig = Rig::new(false);
    let (bitmap, file) = rig.clean();
    let full = File::options().write(true).open("/dev/full").unwrap();
    // SAFETY: no pointers; the descriptor stays open, and is one of a file that is always full from now on.
    assert!(unsafe { libc::dup2(full.as_raw_fd(), file.file.as_raw_fd()) } >= 0);
    // As the host says it: a policy for errors may keep it.
    let error = file.begin((0, BLOCK)).unwrap_err();
    assert!(error.is_no_space(), "{error}");
    assert!(file.begin((0, BLOCK)).is_err(), "each time");
    assert!(bitmap.clear().is_err());
    assert!(bitmap.doubt("test").is_err());
    let calm = |region: &Region| region.in_flight.load(Ordering::SeqCst) == 0;
    assert!(file.regions.iter().all(calm));
}

#[test]
fn after_a_disk_was_smaller_the_file_of_a_killed_process_knows_nothing() {
    let rig = Rig::new(false);
    let (bitmap, file) = rig.clean();
    change(&file, 0);
    bitmap.resize(REGION);
    assert!(rig.killed(BOOT).is_incomplete().is_some());
    bitmap.resize(SIZE);
    assert!(rig.killed(BOOT).is_incomplete().is_some());
    // One that continues knows, and tells in the end.
    let wanted = [(0, BLOCK), (REGION, SIZE - REGION)];
    assert_eq!(ranges(&bitmap), wanted);
    drop((bitmap, file));
    let (bitmap, file) = rig.open();
    assert_eq!(ranges(&bitmap), wanted);
    // If it can't be told, the disk is not changed.
    let kept = file.file.try_clone().unwrap();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let replace = |with: &File| {
        // SAFETY: no pointers; the descriptor stays open.
        assert!(unsafe { libc::dup2(with.as_raw_fd(), file.file.as_raw_fd()) } >= 0);
    };
    replace(&full);
    bitmap.resize(REGION);
    for _ in 0..2 {
        assert!(file.begin((0, BLOCK)).unwrap_err().is_no_space());
    }
    replace(&kept);
    change(&file, 0);
    assert!(rig.killed(BOOT).is_incomplete().is_some());
}

/// After a power cut, a disk that others have written to may have the time of change that it had when it was left.
#[test]
fn a_stamp_proves_something_in_one_boot_of_the_host() {
    let stamp = ContentStamp([1, 2, 3, 4]);
    for is_closed in [false, true] {
        for (boot, proves) in [(BOOT, true), (Some([2; 16]), false), (None, false)] {
            let rig = Rig::new(true);
            let (bitmap, file) = rig.clean();
            bitmap.look_away().unwrap();
            bitmap.note_left(stamp).unwrap();
            let left = if is_closed {
                drop((bitmap, file));
                None
            } else {
                Some((bitmap, file))
            };
            let next = rig.killed(boot);
            next.look_again(Some(stamp)).unwrap();
            let is_complete = next.is_incomplete().is_none();
            assert_eq!(is_complete, proves, "{is_closed} {boot:?}");
            drop(left);
        }
    }
}

/// A look at the bitmap that is written late must not undo what was written meanwhile.
#[test]
fn an_older_header_does_not_replace_a_newer_one() {
    let rig = Rig::new(false);
    let (bitmap, file) = rig.clean();
    for round in 0..40 {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        file.settle().unwrap();
                    }
                });
            }
            bitmap.doubt("test").unwrap();
            bitmap.clear().unwrap();
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(rig.killed(BOOT).is_incomplete(), None, "{round}");
    }
}

/// Queues that write, takes that are committed or not, and looks at what a kill would leave: each write whose content
/// is not in the last committed copy is marked.
#[test]
fn racing_writes_and_commits_lose_nothing() {
    const BLOCKS: u64 = 512;
    let rig = Rig::new(false);
    let memory = Arc::new(MemoryDisk::new(BLOCKS * BLOCK).unwrap());
    let options = PersistOptions {
        path: rig.path(),
        sync: false,
    };
    let disk =
        DirtyDisk::open(memory.clone() as Arc<dyn Disk>, "a", BLOCK, Some(&options)).unwrap();
    let bitmap = disk.bitmap("a").unwrap();
    bitmap.clear().unwrap();
    let mut copy = vec![0_u8; (BLOCKS * BLOCK) as usize];
    let read = |offset: u64, into: &mut [u8]| {
        let mut queue = memory.open_queue(1).unwrap();
        let buf = IoBuf::zeroed(into.len());
        queue
            .execute(&OpKind::Read { offset }, &buf, None)
            .done()
            .unwrap()
            .unwrap();
        buf.copy_out(0, into);
    };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for number in 0..2_u64 {
            let (mut queue, stop) = (disk.open_queue(4).unwrap(), &stop);
            scope.spawn(move || {
                let mut value = number;
                while !stop.load(Ordering::Relaxed) {
                    value = value
                        .wrapping_mul(6364136223846793005)
                        .wrapping_add(number * 2 + 1);
                    let block = (value >> 33) % (BLOCKS / 2) * 2 + number;
                    let buf = IoBuf::from_vec(vec![(value >> 20) as u8; BLOCK as usize]);
                    let kind = OpKind::Write {
                        offset: block * BLOCK,
                        fua: false,
                    };
                    queue.execute(&kind, &buf, None).done().unwrap().unwrap();
                }
            });
        }
        for round in 0..200 {
            let take = bitmap.take();
            for &(offset, len) in &take.changes.ranges {
                read(offset, &mut copy[offset as usize..(offset + len) as usize]);
            }
            if round % 3 == 0 {
                bitmap.abort(take.token).unwrap();
            } else {
                bitmap.commit(take.token).unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    // A process that is killed now: the copy, with what the file says, is the disk.
    let kept = rig.dir.path().join("copy");
    fs::copy(rig.path(), &kept).unwrap();
    let options = PersistOptions {
        path: kept,
        sync: false,
    };
    let boot = open::boot();
    let (left, _file) = open::open(&options, &named("a", BLOCKS * BLOCK, BLOCK, boot)).unwrap();
    for (offset, len) in ranges(&left) {
        read(offset, &mut copy[offset as usize..(offset + len) as usize]);
    }
    let mut now = vec![0; copy.len()];
    read(0, &mut now);
    assert!(now == copy);
}
