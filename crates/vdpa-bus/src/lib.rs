// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod backend_feature;
mod callback;
mod device;
mod error;
#[cfg(feature = "management")]
pub mod management;
mod vq;

pub use callback::Callback;
pub use device::VdpaDevice;
pub use error::VdpaError;
pub use vq::{VqAddress, VqState};
