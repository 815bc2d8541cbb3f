// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![doc = include_str!("../README.md")]

pub mod client;
pub mod client_disk;
pub mod compare;
pub mod cpu;
mod error;
pub mod frontend;
pub mod kills;
pub mod load;
pub mod model;
pub mod nbd;
pub mod pattern;
pub mod server;
pub mod throttle;
pub mod verify;

pub use error::Error;

/// Bytes of a sector, the unit of the virtio-blk protocol whatever the disk's block size is.
pub const SECTOR: usize = 512;
