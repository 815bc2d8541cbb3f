// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use clap::Parser;
use vdpa_bus::management::{AddDevice, DeviceName, Driver, MacAddress, ManagementError};

use super::VdpaCommand;
use super::hint::explain;
use super::stats::{self, Counters};
use super::table::render;
use crate::cli::{Cli, Command};

fn command(words: &str) -> VdpaCommand {
    let line = ["vblk", "vdpa"].into_iter().chain(words.split(' '));
    match Cli::try_parse_from(line).unwrap().command {
        Command::Vdpa(command) => command,
        other => panic!("{other:?}"),
    }
}

#[test]
fn command_lines() {
    let VdpaCommand::Add(args) = command("add disk0") else {
        panic!("not add");
    };
    assert_eq!(args.name.as_str(), "disk0");
    assert_eq!(args.mgmtdev.to_string(), "vduse");
    assert_eq!(args.features, None);
    let VdpaCommand::Add(args) = command("add d --mgmtdev pci/0000:01:00.0 --features 0x20") else {
        panic!("not add");
    };
    assert_eq!(args.mgmtdev.bus(), Some("pci"));
    assert_eq!(args.features, Some(0x20));
    let words = "add n --mgmtdev sim --mac 02:00:00:00:00:01 --mtu 9000 --max-vqp 4";
    let VdpaCommand::Add(args) = command(words) else {
        panic!("not add");
    };
    assert_eq!(args.mac.map(|mac| mac.0), Some([2, 0, 0, 0, 0, 1]));
    assert_eq!((args.mtu, args.max_vqp), (Some(9000), Some(4)));
    assert_eq!(
        super::asked_for(&args),
        AddDevice::new(args.name.clone(), args.mgmtdev.clone())
            .mac_address(MacAddress([2, 0, 0, 0, 0, 1]))
            .mtu(9000)
            .max_queue_pairs(4)
    );
    let VdpaCommand::Set(args) = command("set net0 --mac 02:00:00:00:00:01") else {
        panic!("not set");
    };
    assert_eq!(args.mac.0, [2, 0, 0, 0, 0, 1]);
    let VdpaCommand::Stats(args) = command("stats net0 --queue 3") else {
        panic!("not stats");
    };
    assert_eq!(args.queue, Some(3));
    for (word, driver) in [
        ("virtio", Some(Driver::Virtio)),
        ("vhost", Some(Driver::Vhost)),
        ("none", None),
    ] {
        let VdpaCommand::Bind(args) = command(&format!("bind disk0 {word}")) else {
            panic!("not bind");
        };
        assert_eq!(args.driver.driver(), driver);
    }
}

#[test]
fn tables() {
    let cell = |text: &str| Some(text.to_owned());
    let rows = [[cell("disk0"), None], [cell("a\u{1b}b"), cell("ü")]];
    let text = render(["N", "DRIVER"], rows.into_iter());
    assert_eq!(text, "N         DRIVER\ndisk0     -\na\\u{1b}b  ü\n");
}

#[test]
fn statistics() {
    let counters = |queue, list: &[(&str, u64)]| Counters {
        name: "net0".to_owned(),
        queue,
        negotiated_features: None,
        counters: list.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect(),
    };
    let all = [
        counters(0, &[("received_desc", 12), ("completed_desc", 7)]),
        counters(1, &[("tx_packets", u64::MAX)]),
    ];
    assert_eq!(
        stats::text(&all),
        "QUEUE  COUNTER         VALUE\n\
         0      completed_desc  7\n\
         0      received_desc   12\n\
         1      tx_packets      18446744073709551615\n"
    );
    assert_eq!(
        serde_json::to_string(&all[1]).unwrap(),
        r#"{"name":"net0","queue":1,"counters":{"tx_packets":18446744073709551615}}"#
    );
}

#[test]
fn hints() {
    let refused = |errno| ManagementError::Refused {
        what: "adding disk0 by vduse".to_owned(),
        errno,
        reason: None,
    };
    let missing = ManagementError::NoDevice("nosuch".to_owned());
    let name: Result<DeviceName, _> = "a/b".parse();
    for (error, words, help) in [
        (refused(1), "add disk0", "root"),
        (refused(1), "del disk0", "root"),
        (refused(17), "add disk0", "vblk vdpa del disk0"),
        (refused(19), "add disk0", "modprobe vduse"),
        (refused(19), "add disk0 --mgmtdev sim", "vblk vdpa mgmt"),
        (refused(95), "add disk0 --features 1", "without --features"),
        (
            refused(95),
            "add disk0 --mac 02:00:00:00:00:01 --mtu 1500",
            "without --mac and --mtu",
        ),
        (
            refused(95),
            "set net0 --mac 02:00:00:00:00:01",
            "Linux 6.12",
        ),
        (
            refused(22),
            "set net0 --mac 02:00:00:00:00:01",
            "with --mac",
        ),
        (refused(95), "stats disk0", "network devices only"),
        (refused(11), "stats net0", "negotiated"),
        (
            refused(22),
            "add no-such-vduse-device",
            "there is no /dev/vduse/no-such-vduse-device",
        ),
        (missing, "show nosuch", "vblk vdpa list"),
        (ManagementError::NoFamily, "list", "modprobe vdpa"),
        (
            ManagementError::NoDriver(Driver::Vhost),
            "bind disk0 vhost",
            "modprobe vhost_vdpa",
        ),
        (name.unwrap_err().into(), "list", "'/'"),
    ] {
        let said = explain(&error, &command(words));
        assert!(said.contains(help), "{said}");
    }
    // Nothing is known that would help.
    assert_eq!(
        explain(&refused(12), &command("del disk0")),
        refused(12).to_string()
    );
}
