// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A server that is started again with other options below a driver that runs: it keeps to what the driver was told,
//! or is refused with a reason.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Rig, SECTORS, StallDisk};
use vduse_backend::message::Request as Ask;
use vduse_backend::{ServerError, ServerOptions};
use virtio_blk_core::disk::{Alignments, Caps};
use virtio_blk_core::spec::feature;
use virtio_blk_driver::request::Request;

/// What is changed, and what a refusal names; `None`: it is not refused.
type Change = (&'static str, fn(&mut Rig), Option<[&'static str; 2]>);

fn caps() -> Caps {
    Caps {
        flush: true,
        ..Caps::basic(SECTORS)
    }
}

fn over(rig: &mut Rig, caps: Caps) {
    rig.top = Arc::new(StallDisk::with_caps(caps));
}

const CHANGES: &[Change] = &[
    ("nothing", |_| {}, None),
    (
        "fewer queues",
        |rig| rig.options.queues = 1,
        Some(["2 queues", "has 1"]),
    ),
    ("more queues", |rig| rig.options.queues = 4, None),
    (
        "smaller queues",
        |rig| rig.options.queue_size = 16,
        Some(["32 descriptors", "takes 16"]),
    ),
    ("larger queues", |rig| rig.options.queue_size = 64, None),
    ("seg_max", |rig| rig.options.seg_max = Some(4), None),
    (
        "serial",
        |rig| rig.options.serial = "other".to_owned(),
        Some(["a serial number", "other"]),
    ),
    (
        "read-only",
        |rig| rig.options.read_only = true,
        Some(["read-only", "writing"]),
    ),
    (
        "features",
        |rig| rig.options.masked_features = feature::RING_EVENT_IDX,
        Some(["EVENT_IDX", "not offer"]),
    ),
    (
        "no flush",
        |rig| {
            over(
                rig,
                Caps {
                    flush: false,
                    ..caps()
                },
            );
        },
        Some(["FLUSH", "not offer"]),
    ),
    (
        "block size",
        |rig| {
            let align = Alignments {
                guest_block: 4096,
                ..caps().align
            };
            over(rig, Caps { align, ..caps() });
        },
        Some(["512 bytes", "4096"]),
    ),
    (
        "smaller disk",
        |rig| rig.disk.inner().resize(SECTORS - 8),
        Some(["256 sectors", "has 248"]),
    ),
    (
        "larger disk",
        |rig| rig.disk.inner().resize(SECTORS + 8),
        None,
    ),
];

#[test]
fn each_option_is_honoured_or_refused_with_a_reason() {
    for (name, change, refused) in CHANGES {
        let mut rig = Rig::new(2);
        rig.start();
        rig.check();
        let told = (rig.bus.config(), rig.bus.device_features());
        let (top, options) = (rig.top.clone(), rig.options.clone());
        rig.die();
        let pending = rig.submit(1, &Request::write(3, &[3; 512]));
        change(&mut rig);
        let served = rig.serve();
        if let Some(reasons) = refused {
            let error = match served {
                Err(error @ ServerError::Promised { .. }) => error.to_string(),
                other => panic!("{name}: {other:?}"),
            };
            let all = reasons.iter().chain(&["vdpa dev del disk0"]);
            for reason in all {
                assert!(error.contains(reason), "{name}: {error}");
            }
            assert!(rig.queues[1].poll().unwrap().is_none(), "{name}");
            // As it was, it continues.
            (rig.top, rig.options) = (top, options);
            rig.disk.inner().resize(SECTORS);
            assert!(rig.serve().unwrap(), "{name}");
        } else {
            assert!(served.unwrap(), "{name}");
        }
        assert_eq!(rig.answer(1).token, pending, "{name}");
        // The driver may come back; it still sees the device that the kernel has. Only its size may be another.
        for _ in 0..2 {
            rig.settle();
            rig.check_queues(2);
            let now = (rig.bus.config(), rig.bus.device_features());
            assert_eq!((&now.0[8..], now.1), (&told.0[8..], told.1), "{name}");
            rig.ok(Ask::SetStatus(0));
            rig.options.queues = 2;
            rig.start();
        }
    }
}

/// What no driver sees may be anything.
#[test]
fn options_of_the_server_alone_may_change() {
    let mut rig = Rig::new(1);
    rig.start();
    rig.die();
    let options = ServerOptions {
        poll: Duration::from_micros(10),
        pin: false,
        msg_timeout: Some(7),
        bounce_size: Some(2 << 20),
        ..rig.server_options()
    };
    rig.serve_with(options).unwrap();
    rig.check();
}

/// A size that no driver has read yet was not promised to anybody.
#[test]
fn a_disk_may_be_smaller_if_there_is_no_driver() {
    let mut rig = Rig::new(1);
    rig.start();
    rig.ok(Ask::SetStatus(0));
    rig.stop().unwrap();
    rig.disk.inner().resize(SECTORS - 8);
    rig.succeed();
    assert_eq!(rig.bus.config()[..8], (SECTORS - 8).to_le_bytes());
    rig.start();
    rig.check();
}

/// A disk that grew while it was served was told to be larger than at first.
#[test]
fn the_last_size_that_was_told_counts() {
    let mut rig = Rig::new(1);
    rig.start();
    rig.disk.inner().resize(2 * SECTORS);
    assert_eq!(rig.bus.config_irqs_after(0), 1);
    rig.die();
    rig.disk.inner().resize(SECTORS);
    let error = rig.serve().unwrap_err().to_string();
    assert!(error.contains("512 sectors"), "{error}");
    rig.disk.inner().resize(2 * SECTORS);
    rig.succeed();
    rig.check();
}
