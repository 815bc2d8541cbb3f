// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::time::Duration;

use proptest::prelude::*;
use virtio_blk_core::disk::{Disk, IoBuf, IoQueue, Op, OpKind, Submit, Token};

use super::*;
use crate::dirty::{DirtyOptions, PersistOptions};
use crate::fault::FaultOptions;
use crate::hot_swap::HoldError;
use crate::meter::{MeterOptions, OpClass};
use crate::policy::{ErrorsOptions, OnError};
use crate::throttle::{Burst, Limits, Rate, ThrottleOptions};
use crate::verify::VerifyOptions;
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

#[test]
fn a_disk_takes_layers_from_the_medium_upwards() {
    let arg = parse(
        "raw:/a,,b.img,direct=on,throttle=iops:5000/burst:20000/length:0.5/read_bandwidth:50M/group:a,\
         dirty=backup/granularity:1M,meter",
    );
    assert_eq!(arg.disk.to_string(), "raw:/a,,b.img,direct=on");
    let limits = Limits {
        iops: Some(Rate::new(5000).with_burst(20_000, Duration::from_millis(500))),
        read_bandwidth: Some(Rate::new(50 << 20)),
        ..Limits::default()
    };
    assert_eq!(
        arg.layers,
        [
            LayerArg::new(ThrottleOptions {
                limits,
                group: Some("a".to_owned()),
            }),
            LayerArg::new(DirtyOptions {
                name: "backup".to_owned(),
                granularity: 1 << 20,
                persist: None,
            }),
            LayerArg::new(MeterOptions {}),
        ]
    );
}

#[test]
fn the_file_of_a_bitmap_may_stand_anywhere() {
    let persist = |path: &str, sync| {
        Some(PersistOptions {
            path: path.into(),
            sync,
        })
    };
    let dirty = |granularity, persist| {
        LayerArg::new(DirtyOptions {
            name: "a".to_owned(),
            granularity,
            persist,
        })
    };
    for (text, wanted) in [
        (
            "dirty=a/persist:/x/y",
            dirty(64 << 10, persist("/x/y", false)),
        ),
        (
            "dirty=a/persist:/x/y/sync:on",
            dirty(64 << 10, persist("/x/y", true)),
        ),
        (
            "dirty=a/granularity:4K/persist:y/sync:on",
            dirty(4096, persist("y", true)),
        ),
        (
            "dirty=a/sync:on/persist:/x/granularity:4K",
            dirty(4096, persist("/x", true)),
        ),
    ] {
        assert_eq!(layer(text), wanted, "{text}");
        assert_eq!(layer(&wanted.to_string()), wanted, "{text}");
    }
    let arg = parse("raw:x,dirty=a/persist:/a,,b,meter");
    assert_eq!(arg.layers[0], dirty(64 << 10, persist("/a,b", false)));
    assert_eq!(arg.to_string(), "raw:x,dirty=a/persist:/a,,b,meter");
    for (text, word) in [
        ("memory:1M,dirty=a/persist:", "path of a file"),
        ("memory:1M,dirty=a/sync:on", "persist:"),
        ("memory:1M,dirty=a/sync:maybe/persist:/x", "`maybe`"),
        ("memory:1M,dirty=a/persist:/x/sync:on/sync:on", "twice"),
    ] {
        let message = refusal(text);
        assert!(message.contains(word), "{text}: {message}");
    }
}

#[test]
fn a_path_may_look_like_a_layer() {
    assert_eq!(parse("raw:meter").layers, []);
    assert_eq!(parse("raw:throttle=x").disk.to_string(), "raw:throttle=x");
    assert_eq!(parse("raw:a,,meter").disk.to_string(), "raw:a,,meter");
}

#[test]
fn errors_point_at_the_word() {
    for (text, words) in [
        ("memory:1M,metre", &["metre"][..]),
        ("memory:1M,meter,zero=on", &["`zero`", "throttle, dirty"]),
        ("memory:1M,meter=on", &["`on`", "meter"]),
        ("memory:1M,throttle", &["throttle", "iops:5000"]),
        ("memory:1M,throttle=iops:fast", &["`fast`", "iops"]),
        ("memory:1M,throttle=iops:0", &["`0`", "iops", "at least 1"]),
        ("memory:1M,throttle=bandwidth:0", &["`0`", "at least 1"]),
        (
            "memory:1M,trottle=iops:5",
            &["`trottle`", "did you mean `throttle`", "dirty"],
        ),
        (
            "raw:x,direct=on,trhottle=iops:5",
            &["`trhottle`", "`throttle`"],
        ),
        ("raw:x,metre", &["`metre`", "`meter`", "verify"]),
        ("raw:x,meter,fualt", &["`fualt`", "`fault`"]),
        ("raw:x,error=stop", &["`error`", "`errors`"]),
        ("raw:x,lok=on", &["`lok`", "readonly"]),
        ("raw:x,werror=maybe", &["`maybe`", "enospc"]),
        ("raw:x,rerror=enospc", &["`enospc`", "report or stop"]),
        ("raw:x,errors", &["errors=rerror:stop"]),
        ("raw:x,errors=stop", &["`stop`", "rerror and werror"]),
        ("memory:1M,throttle=bandwidth:5X", &["`5X`", "50M"]),
        ("memory:1M,throttle=speed:5", &["`speed`", "read_iops"]),
        (
            "memory:1M,throttle=burst:5",
            &["`5`", "burst", "after the limit"],
        ),
        ("memory:1M,throttle=iops:5/length:5", &["`5`", "length"]),
        ("memory:1M,throttle=iops:5/burst:9/burst:9", &["one burst"]),
        ("memory:1M,throttle=iops:9/burst:5", &["iops", "average"]),
        ("memory:1M,throttle=iops:5/iops:6", &["`iops`", "twice"]),
        ("memory:1M,throttle=iops:5/group:a b", &["`a b`", "group"]),
        ("memory:1M,dirty", &["dirty=backup"]),
        ("memory:1M,dirty=a/granularity:3", &["`3`", "granularity"]),
        ("memory:1M,dirty=a/size:3", &["`size`", "granularity"]),
        ("memory:1M,fault=errors:1001", &["`1001`", "1000"]),
        ("memory:1M,fault=delay:-1", &["`-1`", "seconds"]),
        ("memory:1M,fault=x:1", &["`x`", "reorder"]),
        ("memory:3,meter", &["`3`"]),
        ("meter", &["meter"]),
    ] {
        let message = refusal(text);
        for word in words {
            assert!(message.contains(word), "{text}: {message}");
        }
    }
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

fn rate(least: u64) -> impl Strategy<Value = Option<Rate>> {
    let rate = (
        least..1 << 40,
        proptest::option::of((0_u64..1 << 40, 1_u64..1000)),
    );
    proptest::option::of(rate.prop_map(|(rate, burst)| match burst {
        Some((more, millis)) => {
            Rate::new(rate).with_burst(rate + more, Duration::from_millis(millis))
        }
        None => Rate::new(rate),
    }))
}

fn any_layer() -> impl Strategy<Value = LayerArg> {
    let limits = (rate(1), rate(1), rate(1), rate(1), rate(1), rate(1)).prop_map(
        |(iops, read_iops, write_iops, bandwidth, read_bandwidth, write_bandwidth)| Limits {
            iops,
            read_iops,
            write_iops,
            bandwidth,
            read_bandwidth,
            write_bandwidth,
        },
    );
    let fault = (any::<u64>(), 0_u32..=1000, 0_u64..5000, any::<bool>());
    prop_oneof![
        (limits, "[a-z0-9._-]{1,64}").prop_map(|(limits, group)| LayerArg::new(ThrottleOptions {
            limits,
            group: Some(group),
        })),
        (
            "[A-Za-z0-9._-]{1,64}",
            9_u32..40,
            proptest::option::of(("[ -~]{1,20}", any::<bool>())),
        )
            .prop_map(|(name, exponent, persist)| LayerArg::new(DirtyOptions {
                name,
                granularity: 1 << exponent,
                persist: persist.map(|(path, sync)| PersistOptions {
                    path: path.into(),
                    sync,
                }),
            })),
        (
            proptest::option::of(prop_oneof![Just(OnError::Report), Just(OnError::Stop)]),
            proptest::option::of(prop_oneof![
                Just(OnError::Report),
                Just(OnError::Stop),
                Just(OnError::Enospc)
            ])
        )
            .prop_filter("it says something", |both| *both != (None, None))
            .prop_map(|(read, write)| LayerArg::new(ErrorsOptions { read, write })),
        Just(LayerArg::new(MeterOptions {})),
        Just(LayerArg::new(VerifyOptions {})),
        fault.prop_map(
            |(seed, errors, millis, reorder)| LayerArg::new(FaultOptions {
                seed,
                errors,
                torn: errors / 2,
                delay: Duration::from_millis(millis),
                reorder,
            })
        ),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        path in "[ -~]{1,20}",
        layers in proptest::collection::vec(any_layer(), 0..5),
    ) {
        let disk = DiskArg::new(crate::RawOptions::new(path));
        let arg = StackArg { disk, layers };
        prop_assert_eq!(arg.to_string().parse(), Ok(arg));
    }

    #[test]
    fn nothing_panics(text in "(raw:x|null:1M),[a-z_=:/,0-9.-]{0,60}") {
        let _ = text.parse::<StackArg>();
    }
}
