// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use virtio_blk_disks::MemoryDisk;
use virtio_blk_disks::fault::{FaultDisk, FaultPlan, Kind, Rule};

use crate::stages::{Failure, bounded};
use crate::{DISK, Outcome, PATIENCE, START, device, in_process};

#[test]
fn each_path_serves_the_driver_in_process() {
    let device = device(Arc::new(MemoryDisk::new(DISK).unwrap())).unwrap();
    let seen = in_process::run(&device).unwrap();
    assert!(seen.moves.pauses.len() >= 10);
    assert!(seen.moves.fast_requests > 0 && seen.moves.slow_requests > 0);
    let executed = seen.moves.fast_requests + seen.moves.slow_requests;
    assert_eq!(executed, seen.compared * 2);
}

#[test]
fn a_write_without_an_effect_is_noticed() {
    // One of the first pass.
    let plan = FaultPlan::new(1).rule(Rule::silent().kind(Kind::Write).skip(20).times(1));
    let disk = FaultDisk::new(Arc::new(MemoryDisk::new(DISK).unwrap()), plan);
    let failed = in_process::run(&device(Arc::new(disk)).unwrap());
    let why = failed.err().unwrap().to_string();
    assert!(why.contains("holds something else"), "{why}");
}

/// The same by the guest, where KVM runs one.
#[test]
#[cfg(target_arch = "x86_64")]
fn a_guest_notices_a_write_without_an_effect() {
    let plan = FaultPlan::new(1).rule(Rule::silent().kind(Kind::Write).skip(20).times(1));
    let disk = FaultDisk::new(Arc::new(MemoryDisk::new(DISK).unwrap()), plan);
    let device = device(Arc::new(disk)).unwrap();
    let result = bounded(START, PATIENCE, |stages| crate::guest::run(device, stages));
    match result.err().unwrap() {
        Failure::NoGuest(_) => {}
        Failure::Work(why) => assert!(why.to_string().contains("status 1"), "{why}"),
    }
}

/// KVM that can be opened, and a guest that never says a word.
#[test]
fn a_guest_that_does_not_start_is_not_waited_for() {
    let (end, ended) = channel::<()>();
    let result = bounded(Duration::from_millis(20), PATIENCE, move |_| {
        let _ = ended.recv();
        Outcome::Ok(())
    });
    assert!(matches!(result, Err(Failure::NoGuest(_))));
    drop(end);
}

#[test]
fn a_guest_that_does_not_end_is_a_failure() {
    let (end, ended) = channel::<()>();
    let result = bounded(START, Duration::from_millis(20), move |stages| {
        stages.running();
        let _ = ended.recv();
        Outcome::Ok(())
    });
    let Err(Failure::Work(why)) = result else {
        panic!("{result:?}");
    };
    assert!(why.to_string().contains("stuck"), "{why}");
    drop(end);
}

#[test]
fn why_there_is_no_guest_survives_the_way_through_other_errors() {
    let result = bounded(START, PATIENCE, |stages| {
        stages.running();
        let boxed = Failure::NoGuest("KVM can't".to_owned()).into();
        Outcome::<()>::Err(boxed)
    });
    assert!(matches!(result, Err(Failure::NoGuest(why)) if why == "KVM can't"));
}
