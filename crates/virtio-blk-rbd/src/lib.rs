// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![doc = include_str!("../README.md")]

mod api;
mod cache;
mod caps;
mod claim;
mod cluster;
mod disk;
mod error;
mod extents;
#[cfg(test)]
mod fake;
mod flight;
mod handle;
mod image;
mod inbox;
mod name;
mod options;
mod queue;
mod shell;
mod size;
mod stall;
#[cfg(test)]
mod tests;
mod watch;

pub use disk::RbdDisk;
pub use error::RbdError;
pub use name::ImageName;
pub use options::{RbdOptions, State};
