// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;
use crate::spec::status::*;

/// The usual steps up to, and not including, DRIVER_OK.
fn negotiated(device: &Device) -> StatusRegister {
    let mut status = StatusRegister::default();
    let features = device.offered();
    for (value, expected) in [
        (ACKNOWLEDGE, 1),
        (ACKNOWLEDGE | DRIVER, 3),
        (ACKNOWLEDGE | DRIVER | FEATURES_OK, 11),
    ] {
        assert_eq!(status.write(value, features, device), StatusChange::None);
        assert_eq!(status.get(), expected);
        assert!(!status.is_live());
    }
    status
}

#[test]
fn queues_start_at_driver_ok() {
    let device = device(full(), DeviceOptions::default());
    let mut status = negotiated(&device);
    assert_eq!(device.accepted(), device.offered());
    let change = status.write(15, device.offered(), &device);
    assert_eq!(change, StatusChange::Start);
    assert!(status.is_live());
    // Once.
    let change = status.write(15, device.offered(), &device);
    assert_eq!((change, status.get()), (StatusChange::None, 15));
}

#[test]
fn driver_ok_needs_features_ok() {
    let device = device(full(), DeviceOptions::default());
    let mut status = StatusRegister::default();
    let change = status.write(ACKNOWLEDGE | DRIVER | DRIVER_OK, 0, &device);
    assert_eq!((change, status.get()), (StatusChange::None, 3));
    // Both at once is in order.
    let change = status.write(15, device.offered(), &device);
    assert_eq!((change, status.get()), (StatusChange::Start, 15));
}

#[test]
fn refused_features_do_not_show_features_ok() {
    let device = device(full(), DeviceOptions::default());
    let mut status = StatusRegister::default();
    for features in [0, device.offered() | feature::ZONED] {
        let change = status.write(11, features, &device);
        assert_eq!((change, status.get()), (StatusChange::Refused, 3));
        let change = status.write(15, features, &device);
        assert_eq!((change, status.get()), (StatusChange::Refused, 3));
    }
    assert_eq!(device.accepted(), 0);
    // The driver may think again.
    let change = status.write(11, feature::VERSION_1, &device);
    assert_eq!((change, status.get()), (StatusChange::None, 11));
    assert_eq!(device.accepted(), feature::VERSION_1);
    // Then they are settled.
    let change = status.write(15, device.offered(), &device);
    assert_eq!(change, StatusChange::Start);
    assert_eq!(device.accepted(), feature::VERSION_1);
}

#[test]
fn a_reset_reads_as_zero_at_once() {
    let device = device(full(), DeviceOptions::default());
    let mut status = negotiated(&device);
    status.write(15, 0, &device);
    status.need_reset();
    assert_eq!(status.write(0, 0, &device), StatusChange::Reset);
    assert_eq!(status.get(), 0);
    assert!(!status.is_live());
    // Also when it is 0 already.
    assert_eq!(status.write(0, 0, &device), StatusChange::Reset);
    negotiated(&device);
}

#[test]
fn bits_stay_once_they_are_set() {
    let device = device(full(), DeviceOptions::default());
    let mut status = negotiated(&device);
    let change = status.write(ACKNOWLEDGE, 0, &device);
    assert_eq!((change, status.get()), (StatusChange::None, 11));
    let change = status.write(FAILED, 0, &device);
    assert_eq!((change, status.get()), (StatusChange::None, 11 | FAILED));
}

#[test]
fn a_needed_reset_shows_and_is_told_once_the_driver_is_ready() {
    let device = device(full(), DeviceOptions::default());
    let mut status = negotiated(&device);
    status.write(15, 0, &device);
    assert!(status.need_reset(), "tell the driver");
    assert!(!status.need_reset(), "once");
    assert_eq!(status.get(), 15 | DEVICE_NEEDS_RESET);
    assert!(!status.is_live());

    // Before that nobody listens; and no queue starts.
    let mut status = negotiated(&device);
    assert!(!status.need_reset());
    let change = status.write(15, 0, &device);
    assert_eq!(change, StatusChange::None);
    assert!(!status.is_live());
    // The bit is the device's alone.
    let mut status = negotiated(&device);
    status.write(11 | DEVICE_NEEDS_RESET, 0, &device);
    assert_eq!(status.get(), 11);
}
