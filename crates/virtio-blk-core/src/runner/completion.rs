// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What completes: status bytes, used entries, the in-flight log, notifications and counters.

use std::sync::Arc;

use super::log::InFlightLog;
use super::report::Reports;
use super::setup::Notify;
use super::slab::StatusByte;
use super::{Counters, ErrorCause};
use crate::disk::DiskError;
use crate::memory::{DeviceMemory, GuestMap};
use crate::ring::{ChainError, Ring, RingError, Segment};
use crate::spec::{RequestStatus, RequestType};

/// Used entries are published at the latest after this many, so that the driver has work while the rest
/// of a batch is executed.
pub(super) const PUBLISH_EVERY: usize = 16;

/// The used length after `written` bytes of `writable` data with the status behind them: never more than
/// was written from the first byte on without a gap (virtio 1.4, 2.7.8.2).
#[inline]
const fn used_len(written: u32, writable: u32) -> u32 {
    written + (written == writable) as u32
}

/// The status byte for a disk's error: the one place where they meet.
pub(super) fn status_of(error: &DiskError) -> RequestStatus {
    match error {
        DiskError::Unsupported => RequestStatus::Unsupp,
        _ => RequestStatus::IoErr,
    }
}

/// Marks the first `written` bytes of a chain's writable data as dirty.
fn mark_written<M: DeviceMemory>(map: &GuestMap<M>, data: &[Segment], written: u32) {
    let mut left = written;
    for segment in data {
        let part = segment.len.min(left);
        map.mark_dirty(segment.addr, part as usize);
        left -= part;
    }
}

/// A request that has ended: what the driver is to find, and what is counted.
pub(super) struct Finished<'a> {
    pub(super) head: u16,
    /// Where the status goes: mapped, in the ring's memory or that of the request's slot.
    pub(super) status: StatusByte,
    pub(super) result: RequestStatus,
    /// The counter it belongs to. `None`: none, as nothing is known of the request.
    pub(super) counted: Option<RequestType>,
    /// Bytes to count of a successful read or write.
    pub(super) data_len: u32,
    /// Bytes written from the first writable byte on.
    pub(super) written: u32,
    /// Bytes of the writable data, without the status.
    pub(super) writable_len: u32,
    /// The writable data in guest addresses; only needed where dirty pages are tracked.
    pub(super) writable: &'a [Segment],
}

/// The way back to the driver.
pub(super) struct Completer {
    log: Option<Box<dyn InFlightLog>>,
    notify: Notify,
    counters: Arc<Counters>,
    reports: Reports,
    /// Used entries that are not published yet.
    unpublished: usize,
    /// Their heads; only kept for the log.
    returning: Vec<u16>,
}

impl Completer {
    pub(super) fn new(
        log: Option<Box<dyn InFlightLog>>,
        notify: Notify,
        counters: Arc<Counters>,
        reports: Reports,
    ) -> Self {
        Self {
            log,
            notify,
            counters,
            reports,
            unpublished: 0,
            returning: Vec::new(),
        }
    }

    /// The counters of the queue.
    pub(super) const fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// The listeners for what goes wrong.
    pub(super) const fn reports(&self) -> &Reports {
        &self.reports
    }

    /// Counts a chain that can't be taken, and tells of it.
    #[cold]
    pub(super) fn note_malformed(&self, error: ChainError) {
        self.counters.malformed.add(1);
        self.reports.tell(ErrorCause::Chain(error));
    }

    /// Notes a head in the log, before anything is done for it.
    #[inline(always)]
    pub(super) fn taken(&mut self, head: u16) {
        if let Some(log) = &mut self.log {
            log.taken(head);
        }
    }

    /// Finishes a request: the one place where a status is written and a chain with one is returned.
    #[inline(always)]
    pub(super) fn finish<M: DeviceMemory>(
        &mut self,
        ring: &mut impl Ring,
        map: &GuestMap<M>,
        request: Finished<'_>,
    ) {
        // SAFETY: translated from a map whose memory is still held: the ring's, or the slot's.
        unsafe { request.status.host.write_volatile(request.result as u8) };
        if map.tracks_dirty() {
            map.mark_dirty(request.status.guest, 1);
            mark_written(map, request.writable, request.written);
        }
        self.count(&request);
        let len = used_len(request.written, request.writable_len);
        self.add_used(ring, request.head, len);
    }

    #[inline(always)]
    fn count(&self, request: &Finished<'_>) {
        let c = &*self.counters;
        let bytes = if request.result == RequestStatus::Ok {
            u64::from(request.data_len)
        } else {
            c.errors.add(1);
            0
        };
        match request.counted {
            Some(RequestType::In) => {
                c.reads.add(1);
                c.read_bytes.add(bytes);
            }
            Some(RequestType::Out) => {
                c.writes.add(1);
                c.written_bytes.add(bytes);
            }
            Some(RequestType::Flush) => c.flushes.add(1),
            Some(RequestType::Discard | RequestType::WriteZeroes | RequestType::SecureErase) => {
                c.erases.add(1);
            }
            Some(_) => c.others.add(1),
            None => {}
        }
    }

    /// Returns a chain to the driver, with the next [`Completer::publish`].
    #[inline(always)]
    pub(super) fn add_used(&mut self, ring: &mut impl Ring, head: u16, len: u32) {
        ring.add_used(head, len);
        self.unpublished += 1;
        if self.log.is_some() {
            self.returning.push(head);
        }
    }

    /// Whether enough has come together to be published.
    #[inline(always)]
    pub(super) const fn is_due(&self) -> bool {
        self.unpublished >= PUBLISH_EVERY
    }

    /// Makes used entries visible and notifies the driver if it wants that.
    #[inline(always)]
    pub(super) fn publish<M: DeviceMemory>(
        &mut self,
        ring: &mut impl Ring,
        map: &GuestMap<M>,
    ) -> Result<(), RingError> {
        if self.unpublished == 0 {
            return Ok(());
        }
        self.unpublished = 0;
        let used_idx = ring.state().next_used;
        if let Some(log) = &mut self.log {
            log.returning(&self.returning, used_idx);
        }
        let notify = ring.publish(map)?;
        if let Some(log) = &mut self.log {
            log.returned(&self.returning, used_idx);
            self.returning.clear();
        }
        if notify {
            self.notify();
        }
        Ok(())
    }

    /// Notifies the driver.
    #[inline]
    pub(super) fn notify(&self) {
        self.counters.interrupts.add(1);
        (self.notify)();
    }
}
