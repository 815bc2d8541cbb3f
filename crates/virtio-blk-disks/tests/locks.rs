// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Locks beside QEMU, and locks that are handed over.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "common/qemu.rs"]
mod qemu;

use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};

use common::{directory, image, read, run, write};
use virtio_blk_core::disk::{Disk, DiskError, DiskEvent, Handover, IoBuf, OpKind};
use virtio_blk_disks::inject::{Call, Injector, Plan};
use virtio_blk_disks::raw::{Holder, OpenError};
use virtio_blk_disks::{DiskArg, Lock, RawDisk, RawOptions};

const MIB: usize = 1 << 20;

/// QEMU with an image open, until it is dropped.
struct Qemu {
    child: Child,
    input: Option<ChildStdin>,
}

impl Qemu {
    /// Opens it by `qemu-io` with these arguments before the name.
    fn open(args: &[&str], path: &Path) -> Self {
        let mut child = Command::new("qemu-io")
            .args(args)
            .args(["-f", "raw"])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut prompt = [0; 8];
        let output = child.stdout.as_mut().unwrap();
        output.read_exact(&mut prompt).unwrap();
        assert_eq!(&prompt, b"qemu-io>");
        let input = child.stdin.take();
        Self { child, input }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        drop(self.input.take());
        self.child.wait().unwrap();
    }
}

/// What `qemu-io` says when it tries to open an image.
fn refused(args: &[&str], path: &Path) -> bool {
    let output = Command::new("qemu-io")
        .args(args)
        .args(["-f", "raw", "-c", "read 0 512"])
        .arg(path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.is_empty() || said.contains("lock"), "{said}");
    !output.status.success()
}

fn options(path: &Path) -> [RawOptions; 2] {
    [RawOptions::new(path), RawOptions::new(path).read_only(true)]
}

#[test]
fn beside_a_writer_of_ours_qemu_reads_if_it_says_so_and_does_not_write() {
    let directory = directory();
    let path = image(directory.path(), MIB);
    let name = path.to_str().unwrap();
    let copy = directory.path().join("copy.img");
    let disk = RawDisk::open(&RawOptions::new(&path)).unwrap();
    qemu::ok(&["info", "-U", "-f", "raw", name]);
    let to = copy.to_str().unwrap();
    qemu::ok(&["convert", "-U", "-f", "raw", "-O", "raw", name, to]);
    qemu::ok(&["compare", "-U", "-f", "raw", "-F", "raw", name, to]);
    let convert = ["convert", "-f", "raw", "-O", "raw", name, to];
    assert!(!qemu::run(&convert).status.success());
    assert!(refused(&[], &path));
    assert!(!refused(&["-r", "-U"], &path));
    drop(disk);
    qemu::ok(&convert);
}

#[test]
fn beside_a_reader_of_ours_qemu_reads_and_does_not_write() {
    let directory = directory();
    let path = image(directory.path(), MIB);
    let disk = RawDisk::open(&RawOptions::new(&path).read_only(true)).unwrap();
    qemu::ok(&["info", "-f", "raw", path.to_str().unwrap()]);
    assert!(!refused(&["-r"], &path));
    assert!(refused(&[], &path));
    drop(disk);
}

#[test]
fn beside_a_writer_of_qemu_we_do_neither_and_it_is_named() {
    let directory = directory();
    let path = image(directory.path(), MIB);
    let qemu = Qemu::open(&[], &path);
    for options in options(&path) {
        match RawDisk::open(&options) {
            Err(OpenError::Locked { holder, .. }) => match holder {
                Holder::Process(number, name) => {
                    assert_eq!((number, name.as_str()), (qemu.child.id(), "qemu-io"));
                }
                Holder::Unknown => {}
                Holder::ThisProcess => panic!("it is not ours"),
            },
            other => panic!("{other:?}"),
        }
        RawDisk::open(&options.inspect(true)).unwrap();
    }
    drop(qemu);
    RawDisk::open(&RawOptions::new(&path)).unwrap();
}

/// `qemu-io -r` shares the permission to write, so it stands against nobody.
#[test]
fn beside_a_reader_of_qemu_that_allows_for_writers_we_do_both() {
    let directory = directory();
    let path = image(directory.path(), MIB);
    let qemu = Qemu::open(&["-r"], &path);
    for options in options(&path) {
        RawDisk::open(&options).unwrap();
    }
    drop(qemu);
}

/// What QEMU holds for a guest: it writes, and lets nobody else write or resize.
#[test]
fn bytes_of_a_guest_of_qemu_keep_us_away_and_ours_such_a_guest() {
    let directory = directory();
    let path = image(directory.path(), MIB);
    let file = std::fs::File::options().read(true).write(true).open(&path);
    let file = file.unwrap();
    let lock = |command, kind, byte| {
        // SAFETY: `flock` is plain data.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        lock.l_type = kind as libc::c_short;
        lock.l_start = byte;
        lock.l_len = 1;
        // SAFETY: the descriptor is open, the pointer valid.
        let result = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) };
        assert_eq!(result, 0);
        i32::from(lock.l_type) != libc::F_UNLCK
    };
    // Not shared: writing. In use: reading, writing.
    for (byte, writer, reader) in [(201, false, true), (101, false, false), (200, false, false)] {
        lock(libc::F_OFD_SETLK, libc::F_RDLCK, byte);
        let [may_write, may_read] = options(&path).map(|options| RawDisk::open(&options).is_ok());
        assert_eq!((may_write, may_read), (writer, reader), "{byte}");
        lock(libc::F_OFD_SETLK, libc::F_UNLCK, byte);
    }
    for (options, held) in options(&path)
        .into_iter()
        .zip([[100, 101, 103, 201, 203].as_slice(), &[100, 201, 203]])
    {
        let disk = RawDisk::open(&options).unwrap();
        for byte in (100..105).chain(200..205) {
            let found = lock(libc::F_OFD_GETLK, libc::F_WRLCK, byte);
            assert_eq!(found, held.contains(&byte), "{byte}");
        }
        drop(disk);
    }
}

#[test]
fn the_option_is_read_and_written() {
    for (text, lock) in [
        ("raw:x", Lock::On),
        ("raw:x,lock=off", Lock::Off),
        ("raw:x,lock=handover", Lock::Handover),
    ] {
        let spec: DiskArg = text.parse().unwrap();
        assert_eq!(spec, DiskArg::new(RawOptions::new("x").lock(lock)));
        assert_eq!(spec.to_string(), text);
    }
    let error = "raw:x,lock=yes".parse::<DiskArg>().unwrap_err().to_string();
    assert!(error.contains("on, off or handover"), "{error}");
}

#[test]
fn an_image_is_handed_over_with_what_was_written_and_its_size() {
    let directory = directory();
    let path = image(directory.path(), MIB);
    let options = RawOptions::new(&path).lock(Lock::Handover);
    let (source, destination) = (
        RawDisk::open(&options).unwrap(),
        RawDisk::open(&options).unwrap(),
    );
    let events = Arc::new(Mutex::new(Vec::new()));
    let log = events.clone();
    destination.listen(Arc::new(move |event| log.lock().unwrap().push(event)));
    // Neither has it yet.
    RawDisk::open(&RawOptions::new(&path)).unwrap();
    let unused = source.open_queue(1).err().unwrap().to_string();
    assert!(unused.contains("handover"), "{unused}");

    source.activate().unwrap();
    source.activate().unwrap();
    let mut queue = source.open_queue(4).unwrap();
    write(&mut *queue, 0, vec![7; 4096]).unwrap();
    source.resize(2 * MIB as u64).unwrap();
    assert!(matches!(
        RawDisk::open(&RawOptions::new(&path)),
        Err(OpenError::Locked { .. })
    ));
    drop(queue);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| destination.activate());
        source.deactivate().unwrap();
        waiting.join().unwrap().unwrap();
    });
    assert_eq!(
        *events.lock().unwrap(),
        [DiskEvent::Resized { capacity: 4096 }]
    );
    let mut queue = destination.open_queue(4).unwrap();
    assert_eq!(read(&mut *queue, 0, 4096).unwrap(), [7; 4096]);
    run(&mut *queue, OpKind::Flush, IoBuf::new())
        .result
        .unwrap();
    drop(queue);
    // Back again, and with nothing to release.
    source.deactivate().unwrap();
    destination.deactivate().unwrap();
    source.activate().unwrap();
}

#[test]
fn who_waits_for_a_handover_in_vain_says_so_and_can_try_again() {
    let directory = directory();
    let path = image(directory.path(), MIB);
    let owner = RawDisk::open(&RawOptions::new(&path)).unwrap();
    let disk = RawDisk::open(&RawOptions::new(&path).lock(Lock::Handover)).unwrap();
    let error = disk.activate().unwrap_err();
    assert!(matches!(error, DiskError::Config(_)));
    let message = error.to_string();
    for part in ["locked", "waited 5s", path.to_str().unwrap()] {
        assert!(message.contains(part), "{message}");
    }
    assert!(disk.open_queue(1).is_err());
    drop(owner);
    disk.activate().unwrap();
    // An image that changed in a way that can't be: nothing is held.
    disk.deactivate().unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(1000).unwrap();
    assert!(
        disk.activate()
            .unwrap_err()
            .to_string()
            .contains("truncate")
    );
    file.set_len(1024).unwrap();
    RawDisk::open(&RawOptions::new(&path)).unwrap();
}

#[test]
fn a_handover_that_could_not_make_all_stable_says_so_and_lets_go() {
    let directory = directory();
    let path = image(directory.path(), MIB);
    let injector = Injector::new();
    let options = RawOptions::new(&path).lock(Lock::Handover);
    let disk = RawDisk::open(&options.clone().inject(&injector)).unwrap();
    disk.activate().unwrap();
    let mut queue = disk.open_queue(4).unwrap();
    write(&mut *queue, 0, vec![7; 4096]).unwrap();
    drop(queue);
    injector.arm(Plan::new(1, &[Call::Sync], libc::EIO));
    let error = disk.deactivate().unwrap_err();
    assert_eq!(error.errno(), Some(libc::EIO));
    let next = RawDisk::open(&options).unwrap();
    next.activate().unwrap();
    next.deactivate().unwrap();
    // It stays lost for the one that lost it.
    disk.activate().unwrap();
    assert!(disk.flush_error().is_some());
    let changed = |path: &Path| {
        let about = path.metadata().unwrap();
        (about.ctime(), about.ctime_nsec())
    };
    // Until a change now has another time than the last one of the image.
    let clock = directory.path().join("clock");
    while {
        std::fs::write(&clock, "").unwrap();
        changed(&clock) <= changed(&path)
    } {}
    disk.deactivate().unwrap_err();
    // What was read before it was lost may be other data now.
    assert_eq!(disk.handover(), Handover::Released(None));
    // Readers have nothing to make stable.
    let reader = RawDisk::open(&options.read_only(true).inject(&injector)).unwrap();
    injector.arm(Plan::new(1, &[Call::Sync], libc::EIO).for_good());
    reader.activate().unwrap();
    reader.deactivate().unwrap();
}
