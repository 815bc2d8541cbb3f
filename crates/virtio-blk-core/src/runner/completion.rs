// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What completes: status bytes, used entries, the in-flight log, notifications and counters.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::log::InFlightLog;
use super::outstanding::Outstanding;
use super::report::{ErrorCause, Reports};
use super::slot::{RequestKind, Slot, StatusByte};
use crate::disk::{Completion, DiskError, IoBuf, Lifetime, Op};
use crate::memory::{DeviceMemory, GuestMap};
use crate::ring::{ChainError, Ring, RingError, Segment};
use crate::spec::{RequestStatus, RequestType};

/// Called when the driver wants to know of used buffers.
pub(super) type Notify = Box<dyn Fn() + Send>;

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

    /// Takes a completion of the disk: finishes the request, or returns its next operation.
    #[inline(always)]
    #[must_use]
    pub(super) fn complete<M: DeviceMemory>(
        &mut self,
        outstanding: &mut Outstanding,
        ring: &mut impl Ring,
        map: &GuestMap<M>,
        completion: Completion,
    ) -> Option<Op> {
        let Completion { token, result, buf } = completion;
        let Some(slot) = outstanding.get(token) else {
            self.counters.spurious_completions.add(1);
            return None;
        };
        let mut status = match &result {
            Ok(()) => RequestStatus::Ok,
            Err(error) => {
                self.reports.request(slot.kind, slot.place(), error);
                status_of(error)
            }
        };
        match slot.kind {
            RequestKind::Read | RequestKind::Write | RequestKind::Flush => slot.put_back(buf),
            RequestKind::Lifetime => {
                if status == RequestStatus::Ok {
                    status = copy_lifetime(&buf, &slot.buf);
                }
            }
            RequestKind::Ranges { kind, fua } => {
                if status == RequestStatus::Ok
                    && let Some(next) = slot.ranges.pop()
                {
                    slot.at(&next);
                    return Some(Op {
                        // Of its own, so that a completion that is repeated is not taken for the next.
                        token: slot.renew(token),
                        kind: next.op(kind, fua),
                        buf,
                    });
                }
            }
        }
        self.finish_slot(ring, map, slot, status);
        outstanding.release(token);
        None
    }

    /// Finishes the request in `slot` with `result`; the slot is to be released then.
    #[inline(always)]
    pub(super) fn finish_slot<M: DeviceMemory>(
        &mut self,
        ring: &mut impl Ring,
        map: &GuestMap<M>,
        slot: &mut Slot,
        result: RequestStatus,
    ) {
        let ok = result == RequestStatus::Ok;
        let written = match slot.kind {
            RequestKind::Read if ok => slot.data_len,
            // Whatever a failed read left behind must not reach the guest as data.
            RequestKind::Read => slot.buf.fill(0, slot.data_len as usize, 0) as u32,
            RequestKind::Lifetime if ok => Lifetime::SIZE as u32,
            RequestKind::Ranges { .. } => {
                slot.ranges.clear();
                0
            }
            RequestKind::Lifetime | RequestKind::Write | RequestKind::Flush => 0,
        };
        let request = Finished {
            head: slot.head,
            status: slot.status,
            result,
            counted: Some(slot.kind.wire()),
            data_len: slot.data_len,
            written,
            writable_len: slot.writable_len,
            writable: &slot.dirty,
        };
        self.finish(ring, map, request);
        // Memory of an earlier map must not stay mapped for the next request of the slot.
        slot.release_other(map);
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

/// Copies lifetime information to the guest unless it holds reserved values (virtio 1.4, 5.2.6).
fn copy_lifetime(from: &IoBuf, to: &IoBuf) -> RequestStatus {
    let mut bytes = [0; Lifetime::SIZE];
    let whole = from.copy_out(0, &mut bytes) == bytes.len();
    match Lifetime::from_bytes(bytes) {
        Some(_) if whole && to.copy_in(0, &bytes) == bytes.len() => RequestStatus::Ok,
        _ => RequestStatus::IoErr,
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of one queue. One writer (the runner), any number of readers; each value is exact,
        /// but they are not read at one instant.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: Counter,)*
        }

        impl Counters {
            /// All counters by name, in a fixed order.
            pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get()),)*]
            }
        }
    };
}

counters! {
    /// Reads completed, well or badly.
    reads,
    /// Bytes read by successful reads.
    read_bytes,
    /// Writes completed.
    writes,
    /// Bytes written by successful writes.
    written_bytes,
    /// Flushes completed.
    flushes,
    /// Discard, write-zeroes and secure-erase requests completed.
    erases,
    /// Other requests completed (serial number, lifetime, unknown types).
    others,
    /// Requests answered with a status other than OK.
    errors,
    /// Chains that could not be taken because they were malformed. Those that were answered all the same
    /// count as errors too.
    malformed,
    /// Notifications of the driver.
    interrupts,
    /// Calls of `service` that found at least one request.
    batches,
    /// Completions that a disk invented or repeated; each is a bug in the disk.
    spurious_completions,
}

/// One counter: wraps after 2^64.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds `n`. There is one writer, so no locked instruction is needed.
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(n),
            Ordering::Relaxed,
        );
    }
}
