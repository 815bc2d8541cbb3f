// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Replies that no kernel should send: each gives an error or an answer, and an end.

use std::collections::VecDeque;
use std::io;

use proptest::prelude::*;

use super::super::attribute::{attr, command, control};
use super::super::wire::{self, Generic};
use super::super::{
    AddDevice, DeviceConfig, DeviceName, Link, MacAddress, Management, ManagementError, VendorStats,
};
use super::recorded::bytes;

pub const FAMILY: u16 = 0x22;
const DONE: u16 = 3;
const NOOP: u16 = 1;
const OVERRUN: u16 = 4;
pub const ERROR: u16 = 2;

/// A kernel that says what it is told to after it has given the family's number.
#[derive(Debug)]
pub struct Scripted {
    datagrams: VecDeque<Vec<u8>>,
    /// Sent for ever after `datagrams`.
    endless: Option<Vec<u8>>,
    received: usize,
}

impl Scripted {
    pub fn client(datagrams: impl IntoIterator<Item = Vec<u8>>) -> Management<Self> {
        Self::endless_client(datagrams, None)
    }

    fn endless_client(
        datagrams: impl IntoIterator<Item = Vec<u8>>,
        endless: Option<Vec<u8>>,
    ) -> Management<Self> {
        let id = wire::plain(control::ATTR_FAMILY_ID, FAMILY.to_ne_bytes());
        let family = reply(control::FAMILY, 1, wire::attributes(&[id]), 1);
        let mut script = VecDeque::from([[family, end(1)].concat()]);
        script.extend(datagrams);
        Management::with_link(Self {
            datagrams: script,
            endless,
            received: 0,
        })
        .unwrap()
    }
}

impl Link for Scripted {
    fn send(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn receive(&mut self) -> io::Result<Vec<u8>> {
        self.received += 1;
        let datagram = self.datagrams.pop_front();
        datagram
            .or_else(|| self.endless.clone())
            .ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }
}

pub fn reply(family: u16, command: u8, attributes: Vec<u8>, sequence: u32) -> Vec<u8> {
    let generic = Generic {
        family,
        command,
        version: 1,
        attributes,
    };
    wire::request(generic, 0, sequence)
}

/// A message of netlink's own kinds.
pub fn plain(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + payload.len()).unwrap();
    [
        &length.to_ne_bytes()[..],
        &kind.to_ne_bytes(),
        &flags.to_ne_bytes(),
        &sequence.to_ne_bytes(),
        &[0; 4],
        payload,
    ]
    .concat()
}

pub fn end(sequence: u32) -> Vec<u8> {
    plain(DONE, 2, sequence, &[0; 4])
}

fn device(name: &str) -> Vec<u8> {
    let number = |kind, value: u32| wire::plain(kind, value.to_ne_bytes());
    let list = [
        wire::text(attr::DEV_NAME, name),
        wire::text(attr::MGMTDEV_DEV_NAME, "vduse"),
        number(attr::DEV_ID, 2),
        number(attr::DEV_VENDOR_ID, 0),
        number(attr::DEV_MAX_VQS, 1),
    ];
    reply(FAMILY, command::DEV_NEW, wire::attributes(&list), 2)
}

fn malformed(datagrams: impl IntoIterator<Item = Vec<u8>>) -> String {
    match Scripted::client(datagrams).devices() {
        Err(ManagementError::Malformed { why, .. }) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn silence_and_a_missing_end_time_out() {
    for datagrams in [vec![], vec![device("a")], vec![device("a"), device("b")]] {
        let error = Scripted::client(datagrams).devices().unwrap_err();
        assert!(
            matches!(error, ManagementError::TimedOut { .. }),
            "{error:?}"
        );
    }
}

#[test]
fn endless_replies_end() {
    for message in [
        device("again"),
        plain(NOOP, 0, 2, &[]),
        // Of an exchange long past.
        end(77),
    ] {
        let datagram = message.repeat(32768 / message.len());
        let mut client = Scripted::endless_client([], Some(datagram));
        let error = client.devices().unwrap_err();
        assert!(
            matches!(error, ManagementError::Malformed { .. }),
            "{error:?}"
        );
        // 16 MiB of it was read, not more.
        assert!(client.into_link().received < 600);
    }
}

#[test]
fn pieces() {
    assert_eq!(malformed([vec![]]), "an empty datagram");
    let whole = device("a");
    for length in 1..whole.len() {
        malformed([whole[..length].to_vec()]);
    }
    for length in [0_u32, 1, 15, 19, u32::MAX] {
        let mut wrong = whole.clone();
        wrong[..4].copy_from_slice(&length.to_ne_bytes());
        malformed([wrong]);
    }
}

#[test]
fn attributes_with_wrong_lengths() {
    for length in [0_u16, 3, 200, u16::MAX] {
        let mut attributes = wire::attributes(&[wire::text(attr::DEV_NAME, "a")]);
        attributes[..2].copy_from_slice(&length.to_ne_bytes());
        malformed([reply(FAMILY, command::DEV_NEW, attributes, 2), end(2)]);
    }
    for size in [0, 1, 2, 3, 5, 8, 64] {
        let list = [
            wire::text(attr::DEV_NAME, "a"),
            wire::text(attr::MGMTDEV_DEV_NAME, "vduse"),
            wire::plain(attr::DEV_ID, vec![0; size]),
        ];
        let bytes = wire::attributes(&list);
        let why = malformed([reply(FAMILY, command::DEV_NEW, bytes, 2), end(2)]);
        assert_eq!(why, format!("attribute 5 has {size} bytes, not 4"));
    }
}

#[test]
fn nothing_in_it() {
    let empty = reply(FAMILY, command::DEV_NEW, Vec::new(), 2);
    assert_eq!(malformed([empty, end(2)]), "attribute 4 is missing");
    let name: DeviceName = "a".parse().unwrap();
    for replies in [vec![end(2)], vec![device("a"), device("a"), end(2)]] {
        let error = Scripted::client(replies).device(&name).unwrap_err();
        assert!(
            matches!(error, ManagementError::Malformed { .. }),
            "{error:?}"
        );
    }
}

#[test]
fn of_somebody_else() {
    let other = reply(FAMILY + 1, command::DEV_NEW, Vec::new(), 2);
    assert_eq!(malformed([other]), "a message of another family");
    let other = reply(FAMILY, command::DEV_CONFIG_GET, Vec::new(), 2);
    assert_eq!(malformed([other, end(2)]), "command 6, not 3");
    let lost = plain(OVERRUN, 0, 2, &[]);
    assert_eq!(malformed([lost]), "messages were lost");
    // The rest of an exchange that was given up is not taken for this one's.
    let stale = [plain(ERROR, 0, 1, &(-5_i32).to_ne_bytes()), end(1)].concat();
    let found = Scripted::client([stale, device("a"), end(2)])
        .devices()
        .unwrap();
    assert_eq!(found.len(), 1);
}

#[test]
fn acknowledgements() {
    const CAPPED: u16 = 0x100;
    const TLVS: u16 = 0x200;
    let refused = |flags, code: i32, rest: &[u8]| {
        let payload = [&code.to_ne_bytes()[..], rest].concat();
        Scripted::client([plain(ERROR, flags, 2, &payload)])
            .devices()
            .unwrap_err()
    };
    let words = wire::attributes(&[wire::text(1, "because")]);
    let request = reply(FAMILY, 1, vec![0; 8], 2);
    let said = |error| match error {
        ManagementError::Refused { errno, reason, .. } => (errno, reason),
        other => panic!("{other:?}"),
    };
    let because = Some("because".to_owned());
    // Behind the header of the request, and behind all of it.
    let capped = [&request[..16], &words].concat();
    assert_eq!(
        said(refused(CAPPED | TLVS, -17, &capped)),
        (17, because.clone())
    );
    let full = [&request[..], &words].concat();
    assert_eq!(said(refused(TLVS, -17, &full)), (17, because.clone()));
    // The number counts even where the words can't be read.
    let broken = [&request[..16], &[9, 0, 1]].concat();
    assert_eq!(said(refused(CAPPED | TLVS, -1, &broken)), (1, None));
    assert_eq!(said(refused(CAPPED, -1, &request[..16])), (1, None));
    assert_eq!(said(refused(0, i32::MIN, &[])), (i32::MAX, None));
    for (flags, code, rest) in [
        (CAPPED | TLVS, -1, &request[..8]),
        (TLVS, -1, &[]),
        (0, 5, &[]),
    ] {
        let error = refused(flags, code, rest);
        assert!(
            matches!(error, ManagementError::Malformed { .. }),
            "{error:?}"
        );
    }
    // A dump's end carries an error of its own.
    let failed = [&(-12_i32).to_ne_bytes()[..], &words].concat();
    let error = Scripted::client([plain(DONE, 2, 2, &failed)])
        .devices()
        .unwrap_err();
    assert_eq!(said(error), (12, because));
}

#[test]
fn statistics() {
    let counter = |name, value: u64| {
        [
            wire::text(attr::DEV_VENDOR_ATTR_NAME, name),
            wire::plain(attr::DEV_VENDOR_ATTR_VALUE, value.to_ne_bytes()),
        ]
    };
    let mut list = vec![
        wire::text(attr::DEV_NAME, "net0"),
        wire::plain(attr::DEV_QUEUE_INDEX, 3_u32.to_ne_bytes()),
    ];
    list.extend(counter("received_desc", 7));
    list.extend(counter("completed_desc", u64::MAX));
    let bytes = wire::attributes(&list);
    let stats = VendorStats::decode(&bytes).unwrap();
    assert_eq!((stats.name.as_str(), stats.queue), ("net0", 3));
    let counters = [("received_desc", 7), ("completed_desc", u64::MAX)];
    assert_eq!(stats.counters, counters.map(|(n, v)| (n.to_owned(), v)));
    let nameless = wire::attributes(&[list[0].clone(), list[3].clone()]);
    VendorStats::decode(&nameless).unwrap_err();
}

#[test]
fn names_are_taken_as_they_are() {
    let odd = [0xff, b'\n', b'a', 0, b'b'];
    let list = [wire::plain(attr::DEV_NAME, odd)];
    let config = DeviceConfig::decode(&wire::attributes(&list)).unwrap();
    assert_eq!(config.name, "\u{fffd}\na");
}

#[test]
fn attributes_of_add() {
    let device = AddDevice::new("net0".parse().unwrap(), "pci/0000:01:00.0".parse().unwrap())
        .mac_address(MacAddress([2, 0, 0, 0, 0, 1]))
        .mtu(9000)
        .max_queue_pairs(4)
        .device_features(1 << 33);
    let bytes = wire::attributes(&device.encode());
    let decoded = wire::Attributes::parse(&bytes).unwrap();
    assert_eq!(decoded.text(attr::DEV_NAME).as_deref(), Some("net0"));
    assert_eq!(decoded.text(attr::MGMTDEV_BUS_NAME).as_deref(), Some("pci"));
    assert_eq!(
        decoded.text(attr::MGMTDEV_DEV_NAME).as_deref(),
        Some("0000:01:00.0")
    );
    assert_eq!(decoded.u64(attr::DEV_FEATURES), Ok(Some(1 << 33)));
    assert_eq!(decoded.u16(attr::NET_CFG_MTU), Ok(Some(9000)));
    assert_eq!(decoded.u16(attr::NET_CFG_MAX_VQP), Ok(Some(4)));
    let mac = decoded
        .iter()
        .find(|(kind, _)| *kind == attr::NET_CFG_MACADDR);
    assert_eq!(mac.map(|(_, value)| value), Some(&[2, 0, 0, 0, 0, 1][..]));
}

/// Everything that reads replies, with these.
fn ask_all(datagrams: &[Vec<u8>]) {
    let name: DeviceName = "disk0".parse().unwrap();
    let client = || Scripted::client(datagrams.iter().cloned());
    let _ = client().devices();
    let _ = client().device(&name);
    let _ = client().config(&name);
    let _ = client().configs();
    let _ = client().management_devices();
    let _ = client().vendor_stats(&name, 0);
    let _ = client().delete(&name);
    let _ = client().set_mac_address(&name, MacAddress([2, 0, 0, 0, 0, 1]));
    let _ = Management::with_link(Scripted {
        datagrams: datagrams.to_vec().into(),
        endless: None,
        received: 0,
    });
}

proptest! {
    #[test]
    fn any_bytes(datagrams in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..4)) {
        ask_all(&datagrams);
    }

    /// Real replies with bytes changed, cut or repeated.
    #[test]
    fn nearly_right(
        at in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let replies: Vec<Vec<u8>> = include_str!("../../../tests/recorded/linux-6.12.txt")
            .lines()
            .filter_map(|line| line.strip_prefix("< "))
            .map(bytes)
            .collect();
        let mut reply = at.get(&replies).clone();
        // As an answer to this exchange.
        reply[8..12].copy_from_slice(&2_u32.to_ne_bytes());
        for (index, value) in changes {
            let index = index.index(reply.len());
            reply[index] = value;
        }
        if let Some(cut) = cut {
            reply.truncate(cut.index(reply.len()));
        }
        ask_all(&[reply.clone(), reply, end(2)]);
    }
}
