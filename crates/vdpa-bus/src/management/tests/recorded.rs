// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The bytes of real kernels' replies. `lab/vdpa-record.sh` takes them.

use std::io;

use super::super::wire::Attributes;
use super::super::{
    AddDevice, BlkConfig, Device, DeviceConfig, Link, Management, ManagementDevice,
    ManagementError, ManagementName, NetConfig,
};

const KERNELS: [&str; 2] = [
    include_str!("../../../tests/recorded/linux-6.12.txt"),
    include_str!("../../../tests/recorded/linux-7.3.txt"),
];
/// A host without the module vdpa.
const NO_FAMILY: &str = include_str!("../../../tests/recorded/no-family.txt");

/// The bytes of a line in hexadecimal.
pub fn bytes(hex: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(byte).collect()
}

/// Plays one session: requests must be the recorded ones, byte for byte.
#[derive(Debug)]
pub struct Replay {
    lines: Vec<(char, Vec<u8>)>,
    next: usize,
}

impl Replay {
    /// The session with this title.
    pub fn session(recording: &str, title: &str) -> Self {
        let title = format!("= {title}");
        let lines = recording
            .lines()
            .skip_while(|line| *line != title)
            .skip(1)
            .map_while(|line| {
                let sign = line.chars().next()?;
                Some((sign, bytes(line.strip_prefix(['<', '>'])?.trim())))
            })
            .collect::<Vec<_>>();
        assert!(!lines.is_empty(), "no session {title:?}");
        Self { lines, next: 0 }
    }

    fn take(&mut self, sign: char) -> Option<Vec<u8>> {
        let (found, bytes) = self.lines.get(self.next)?;
        self.next += 1;
        assert_eq!(*found, sign);
        Some(bytes.clone())
    }
}

impl Link for Replay {
    fn send(&mut self, request: &[u8]) -> io::Result<()> {
        assert_eq!(self.take('>').as_deref(), Some(request));
        Ok(())
    }

    fn receive(&mut self) -> io::Result<Vec<u8>> {
        self.take('<')
            .ok_or_else(|| io::Error::from(io::ErrorKind::WouldBlock))
    }
}

/// Asks `question` in the session `title` with each kernel; all answer the same.
fn ask<T: PartialEq + std::fmt::Debug>(
    title: &str,
    mut question: impl FnMut(&mut Management<Replay>) -> T,
) -> T {
    let mut answers = KERNELS.map(|recording| {
        let mut client = Management::with_link(Replay::session(recording, title)).unwrap();
        let answer = question(&mut client);
        let link = client.into_link();
        assert_eq!(link.next, link.lines.len(), "{title}: not all was read");
        Some(answer)
    });
    assert_eq!(answers[0], answers[1], "{title}");
    answers[0].take().unwrap()
}

/// Error number and reason of what the kernel refused.
fn refused(
    title: &str,
    question: impl Fn(&mut Management<Replay>) -> Result<(), ManagementError>,
) -> (i32, Option<String>) {
    ask(title, |client| match question(client) {
        Err(ManagementError::Refused { errno, reason, .. }) => (errno, reason),
        other => panic!("{title}: {other:?}"),
    })
}

fn name(name: &str) -> super::super::DeviceName {
    name.parse().unwrap()
}

fn add(device: &str, parent: &str) -> AddDevice {
    AddDevice::new(name(device), parent.parse().unwrap())
}

fn vduse() -> ManagementName {
    "vduse".parse().unwrap()
}

fn device(name: &str, max_vqs: u32) -> Device {
    Device {
        name: name.to_owned(),
        management: vduse(),
        device_id: 2,
        vendor_id: 0,
        max_vqs,
        max_vq_size: Some(256),
        min_vq_size: Some(1),
    }
}

#[test]
fn no_family() {
    let error = Management::with_link(Replay::session(NO_FAMILY, "no family")).unwrap_err();
    assert!(matches!(error, ManagementError::NoFamily), "{error:?}");
    let said = error.to_string();
    assert!(
        said.contains("modprobe vdpa") && said.contains("modprobe vduse"),
        "{said}"
    );
}

#[test]
fn the_family_has_no_events() {
    const ATTR_MCAST_GROUPS: u16 = 7;
    const HEADERS: usize = 20;
    for recording in KERNELS {
        let session = Replay::session(recording, "devices");
        let (_, reply) = &session.lines[1];
        let family = Attributes::parse(&reply[HEADERS..]).unwrap();
        assert_eq!(family.text(2).as_deref(), Some("vdpa"));
        assert!(family.iter().all(|(kind, _)| kind != ATTR_MCAST_GROUPS));
    }
}

#[test]
fn management_devices() {
    let found = ask("management devices", |client| {
        client.management_devices().unwrap()
    });
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].name, vduse());
    assert!(found[0].supports(2), "{:#x}", found[0].supported_classes);
    assert!(!found[0].supports(64));
    let ManagementDevice {
        max_vqs,
        supported_features,
        ..
    } = found[0];
    assert_eq!((max_vqs, supported_features), (Some(0), Some(0)));
}

#[test]
fn devices() {
    assert_eq!(
        ask("no devices", |client| client.devices().unwrap()),
        Vec::new()
    );
    assert_eq!(
        ask("devices", |client| client.devices().unwrap()),
        [device("disk0", 4), device("disk1", 1)]
    );
    assert_eq!(
        ask("device", |client| client.device(&name("disk0")).unwrap()),
        device("disk0", 4)
    );
}

/// What qemu-storage-daemon offers: 64 MiB writable with four queues, 32 MiB read-only with one. Linux's
/// driver takes all but NOTIFY_ON_EMPTY.
fn configs() -> [DeviceConfig; 2] {
    let disk0 = DeviceConfig {
        name: "disk0".to_owned(),
        device_id: Some(2),
        vendor_id: None,
        device_features: Some(0x3_3100_7644),
        negotiated_features: Some(0x3_3000_7644),
        blk: BlkConfig {
            capacity: Some(64 << 11),
            size_max: None,
            seg_max: Some(254),
            blk_size: Some(512),
            num_queues: Some(4),
            physical_block_exp: Some(0),
            alignment_offset: Some(0),
            min_io_size: Some(1),
            opt_io_size: Some(1),
            max_discard_sectors: Some(32768),
            max_discard_seg: Some(1),
            discard_sector_alignment: Some(1),
            max_write_zeroes_sectors: Some(32768),
            max_write_zeroes_seg: Some(1),
            read_only: Some(false),
            flush: Some(true),
        },
        net: NetConfig::default(),
    };
    let disk1 = DeviceConfig {
        name: "disk1".to_owned(),
        blk: BlkConfig {
            capacity: Some(32 << 11),
            num_queues: None,
            read_only: Some(true),
            ..disk0.blk.clone()
        },
        device_features: Some(0x3_3100_6664),
        negotiated_features: Some(0x3_3000_6664),
        ..disk0.clone()
    };
    [disk0, disk1]
}

#[test]
fn configuration() {
    let [disk0, disk1] = configs();
    let read =
        |title: &str, device: &str| ask(title, |client| client.config(&name(device)).unwrap());
    assert_eq!(read("config", "disk0"), disk0);
    assert_eq!(read("config read-only", "disk1"), disk1);
    assert_eq!(
        ask("configs", |client| client.configs().unwrap()),
        [disk0, disk1]
    );
}

#[test]
fn add_and_delete() {
    ask("add", |client| client.add(&add("disk0", "vduse")).unwrap());
    ask("add second", |client| {
        client.add(&add("disk1", "vduse")).unwrap();
    });
    ask("delete", |client| client.delete(&name("disk0")).unwrap());
}

#[test]
fn the_kernels_reasons() {
    let no_parent = "vdpa: Fail to find the specified management device";
    for (title, device, errno, reason) in [
        ("add unknown to VDUSE", add("nosuch", "vduse"), 22, None),
        ("add by nobody", add("disk0", "nosuch"), 19, Some(no_parent)),
        (
            "add with bus",
            add("disk0", "nosuch/vduse"),
            19,
            Some(no_parent),
        ),
        (
            "add with features",
            add("disk0", "vduse").device_features(1 << 33),
            95,
            Some("vdpa: Some provided attributes are not supported: 0x100000"),
        ),
        ("add twice", add("disk0", "vduse"), 17, None),
        ("add without privilege", add("disk0", "vduse"), 1, None),
    ] {
        let said = refused(title, |client| client.add(&device));
        assert_eq!(said, (errno, reason.map(str::to_owned)), "{title}");
    }
    let stats = refused("stats", |client| {
        client.vendor_stats(&name("disk0"), 0).map(drop)
    });
    assert_eq!(stats, (95, None));
}

#[test]
fn a_reason_is_in_the_message() {
    let error = ask("add by nobody", |client| {
        client.add(&add("disk0", "nosuch")).unwrap_err().to_string()
    });
    assert_eq!(
        error,
        "adding disk0 by nosuch: vdpa: Fail to find the specified management device: No such device (os \
         error 19)"
    );
}

#[test]
fn devices_that_are_missing() {
    let missing = |title: &str, device: &str, delete: bool| {
        ask(title, |client| {
            let result = match delete {
                true => client.delete(&name(device)),
                false => client.device(&name(device)).map(drop),
            };
            match result {
                Err(ManagementError::NoDevice(name)) => assert_eq!(name, device),
                other => panic!("{other:?}"),
            }
        });
    };
    missing("device missing", "nosuch", false);
    missing("delete missing", "nosuch", true);
    missing("delete twice", "disk0", true);
}
