// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![doc = include_str!("../README.md")]

pub mod device;
pub mod disk;
mod guest_abi;
pub mod memory;
#[cfg(feature = "internals")]
pub mod request;
#[cfg(not(feature = "internals"))]
mod request;
pub mod ring;
pub mod runner;
pub mod spec;
#[cfg(feature = "test-util")]
pub mod testdisk;
