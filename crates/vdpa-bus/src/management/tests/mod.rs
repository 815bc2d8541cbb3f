// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The client against recorded and invented replies, sysfs against a model of the kernel.

mod hostile;
mod name;
mod network;
mod recorded;
mod sysfs;
