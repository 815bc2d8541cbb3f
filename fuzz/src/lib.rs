// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

#[macro_use]
mod codec;
pub mod device;
mod drivers;
mod image;
pub mod nbd_client;
pub mod nbd_server;
pub mod netlink;
pub mod path_switch;
pub mod qcow2;
pub mod ring;
pub mod ring_vs_queue;
pub mod seeds;
pub mod slow_path;
mod threads;
pub mod vduse;
pub mod vhost_user;

pub use codec::Encode;
