// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One queue at work: chains from a ring become operations on a disk, completions go back.
//!
//! A [`QueueRunner`] has no thread and no event loop. Its embedder calls [`QueueRunner::service`] when the
//! driver kicked, when the disk's [`Wait`] fires, or all the time; and [`QueueRunner::stop`] to get the
//! queue's state back. `QueueThread` (feature `thread`) and `QueueSubscriber` (feature
//! `event-manager`) are ready-made callers; a `QueueSet` (feature `thread`) has the threads of a device's queues.
//!
//! Whatever the driver does, each chain taken is added to the used ring exactly once, or named in
//! [`Stopped::in_flight`]. The exception is a ring that breaks: nothing is written to it any more, so
//! requests that were finished in the same pass and not yet published are lost with it.

mod completion;
mod error;
mod fetch;
mod inflight;
mod log;
#[cfg(feature = "thread")]
mod medium;
mod outstanding;
mod queue_runner;
#[cfg(feature = "thread")]
mod queue_set;
mod ranges;
mod refuse;
mod report;
mod request;
mod setup;
mod slot;
mod stop;
mod stopped;
#[cfg(feature = "event-manager")]
mod subscriber;
#[cfg(feature = "thread")]
mod thread;
mod wait;

pub use completion::{Counter, Counters};
#[cfg(any(feature = "thread", feature = "event-manager"))]
pub use error::OnFatal;
pub use error::QueueError;
pub use inflight::{InFlightArea, InFlightError};
#[cfg(feature = "internals")]
pub use log::InFlightLog;
#[cfg(not(feature = "internals"))]
pub(crate) use log::InFlightLog;
#[cfg(feature = "thread")]
pub use medium::{Medium, MediumEvent, Refused};
pub use queue_runner::{QueueRunner, Service};
#[cfg(feature = "thread")]
pub use queue_set::QueueSet;
pub use report::{ErrorCause, RequestError};
pub(crate) use report::{ErrorListeners, Reports};
pub(crate) use setup::QueueParts;
pub use setup::QueueSetup;
pub use stopped::{Stop, Stopped};
#[cfg(feature = "event-manager")]
pub use subscriber::QueueSubscriber;
#[cfg(feature = "thread")]
pub use thread::{QueueThread, StandbyThread, ThreadOptions};

#[cfg(doc)]
use crate::disk::Wait;

#[cfg(test)]
mod tests;
