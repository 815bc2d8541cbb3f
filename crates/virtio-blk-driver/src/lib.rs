// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod memory;
pub mod request;
pub mod ring;
mod rng;
#[cfg(feature = "vdpa")]
pub mod vdpa;
pub mod wire;

pub use memory::{AccessError, Memory, Segment};
