// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![doc = include_str!("../README.md")]

mod config_channel;
mod dirty_log;
mod event;
mod header;
mod inflight;
mod memory;
mod region;
mod server;
mod session;
mod shared_file;
pub mod socket;
mod stops;
mod told;
mod vring;

pub use server::{MAX_QUEUES, Server, ServerError, ServerHandle, ServerOptions};
pub use session::protocol_feature_names;
pub use stops::LeaveError;
pub use stops::STOP_TIME;
