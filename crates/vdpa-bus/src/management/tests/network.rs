// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Network devices: addresses, and changing one.

use super::super::attribute::{attr, command};
use super::super::wire;
use super::super::{DeviceConfig, DeviceName, MacAddress, Management, ManagementError, NetConfig};
use super::hostile::{ERROR, FAMILY, Scripted, end, plain, reply};

const OLD: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
const NEW: MacAddress = MacAddress([0xa6, 0, 0, 0, 0x0f, 2]);

fn name() -> DeviceName {
    "net0".parse().unwrap()
}

/// What the kernel says in three exchanges: of the device, to the change, of the configuration space.
fn kernel(class: u32, code: i32, address: Option<MacAddress>) -> Management<Scripted> {
    let number = |kind, value: u32| wire::plain(kind, value.to_ne_bytes());
    let device = [
        wire::text(attr::DEV_NAME, "net0"),
        wire::text(attr::MGMTDEV_DEV_NAME, "sim"),
        number(attr::DEV_ID, class),
        number(attr::DEV_VENDOR_ID, 0),
        number(attr::DEV_MAX_VQS, 3),
    ];
    let mut config = vec![wire::text(attr::DEV_NAME, "net0")];
    config.extend(address.map(|address| wire::plain(attr::NET_CFG_MACADDR, address.0)));
    let answer = |command, list: &[_], sequence| {
        let content = reply(FAMILY, command, wire::attributes(list), sequence);
        [content, end(sequence)].concat()
    };
    Scripted::client([
        answer(command::DEV_NEW, &device, 2),
        plain(ERROR, 0, 3, &[&code.to_ne_bytes()[..], &[0; 16]].concat()),
        answer(command::DEV_CONFIG_GET, &config, 4),
    ])
}

#[test]
fn an_address_is_changed() {
    kernel(1, 0, Some(NEW))
        .set_mac_address(&name(), NEW)
        .unwrap();
    // A device that doesn't offer VIRTIO_NET_F_MAC tells nothing.
    kernel(1, 0, None).set_mac_address(&name(), NEW).unwrap();
}

#[test]
fn what_the_kernel_refuses_is_an_error() {
    let error = kernel(1, -22, None).set_mac_address(&name(), NEW);
    let error = error.unwrap_err();
    assert_eq!(error.errno(), Some(22), "{error}");
}

/// Linux 6.12 reports success where it only has words: "device not supported".
#[test]
fn success_without_a_change_is_an_error() {
    let error = kernel(2, 0, None).set_mac_address(&name(), NEW);
    assert!(
        matches!(error, Err(ManagementError::NotNetwork(_))),
        "{error:?}"
    );
    let error = kernel(1, 0, Some(OLD))
        .set_mac_address(&name(), NEW)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the kernel took the address a6:00:00:00:0f:02 of \"net0\", but the device has 02:00:00:00:00:01"
    );
}

#[test]
fn addresses() {
    assert_eq!("a6:00:00:00:0F:02".parse(), Ok(NEW));
    for wrong in [
        "",
        "a6:00:00:00:0f",
        "a6:00:00:00:0f:02:03",
        "a6:00:00:00:0f:+2",
        "a6:00:00:00:0f:2",
        "a6:00:00:00:0f:002",
        "a6-00-00-00-0f-02",
        // Nobody's, a group's.
        "00:00:00:00:00:00",
        "01:00:5e:00:00:01",
        "ff:ff:ff:ff:ff:ff",
    ] {
        wrong.parse::<MacAddress>().unwrap_err();
    }
}

#[test]
fn the_configuration_of_a_network_device() {
    let status = |bytes: &[u8]| wire::plain(attr::NET_STATUS, bytes);
    let with = |status| {
        let list = [
            wire::text(attr::DEV_NAME, "net0"),
            wire::plain(attr::NET_CFG_MACADDR, OLD.0),
            wire::plain(attr::NET_CFG_MAX_VQP, 4_u16.to_ne_bytes()),
            wire::plain(attr::NET_CFG_MTU, 9000_u16.to_ne_bytes()),
            status,
        ];
        DeviceConfig::decode(&wire::attributes(&list))
    };
    let net = NetConfig {
        mac_address: Some(OLD),
        status: Some(1),
        max_queue_pairs: Some(4),
        mtu: Some(9000),
    };
    assert_eq!(with(status(&[1])).unwrap().net, net);
    assert_eq!(with(status(&1_u16.to_ne_bytes())).unwrap().net, net);
    with(status(&[1, 0, 0])).unwrap_err();
}
