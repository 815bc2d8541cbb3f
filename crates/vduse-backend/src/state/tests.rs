// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use virtio_blk_core::device::{Device, DeviceOptions};
use virtio_blk_core::disk::Caps;
use virtio_blk_core::testdisk::TestDisk;

use super::*;

fn shape() -> Shape {
    Shape {
        name: "disk0".to_owned(),
        boot: "c7b3f7a2-6d9c-4b0e-9f0a-0123456789ab".to_owned(),
        abi: abi(),
    }
}

fn abi() -> GuestAbi {
    let disk = TestDisk::new(Caps::basic(64));
    let options = DeviceOptions {
        queues: 2,
        queue_size: 8,
        ..DeviceOptions::default()
    };
    Device::new(Arc::new(disk), options).unwrap().guest_abi()
}

fn open(dir: &tempfile::TempDir) -> State {
    let found = State::open(dir.path(), "disk0", &shape().boot);
    found.unwrap().unwrap()
}

#[test]
fn a_successor_finds_what_was_noted() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::create(dir.path(), shape()).unwrap();
    assert_eq!((state.status(), state.place(0)), (0, Place::Fresh));
    state.set_status(0xf, 0x1_0000_0000);
    state.set_place(0, Place::Stopped(0xfffe));
    let (mut log, _) = state.log(1, 8).unwrap().queue(0, 8, 0).unwrap();
    state.set_place(1, Place::Started { gap: 3 });
    log.taken(5);
    state.set_capacity(128);
    state.set_suspended();
    state.set_held(true);
    state.set_held(false);
    drop(state);
    let again = open(&dir);
    assert_eq!(again.shape(), &shape());
    assert_eq!((again.status(), again.accepted()), (0xf, 0x1_0000_0000));
    assert!(again.is_suspended() && !again.is_held());
    let mut told = abi();
    told.capacity = 128;
    assert_eq!(again.abi(), told);
    assert_eq!(again.place(0), Place::Stopped(0xfffe));
    assert_eq!(again.place(1), Place::Started { gap: 3 });
    assert_eq!(again.log(1, 8).unwrap().queue(0, 8, 0).unwrap().1, [5]);
    assert!(again.log(2, 8).is_err() && again.log(1, 16).unwrap().queue(0, 16, 0).is_err());
    State::remove(dir.path(), "disk0");
    let found = State::open(dir.path(), "disk0", &shape().boot).unwrap();
    assert!(found.is_none());
}

#[test]
fn a_reset_makes_a_new_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::create(dir.path(), shape()).unwrap();
    state.set_status(0xf, 1);
    let (mut late, _) = state.log(0, 8).unwrap().queue(0, 8, 0).unwrap();
    state.set_place(0, Place::Started { gap: 0 });
    state.set_suspended();
    late.taken(3);
    state.reset();
    // From a request that hangs.
    late.taken(4);
    drop(state);
    let again = open(&dir);
    assert_eq!((again.status(), again.accepted()), (0, 0));
    assert!(!again.is_suspended() && !again.is_held());
    assert_eq!((again.generation(), again.place(0)), (1, Place::Fresh));
    assert_eq!(
        again.log(0, 8).unwrap().queue(0, 8, 7).unwrap().1,
        Vec::<u16>::new()
    );
}

#[test]
fn other_boots_names_and_rubbish_do_not_count() {
    let dir = tempfile::tempdir().unwrap();
    drop(State::create(dir.path(), shape()).unwrap());
    assert!(State::open(dir.path(), "disk0", "other").unwrap().is_none());
    assert!(State::open(dir.path(), "disk1", "other").unwrap().is_none());
    let path = State::path(dir.path(), "disk0");
    let boot = shape().boot;
    let whole = fs::read(&path).unwrap();
    fs::rename(&path, State::path(dir.path(), "disk1")).unwrap();
    assert!(State::open(dir.path(), "disk1", &boot).unwrap().is_none());
    fs::write(&path, b"rubbish").unwrap();
    assert!(State::open(dir.path(), "disk0", &boot).unwrap().is_none());
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    assert!(State::open(dir.path(), "disk0", &boot).unwrap().is_none());
    let mut wild = whole;
    wild[TABLE + 3] = 1;
    fs::write(&path, &wild).unwrap();
    assert!(State::open(dir.path(), "disk0", &boot).unwrap().is_none());
}

/// Byte by byte, and never a panic.
#[test]
fn damaged_and_newer_records_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(State::create(dir.path(), shape()).unwrap());
    let path = State::path(dir.path(), "disk0");
    let whole = fs::read(&path).unwrap();
    let opened = |at: usize, byte: u8| {
        let mut changed = whole.clone();
        changed[at] = byte;
        fs::write(&path, &changed).unwrap();
        State::open(dir.path(), "disk0", &shape().boot)
    };
    for at in (0..MAGIC.len()).chain(ABI..ABI + abi().to_bytes().len()) {
        let found = opened(at, !whole[at]);
        assert!(!matches!(found, Ok(Some(_))), "byte {at}");
    }
    assert!(opened(MAGIC.len(), LAYOUT - 1).unwrap().is_none());
    let newer = opened(MAGIC.len(), LAYOUT + 1).err().unwrap();
    assert!(newer.to_string().contains("newer"), "{newer}");
}

#[test]
fn every_place_comes_through() {
    let places = [0, 1, u16::MAX].map(|index| {
        [
            Place::Fresh,
            Place::Started { gap: index },
            Place::Stopped(index),
        ]
    });
    for place in places.concat() {
        assert_eq!(Place::from_word(place.to_word()), Some(place));
    }
    for word in [1, 3 << 16, STOPPED | STARTED, 1 << 32, u64::MAX] {
        assert_eq!(Place::from_word(word), None, "{word:#x}");
    }
}
