// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Checks a vhost-user-blk server from the outside, with a driver that shares no code with `vblk`.
//!
//! The driver is the `blkio` crate; for what it does not do there is a client of our own, [`frontend`].
//! [`verify`] runs random operations on several queues and compares every byte with a [`model`] that knows
//! what is in flight; [`compare`] measures servers side by side; [`throttle`] looks how exactly limits are kept;
//! [`client_disk`] makes a disk of a server; [`server`] starts the server to look at, ours or `qemu-storage-daemon`. Not published: for this workspace's tests,
//! `cargo xtask verify` and `cargo xtask bench`.
//!
//! The benchmark programs are in `src/bin`, and the head of each says what it measures:
//!
//! | program | measures |
//! |---|---|
//! | `request-cost` | instructions of a request in the device, from the kick to the used entry |
//! | `vdpa-cost` | instructions of the vDPA layer, and of a translation |
//! | `path-cost` | instructions of a request on the slow path of a vDPA device |
//! | `switch-pause` | for how long nobody serves a guest that is moved between paths, and the CPU time of each path |
//! | `raw-speed` | I/Os per second and CPU time of one I/O of a disk, without a ring |
//! | `vblk-testing compare` | servers side by side, over vhost-user |

pub mod client;
pub mod client_disk;
pub mod compare;
pub mod cpu;
mod error;
pub mod frontend;
pub mod load;
pub mod model;
pub mod pattern;
pub mod server;
pub mod throttle;
pub mod verify;

pub use error::Error;

/// Bytes of a sector, the unit of the virtio-blk protocol whatever the disk's block size is.
pub const SECTOR: usize = 512;
