// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

mod syntax;

use std::time::Duration;

use virtio_blk_core::disk::{Disk, IoBuf, IoQueue, Op, OpKind, Submit, Token};

use super::*;
use crate::hot_swap::HoldError;
use crate::meter::{MeterOptions, OpClass};
use crate::policy::OnError;
use crate::throttle::{Burst, Limits, Rate, ThrottleOptions};
use crate::{DiskArg, MemoryDisk};

fn parse(text: &str) -> StackArg {
    text.parse().unwrap()
}

fn layer(text: &str) -> LayerArg {
    text.parse().unwrap()
}

fn layers(texts: &[&str]) -> Vec<LayerArg> {
    texts.iter().map(|text| layer(text)).collect()
}

fn refusal(text: &str) -> String {
    text.parse::<StackArg>().unwrap_err().to_string()
}

fn live(text: &str) -> Stack {
    live_in(text, &Groups::default())
}

fn live_in(text: &str, groups: &Groups) -> Stack {
    parse(text).open_live(false, groups).unwrap()
}

fn write(queue: &mut dyn IoQueue, token: u64) {
    let op = Op {
        token: Token(token),
        kind: OpKind::Write {
            offset: token * 512,
            fua: false,
        },
        buf: IoBuf::from_vec(vec![1; 512]),
    };
    let Submit::Done(done) = queue.submit(op) else {
        panic!("it does not end at once");
    };
    done.result.unwrap();
}

/// Queues lie in each other as layers do: so many that a thread's stack holds them.
#[test]
fn there_is_room_for_64_layers() {
    let text = |count: usize| {
        let layers = (0..count).map(|at| format!(",dirty=a{at}"));
        format!("memory:1M{}", layers.collect::<String>())
    };
    let stack = live(&text(64));
    write(&mut *stack.disk().open_queue(4).unwrap(), 0);
    assert_eq!(stack.dirty_names().len(), 64);
    let lowest = stack.dirty("a0").unwrap().bitmap("a0").unwrap();
    assert_ne!(lowest.dirty_bytes(), 0);
    let many = parse(&text(65));
    let error = many
        .open(false, &Groups::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("65 layers") && error.contains("64"),
        "{error}"
    );
    let error = stack.change(&many.layers).unwrap_err().to_string();
    assert!(error.contains("65 layers"), "{error}");
    assert_eq!(stack.layers().len(), 64);
}

#[test]
fn the_same_layer_twice_is_refused() {
    for text in [
        "memory:1M,meter,meter",
        "memory:1M,dirty=a,dirty=a/granularity:1M",
        "memory:1M,throttle=iops:1,throttle=bandwidth:1",
    ] {
        let error = parse(text).open(false, &Groups::default()).unwrap_err();
        assert!(error.to_string().contains("twice"), "{error}");
    }
    let two = "memory:1M,dirty=a,dirty=b,throttle=iops:1/group:a,throttle=iops:1/group:b";
    assert!(parse(two).open(false, &Groups::default()).is_ok());
}

#[test]
fn disks_share_the_groups_of_a_name() {
    let groups = Groups::default();
    let first = parse("memory:1M,throttle=iops:7/group:a");
    let first = first.open(false, &groups).unwrap();
    let second = parse("null:1M,throttle=group:a").open(false, &groups);
    let second = second.unwrap();
    assert_eq!(
        second.throttles()[0].group().limits().iops,
        Some(Rate::new(7))
    );
    let third = parse("null:1M,throttle=iops:9/group:a");
    let error = third.open(false, &groups).unwrap_err().to_string();
    for word in [
        "`throttle=iops:9/group:a`",
        "`a`",
        "`throttle=iops:7/group:a`",
    ] {
        assert!(error.contains(word), "{error}");
    }
    let live = live_in("null:1M", &groups);
    let error = live.change(&layers(&["throttle=iops:9/group:a"]));
    assert!(matches!(
        error,
        Err(StackError::Arg(ArgError::GroupLimits { .. }))
    ));
    // A member changes them for all, and all of them show it.
    first.change(&layers(&["throttle=iops:9/group:a"])).unwrap();
    for stack in [&first, &second] {
        let limits = stack.throttles()[0].group().limits();
        assert_eq!(limits.iops, Some(Rate::new(9)));
        assert_eq!(stack.layers(), layers(&["throttle=iops:9/group:a"]));
    }
    // Nobody is left: it is a new group.
    drop((first, second));
    let third = third.open(false, &groups).unwrap();
    assert_eq!(third.layers(), layers(&["throttle=iops:9/group:a"]));
}

#[test]
fn both_policies_are_one_layer() {
    let stack = live("memory:1M,rerror=stop,meter,werror=enospc");
    let both = "errors=rerror:stop/werror:enospc";
    assert_eq!(stack.layers(), layers(&[both, "meter"]));
    let policy = stack.policy().unwrap();
    stack.change(&layers(&["werror=stop", "meter"])).unwrap();
    assert!(Arc::ptr_eq(&policy, &stack.policy().unwrap()));
    let now = policy.policy();
    assert_eq!((now.read, now.write), (OnError::Report, OnError::Stop));
    let twice = parse("memory:1M,werror=stop,errors=werror:report");
    let error = twice.open(false, &Groups::default()).unwrap_err();
    assert!(error.to_string().contains("twice"), "{error}");
}

/// What failed under one stack is tried again under the next, and the listener is told of both.
#[test]
fn what_is_kept_goes_along_when_layers_change() {
    let stack = live("memory:1M,fault=errors:1000,werror=stop");
    let told = Arc::new(Mutex::new(Vec::new()));
    let ears = told.clone();
    stack.listen_events(move |event| ears.lock().unwrap().push(event.clone()));
    let mut queue = stack.disk().open_queue(4).unwrap();
    let op = Op {
        token: Token(7),
        kind: OpKind::Write {
            offset: 0,
            fua: false,
        },
        buf: IoBuf::from_vec(vec![1; 512]),
    };
    assert!(matches!(queue.submit(op), Submit::Queued));
    assert_eq!(stack.policy().unwrap().held(), 1);
    let mut done = Vec::new();
    // Another place, and still broken below.
    stack
        .change(&layers(&["fault=errors:1000", "meter", "werror=stop"]))
        .unwrap();
    for _ in 0..5 {
        queue.reap(&mut done).unwrap();
    }
    assert!(done.is_empty() && stack.is_settled().unwrap());
    assert_eq!(stack.policy().unwrap().held(), 1);
    assert_eq!(told.lock().unwrap().len(), 2);
    let resumed = stack.resume();
    assert_eq!(
        (resumed.operations, resumed.hold),
        (1, Err(HoldError::None))
    );
    stack.change(&layers(&["werror=stop"])).unwrap();
    while done.is_empty() {
        queue.reap(&mut done).unwrap();
    }
    assert!(done.pop().unwrap().result.is_ok());
    assert_eq!(stack.policy().unwrap().held(), 0);
}

#[test]
fn a_stack_without_layers_is_the_disk() {
    let base: Arc<dyn Disk> = Arc::new(crate::MemoryDisk::new(1 << 20).unwrap());
    let stack = Stack::fixed(base.clone(), &[], Groups::default()).unwrap();
    assert!(Arc::ptr_eq(&stack.disk(), &base));
    assert!(!stack.sees_requests());
    assert!(matches!(
        stack.change(&layers(&["meter"])),
        Err(StackError::Fixed)
    ));
}

#[test]
fn layers_that_stay_keep_what_they_know() {
    let stack = live("memory:1M,meter,dirty=backup/granularity:512");
    let disk = stack.disk();
    let mut queue = disk.open_queue(4).unwrap();
    let bitmap = |stack: &Stack| stack.dirty("backup").unwrap().bitmap("backup").unwrap();
    bitmap(&stack).clear().unwrap();
    write(&mut *queue, 1);
    stack
        .change(&layers(&[
            "dirty=backup/granularity:512",
            "throttle=iops:100000",
            "meter",
        ]))
        .unwrap();
    assert!(!stack.is_settled().unwrap());
    write(&mut *queue, 3);
    assert!(stack.is_settled().unwrap());
    let writes = |stack: &Stack| {
        let meter = stack.meter().unwrap();
        meter.total().class(OpClass::Write).count()
    };
    assert_eq!(writes(&stack), 2);
    let known = bitmap(&stack).changes().ranges;
    assert_eq!(known, [(512, 512), (1536, 512)]);
    // Another granularity is another bitmap, which does not know what changed before.
    let other = layers(&["dirty=backup/granularity:1K", "meter"]);
    stack.change(&other).unwrap();
    let other = bitmap(&stack);
    assert_eq!(other.changes().ranges, [(0, 1 << 20)]);
    other.clear().unwrap();
    stack.change(&[]).unwrap();
    assert!(!stack.sees_requests() && stack.meter().is_none());
    write(&mut *queue, 5);
    assert_eq!(other.changes().ranges, []);
}

#[test]
fn limits_change_where_they_are() {
    let stack = live("memory:1M,meter,throttle=iops:1");
    let queue = stack.disk().open_queue(4).unwrap();
    let group = stack.throttles()[0].group().clone();
    stack
        .change(&layers(&["meter", "throttle=iops:5/burst:9"]))
        .unwrap();
    assert!(stack.is_settled().unwrap(), "no queue has to move");
    let burst = Burst {
        per_second: 9,
        length: Duration::from_secs(1),
    };
    assert_eq!(group.limits().iops.unwrap().burst, Some(burst));
    assert_eq!(
        stack.layers()[1].to_string(),
        "throttle=iops:5/burst:9",
        "and it is told so"
    );
    drop(queue);
}

#[test]
fn who_chooses_the_path_is_told_when_somebody_needs_to_see_requests() {
    let base = Arc::new(MemoryDisk::new(1 << 20).unwrap());
    let open = |limits| {
        LayerArg::new(ThrottleOptions {
            limits,
            group: None,
        })
    };
    let none = [open(Limits::default())];
    let some = [open(Limits {
        iops: Some(Rate::new(2000)),
        ..Limits::default()
    })];
    let stack = Stack::fixed(base, &none, Groups::default()).unwrap();
    assert!(!stack.sees_requests(), "a throttle without a limit is idle");
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = told.clone();
    stack.listen(move |sees| tell.lock().unwrap().push(sees));
    for change in [&some, &some, &none] {
        stack.change(change).unwrap();
    }
    assert!(matches!(
        stack.change(&layers(&["meter"])),
        Err(StackError::Fixed)
    ));
    assert_eq!(*told.lock().unwrap(), [true, true, false]);
    let live = live("memory:1M");
    let tell = told.clone();
    live.listen(move |sees| tell.lock().unwrap().push(sees));
    live.change(&layers(&["meter"])).unwrap();
    live.change(&[]).unwrap();
    assert_eq!(told.lock().unwrap()[3..], [true, false]);
}

#[test]
fn a_change_that_is_refused_changes_nothing() {
    let stack = live("memory:1M,throttle=iops:1");
    let before = stack.layers();
    for refused in [
        layers(&["throttle=iops:5", "meter", "meter"]),
        layers(&["throttle=iops:5", "verify"]),
        vec![LayerArg::new(ThrottleOptions {
            limits: Limits {
                iops: Some(Rate::new(0)),
                ..Limits::default()
            },
            group: None,
        })],
    ] {
        assert!(stack.change(&refused).is_err(), "{refused:?}");
        assert_eq!(stack.layers(), before);
        let limits = stack.throttles()[0].group().limits();
        assert_eq!(limits.iops, Some(Rate::new(1)));
    }
}

#[test]
fn verify_is_there_from_the_start_or_not_at_all() {
    let stack = live("memory:1M,verify");
    let with_meter = layers(&["verify", "meter"]);
    stack.change(&with_meter).unwrap();
    assert_eq!(stack.verify().unwrap().mismatch(), None);
    stack.change(&layers(&["meter"])).unwrap();
}
