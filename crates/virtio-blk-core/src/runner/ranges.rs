// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests that are several operations: discard, write-zeroes, secure erase.

use super::fetch::Fetch;
use super::queue_runner::QueueRunner;
use super::request::fill;
use super::slot::{RequestKind, StatusByte};
use crate::disk::{IoBuf, Op};
use crate::memory::{DeviceMemory, Permissions};
use crate::request::{ByteRange, RangeKind, parse_ranges};
use crate::spec::{RequestStatus, RequestType};

impl<M: DeviceMemory> QueueRunner<M> {
    /// Starts a discard, write-zeroes or secure-erase request: one operation a range, one after another.
    pub(super) fn ranges(
        &mut self,
        status: StatusByte,
        wire: RequestType,
        kind: RangeKind,
        len: u32,
    ) {
        let mut buf = IoBuf::new();
        let Fetch { chain, map, .. } = &self.fetch;
        if fill(&mut buf, map, chain.readable(), Permissions::Read).is_err() {
            return self.refuse(status, wire, RequestStatus::IoErr);
        }
        self.scratch.clear();
        self.scratch.resize(len as usize, 0);
        buf.copy_out(0, &mut self.scratch);
        let mut ranges = std::mem::take(&mut self.spare_ranges);
        ranges.clear();
        let parsed = parse_ranges(kind, &self.scratch, &self.device.limits, &mut ranges);
        // A range of nothing needs no operation.
        ranges.retain(|range| range.len != 0);
        ranges.reverse();
        let fua = self.device.write_through();
        match (parsed, ranges.pop()) {
            (Err(refused), _) => self.refuse(status, wire, refused),
            (Ok(()), None) => self.finish_chain(status, wire, RequestStatus::Ok, 0, 0),
            (Ok(()), Some(first)) => self.first_range(status, kind, fua, first, ranges),
        }
    }

    fn first_range(
        &mut self,
        status: StatusByte,
        kind: RangeKind,
        fua: bool,
        first: ByteRange,
        rest: Vec<ByteRange>,
    ) {
        let request = RequestKind::Ranges { kind, fua };
        let Fetch { chain, map, .. } = &self.fetch;
        let writable = (chain.writable(), chain.writable_len());
        let reserved = (self.outstanding).reserve(map, chain.head(), writable, status, request);
        let Some((token, slot)) = reserved else {
            return self.return_chain();
        };
        slot.data_len = 0;
        slot.at(&first);
        slot.buf.clear();
        self.spare_ranges = std::mem::replace(&mut slot.ranges, rest);
        let op = Op {
            token,
            kind: first.op(kind, fua),
            buf: IoBuf::new(),
        };
        if let Some(op) = self.outstanding.paced(op) {
            self.submit(op);
        }
    }
}
