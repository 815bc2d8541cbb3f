// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Device status bits (virtio 1.4, 2.1).

/// The guest has noticed the device.
pub const ACKNOWLEDGE: u8 = 1;
/// The guest knows how to drive it.
pub const DRIVER: u8 = 2;
/// The driver is set up and drives the device.
pub const DRIVER_OK: u8 = 4;
/// Feature negotiation is complete.
pub const FEATURES_OK: u8 = 8;
/// The device has an error it can't recover from.
pub const DEVICE_NEEDS_RESET: u8 = 64;
/// The guest has given up on the device.
pub const FAILED: u8 = 128;
