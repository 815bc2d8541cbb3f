// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests: what to ask of a device ([`Request`]), in which descriptors ([`Framing`]), in which memory
//! ([`Arena`]), and the queue that sends them and collects their completions ([`Driver`]).

mod arena;
mod ask;
mod driver;
mod error;
mod framing;

pub use arena::{Arena, ArenaConfig};
pub use ask::{In, Out, Request};
pub use driver::{Done, Driver, Token};
pub use error::{ArenaError, DriverError};
pub use framing::Framing;

#[cfg(test)]
mod tests;
