// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From a completion to the used ring.

use super::QueueRunner;
use super::slab::{RequestKind, Slot};
use crate::disk::{Completion, DiskError, IoBuf, Lifetime, Op, Token};
use crate::memory::{DeviceMemory, GuestMap};
use crate::ring::Segment;
use crate::spec::{RequestStatus, RequestType};

/// The used length after `written` bytes of `writable` data with the status behind them: never more than
/// was written from the first byte on without a gap (virtio 1.4, 2.7.8.2).
#[inline]
pub(super) const fn used_len(written: u32, writable: u32) -> u32 {
    written + (written == writable) as u32
}

/// Marks the first `written` bytes of a chain's writable data as dirty.
pub(super) fn mark_written<M: DeviceMemory>(map: &GuestMap<M>, data: &[Segment], written: u32) {
    let mut left = written;
    for segment in data {
        let part = segment.len.min(left);
        map.mark_dirty(segment.addr, part as usize);
        left -= part;
    }
}

/// The status byte for a disk's error: the one place where they meet.
pub(super) fn status_of(error: &DiskError) -> RequestStatus {
    match error {
        DiskError::Unsupported => RequestStatus::Unsupp,
        _ => RequestStatus::IoErr,
    }
}

impl<M: DeviceMemory> QueueRunner<M> {
    /// Takes a completion of the disk: finishes the request, or answers its next operation.
    #[inline(always)]
    #[must_use]
    pub(super) fn complete(&mut self, completion: Completion) -> Option<Op> {
        let Completion { token, result, buf } = completion;
        let Some(slot) = self.slab.get(token) else {
            self.counters.spurious_completions.add(1);
            return None;
        };
        let mut status = match &result {
            Ok(()) => RequestStatus::Ok,
            Err(error) => {
                self.reports.job(slot.job, slot.place(), error);
                status_of(error)
            }
        };
        match slot.job {
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
        let returned = conclude(slot, &self.map, status);
        self.slab.release(token);
        self.finish_counted(returned, status);
        None
    }

    /// Answers a request in flight and returns its chain.
    pub(super) fn finish(&mut self, token: Token, status: RequestStatus) {
        if let Some(slot) = self.slab.get(token) {
            let returned = conclude(slot, &self.map, status);
            self.slab.release(token);
            self.finish_counted(returned, status);
        }
    }

    #[inline(always)]
    fn finish_counted(&mut self, returned: Returned, status: RequestStatus) {
        let Returned {
            head,
            len,
            job,
            data_len,
        } = returned;
        self.count(job.wire(), data_len, status);
        self.add_used(head, len);
    }

    #[inline(always)]
    pub(super) fn count(&self, wire: RequestType, data_len: u32, status: RequestStatus) {
        let c = &self.counters;
        let bytes = if status == RequestStatus::Ok {
            u64::from(data_len)
        } else {
            c.errors.add(1);
            0
        };
        match wire {
            RequestType::In => {
                c.reads.add(1);
                c.read_bytes.add(bytes);
            }
            RequestType::Out => {
                c.writes.add(1);
                c.written_bytes.add(bytes);
            }
            RequestType::Flush => c.flushes.add(1),
            RequestType::Discard | RequestType::WriteZeroes | RequestType::SecureErase => {
                c.erases.add(1)
            }
            _ => c.others.add(1),
        }
    }
}

/// What is left to do for a concluded request.
struct Returned {
    head: u16,
    /// The used length.
    len: u32,
    job: RequestKind,
    data_len: u32,
}

/// Writes a request's status, and whatever else the guest is to find in its buffers.
#[inline(always)]
fn conclude<M: DeviceMemory>(
    slot: &mut Slot,
    map: &GuestMap<M>,
    status: RequestStatus,
) -> Returned {
    let ok = status == RequestStatus::Ok;
    let written = match slot.job {
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
    // SAFETY: the address was translated from the map whose owner the slot holds.
    unsafe { slot.status.host.write_volatile(status as u8) };
    let len = used_len(written, slot.writable_len);
    let (head, job, data_len) = (slot.head, slot.job, slot.data_len);
    if map.tracks_dirty() {
        map.mark_dirty(slot.status.guest, 1);
        mark_written(map, &slot.dirty, written);
    }
    // Memory of an earlier map must not stay mapped for the next request of the slot.
    slot.release_other(map);
    Returned {
        head,
        len,
        job,
        data_len,
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
