// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From a chain to an operation on the disk.

use super::QueueRunner;
use super::completion::{Finished, status_of};
use super::fetch::Fetch;
use super::outstanding::Submitted;
use super::slab::{RequestKind, Slot, StatusByte};
use crate::disk::{Execute, IoBuf, Lifetime, Op, OpKind, Token};
use crate::memory::{DeviceMemory, GuestMap, Permissions, Unmapped};
use crate::request::{ByteRange, RangeKind, Request, parse, parse_ranges};
use crate::ring::{Chain, ChainError, Segment};
use crate::spec::{RequestHeader, RequestStatus, RequestType};

/// Most host segments of one request. Only memory fragmented below an IOMMU comes near; the list of a
/// request stays below 256 KiB.
const MAX_HOST_SEGMENTS: usize = 16 * 1024;

/// The wire values of reads and writes.
pub(super) const IN: u32 = RequestType::In.to_wire();
pub(super) const OUT: u32 = RequestType::Out.to_wire();

impl<M: DeviceMemory> QueueRunner<M> {
    /// Executes or refuses the request in the chain at hand, or puts it in flight.
    ///
    /// Header and status are cut off first, wherever they lie; what remains of the chain is the data, as
    /// two lists of whole segments.
    #[inline(always)]
    pub(super) fn begin(&mut self) {
        let Some(status) = self.fetch.cut_status() else {
            return self.refuse_chain(ChainError::NoStatus);
        };
        match self.fetch.cut_header() {
            // Apart, so that each is compiled for its type alone.
            Some([head, sector]) => match head as u32 {
                IN => self.execute(status, RequestType::In, sector),
                OUT => self.execute(status, RequestType::Out, sector),
                _ => self.execute_other(status, RequestHeader::from_halves([head, sector])),
            },
            None => self.refuse(status, RequestType::Unknown(0), RequestStatus::IoErr),
        }
    }

    #[cold]
    pub(super) fn execute_other(&mut self, status: StatusByte, header: RequestHeader) {
        self.execute(status, header.kind, header.sector);
    }

    #[inline(always)]
    fn execute(&mut self, status: StatusByte, kind: RequestType, sector: u64) {
        let header = RequestHeader { kind, sector };
        let chain = &self.fetch.chain;
        let (readable, writable) = (chain.readable_len(), chain.writable_len());
        match parse(&header, readable, writable, &self.device.limits) {
            Ok(Request::Read { offset, len }) if len != 0 => {
                self.perform(status, RequestKind::Read, OpKind::Read { offset });
            }
            Ok(Request::Write { offset, len }) if len != 0 => {
                let fua = self.device.write_through();
                self.perform(status, RequestKind::Write, OpKind::Write { offset, fua });
            }
            Ok(Request::Flush) => self.perform(status, RequestKind::Flush, OpKind::Flush),
            Ok(request) => self.begin_rare(status, header.kind, request),
            Err(refused) => self.refuse(status, header.kind, refused),
        }
    }

    #[cold]
    fn begin_rare(&mut self, status: StatusByte, wire: RequestType, request: Request) {
        match request {
            Request::GetLifetime => self.perform(status, RequestKind::Lifetime, OpKind::Lifetime),
            Request::Ranges { kind, len } => self.ranges(status, wire, kind, len),
            Request::GetId { len } => {
                let serial = self.device.serial;
                let serial = serial.get(..len as usize).unwrap_or(&serial);
                let (result, written) = match self.writable_data() {
                    Ok(buf) => (RequestStatus::Ok, buf.copy_in(0, serial) as u32),
                    Err(_) => (RequestStatus::IoErr, 0),
                };
                self.finish_chain(status, wire, result, 0, written);
            }
            // Of no data: there is nothing to do.
            Request::Read { .. } | Request::Write { .. } | Request::Flush => {
                self.finish_chain(status, wire, RequestStatus::Ok, 0, 0);
            }
        }
    }

    /// Executes a request that is one operation on the chain's data: inside the call, if the disk can do that,
    /// else in flight.
    #[inline(always)]
    fn perform(&mut self, status: StatusByte, request: RequestKind, kind: OpKind) {
        let Fetch { chain, map, .. } = &self.fetch;
        if fill_data(request, chain, &mut self.data, map).is_err() {
            return self.finish_chain(status, request.wire(), RequestStatus::IoErr, 0, 0);
        }
        // Lifetime information is checked before the guest sees it.
        let result = match request {
            RequestKind::Lifetime => Execute::Declined,
            _ => self.outstanding.execute(&kind, &self.data),
        };
        self.executed(status, request, kind, result);
    }

    /// Continues after the disk was asked to execute an operation on the chain's data, which `data` holds.
    #[inline]
    pub(super) fn executed(
        &mut self,
        status: StatusByte,
        request: RequestKind,
        kind: OpKind,
        result: Execute,
    ) {
        let len = self.data.len() as u32;
        let (result, written) = match (request, result) {
            (_, Execute::Declined) => return self.transfer(status, request, kind),
            (_, Execute::Taken) => return self.taken(status, request, kind),
            (RequestKind::Read, Execute::Done(Ok(()))) => (RequestStatus::Ok, len),
            (_, Execute::Done(Ok(()))) => (RequestStatus::Ok, 0),
            (_, Execute::Done(Err(error))) => {
                self.completer.reports().operation(&kind, len, &error);
                // Whatever a failed read left behind must not reach the guest as data.
                let zeroed = if request == RequestKind::Read {
                    self.data.fill(0, len as usize, 0)
                } else {
                    0
                };
                (status_of(&error), zeroed as u32)
            }
        };
        self.finish_chain(status, request.wire(), result, len, written);
    }

    /// Submits a request that is one operation on the chain's data, which `data` holds.
    fn transfer(&mut self, status: StatusByte, request: RequestKind, kind: OpKind) {
        let Some((token, slot)) = self.put_in_flight(status, request, kind) else {
            return self.return_chain();
        };
        let buf = match request {
            // Checked before the guest sees it, so read into private memory first.
            RequestKind::Lifetime => IoBuf::zeroed(Lifetime::SIZE),
            _ => std::mem::take(&mut slot.buf),
        };
        self.submit(Op { token, kind, buf });
    }

    /// Notes a request that the disk has taken without its data, which `data` holds.
    fn taken(&mut self, status: StatusByte, request: RequestKind, kind: OpKind) {
        match self.put_in_flight(status, request, kind) {
            Some(_) => self.outstanding.note_taken(),
            None => self.return_chain(),
        }
    }

    /// Puts the request in the chain at hand in flight, together with its data. `None`: there is no room, which the
    /// ring rules out.
    fn put_in_flight(
        &mut self,
        status: StatusByte,
        request: RequestKind,
        kind: OpKind,
    ) -> Option<(Token, &mut Slot)> {
        let Fetch { chain, map, .. } = &self.fetch;
        let (token, slot) = self.outstanding.reserve(map, chain, status, request)?;
        slot.offset = match kind {
            OpKind::Read { offset } | OpKind::Write { offset, .. } => offset,
            _ => 0,
        };
        slot.data_len = match request {
            RequestKind::Write => chain.readable_len(),
            _ => chain.writable_len(),
        };
        std::mem::swap(&mut slot.buf, &mut self.data);
        // The host's segments may be merged, those of the guest that are kept for the dirty log are not.
        let segments = slot.buf.segments().len().max(slot.dirty.len());
        self.outstanding.note_segments(token, segments);
        Some((token, self.outstanding.get(token)?))
    }

    /// Starts a discard, write-zeroes or secure-erase request: one operation a range, one after another.
    fn ranges(&mut self, status: StatusByte, wire: RequestType, kind: RangeKind, len: u32) {
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
        let Some((token, slot)) = self.outstanding.reserve(map, chain, status, request) else {
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

    /// Gives an operation to the disk, and what follows from it. Returns `false` if there was no room: it waits
    /// then.
    #[inline(always)]
    pub(super) fn submit(&mut self, mut op: Op) -> bool {
        loop {
            match self.outstanding.submit(op) {
                Submitted::Done(completion) => match self.complete(completion) {
                    Some(next) => match self.outstanding.paced(next) {
                        Some(next) => op = next,
                        None => return false,
                    },
                    None => {
                        self.show_finished();
                        return true;
                    }
                },
                Submitted::Queued => return true,
                Submitted::Stalled => return false,
            }
        }
    }

    /// After an operation that the disk finished inside `submit`: the driver need not wait for the rest of the
    /// pass if that takes time.
    #[cold]
    fn show_finished(&mut self) {
        if self.outstanding.is_due() {
            // If this fails, the ring is latched, and its next call says so.
            let _ = self.publish();
        }
    }

    /// Finishes a request with a status other than OK before it reached the disk. Data the driver expects to be
    /// written reads as zeroes, so that the status lies inside the used length.
    #[cold]
    fn refuse(&mut self, status: StatusByte, wire: RequestType, refused: RequestStatus) {
        let mut written = 0;
        if wire == RequestType::In
            && let Ok(buf) = self.writable_data()
        {
            written = buf.fill(0, buf.len(), 0) as u32;
        }
        self.finish_chain(status, wire, refused, 0, written);
    }

    /// The chain's writable data.
    #[cold]
    fn writable_data(&self) -> Result<IoBuf, Unmapped> {
        let mut buf = IoBuf::new();
        let Fetch { chain, map, .. } = &self.fetch;
        fill(&mut buf, map, chain.writable(), Permissions::Write)?;
        Ok(buf)
    }

    /// Finishes the request in the chain at hand, after `written` bytes of data from the first writable byte on.
    /// A successful one counts with `data_len` bytes.
    #[inline(always)]
    fn finish_chain(
        &mut self,
        status: StatusByte,
        wire: RequestType,
        result: RequestStatus,
        data_len: u32,
        written: u32,
    ) {
        let Fetch {
            chain, map, ring, ..
        } = &mut self.fetch;
        let request = Finished {
            head: chain.head(),
            status,
            result,
            counted: Some(wire),
            data_len,
            written,
            writable_len: chain.writable_len(),
            writable: chain.writable(),
        };
        self.completer.finish(ring, map, request);
    }

    /// Returns the chain at hand unfinished: the ring rules out that this is needed.
    #[cold]
    fn return_chain(&mut self) {
        let Fetch { chain, ring, .. } = &mut self.fetch;
        self.completer.add_used(ring, chain.head(), 0);
    }
}

/// Translates the data of the request in `chain` into `buf`.
#[inline(always)]
fn fill_data<M: DeviceMemory>(
    request: RequestKind,
    chain: &Chain,
    buf: &mut IoBuf,
    map: &GuestMap<M>,
) -> Result<(), Unmapped> {
    match request {
        RequestKind::Write => fill(buf, map, chain.readable(), Permissions::Read),
        _ => fill(buf, map, chain.writable(), Permissions::Write),
    }
}

/// Translates segments into `buf`, together with the owner of the memory.
#[inline(always)]
fn fill<M: DeviceMemory>(
    buf: &mut IoBuf,
    map: &GuestMap<M>,
    segments: &[Segment],
    access: Permissions,
) -> Result<(), Unmapped> {
    let target = buf.refill(map.keep());
    for &Segment { addr, len } in segments {
        if let Some(base) = map.host(addr, len as usize) {
            // SAFETY: `base` is mapped for `len` bytes while `map.keep()` lives, which `buf` owns. The
            // sum is below 2^32.
            unsafe { target.push(base, len as usize) };
            continue;
        }
        let mut room = true;
        map.translate(addr, len as usize, access, |base, len| {
            room = room && target.count() < MAX_HOST_SEGMENTS;
            if room {
                // SAFETY: as above.
                unsafe { target.push(base, len) };
            }
        })?;
        if !room {
            let len = u64::from(len);
            return Err(Unmapped { addr, len });
        }
    }
    Ok(())
}
