// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device, a guest, a saboteur, and a bench with all of them; the ways into a queue.
#![allow(dead_code)]

pub mod bench;
pub mod budgeted;
pub mod device;
pub mod flaky;
pub mod guest;
pub mod ways;

#[allow(unused_imports)] // Each test binary uses a part of it.
pub use guest::eventfd;
