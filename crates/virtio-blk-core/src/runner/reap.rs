// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From the disk's completions to finished requests.

use super::completion::{Completer, Finished, status_of};
use super::fetch::Fetch;
use super::slab::{RequestKind, Slot};
use super::{QueueError, QueueRunner};
use crate::disk::{Completion, IoBuf, Lifetime, Op, Token};
use crate::memory::DeviceMemory;
use crate::spec::RequestStatus;

impl<M: DeviceMemory> QueueRunner<M> {
    /// Collects what the disk has finished, and submits what waited for it.
    pub(super) fn poll_completions(&mut self) -> Result<(), QueueError> {
        self.reap()?;
        if self.outstanding.may_resubmit() {
            self.submit_stalled()?;
        }
        // Not after what is new was taken and started.
        self.publish_now()
    }

    /// Finishes what the disk is done with, continues requests of several operations, and submits what it had
    /// no room for.
    #[inline]
    pub(super) fn reap(&mut self) -> Result<(), QueueError> {
        if self.outstanding.may_complete() {
            return self.reap_queued();
        }
        Ok(())
    }

    fn reap_queued(&mut self) -> Result<(), QueueError> {
        let (mut done, result) = self.outstanding.reap();
        let freed = !done.is_empty();
        for completion in done.drain(..) {
            if let Some(next) = self.complete(completion)
                && let Some(next) = self.outstanding.paced(next)
            {
                self.submit(next);
            }
        }
        self.outstanding.recycle(done);
        result.map_err(QueueError::Disk)?;
        if freed && self.outstanding.is_stalled() {
            self.submit_stalled()?;
        }
        self.outstanding.flush_batch().map_err(QueueError::Disk)
    }

    fn submit_stalled(&mut self) -> Result<(), QueueError> {
        while let Some(op) = self.outstanding.next_stalled() {
            if !self.submit(op) {
                break;
            }
        }
        self.outstanding.flush_batch().map_err(QueueError::Disk)
    }

    /// Takes a completion of the disk: finishes the request, or returns its next operation.
    #[inline(always)]
    #[must_use]
    pub(super) fn complete(&mut self, completion: Completion) -> Option<Op> {
        let Completion { token, result, buf } = completion;
        let Some(slot) = self.outstanding.get(token) else {
            self.completer.counters().spurious_completions.add(1);
            return None;
        };
        let mut status = match &result {
            Ok(()) => RequestStatus::Ok,
            Err(error) => {
                let reports = self.completer.reports();
                reports.request(slot.kind, slot.place(), error);
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
        finish(slot, status, &mut self.completer, &mut self.fetch);
        self.outstanding.release(token);
        None
    }

    /// Finishes a request in flight with `result`.
    pub(super) fn finish(&mut self, token: Token, result: RequestStatus) {
        if let Some(slot) = self.outstanding.get(token) {
            finish(slot, result, &mut self.completer, &mut self.fetch);
            self.outstanding.release(token);
        }
    }
}

/// Finishes the request in `slot` with `result`; the slot is to be released then.
#[inline(always)]
fn finish<M: DeviceMemory>(
    slot: &mut Slot,
    result: RequestStatus,
    completer: &mut Completer,
    fetch: &mut Fetch<M>,
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
    completer.finish(&mut fetch.ring, &fetch.map, request);
    // Memory of an earlier map must not stay mapped for the next request of the slot.
    slot.release_other(&fetch.map);
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
