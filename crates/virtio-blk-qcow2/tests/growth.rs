// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a disk grows by reads as zeroes, whatever lay behind its end; and growth that fails in part leaves tables that are
//! those of the file.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../virtio-blk-disks/tests/common/mod.rs"]
mod common;
mod files;
#[path = "../../virtio-blk-disks/tests/common/qemu.rs"]
mod qemu;

use std::path::Path;
use std::sync::Arc;

use common::{directory, read, run, write};
use files::gate::{Fate, Gate};
use files::{RawFiles, Setup, path};
use virtio_blk_core::disk::{Disk, IoBuf, OpKind};
use virtio_blk_qcow2::{Access, Files, Repair, check};

const KIB: usize = 1 << 10;
/// Bytes of the disk before it was made smaller.
const BEFORE: usize = 512 * KIB;

/// Makes an image smaller, in a way that leaves what was behind its new end.
fn shrink(image: &Path, size: usize) {
    qemu::ok(&[
        "resize",
        "-q",
        "--shrink",
        image.to_str().unwrap(),
        &size.to_string(),
    ]);
}

/// Sizes that end within a cluster and a subcluster, at the end of a subcluster, and at the end of a cluster.
const ENDS: [usize; 3] = [300 * KIB + 512, 258 * KIB, 320 * KIB];

#[test]
fn what_lay_behind_the_end_does_not_come_back() {
    let directory = directory();
    let (image, full) = (path(&directory, "disk.qcow2"), path(&directory, "full.raw"));
    let name = image.to_str().unwrap();
    std::fs::write(&full, vec![9; BEFORE]).unwrap();
    for setup in [
        "cluster_size=64k",
        "cluster_size=64k,compat=0.10",
        "cluster_size=64k,extended_l2=on",
        "cluster_size=64k,data_file=data.raw",
        "cluster_size=64k,data_file=data.raw,data_file_raw=on",
        "compressed",
        "snapshot",
        "backing",
    ] {
        for end in ENDS {
            let about = format!("{setup}, {end}");
            let _ = std::fs::remove_file(path(&directory, "data.raw"));
            let _ = std::fs::remove_file(&image);
            match setup {
                "compressed" => {
                    let full = full.to_str().unwrap();
                    qemu::ok(&[
                        "convert", "-q", "-c", "-f", "raw", "-O", "qcow2", full, name,
                    ]);
                }
                "snapshot" => qemu::create(&image, "cluster_size=64k", BEFORE),
                "backing" => {
                    std::fs::write(path(&directory, "base.raw"), vec![5; end]).unwrap();
                    let setup = "cluster_size=64k,backing_file=base.raw,backing_fmt=raw";
                    qemu::create(&image, setup, BEFORE);
                }
                setup => {
                    let setup =
                        setup.replace("data.raw", path(&directory, "data.raw").to_str().unwrap());
                    qemu::create(&image, &setup, BEFORE);
                }
            }
            let setup_of = Setup::new(&image).backing(true);
            if setup != "compressed" {
                let disk = setup_of.open().unwrap();
                write(&mut *disk.open_queue(1).unwrap(), 0, vec![9; BEFORE]).unwrap();
            }
            shrink(&image, end);
            if setup == "snapshot" {
                qemu::ok(&["snapshot", "-q", "-c", "before", name]);
            }
            if setup.contains("data_file") {
                // As long as it was, by whatever cut the image.
                let file = std::fs::File::options()
                    .write(true)
                    .open(path(&directory, "data.raw"));
                let file = file.unwrap();
                std::os::unix::fs::FileExt::write_all_at(&file, &vec![9; BEFORE - end], end as u64)
                    .unwrap();
            }
            let disk = setup_of.open().unwrap();
            let mut model = vec![9; end];
            // A little, to the end of the cluster and far behind it.
            for more in [512, 100 * KIB, BEFORE] {
                disk.resize((end + more) as u64).unwrap();
                model.resize(end + more, 0);
                let mut queue = disk.open_queue(1).unwrap();
                let found = read(&mut *queue, 0, model.len()).unwrap();
                let wrong = (found.chunks(512))
                    .zip(model.chunks(512))
                    .position(|(a, b)| a != b);
                assert_eq!(wrong, None, "{about}, {more} more");
            }
            drop(disk);
            qemu::check(&image);
            qemu::compare(&image, &model);
            if setup.contains("raw=on") {
                let mut raw = std::fs::read(path(&directory, "data.raw")).unwrap();
                raw.resize(model.len(), 0);
                assert!(raw == model, "{about}: the data file is not the disk");
            }
            if setup == "snapshot" {
                qemu::ok(&["snapshot", "-q", "-a", "before", name]);
                model.truncate(end);
                qemu::compare(&image, &model);
            }
        }
    }
}

/// An image that was never written behind its end costs nothing to make larger.
#[test]
fn where_nothing_lies_behind_the_end_nothing_is_written() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    qemu::create(&image, "cluster_size=64k", 300 * KIB + 512);
    let disk = Setup::new(&image).open().unwrap();
    disk.resize(BEFORE as u64).unwrap();
    let extents = disk.extents(0, 9).unwrap();
    assert_eq!(extents.len(), 1, "{extents:?}");
    drop(disk);
    qemu::check(&image);
}

const CLUSTER: usize = 512;

/// An image of small clusters on a gate, its setup, and the place of its L1 table.
fn on_a_gate(directory: &tempfile::TempDir, size: usize) -> (Arc<Gate>, Setup, u64) {
    let image = path(directory, "disk.qcow2");
    qemu::create(&image, "cluster_size=512", size);
    let mut bytes = std::fs::read(&image).unwrap();
    bytes.resize(2 << 20, 0);
    let l1 = u64::from_be_bytes(bytes[40..48].try_into().unwrap());
    (Arc::new(Gate::new(bytes)), Setup::new(&image), l1)
}

fn sound(gate: &Gate, image: &Path) {
    std::fs::write(image, gate.content()).unwrap();
    let file = RawFiles::default().open(image, Access::Read).unwrap();
    let found = check(&file, image, Repair::Nothing, &mut |_, _| {}).unwrap();
    assert!(found.is_sound() && found.leaks == 0, "{found:?}");
    qemu::check(image);
}

/// The file says that the disk is larger, but not stably so, as something else could not be written: it is larger, and the
/// old table is free when that is stable.
#[test]
fn growth_that_is_not_stable_at_once_is_growth() {
    let directory = directory();
    let (gate, setup, _) = on_a_gate(&directory, 1 << 20);
    let disk = Arc::new(Setup::over(gate.clone(), &setup).unwrap());
    let mut queue = disk.open_queue(1).unwrap();
    write(&mut *queue, 0, vec![1; CLUSTER]).unwrap();
    let l2 = {
        let bytes = gate.content();
        let at = u64::from_be_bytes(bytes[40..48].try_into().unwrap()) as usize;
        u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) & 0x00ff_ffff_ffff_fe00
    };
    // Its header is held, and meanwhile an entry can't be written, for long.
    gate.close(move |kind, _| match kind {
        OpKind::Write { offset: 0, .. } => Fate::Hold,
        OpKind::Write { offset, .. } if *offset == l2 => Fate::Refuse,
        _ => Fate::Pass,
    });
    let growing = disk.clone();
    let growth = std::thread::spawn(move || growing.resize(4 << 20));
    gate.await_held();
    assert!(write(&mut *queue, CLUSTER as u64, vec![2; CLUSTER]).is_err());
    gate.let_go();
    growth.join().unwrap().unwrap();
    assert_eq!(disk.caps().capacity_bytes(), 4 << 20);
    let flush = run(&mut *queue, OpKind::Flush, IoBuf::new()).result;
    assert!(flush.is_err(), "the entry still can't be written");
    gate.open();
    run(&mut *queue, OpKind::Flush, IoBuf::new())
        .result
        .unwrap();
    write(&mut *queue, 3 << 20, vec![3; CLUSTER]).unwrap();
    drop((queue, disk));
    sound(&gate, setup.path());
}

/// What a failed write left in the L1 table is not written again beside what growth adds to it.
#[test]
fn growth_writes_no_entry_that_failed() {
    let directory = directory();
    // Two entries of a table that has room for 64.
    let (gate, setup, l1) = on_a_gate(&directory, 64 * KIB);
    let disk = Setup::over(gate.clone(), &setup).unwrap();
    let mut queue = disk.open_queue(1).unwrap();
    write(&mut *queue, 0, vec![1; CLUSTER]).unwrap();
    let entries = |gate: &Gate| gate.content()[l1 as usize..][..CLUSTER].to_vec();
    let before = entries(&gate);
    let first = |then: Fate, later: Fate| {
        let mut turn = 0;
        gate.close(move |kind, _| match kind {
            OpKind::Write { offset, .. } if *offset == l1 => {
                turn += 1;
                if turn == 1 { then } else { later }
            }
            _ => Fate::Pass,
        });
    };
    first(Fate::Fail, Fate::Refuse);
    assert!(write(&mut *queue, 32 * KIB as u64, vec![2; CLUSTER]).is_err());
    assert!(entries(&gate) != before, "it left something");
    // Who writes it a second time does not get that far.
    first(Fate::Pass, Fate::Refuse);
    let _ = disk.resize(256 * KIB as u64);
    assert!(entries(&gate) == before, "the table is not as it should be");
    gate.open();
    drop((queue, disk));
    sound(&gate, setup.path());
}
