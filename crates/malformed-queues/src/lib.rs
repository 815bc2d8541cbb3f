// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod cases;
mod play;
mod racer;
mod ring;
pub mod testmem;

pub use cases::{Case, Expect, cases};
pub use play::{Health, Mismatch, Options, Setup, Subject, play};
pub use racer::{Racer, Target};
pub use ring::{HostileError, HostileRing, Planned};
