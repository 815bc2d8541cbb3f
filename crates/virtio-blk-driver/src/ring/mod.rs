// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The driver half of a split virtqueue (virtio 1.4, 2.7).
//!
//! [`SplitLayout`] says where the three areas lie, [`SplitDriver`] puts chains in and takes them back,
//! and checks meanwhile that the device keeps the rules ([`Violation`]).

mod audit;
mod error;
mod layout;
mod notify;
mod split;

pub use error::{LayoutError, RingError, Violation};
pub use layout::{MAX_QUEUE_SIZE, SplitLayout};
pub use split::{Chain, RingConfig, SplitDriver, Used};

#[cfg(test)]
mod tests;
