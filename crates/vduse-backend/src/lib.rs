// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![doc = include_str!("../README.md")]

mod affinity;
#[cfg(feature = "test-util")]
pub mod fake;
pub mod kernel;
mod linux;
mod memory;
pub mod message;
mod queue;
mod server;
mod session;
mod setup;
mod state;
mod uapi;

pub use linux::Linux;
pub use server::{Outcome, Server, ServerError, ServerHandle, ServerOptions};
pub use uapi::{F_QUEUE_READY, F_SUSPEND};
