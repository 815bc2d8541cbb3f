// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! qcow2 images against a vector of bytes, against `qemu-img`, and damaged ones. Without `qemu-img` on this
//! host only what needs no image of its making is tested.
#![cfg(feature = "qcow2")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Act, BLOCK, Rig, act, directory, read, write};
use proptest::prelude::*;
use virtio_blk_core::disk::{Disk, DiskError, IoBuf, Op, OpKind, Submit, Token};
use virtio_blk_disks::{Qcow2Disk, Qcow2Options};

const LEN: usize = 512 << 10;

/// Runs `qemu-img`. `None` where there is none.
fn qemu_img(args: &[&str]) -> Option<()> {
    let mut tries = 0..100;
    let (output, said) = loop {
        let output = match Command::new("qemu-img").args(args).output() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            other => other.unwrap(),
        };
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // Between fork and exec another test's child holds the lock of a disk that was closed.
        if !said.contains("Failed to lock") || tries.next().is_none() {
            break (output, said);
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    };
    let answered = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{args:?}: {said}{answered}");
    Some(())
}

fn create(path: &Path, options: &str, more: &[&str]) -> Option<()> {
    let path = path.to_str().unwrap();
    let len = LEN.to_string();
    let mut args = vec!["create", "-q", "-f", "qcow2", "-o", options];
    args.extend(more);
    args.extend([path, &len]);
    qemu_img(&args)
}

fn open(path: &Path) -> Qcow2Disk {
    Qcow2Disk::open(&Qcow2Options::new(path)).unwrap()
}

/// The image is without faults and holds `content`.
fn check(path: &Path, content: &[u8]) -> Option<()> {
    let raw = path.with_extension("raw");
    std::fs::write(&raw, content).unwrap();
    let (path, raw) = (path.to_str().unwrap(), raw.to_str().unwrap());
    qemu_img(&["check", "-q", path])?;
    qemu_img(&["compare", "-q", "-f", "qcow2", "-F", "raw", path, raw])
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let blocks = (LEN / BLOCK) as u64;
    let most = prop_oneof![6 => Just(16_u64), 1 => Just(700)];
    proptest::collection::vec(most.prop_flat_map(move |most| act(blocks, most)), 1..50)
}

fn model(options: &str, depth: u16, acts: Vec<Act>) -> Option<()> {
    let directory = directory();
    let path = directory.path().join("disk.qcow2");
    create(&path, options, &[])?;
    let disk = open(&path);
    let mut rig = Rig::new(&disk, depth, BLOCK);
    acts.into_iter().for_each(|act| rig.act(act));
    let content = rig.finish();
    drop(disk);
    check(&path, &content)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 25, ..ProptestConfig::default() })]

    #[test]
    fn small_clusters(acts in acts(), depth in prop_oneof![Just(1_u16), Just(32)]) {
        model("cluster_size=512", depth, acts);
    }

    #[test]
    fn usual_clusters(acts in acts(), depth in prop_oneof![Just(1_u16), Just(32)]) {
        model("cluster_size=64k", depth, acts);
    }

    #[test]
    fn version_two(acts in acts()) {
        model("compat=0.10,cluster_size=4k", 8, acts);
    }

    #[test]
    fn narrow_refcounts(acts in acts()) {
        model("cluster_size=4k,refcount_bits=1", 8, acts);
    }
}

#[test]
fn a_flush_makes_it_readable_for_others() {
    let directory = directory();
    let path = directory.path().join("disk.qcow2");
    let Some(()) = create(&path, "cluster_size=64k", &[]) else {
        return;
    };
    let disk = open(&path);
    let mut queue = disk.open_queue(4).unwrap();
    write(&mut *queue, 70_144, vec![7; 1024]).unwrap();
    common::run(&mut *queue, OpKind::Flush, IoBuf::new())
        .result
        .unwrap();
    // As a kill would leave it: nothing is closed.
    let copy = directory.path().join("copy.qcow2");
    std::fs::copy(&path, &copy).unwrap();
    let mut content = vec![0; LEN];
    content[70_144..71_168].fill(7);
    check(&copy, &content).unwrap();
}

#[test]
fn queues_share_clusters() {
    let directory = directory();
    let path = directory.path().join("disk.qcow2");
    let Some(()) = create(&path, "cluster_size=64k", &[]) else {
        return;
    };
    let disk = open(&path);
    std::thread::scope(|scope| {
        for number in 0..4_u64 {
            let mut queue = disk.open_queue(8).unwrap();
            scope.spawn(move || {
                for round in 0..60 {
                    let offset = (round * 4 + number) * 512;
                    let data = vec![(round * 4 + number) as u8; 512];
                    write(&mut *queue, offset, data.clone()).unwrap();
                    assert!(read(&mut *queue, offset, 512).unwrap() == data);
                }
            });
        }
    });
    drop(disk);
    let mut content = vec![0; LEN];
    for block in 0..240 {
        content[block * 512..(block + 1) * 512].fill(block as u8);
    }
    check(&path, &content).unwrap();
}

#[test]
fn backing_files_are_followed_when_allowed_by_name() {
    let directory = directory();
    let base = directory.path().join("base.raw");
    std::fs::write(&base, vec![5; LEN]).unwrap();
    let path = directory.path().join("disk.qcow2");
    let more = ["-b", base.to_str().unwrap(), "-F", "raw"];
    let Some(()) = create(&path, "cluster_size=64k", &more) else {
        return;
    };
    let refused = Qcow2Disk::open(&Qcow2Options::new(&path)).err().unwrap();
    assert!(refused.to_string().contains("backing=allow"), "{refused}");
    let disk = Qcow2Disk::open(&Qcow2Options::new(&path).backing(true)).unwrap();
    let mut queue = disk.open_queue(4).unwrap();
    assert!(read(&mut *queue, 0, 4096).unwrap() == [5; 4096]);
    write(&mut *queue, 512, vec![6; 512]).unwrap();
    let kind = OpKind::Discard {
        offset: 65_536,
        len: 65_536,
    };
    common::run(&mut *queue, kind, IoBuf::new()).result.unwrap();
    drop((queue, disk));
    let mut content = vec![5; LEN];
    content[512..1024].fill(6);
    content[65_536..131_072].fill(0);
    check(&path, &content).unwrap();
    assert!(std::fs::read(&base).unwrap() == [5; LEN], "never written");
}

#[test]
fn a_loop_of_backing_files_and_a_guessed_format_are_refused() {
    let directory = directory();
    let path = directory.path().join("disk.qcow2");
    let Some(()) = create(&path, "cluster_size=64k", &[]) else {
        return;
    };
    let itself = path.to_str().unwrap();
    qemu_img(&["rebase", "-u", "-b", itself, "-F", "qcow2", itself]).unwrap();
    let options = Qcow2Options::new(&path).backing(true).lock(false);
    let error = Qcow2Disk::open(&options).err().unwrap().to_string();
    assert!(error.contains("16 backing files"), "{error}");

    // The extension that says the format, overwritten with one that nobody knows.
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let mut header = [0; 512];
    file.read_exact_at(&mut header, 0).unwrap();
    let name = [0xE2, 0x79, 0x2A, 0xCA];
    let at = header.windows(4).position(|four| four == name).unwrap();
    file.write_all_at(&[0x12, 0x34, 0x56, 0x78], at as u64)
        .unwrap();
    let error = Qcow2Disk::open(&options).err().unwrap().to_string();
    assert!(error.contains("never guessed"), "{error}");
}

#[test]
fn what_is_not_possible_is_said() {
    let directory = directory();
    let path = directory.path().join("disk.qcow2");
    let data = directory.path().join("data.raw");
    for (options, word) in [
        ("compression_type=zstd".to_owned(), "zstd"),
        ("extended_l2=on,cluster_size=128k".to_owned(), "extended L2"),
        (
            format!("data_file={}", data.display()),
            "external data file",
        ),
    ] {
        let _ = std::fs::remove_file(&path);
        let Some(()) = create(&path, &options, &[]) else {
            return;
        };
        let error = Qcow2Disk::open(&Qcow2Options::new(&path)).err().unwrap();
        let error = error.to_string();
        assert!(
            error.contains(word) && error.contains("qemu-img convert"),
            "{error}"
        );
    }
    let other = directory.path().join("other.img");
    std::fs::write(&other, vec![0; LEN]).unwrap();
    let error = Qcow2Disk::open(&Qcow2Options::new(&other)).err().unwrap();
    assert!(
        error.to_string().contains("does not begin as one"),
        "{error}"
    );
}

#[test]
fn an_image_in_use_is_locked() {
    let directory = directory();
    let path = directory.path().join("disk.qcow2");
    let Some(()) = create(&path, "cluster_size=64k", &[]) else {
        return;
    };
    let first = open(&path);
    let error = Qcow2Disk::open(&Qcow2Options::new(&path)).err().unwrap();
    assert!(error.to_string().contains("locked"), "{error}");
    drop(first);
    open(&path);
}

/// Compressed clusters are read, and what is written over them is not.
#[test]
fn compressed_images_and_snapshots() {
    let directory = directory();
    let raw = directory.path().join("content.raw");
    let mut content: Vec<u8> = (0..LEN).map(|at| (at / 3000) as u8).collect();
    std::fs::write(&raw, &content).unwrap();
    let path = directory.path().join("disk.qcow2");
    let (raw, image) = (raw.to_str().unwrap(), path.to_str().unwrap());
    let args = [
        "convert", "-q", "-c", "-f", "raw", "-O", "qcow2", raw, image,
    ];
    let Some(()) = qemu_img(&args) else {
        return;
    };
    qemu_img(&["snapshot", "-c", "before", image]).unwrap();
    let disk = open(&path);
    let mut queue = disk.open_queue(4).unwrap();
    assert!(read(&mut *queue, 0, LEN).unwrap() == content);
    write(&mut *queue, 1024, vec![9; 100 << 10]).unwrap();
    drop((queue, disk));
    let before = content.clone();
    content[1024..1024 + (100 << 10)].fill(9);
    check(&path, &content).unwrap();
    qemu_img(&["snapshot", "-a", "before", image]).unwrap();
    check(&path, &before).unwrap();
}

/// Images with rubbish in their header and tables: an error, or bytes; no panic, no endless work.
#[test]
fn damaged_images_harm_nobody() {
    let directory = directory();
    let whole = directory.path().join("whole.qcow2");
    let Some(()) = create(&whole, "cluster_size=512", &[]) else {
        return;
    };
    let disk = open(&whole);
    let mut queue = disk.open_queue(4).unwrap();
    write(&mut *queue, 0, vec![3; LEN / 2]).unwrap();
    drop((queue, disk));
    let good = std::fs::read(&whole).unwrap();
    let path: PathBuf = directory.path().join("bad.qcow2");
    let mut seed = 1_u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as usize
    };
    let mut opened = 0;
    for round in 0..300 {
        let mut bad = good.clone();
        for _ in 0..1 + random() % 4 {
            // The header, or any table or data.
            let end = if round % 2 == 0 { 112 } else { bad.len() };
            let at = random() % end;
            bad[at] = random() as u8;
        }
        if round % 5 == 0 {
            bad.truncate(random() % good.len());
        }
        std::fs::write(&path, &bad).unwrap();
        let Ok(disk) = Qcow2Disk::open(&Qcow2Options::new(&path)) else {
            continue;
        };
        opened += 1;
        let mut queue = disk.open_queue(4).unwrap();
        let len = disk.caps().capacity_bytes().min(LEN as u64) as usize;
        let known = |error: DiskError| assert!(matches!(error, DiskError::Io(_)), "{error}");
        let _ = read(&mut *queue, 0, len).map_err(known);
        let _ = write(&mut *queue, 0, vec![1; len / 2]).map_err(known);
        let _ = common::run(&mut *queue, OpKind::Flush, IoBuf::new()).result;
    }
    assert!(opened > 50, "{opened} of 300");
}

/// Zeroing a part of a cluster leaves alone what is being written to the rest of it.
#[test]
fn zeroes_and_writes_share_a_cluster() {
    let directory = directory();
    let empty = directory.path().join("empty.qcow2");
    let path = directory.path().join("disk.qcow2");
    let Some(()) = create(&empty, "cluster_size=4k", &[]) else {
        return;
    };
    let write = OpKind::Write {
        offset: 29_696,
        fua: false,
    };
    let zero = OpKind::WriteZeroes {
        offset: 37_376,
        len: 512,
        unmap: false,
        fua: false,
    };
    for _ in 0..100 {
        std::fs::copy(&empty, &path).unwrap();
        let disk = open(&path);
        let mut queue = disk.open_queue(8).unwrap();
        let mut done = Vec::new();
        for (token, kind, len) in [(1, write, 7680), (2, zero, 0)] {
            let op = Op {
                token: Token(token),
                kind,
                buf: IoBuf::from_vec(vec![2; len]),
            };
            assert!(matches!(queue.submit(op), Submit::Queued));
        }
        while done.len() < 2 {
            common::wait(&*queue);
            queue.reap(&mut done).unwrap();
        }
        assert!(read(&mut *queue, 29_696, 7680).unwrap() == [2; 7680]);
    }
}
