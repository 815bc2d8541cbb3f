// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device side of a virtqueue (virtio 1.4, 2.6 to 2.8).
//!
//! `Ring` is what a queue runner needs of any layout; `SplitRing` is the split layout. A ring resolves
//! its structures once into host memory, reads every descriptor exactly once into private memory, takes
//! chains of up to [`MAX_CHAIN`] descriptors whatever the queue's size, publishes used entries in batches with one index store, and **latches** the first fatal error: from
//! then on every call returns it and nothing is read or written any more.
//!
//! What a driver can do wrong falls in two kinds. A [`ChainError`] concerns one chain: its head is
//! known, so it is returned to the driver, with IOERR in its last writable byte, and the queue continues. (Returned
//! without a status it would look like success: drivers don't clear that byte.) Only a chain that was read
//! to its end and has nothing writable goes back without. A [`RingError`] means that ring and driver
//! disagree about the ring itself, or that there is no way to tell the driver of a chain's failure: the
//! queue stops, and the transport sets DEVICE_NEEDS_RESET.

mod chain;
mod error;
mod layout;
mod split;
mod state;

#[cfg(feature = "internals")]
pub use chain::{Chain, Segment, SimpleChain};
#[cfg(not(feature = "internals"))]
pub(crate) use chain::{Chain, Segment, SimpleChain};
pub use error::{ChainError, MAX_CHAIN, RingError};
#[cfg(feature = "internals")]
pub use layout::{LastWritable, Popped, Ring};
#[cfg(not(feature = "internals"))]
pub(crate) use layout::{LastWritable, Popped, Ring};
#[cfg(feature = "internals")]
pub use split::SplitRing;
#[cfg(not(feature = "internals"))]
pub(crate) use split::SplitRing;
pub(crate) use state::are_distinct;
pub use state::{AddressKind, MAX_QUEUE_SIZE, QueueState};

#[cfg(test)]
mod tests;
