// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![doc = include_str!("../README.md")]

mod address;
mod asked;
mod coverage;
mod dial;
mod disk;
mod durability;
mod error;
mod fence;
mod flight;
mod handshake;
mod iov;
mod link;
mod options;
pub mod proto;
mod queue;
mod session;
mod shared;
mod socket;
mod stream;
mod tls;
#[cfg(feature = "tls")]
pub mod tls_session;
mod waiter;

pub use address::Address;
pub use disk::NbdDisk;
pub use error::NbdError;
pub use options::{NbdOptions, Unflushed};
pub use tls::TlsOptions;
