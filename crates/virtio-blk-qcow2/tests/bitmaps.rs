// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Persistent dirty bitmaps of an image: they stay true while it is written, QEMU reads what we have stored and the other
//! way round, and after a failure nobody takes them for true.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../virtio-blk-disks/tests/common/mod.rs"]
mod common;
mod files;
#[path = "../../virtio-blk-disks/tests/common/qemu.rs"]
mod qemu;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use common::{directory, read, run, write};
use fastrand::Rng;
use files::{RawFiles, Setup, open, path};
use virtio_blk_core::disk::{Disk, DiskError, IoBuf, IoQueue, OpKind};
use virtio_blk_disks::dirty::{BitmapError, GRANULARITY};
use virtio_blk_disks::fault::{FaultDisk, FaultPlan, Kind, Rule};
use virtio_blk_disks::power_cut::{Content, PowerCutDisk};
use virtio_blk_disks::stack::{Groups, LayerArg};
use virtio_blk_disks::{DirtyDisk, MemoryDisk, Stack};
use virtio_blk_qcow2::{Access, Files, Qcow2Disk, Repair, check};

const SIZE: usize = 4 << 20;
const KIB: u64 = 1 << 10;

/// An image with the bitmaps `fine` of 4 KiB, `coarse` of 64 KiB and `off`, in which nothing is marked.
fn image(image: &Path, setup: &str, size: usize) {
    qemu::create(image, setup, size);
    let name = image.to_str().unwrap();
    qemu::ok(&["bitmap", "--add", "-g", "4k", name, "fine"]);
    qemu::ok(&["bitmap", "--add", "-g", "64k", name, "coarse"]);
    qemu::ok(&["bitmap", "--add", "--disable", "-g", "4k", name, "off"]);
}

/// The flags of a bitmap as QEMU shows them; `None`: it shows none of that name.
fn flags(image: &Path, bitmap: &str) -> Option<Vec<String>> {
    let output = qemu::run(&["info", "--output=json", image.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let (_, bitmaps) = text.split_once("\"bitmaps\": [")?;
    let name = format!("\"name\": \"{bitmap}\"");
    let (before, _) = bitmaps.split_once(&name)?;
    let (_, flags) = before.rsplit_once("\"flags\": [")?;
    let (flags, _) = flags.split_once(']')?;
    let words = flags
        .split('"')
        .filter(|word| !word.trim_matches([',', ' ', '\n']).is_empty());
    Some(words.map(str::to_owned).collect())
}

/// What QEMU finds marked in a bitmap.
fn marked(image: &Path, bitmap: &str) -> Vec<(u64, u64)> {
    let socket = image.with_extension("sock");
    let mut server = Command::new("qemu-nbd")
        .args(["-r", "-f", "qcow2", "-B", bitmap, "-k"])
        .args([&socket, image])
        .spawn()
        .unwrap_or_else(|error| panic!("can't run qemu-nbd ({error}): apt-get install qemu-utils"));
    while !socket.exists() {
        assert!(server.try_wait().unwrap().is_none(), "qemu-nbd has ended");
        std::thread::yield_now();
    }
    let options = format!(
        "driver=nbd,server.type=unix,server.path={},x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}",
        socket.display()
    );
    let output = qemu::run(&["map", "--output=json", "--image-opts", &options]);
    assert!(output.status.success(), "{output:?}");
    // It ends with its only client.
    server.wait().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for object in text.split('}').filter(|object| object.contains("start")) {
        let word = |name: &str| {
            let (_, rest) = object.split_once(&format!("\"{name}\": ")).unwrap();
            rest.split([',', ' ']).next().unwrap().to_owned()
        };
        let (start, len) = (
            word("start").parse().unwrap(),
            word("length").parse().unwrap(),
        );
        if word("data") == "false" {
            match ranges.last_mut() {
                Some((first, sum)) if *first + *sum == start => *sum += len,
                _ => ranges.push((start, len)),
            }
        }
    }
    ranges
}

/// The blocks of `granularity` that have a changed byte, as ranges.
fn blocks(changed: &[bool], granularity: usize) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for (index, block) in changed.chunks(granularity).enumerate() {
        let (start, len) = ((index * granularity) as u64, block.len() as u64);
        if block.iter().any(|changed| *changed) {
            match ranges.last_mut() {
                Some((first, sum)) if *first + *sum == start => *sum += len,
                _ => ranges.push((start, len)),
            }
        }
    }
    ranges
}

fn own(disk: &Qcow2Disk, bitmap: &str) -> Vec<(u64, u64)> {
    disk.bitmap(bitmap).unwrap().unwrap().ranges()
}

/// A change of at most so many sectors, on a queue and in the model.
fn change(queue: &mut dyn IoQueue, rng: &mut Rng, changed: &mut [bool], most: u64) {
    let size = changed.len() as u64;
    let len = 512 * (1 + rng.u64(..most));
    let offset = rng.u64(..(size - len) / 512) * 512;
    changed[offset as usize..][..len as usize].fill(true);
    let kind = match rng.u64(..8) {
        0 => OpKind::Discard { offset, len },
        1 => OpKind::WriteZeroes {
            offset,
            len,
            unmap: true,
            fua: rng.u64(..2) == 0,
        },
        other => OpKind::Write {
            offset,
            fua: other == 2,
        },
    };
    let buf = match kind {
        OpKind::Write { .. } => IoBuf::from_vec(vec![7; len as usize]),
        _ => IoBuf::new(),
    };
    run(queue, kind, buf).result.unwrap();
}

#[test]
fn changes_are_marked_and_qemu_reads_them() {
    let directory = directory();
    let image_path = path(&directory, "disk.qcow2");
    for (seed, setup) in (1..).zip([
        "cluster_size=64k",
        "cluster_size=512",
        "cluster_size=4k,refcount_bits=1",
        "cluster_size=64k,extended_l2=on",
    ]) {
        image(&image_path, setup, SIZE);
        let mut changed = vec![false; SIZE];
        let mut rng = Rng::with_seed(seed);
        for round in 0..3 {
            let disk = open(&image_path);
            assert_eq!(disk.persistent_bitmaps(), 0);
            let names: Vec<_> = (disk.bitmaps().unwrap().into_iter())
                .map(|info| (info.name, info.granularity, info.enabled, info.inconsistent))
                .collect();
            let expected = [("fine", 4, true), ("coarse", 64, true), ("off", 4, false)]
                .map(|(name, kib, enabled)| (name.to_owned(), kib * KIB, enabled, false));
            assert_eq!(names, expected);
            for _ in 0..12 {
                let mut queue = disk.open_queue(2).unwrap();
                // Stored each time that the last queue goes.
                for _ in 0..rng.u64(..4) {
                    change(&mut *queue, &mut rng, &mut changed, 40);
                }
            }
            assert_eq!(own(&disk, "fine"), blocks(&changed, 4096));
            drop(disk);
            qemu::check(&image_path);
            assert_eq!(flags(&image_path, "fine"), Some(vec!["auto".to_owned()]));
            assert_eq!(flags(&image_path, "off"), Some(vec![]));
            assert_eq!(
                marked(&image_path, "fine"),
                blocks(&changed, 4096),
                "{setup}"
            );
            assert_eq!(marked(&image_path, "coarse"), blocks(&changed, 65536));
            assert_eq!(marked(&image_path, "off"), []);
            // And QEMU's changes are read by us.
            let at = (round * 300 + 100) * 4096;
            let command = format!("write -P 3 {at} 4096");
            let mut qemu_io = Command::new("qemu-io");
            let output = qemu_io
                .args(["-f", "qcow2", "-c", &command])
                .arg(&image_path)
                .output();
            assert!(output.unwrap().status.success());
            changed[at..at + 4096].fill(true);
            let look = Setup::new(&image_path).read_only(true).open().unwrap();
            assert_eq!(own(&look, "fine"), blocks(&changed, 4096));
            assert_eq!(own(&look, "off"), []);
        }
        std::fs::remove_file(&image_path).unwrap();
    }
}

#[test]
fn marks_can_be_taken_away() {
    let directory = directory();
    let image_path = path(&directory, "disk.qcow2");
    image(&image_path, "cluster_size=64k", SIZE);
    let disk = open(&image_path);
    write(&mut *disk.open_queue(1).unwrap(), 0, vec![7; 64 << 10]).unwrap();
    drop(disk);
    // Nothing else is changed, and no queue is opened.
    let disk = open(&image_path);
    let bitmap = disk.bitmap("fine").unwrap().unwrap();
    assert_eq!((bitmap.name(), bitmap.granularity()), ("fine", 4096));
    bitmap.clear(0, 32 << 10);
    drop((disk, bitmap));
    assert_eq!(marked(&image_path, "fine"), [(32 << 10, 32 << 10)]);
    assert_eq!(flags(&image_path, "fine"), Some(vec!["auto".to_owned()]));
    qemu::check(&image_path);
    let found = open(&image_path).bitmap("nothing").unwrap();
    assert!(found.is_none());
}

#[test]
fn bitmaps_grow_with_the_image() {
    let directory = directory();
    let image_path = path(&directory, "disk.qcow2");
    for (cluster, with_queue) in [("64k", false), ("64k", true), ("512", false)] {
        image(&image_path, &format!("cluster_size={cluster}"), SIZE);
        let disk = open(&image_path);
        let queue = with_queue.then(|| disk.open_queue(1).unwrap());
        let size = 40 << 20;
        disk.resize(size).unwrap();
        let grown = [(SIZE as u64, size - SIZE as u64)];
        assert_eq!(own(&disk, "fine"), grown);
        drop((queue, disk));
        qemu::check(&image_path);
        // Also of those in which nothing is marked by writes.
        for bitmap in ["fine", "coarse", "off"] {
            assert_eq!(marked(&image_path, bitmap), grown, "{cluster}: {bitmap}");
        }
        std::fs::remove_file(&image_path).unwrap();
    }
}

#[test]
fn after_a_crash_they_are_out_of_date() {
    let directory = directory();
    let (image_path, copy) = (
        path(&directory, "disk.qcow2"),
        path(&directory, "copy.qcow2"),
    );
    image(&image_path, "cluster_size=4k", SIZE);
    let disk = open(&image_path);
    let mut queue = disk.open_queue(1).unwrap();
    read(&mut *queue, 0, 4096).unwrap();
    std::fs::copy(&image_path, &copy).unwrap();
    assert_eq!(
        flags(&copy, "fine"),
        Some(vec!["auto".to_owned()]),
        "nothing is changed"
    );
    write(&mut *queue, 0, vec![7; 4096]).unwrap();
    // What a killed process leaves.
    std::fs::copy(&image_path, &copy).unwrap();
    drop((queue, disk));
    assert_eq!(flags(&image_path, "fine"), Some(vec!["auto".to_owned()]));
    for bitmap in ["fine", "coarse", "off"] {
        let found = flags(&copy, bitmap).unwrap();
        assert!(found.contains(&"in-use".to_owned()), "{bitmap}: {found:?}");
    }
    qemu::check_after_crash(&copy);
    // They stay so, and nothing else is wrong.
    let disk = open(&copy);
    assert!(disk.bitmaps().unwrap().iter().all(|info| info.inconsistent));
    assert!(disk.bitmap("fine").unwrap().is_none());
    write(&mut *disk.open_queue(1).unwrap(), 8192, vec![7; 4096]).unwrap();
    disk.resize(2 * SIZE as u64).unwrap();
    drop(disk);
    qemu::check_after_crash(&copy);
    assert!(flags(&copy, "fine").unwrap().contains(&"in-use".to_owned()));
    let name = copy.to_str().unwrap();
    qemu::ok(&["bitmap", "--remove", name, "fine"]);
    let file = RawFiles::default().open(&copy, Access::Write).unwrap();
    let found = check(&file, &copy, Repair::Leaks, &mut |_, _| {}).unwrap();
    assert!(found.is_sound(), "{found:?}");
}

/// A kind of bitmap that nobody knows is not kept, and the image says so.
#[test]
fn what_can_not_be_kept_is_not_promised() {
    let directory = directory();
    let image_path = path(&directory, "disk.qcow2");
    image(&image_path, "cluster_size=64k", SIZE);
    let bytes = std::fs::read(&image_path).unwrap();
    let place = bytes
        .windows(4)
        .position(|word| word == [0x23, 0x85, 0x28, 0x75])
        .unwrap();
    let directory_at = u64::from_be_bytes(bytes[place + 24..place + 32].try_into().unwrap());
    let disk = {
        let mut bytes = bytes;
        bytes[directory_at as usize + 16] = 2;
        std::fs::write(&image_path, bytes).unwrap();
        open(&image_path)
    };
    assert_eq!(disk.persistent_bitmaps(), 3);
    assert!(disk.bitmaps().unwrap().is_empty());
    write(&mut *disk.open_queue(1).unwrap(), 0, vec![7; 4096]).unwrap();
    drop(disk);
    let bytes = std::fs::read(&image_path).unwrap();
    assert_eq!(bytes[95] & 1, 0, "the autoclear bit");
    qemu::check_after_crash(&image_path);
}

/// What is in a file, and room for more.
fn bytes(path: &Path) -> Vec<u8> {
    let mut bytes = std::fs::read(path).unwrap();
    bytes.resize(1 << 20, 0);
    bytes
}

fn memory(content: &[u8]) -> Arc<MemoryDisk> {
    let disk = Arc::new(MemoryDisk::new(content.len() as u64).unwrap());
    write(&mut *disk.open_queue(1).unwrap(), 0, content.to_vec()).unwrap();
    disk
}

fn content(disk: &dyn Disk) -> Vec<u8> {
    let len = disk.caps().capacity_bytes() as usize;
    read(&mut *disk.open_queue(1).unwrap(), 0, len).unwrap()
}

/// A bitmap of this image that is not out of date has all that differs from `before`.
fn vouches(left: &[u8], before: &[u8], setup: &Setup, about: &str) -> bool {
    let disk: Arc<dyn Disk> = memory(left);
    let sound = check(&disk, Path::new("left"), Repair::Nothing, &mut |_, _| ()).unwrap();
    assert_eq!(sound.corruptions, 0, "{about}: {:?}", sound.told);
    let disk = Setup::over(disk, setup).unwrap_or_else(|error| panic!("{about}: {error}"));
    assert_eq!(disk.bitmaps().unwrap().len(), 3, "{about}");
    let Some(bitmap) = disk.bitmap("fine").unwrap() else {
        return false;
    };
    let now = read(&mut *disk.open_queue(1).unwrap(), 0, before.len()).unwrap();
    let ranges = bitmap.ranges();
    for (index, (old, new)) in before.chunks(512).zip(now.chunks(512)).enumerate() {
        let at = (index * 512) as u64;
        let is_marked = ranges
            .iter()
            .any(|(first, len)| *first <= at && at < first + len);
        assert!(old == new || is_marked, "{about}: sector {index}");
    }
    true
}

const GUEST: usize = 256 << 10;

/// Opens, changes, closes, again and again.
fn sessions(below: Arc<dyn Disk>, setup: &Setup, rng: &mut Rng, most: u64, each: &mut dyn FnMut()) {
    for _ in 0..12 {
        let disk = Setup::over(below.clone(), setup).unwrap();
        let mut queue = disk.open_queue(2).unwrap();
        let mut changed = vec![false; GUEST];
        for _ in 0..rng.u64(..1 + most.min(5)) {
            change(&mut *queue, rng, &mut changed, most);
            each();
        }
        drop((queue, disk));
        each();
    }
}

#[test]
fn a_power_cut_leaves_no_bitmap_that_lies() {
    let directory = directory();
    let image_path = path(&directory, "disk.qcow2");
    let (mut vouched, mut states) = (0, 0);
    for (seed, (setup, most)) in (1..).zip([
        ("cluster_size=4k", 40),
        ("cluster_size=512", 40),
        // Nothing but the mark of what is in use needs a flush.
        ("cluster_size=4k,preallocation=metadata", 1),
    ]) {
        image(&image_path, setup, GUEST);
        let original = bytes(&image_path);
        std::fs::remove_file(&image_path).unwrap();
        let setup = Setup::new(&image_path);
        let below = Arc::new(PowerCutDisk::<dyn Disk>::new(memory(&original)));
        let mut rng = Rng::with_seed(seed);
        let mut moments = vec![below.now()];
        sessions(below.clone(), &setup, &mut rng, most, &mut || {
            moments.push(below.now())
        });
        let last = *moments.last().unwrap();
        let all: Vec<_> = (moments[0]..last).collect();
        for _ in 0..if files::long() { 1000 } else { 60 } {
            let moment = all[rng.u64(..all.len() as u64) as usize];
            let percent = [0, 50, 90, 100][rng.u64(..4) as usize];
            let mut left = original.clone();
            for (sector, choice) in below.cut(moment).sectors() {
                let count = choice.contents.len() + usize::from(choice.original);
                let index = match rng.u64(..100) < percent {
                    true => choice.contents.len() - 1,
                    false => rng.u64(..count as u64) as usize,
                };
                let end = (sector as usize + 1) * 512;
                left.resize(left.len().max(end), 0);
                let place = &mut left[end - 512..end];
                match choice.contents.get(index) {
                    Some(Content::Data(data)) => place.copy_from_slice(data),
                    Some(Content::Zero | Content::Any) => place.fill(0),
                    None => {}
                }
            }
            let about = format!("seed {seed}, event {moment}");
            vouched += u64::from(vouches(&left, &vec![0; GUEST], &setup, &about));
            states += 1;
        }
    }
    assert!(vouched > 0 && vouched < states, "{vouched} of {states}");
}

/// Each write and each flush of the file fails, one after the other.
#[test]
fn what_fails_leaves_no_bitmap_that_lies() {
    let directory = directory();
    let image_path = path(&directory, "disk.qcow2");
    image(&image_path, "cluster_size=4k", GUEST);
    let original = bytes(&image_path);
    let setup = Setup::new(&image_path);
    let (mut vouched, mut failed) = (0, 0);
    for kind in [Kind::Write, Kind::Flush] {
        for nth in 1_u64.. {
            let below = memory(&original);
            let plan = FaultPlan::new(1).rule(Rule::errno(5).kind(kind).skip(nth - 1).times(1));
            let faulty = Arc::new(FaultDisk::<dyn Disk>::new(below.clone(), plan));
            let disk = Setup::over(faulty.clone(), &setup).unwrap();
            let mut queue = disk.open_queue(2).unwrap();
            for at in [0, 9, 40] {
                let _: Result<(), DiskError> = write(&mut *queue, at * 4096, vec![7; 4096]);
            }
            drop((queue, disk));
            let about = format!("{kind:?} {nth}");
            let fits = vouches(&content(&*below), &vec![0; GUEST], &setup, &about);
            if faulty.errors() == 0 {
                assert!(fits, "{about}: all went well");
                break;
            }
            failed += 1;
            vouched += u64::from(fits);
        }
    }
    assert!(failed > 10 && vouched < failed, "{vouched} of {failed}");
}

/// What could not be stored is not stored later, when others may have the image.
#[test]
fn nothing_is_written_after_the_image_was_let_go_of() {
    let directory = directory();
    let image_path = path(&directory, "disk.qcow2");
    image(&image_path, "cluster_size=4k", GUEST);
    let below = memory(&bytes(&image_path));
    let plan = FaultPlan::new(1).rule(Rule::errno(28).kind(Kind::WriteZeroes));
    let faulty = Arc::new(FaultDisk::<dyn Disk>::new(below.clone(), plan));
    faulty.arm(false);
    let disk = Setup::over(faulty.clone(), &Setup::new(&image_path)).unwrap();
    let mut queue = disk.open_queue(1).unwrap();
    write(&mut *queue, 0, vec![7; 4096]).unwrap();
    // No cluster can be made ready for the bits.
    faulty.arm(true);
    drop(queue);
    let before = faulty.errors();
    disk.deactivate().unwrap();
    // Once more before the image was let go of, and not afterwards.
    assert_eq!(faulty.errors() - before, 1);
    faulty.arm(false);
    let left = content(&*below);
    drop(disk);
    assert!(content(&*below) == left, "others may have it");
    let found = Setup::over(memory(&left), &Setup::new(&image_path)).unwrap();
    assert!(
        found
            .bitmaps()
            .unwrap()
            .iter()
            .all(|info| info.inconsistent)
    );
}

/// The image with a layer on it that has the dirty bitmap of this name.
fn layered(setup: &Setup, name: &str, granularity: u64) -> Result<DirtyDisk, BitmapError> {
    let disk: Arc<dyn Disk> = Arc::new(setup.open().unwrap());
    DirtyDisk::open(disk, name, granularity, None)
}

fn changes(disk: &DirtyDisk, name: &str) -> Vec<(u64, u64)> {
    disk.bitmap(name).unwrap().changes().ranges
}

/// A layer's bitmap with the name of one of the image's is that one: what we leave QEMU finds, and the other way round.
#[test]
fn a_layer_continues_with_a_bitmap_of_the_image() {
    let directory = directory();
    let image_path = path(&directory, "disk.qcow2");
    image(&image_path, "cluster_size=64k", SIZE);
    let name = image_path.to_str().unwrap();
    let setup = Setup::new(&image_path);
    let mut rng = Rng::with_seed(11);
    let (mut changed, mut ever) = (vec![false; SIZE], vec![false; SIZE]);
    for round in 0..5 {
        let disk = layered(&setup, "fine", GRANULARITY).unwrap();
        let bitmap = disk.bitmap("fine").unwrap();
        assert_eq!((bitmap.granularity(), bitmap.is_incomplete()), (4096, None));
        assert_eq!(changes(&disk, "fine"), blocks(&changed, 4096), "{round}");
        let mut queue = disk.open_queue(2).unwrap();
        let mut work = |queue: &mut dyn IoQueue, changed: &mut [bool]| {
            for _ in 0..6 {
                change(queue, &mut rng, changed, 40);
            }
            for (ever, changed) in ever.iter_mut().zip(changed) {
                *ever |= *changed;
            }
        };
        work(&mut *queue, &mut changed);
        assert_eq!(changes(&disk, "fine"), blocks(&changed, 4096));
        let take = (round > 0).then(|| bitmap.take().token);
        if round % 2 == 1 {
            // A copy was made meanwhile; what changes now is for the next one.
            changed.fill(false);
        }
        work(&mut *queue, &mut changed);
        match round {
            1 => drop(bitmap.commit(take.unwrap()).unwrap()),
            2 => bitmap.abort(take.unwrap()).unwrap(),
            // It is given back, as nobody has committed it when the disk is opened again.
            _ => {}
        }
        drop(queue);
        if round == 3 {
            // After the last queue, and before the image is closed.
            bitmap.commit(take.unwrap()).unwrap();
        }
        assert_eq!(changes(&disk, "fine"), blocks(&changed, 4096), "{round}");
        drop((disk, bitmap));
        qemu::check(&image_path);
        assert_eq!(flags(&image_path, "fine"), Some(vec!["auto".to_owned()]));
        assert_eq!(
            marked(&image_path, "fine"),
            blocks(&changed, 4096),
            "{round}"
        );
        assert_eq!(marked(&image_path, "coarse"), blocks(&ever, 65536));
        // A reader shows what it has.
        let look = layered(&setup.clone().read_only(true), "fine", 4096).unwrap();
        assert_eq!(changes(&look, "fine"), blocks(&changed, 4096));
        drop(look);
        if round == 2 {
            qemu::ok(&["bitmap", "--clear", name, "fine"]);
            changed.fill(false);
        }
    }
}

/// Writes that end while marks are taken and forgotten are marked in the image's bitmap as in the layer's.
#[test]
fn what_is_forgotten_takes_no_later_mark_along() {
    let directory = directory();
    let image_path = path(&directory, "disk.qcow2");
    // It ends within a block.
    let size = SIZE + 512;
    image(&image_path, "cluster_size=64k", size);
    let inner = Arc::new(open(&image_path));
    let disk: DirtyDisk =
        DirtyDisk::open(inner.clone() as Arc<dyn Disk>, "fine", 4096, None).unwrap();
    let bitmap = disk.bitmap("fine").unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut queue = disk.open_queue(2).unwrap();
            let mut rng = Rng::with_seed(5);
            for _ in 0..2000 {
                write(&mut *queue, rng.u64(..64) * 4096, vec![1; 4096]).unwrap();
            }
            write(&mut *queue, SIZE as u64, vec![1; 512]).unwrap();
        });
        while !writer.is_finished() {
            bitmap.commit(bitmap.take().token).unwrap();
        }
        writer.join().unwrap();
    });
    let kept = own(&inner, "fine");
    let has = |at: u64| {
        kept.iter()
            .any(|(first, len)| (*first..first + len).contains(&at))
    };
    for (first, len) in changes(&disk, "fine") {
        assert!((first..first + len).step_by(4096).all(has), "{first}");
    }
    bitmap.commit(bitmap.take().token).unwrap();
    assert_eq!(own(&inner, "fine"), []);
}

/// One that was not closed knows nothing: everything counts as changed, and with that it can be used again.
#[test]
fn a_layer_begins_a_bitmap_anew_that_was_not_closed() {
    let directory = directory();
    let (image_path, copy) = (
        path(&directory, "disk.qcow2"),
        path(&directory, "copy.qcow2"),
    );
    image(&image_path, "cluster_size=4k", SIZE);
    let disk = open(&image_path);
    let mut queue = disk.open_queue(1).unwrap();
    write(&mut *queue, 0, vec![7; 4096]).unwrap();
    std::fs::copy(&image_path, &copy).unwrap();
    drop((queue, disk));
    let all = vec![(0, SIZE as u64)];
    for is_copied in [false, true] {
        let killed = path(&directory, "killed.qcow2");
        std::fs::copy(&copy, &killed).unwrap();
        let disk = layered(&Setup::new(&killed), "fine", GRANULARITY).unwrap();
        let bitmap = disk.bitmap("fine").unwrap();
        assert!(bitmap.is_incomplete().unwrap().contains("not closed"));
        assert_eq!(changes(&disk, "fine"), all);
        let mut queue = disk.open_queue(1).unwrap();
        let take = bitmap.take();
        assert_eq!(take.changes.ranges, all);
        write(&mut *queue, 8192, vec![7; 4096]).unwrap();
        if is_copied {
            bitmap.commit(take.token).unwrap();
        }
        drop((queue, disk, bitmap));
        let left = match is_copied {
            true => vec![(8192, 4096)],
            false => all.clone(),
        };
        assert_eq!(marked(&killed, "fine"), left);
        assert_eq!(flags(&killed, "fine"), Some(vec!["auto".to_owned()]));
        // The others stay as they are.
        assert!(
            flags(&killed, "coarse")
                .unwrap()
                .contains(&"in-use".to_owned())
        );
        qemu::check_after_crash(&killed);
        let disk = layered(&Setup::new(&killed), "fine", GRANULARITY).unwrap();
        assert_eq!(disk.bitmap("fine").unwrap().is_incomplete(), None);
        assert_eq!(changes(&disk, "fine"), left);
    }
}

#[test]
fn bitmaps_that_a_layer_can_not_continue_with_are_named() {
    let directory = directory();
    let image_path = path(&directory, "disk.qcow2");
    image(&image_path, "cluster_size=64k", SIZE);
    let setup = Setup::new(&image_path);
    let why = |name, granularity| {
        let error = layered(&setup, name, granularity).err().unwrap();
        error.to_string()
    };
    let text = why("fine", 8192);
    assert!(text.contains("blocks of 4096 bytes"), "{text}");
    let text = why("off", GRANULARITY);
    assert!(text.contains("qemu-img bitmap --enable"), "{text}");
    // None of the image's: it begins with the server, as on every disk.
    let disk = layered(&setup, "other", 8192).unwrap();
    let bitmap = disk.bitmap("other").unwrap();
    assert!(bitmap.is_incomplete().unwrap().contains("new"));
    drop((disk, bitmap));
    assert_eq!(flags(&image_path, "other"), None);
    // While a queue is open whose changes the layer does not see.
    let stack = |layers: &[LayerArg]| {
        let disk = Arc::new(setup.open().unwrap());
        Stack::live(disk, layers, Groups::default()).unwrap()
    };
    let is_known = |stack: &Stack| {
        let bitmap = stack.dirty("fine").unwrap().bitmap("fine").unwrap();
        bitmap.is_incomplete()
    };
    let layers: Vec<LayerArg> = ["meter", "dirty=fine"]
        .map(|layer| layer.parse().unwrap())
        .into();
    let served = stack(&layers[..1]);
    let queue = served.disk().open_queue(1).unwrap();
    served.change(&layers).unwrap();
    assert!(is_known(&served).unwrap().contains("in use"));
    drop((queue, served));
    let served = stack(&layers);
    assert_eq!(is_known(&served), None);
}
