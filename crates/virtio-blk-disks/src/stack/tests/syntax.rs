// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Text to layers, and back.

use proptest::prelude::*;

use super::*;
use crate::dirty::{DirtyOptions, PersistOptions};
use crate::disk_arg::Tree;
use crate::fault::FaultOptions;
use crate::policy::ErrorsOptions;
use crate::verify::VerifyOptions;

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

/// A word that stands for a layer with one option takes that option and no other, also in files.
#[test]
fn a_short_word_is_one_option() {
    use crate::disk_arg::tree::Entry;
    let tree = |options: &[(&str, &str)]| Tree {
        kind: Entry::text("type", "rerror"),
        target: None,
        options: options.iter().map(|(a, b)| Entry::text(*a, *b)).collect(),
    };
    let kinds = LayerKinds::default();
    let read = |options| {
        kinds
            .read(&tree(options))
            .map_err(|wrong| wrong.error.to_string())
    };
    assert_eq!(read(&[("rerror", "stop")]), Ok(layer("rerror=stop")));
    let error = read(&[("werror", "stop")]).unwrap_err();
    assert!(error.contains("`werror` for rerror"), "{error}");
    let error = read(&[("rerror", "stop"), ("werror", "stop")]).unwrap_err();
    assert!(error.contains("`werror` for rerror"), "{error}");
    assert!(read(&[]).unwrap_err().contains("errors=rerror:stop"));
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
