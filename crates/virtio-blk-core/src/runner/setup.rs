// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a queue is started with: the transport's part and the device's.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

#[cfg(doc)]
use super::Stopped;
use super::completion::{Counters, Notify};
use super::report::Reports;
use super::{InFlightArea, InFlightError, InFlightLog};
use crate::memory::{DeviceMemory, GuestMap};
use crate::request::DeviceView;
use crate::ring::{QueueState, RingError, SplitRing};

/// What an embedder gives to [`crate::device::Device::start_queue`].
pub struct QueueSetup<M: DeviceMemory> {
    /// Guest memory; snapshots are taken from it whenever it changes.
    pub(super) map: GuestMap<M>,
    /// How to notify the driver.
    pub(super) notify: Notify,
    /// An in-flight log, where the transport has one: see [`QueueSetup::keep_log`].
    pub(super) log: Option<Box<dyn InFlightLog>>,
    /// Heads that an earlier owner of the queue took and did not return ([`Stopped::in_flight`], or what
    /// a log says), in the order in which they were taken. They are executed first. The state counts
    /// them as taken; more of them than it counts, or one named twice, are refused at the start.
    pub replay: Vec<u16>,
    /// Where the memory tracks writes at times only (a log of dirty pages while a migration runs): whether
    /// it does now. May be switched at any time. `None`: whenever its bitmap has state.
    pub tracking: Option<Arc<AtomicBool>>,
}

impl<M: DeviceMemory> QueueSetup<M> {
    /// A set-up without log and replay. `notify` is called when the driver wants to know of used buffers: it writes an
    /// eventfd, or injects an interrupt, and must not block.
    pub fn new(memory: M, notify: impl Fn() + Send + 'static) -> Self {
        Self {
            map: GuestMap::new(memory),
            notify: Box::new(notify),
            log: None,
            replay: Vec::new(),
            tracking: None,
        }
    }

    /// The used index of the ring at `state`, as the driver sees it: where a transport continues that was told
    /// the ring's addresses only.
    ///
    /// # Errors
    /// The used ring is not aligned or not mapped, or the addresses are of another kind. Nothing else of the
    /// state is checked.
    pub fn used_index(&self, state: &QueueState) -> Result<u16, RingError> {
        SplitRing::used_index(&self.map, state)
    }

    /// Keeps an in-flight log for queue `index` in `area`, and has the requests executed first that the log says
    /// were in flight. Returns how many those are: `next_avail` of the state to start with lies so many behind
    /// its `next_used`, or more. `state` needs to have size and `next_used`
    /// ([`QueueSetup::used_index`]).
    ///
    /// # Errors
    /// The area has no such queue, or is of a layout of the future.
    pub fn keep_log(
        &mut self,
        area: &InFlightArea,
        index: u16,
        state: &QueueState,
    ) -> Result<u16, InFlightError> {
        let (log, replay) = area.split_log(index, state.size, state.next_used)?;
        let count = replay.len() as u16;
        self.log = Some(Box::new(log));
        self.replay = replay;
        Ok(count)
    }
}

/// What the device decides about a queue; see [`QueueSetup`] for the transport's part.
pub(crate) struct QueueParts {
    pub(crate) features: u64,
    pub(crate) device: DeviceView,
    pub(crate) counters: Arc<Counters>,
    pub(crate) reports: Reports,
}
