// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A request, from its chain to the disk, and to its end if the disk executes it inside the call.
//!
//! Nearly every request is a read or write in a simple chain: `begin_simple` has a way of its own for those.
//! Whatever else shows on that way continues as any chain does, in `begin`.

use super::completion::{Finished, status_of};
use super::fetch::{Fetch, HEADER_LEN, STATUS_LEN};
use super::outstanding::{Outstanding, Submitted};
use super::queue_runner::QueueRunner;
use super::slot::{RequestKind, Slot, StatusByte};
use crate::disk::{Execute, IoBuf, Lifetime, Op, OpKind, Token};
use crate::memory::{DeviceMemory, GuestMap, Permissions, Unmapped, read_16};
use crate::request::{Request, parse};
use crate::ring::{Chain, ChainError, Segment, SimpleChain};
use crate::spec::{HEADER_SIZE, RequestHeader, RequestStatus, RequestType};

/// Most host segments of one request. Only memory fragmented below an IOMMU comes near; the list of a
/// request stays below 256 KiB.
const MAX_HOST_SEGMENTS: usize = 16 * 1024;

/// The wire values of reads and writes.
const IN: u32 = RequestType::In.to_wire();
const OUT: u32 = RequestType::Out.to_wire();

/// A request that is one operation, and did not end inside the call.
struct Unfinished<'a> {
    head: u16,
    status: StatusByte,
    request: RequestKind,
    kind: OpKind,
    /// Bytes of data.
    data_len: u32,
    /// The writable data, without the status, and its bytes.
    writable: &'a [Segment],
    writable_len: u32,
}

/// Puts a request in flight, together with its data. `None`: there is no room, which the ring rules out.
fn put_in_flight<'o, M: DeviceMemory>(
    outstanding: &'o mut Outstanding,
    map: &GuestMap<M>,
    data: &mut IoBuf,
    of: &Unfinished<'_>,
) -> Option<(Token, &'o mut Slot)> {
    let writable = (of.writable, of.writable_len);
    let (token, slot) = outstanding.reserve(map, of.head, writable, of.status, of.request)?;
    slot.offset = match of.kind {
        OpKind::Read { offset } | OpKind::Write { offset, .. } => offset,
        _ => 0,
    };
    slot.data_len = of.data_len;
    std::mem::swap(&mut slot.buf, data);
    // The host's segments may be merged, those of the guest that are kept for the dirty log are not.
    let segments = slot.buf.segments().len().max(slot.dirty.len());
    outstanding.note_segments(token, segments);
    Some((token, outstanding.get(token)?))
}

impl<M: DeviceMemory> QueueRunner<M> {
    /// Executes or refuses the request in a simple chain, or puts it in flight. Returns whether it has certainly
    /// ended, so that nothing else changed.
    #[inline(always)]
    pub(super) fn begin_simple(&mut self, simple: SimpleChain) -> bool {
        let len = simple.data.len;
        let map = &self.fetch.map;
        let (Some(host), Some(header), Some(data)) = (
            map.host(simple.last, 1),
            map.host(simple.first, HEADER_SIZE),
            map.host(simple.data.addr, len as usize),
        ) else {
            self.begin_as_chain(simple);
            return false;
        };
        let guest = simple.last;
        let status = StatusByte { host, guest };
        // SAFETY: mapped for 16 bytes. Nothing was read from there before, nor is it afterwards.
        let halves = unsafe { read_16(header) };
        // SAFETY: mapped for `len` bytes while `keep` lives, which the buffer owns.
        unsafe { self.data.set_one(map.keep(), data, len as usize) };
        match (halves[0] as u32, simple.writable) {
            (IN, true) => self.execute_simple(simple, status, halves, RequestType::In),
            (OUT, false) => self.execute_simple(simple, status, halves, RequestType::Out),
            _ => {
                self.begin_with_header(simple, status, halves);
                false
            }
        }
    }

    #[inline(always)]
    fn execute_simple(
        &mut self,
        simple: SimpleChain,
        status: StatusByte,
        halves: [u64; 2],
        wire: RequestType,
    ) -> bool {
        let len = simple.data.len;
        let header = RequestHeader {
            kind: wire,
            sector: halves[1],
        };
        let (request, kind) = match parse(&header, len, len, &self.device.limits) {
            Ok(Request::Read { offset, .. }) => (RequestKind::Read, OpKind::Read { offset }),
            Ok(Request::Write { offset, .. }) => {
                let fua = self.device.write_through();
                (RequestKind::Write, OpKind::Write { offset, fua })
            }
            _ => {
                self.begin_with_header(simple, status, halves);
                return false;
            }
        };
        let result = self.outstanding.execute(&kind, &self.data);
        if !matches!(result, Execute::Done(Ok(()))) {
            match result {
                Execute::Taken => self.taken(simple.head, simple.data, status, request, &kind),
                result => self.not_done(simple, status, request, kind, result),
            }
            return false;
        }
        let read_len = if request == RequestKind::Read { len } else { 0 };
        let finished = Finished {
            head: simple.head,
            status,
            result: RequestStatus::Ok,
            counted: Some(wire),
            data_len: len,
            written: read_len,
            writable_len: read_len,
            writable: std::slice::from_ref(&simple.data),
        };
        let Fetch { ring, map, .. } = &mut self.fetch;
        self.completer.finish(ring, map, finished);
        true
    }

    /// The disk has taken a simple read or write.
    #[inline(never)]
    fn taken(
        &mut self,
        head: u16,
        data: Segment,
        status: StatusByte,
        request: RequestKind,
        kind: &OpKind,
    ) {
        let outstanding = &mut self.outstanding;
        outstanding.note_taken();
        let segments = std::slice::from_ref(&data);
        let writable = match request {
            RequestKind::Read => (segments, data.len),
            _ => (&segments[..0], 0),
        };
        let reserved = outstanding.reserve(&self.fetch.map, head, writable, status, request);
        let Some((_, slot)) = reserved else {
            return self.completer.add_used(&mut self.fetch.ring, head, 0);
        };
        if let OpKind::Read { offset } | OpKind::Write { offset, .. } = *kind {
            slot.offset = offset;
        }
        slot.data_len = data.len;
        std::mem::swap(&mut slot.buf, &mut self.data);
    }

    /// The disk has declined a simple read or write, or failed it.
    #[inline(never)]
    fn not_done(
        &mut self,
        simple: SimpleChain,
        status: StatusByte,
        request: RequestKind,
        kind: OpKind,
        result: Execute,
    ) {
        if let Execute::Done(_) = result {
            self.cut(simple);
            return self.executed(status, request, kind, result);
        }
        let data = std::slice::from_ref(&simple.data);
        let unfinished = Unfinished {
            head: simple.head,
            status,
            request,
            kind,
            data_len: simple.data.len,
            writable: if simple.writable { data } else { &[] },
            writable_len: if simple.writable { simple.data.len } else { 0 },
        };
        let Self {
            outstanding, data, ..
        } = self;
        let reserved = put_in_flight(outstanding, &self.fetch.map, data, &unfinished);
        let Some((token, slot)) = reserved else {
            return self
                .completer
                .add_used(&mut self.fetch.ring, simple.head, 0);
        };
        let buf = std::mem::take(&mut slot.buf);
        self.submit(Op { token, kind, buf });
    }

    /// The memory is not where it nearly always is.
    #[cold]
    fn begin_as_chain(&mut self, simple: SimpleChain) {
        self.fetch
            .chain
            .set_simple::<HEADER_LEN, STATUS_LEN>(&simple);
        self.begin();
    }

    /// Not a plain read or write, or one to be refused.
    #[cold]
    fn begin_with_header(&mut self, simple: SimpleChain, status: StatusByte, halves: [u64; 2]) {
        self.cut(simple);
        self.execute_other(status, RequestHeader::from_halves(halves));
    }

    /// Makes `chain` what is left of the chain without header and status.
    #[cold]
    fn cut(&mut self, simple: SimpleChain) {
        let chain = &mut self.fetch.chain;
        chain.set_simple::<HEADER_LEN, STATUS_LEN>(&simple);
        // Both are whole segments.
        let _ = chain.cut_last_writable();
        let _ = chain.cut_first_readable(HEADER_SIZE as u32);
    }

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
            (_, Execute::Declined) => return self.transfer(status, request, kind, false),
            (_, Execute::Taken) => return self.transfer(status, request, kind, true),
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

    /// Puts a request in flight that is one operation on the chain's data, which `data` holds: one that the disk has
    /// taken, or else is given now.
    fn transfer(&mut self, status: StatusByte, request: RequestKind, kind: OpKind, is_taken: bool) {
        let Fetch { chain, map, .. } = &self.fetch;
        let unfinished = Unfinished {
            head: chain.head(),
            status,
            request,
            kind,
            data_len: match request {
                RequestKind::Write => chain.readable_len(),
                _ => chain.writable_len(),
            },
            writable: chain.writable(),
            writable_len: chain.writable_len(),
        };
        let reserved = put_in_flight(&mut self.outstanding, map, &mut self.data, &unfinished);
        let Some((token, slot)) = reserved else {
            return self.return_chain();
        };
        if is_taken {
            return self.outstanding.note_taken();
        }
        let buf = match request {
            // Checked before the guest sees it, so read into private memory first.
            RequestKind::Lifetime => IoBuf::zeroed(Lifetime::SIZE),
            _ => std::mem::take(&mut slot.buf),
        };
        self.submit(Op { token, kind, buf });
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
    pub(super) fn refuse(&mut self, status: StatusByte, wire: RequestType, refused: RequestStatus) {
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
    pub(super) fn finish_chain(
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
    pub(super) fn return_chain(&mut self) {
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
pub(super) fn fill<M: DeviceMemory>(
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
