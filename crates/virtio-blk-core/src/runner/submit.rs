// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From a chain to an operation on the disk.

use super::completion::status_of;
use super::slab::{RequestKind, Slot, StatusByte};
use super::{QueueRunner, WriteCache};
use crate::disk::{DiskError, IoBuf, Lifetime, Op, OpKind, Submit, Token};
use crate::memory::{DeviceMemory, GuestMap, Permissions, Unmapped};
use crate::request::{ByteRange, RangeKind, Request, parse, parse_ranges};
use crate::ring::{Chain, ChainError, Segment};
use crate::spec::{HEADER_SIZE, RequestHeader, RequestStatus, RequestType};

/// Most host segments of one request. Only memory fragmented below an IOMMU comes near; the list of a
/// request stays below 256 KiB.
const MAX_HOST_SEGMENTS: usize = 16 * 1024;

/// The wire values of the usual types.
pub(super) const IN: u32 = RequestType::In.to_wire();
pub(super) const OUT: u32 = RequestType::Out.to_wire();

/// Sixteen bytes as two little-endian numbers.
fn halves(bytes: [u8; HEADER_SIZE]) -> [u64; 2] {
    let number = u128::from_le_bytes(bytes);
    [number as u64, (number >> 64) as u64]
}

impl<M: DeviceMemory> QueueRunner<M> {
    /// Executes the request in `self.chain`, or answers it at once.
    ///
    /// Header and status are cut off first, wherever they lie; what remains of the chain is the data, as
    /// two lists of whole segments.
    #[inline(always)]
    pub(super) fn begin(&mut self) {
        let Some(status) = self.cut_status() else {
            return self.refuse_chain(ChainError::NoStatus);
        };
        match self.cut_header() {
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
        let (readable, writable) = (self.chain.readable_len(), self.chain.writable_len());
        match parse(&header, readable, writable, &self.limits) {
            Ok(Request::Read { offset, len }) if len != 0 => {
                self.perform(status, RequestKind::Read, OpKind::Read { offset });
            }
            Ok(Request::Write { offset, len }) if len != 0 => {
                let fua = self.write_through();
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
                let mut buf = IoBuf::new();
                let serial = self.serial;
                let serial = serial.get(..len as usize).unwrap_or(&serial);
                let (result, written) = match fill(
                    &mut buf,
                    &self.map,
                    self.chain.writable(),
                    Permissions::Write,
                ) {
                    Ok(()) => (RequestStatus::Ok, buf.copy_in(0, serial) as u32),
                    Err(_) => (RequestStatus::IoErr, 0),
                };
                self.count(wire, 0, result);
                self.answer(status, result, written);
            }
            // Of no data: there is nothing to do.
            Request::Read { .. } | Request::Write { .. } | Request::Flush => {
                self.count(wire, 0, RequestStatus::Ok);
                self.answer(status, RequestStatus::Ok, 0);
            }
        }
    }

    /// Takes the last writable byte off the chain.
    #[inline(always)]
    fn cut_status(&mut self) -> Option<StatusByte> {
        let guest = self.chain.cut_last_writable()?;
        self.status_at(guest)
    }

    /// The status byte at `guest`. `None`: not mapped.
    #[inline(always)]
    pub(super) fn status_at(&self, guest: u64) -> Option<StatusByte> {
        let host = match self.map.host(guest, 1) {
            Some(host) => host,
            None => {
                let mut host = std::ptr::null_mut();
                self.map
                    .translate(guest, 1, Permissions::Write, |base, _| host = base)
                    .ok()?;
                host
            }
        };
        Some(StatusByte { host, guest })
    }

    /// Takes the first 16 readable bytes off the chain, read once, as two little-endian numbers. `None`: they
    /// are not there.
    #[inline(always)]
    fn cut_header(&mut self) -> Option<[u64; 2]> {
        if let Some(guest) = self.chain.cut_first_readable(HEADER_SIZE as u32) {
            return match self.map.read_16(guest) {
                Some(halves) => Some(halves),
                None => self.read_header(guest),
            };
        }
        self.gather_header()
    }

    #[cold]
    fn read_header(&self, guest: u64) -> Option<[u64; 2]> {
        Some(halves(self.map.read_array(guest).ok()?))
    }

    /// A header that is spread over several segments.
    #[cold]
    fn gather_header(&mut self) -> Option<[u64; 2]> {
        let mut bytes = [0; HEADER_SIZE];
        for byte in &mut bytes {
            let guest = self.chain.cut_first_readable(1)?;
            [*byte] = self.map.read_array(guest).ok()?;
        }
        Some(halves(bytes))
    }

    /// Whether a write must be stable before it completes, now.
    #[inline]
    pub(super) fn write_through(&self) -> bool {
        match self.write_cache {
            WriteCache::Back => false,
            WriteCache::Through => true,
            WriteCache::Switchable => !self.shared.writeback(),
        }
    }

    /// Executes a request that is one operation on the chain's data: at once, where the disk can do it inside
    /// the call, else in flight.
    #[inline(always)]
    fn perform(&mut self, status: StatusByte, job: RequestKind, kind: OpKind) {
        if data(job, &self.chain, &mut self.data, &self.map).is_err() {
            self.count(job.wire(), 0, RequestStatus::IoErr);
            return self.answer(status, RequestStatus::IoErr, 0);
        }
        // Lifetime information is checked before the guest sees it.
        let result = match &mut self.io {
            Some(io) if job != RequestKind::Lifetime => io.execute(&kind, &self.data),
            _ => None,
        };
        self.executed(status, job, kind, result);
    }

    /// Goes on after the disk was asked to execute an operation on the chain's data, which `now` holds.
    #[inline]
    pub(super) fn executed(
        &mut self,
        status: StatusByte,
        job: RequestKind,
        kind: OpKind,
        result: Option<Result<(), DiskError>>,
    ) {
        let len = self.data.len() as u32;
        let (result, written) = match (job, result) {
            (_, None) => return self.transfer(status, job, kind),
            (RequestKind::Read, Some(Ok(()))) => (RequestStatus::Ok, len),
            (_, Some(Ok(()))) => (RequestStatus::Ok, 0),
            (_, Some(Err(error))) => {
                self.reports.operation(&kind, len, &error);
                // Whatever a failed read left behind must not reach the guest as data.
                let zeroed = if job == RequestKind::Read {
                    self.data.fill(0, len as usize, 0)
                } else {
                    0
                };
                (status_of(&error), zeroed as u32)
            }
        };
        self.count(job.wire(), len, result);
        self.answer(status, result, written);
    }

    /// Puts a request in flight that is one operation on the chain's data, which `now` holds.
    fn transfer(&mut self, status: StatusByte, job: RequestKind, kind: OpKind) {
        let Some((token, slot)) = reserve(&mut self.slab, &self.map, &self.chain, status, job)
        else {
            return self.add_used(self.chain.head(), 0);
        };
        slot.offset = match kind {
            OpKind::Read { offset } | OpKind::Write { offset, .. } => offset,
            _ => 0,
        };
        slot.data_len = match job {
            RequestKind::Write => self.chain.readable_len(),
            _ => self.chain.writable_len(),
        };
        std::mem::swap(&mut slot.buf, &mut self.data);
        // The host's segments may be merged, those of the guest that are kept for the dirty log are not.
        let segments = slot.buf.segments().len().max(slot.dirty.len());
        let buf = match job {
            // Checked before the guest sees it, so read into private memory first.
            RequestKind::Lifetime => IoBuf::zeroed(Lifetime::SIZE),
            _ => std::mem::take(&mut slot.buf),
        };
        self.slab.note_segments(token, segments);
        self.submit(Op { token, kind, buf });
    }

    /// Starts a discard, write-zeroes or secure-erase request: one operation a range, one after another.
    fn ranges(&mut self, status: StatusByte, wire: RequestType, kind: RangeKind, len: u32) {
        let mut buf = IoBuf::new();
        if fill(
            &mut buf,
            &self.map,
            self.chain.readable(),
            Permissions::Read,
        )
        .is_err()
        {
            return self.refuse(status, wire, RequestStatus::IoErr);
        }
        self.scratch.clear();
        self.scratch.resize(len as usize, 0);
        buf.copy_out(0, &mut self.scratch);
        let mut ranges = std::mem::take(&mut self.spare_ranges);
        ranges.clear();
        let parsed = parse_ranges(kind, &self.scratch, &self.limits, &mut ranges);
        // An empty range needs no operation.
        ranges.retain(|range| range.len != 0);
        ranges.reverse();
        let fua = self.write_through();
        match (parsed, ranges.pop()) {
            (Err(refused), _) => self.refuse(status, wire, refused),
            (Ok(()), None) => {
                self.count(wire, 0, RequestStatus::Ok);
                self.answer(status, RequestStatus::Ok, 0);
            }
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
        let job = RequestKind::Ranges { kind, fua };
        let Some((token, slot)) = reserve(&mut self.slab, &self.map, &self.chain, status, job)
        else {
            return self.add_used(self.chain.head(), 0);
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
        if let Some(op) = self.paced(op) {
            self.submit(op);
        }
    }

    /// The operation on a range, if this pass may begin it; else it waits for the next.
    #[cold]
    pub(super) fn paced(&mut self, op: Op) -> Option<Op> {
        let (_, len) = op.kind.range(0).unwrap_or_default();
        if self.pace.spend(len) {
            return Some(op);
        }
        self.stalled.push(op);
        None
    }

    /// After an operation that the disk finished inside `submit`: the driver need not wait for the rest of the
    /// pass if that takes time.
    #[cold]
    fn show_finished(&mut self) {
        if self.pace.is_due() {
            // If this fails, the ring is latched, and its next call says so.
            let _ = self.publish();
        }
    }

    /// Gives an operation to the disk, and what follows from it. `false` if there was no room: it waits
    /// in `stalled`.
    #[inline(always)]
    pub(super) fn submit(&mut self, mut op: Op) -> bool {
        loop {
            let answer = match &mut self.io {
                Some(io) => io.submit(op),
                None => Submit::Done(op.complete(Err(DiskError::Cancelled))),
            };
            match answer {
                Submit::Done(completion) => match self.complete(completion) {
                    Some(next) => match self.paced(next) {
                        Some(next) => op = next,
                        None => return false,
                    },
                    None => {
                        self.show_finished();
                        return true;
                    }
                },
                Submit::Queued => {
                    self.unflushed = true;
                    return true;
                }
                Submit::Full(op) => {
                    self.stalled.push(op);
                    return false;
                }
            }
        }
    }

    /// Answers a request that was refused before it reached the disk. Data the driver expects to be
    /// written reads as zeroes, so that the status lies inside the used length (virtio 1.4, 2.7.8.2).
    #[cold]
    fn refuse(&mut self, status: StatusByte, wire: RequestType, refused: RequestStatus) {
        let mut written = 0;
        if wire == RequestType::In {
            let mut buf = IoBuf::new();
            if fill(
                &mut buf,
                &self.map,
                self.chain.writable(),
                Permissions::Write,
            )
            .is_ok()
            {
                written = buf.fill(0, buf.len(), 0) as u32;
            }
        }
        self.count(wire, 0, refused);
        self.answer(status, refused, written);
    }

    /// Writes the status of the chain at hand and returns it. `written`: bytes of data written from the
    /// first writable byte on.
    #[inline(always)]
    fn answer(&mut self, status: StatusByte, result: RequestStatus, written: u32) {
        // SAFETY: translated a moment ago from the map that `self` holds.
        unsafe { status.host.write_volatile(result as u8) };
        if self.map.tracks_dirty() {
            self.map.mark_dirty(status.guest, 1);
            super::completion::mark_written(&self.map, self.chain.writable(), written);
        }
        let len = super::completion::used_len(written, self.chain.writable_len());
        self.add_used(self.chain.head(), len);
    }
}

/// Reserves a slot for the request in `chain`. `None` if there are more in flight than the queue has
/// descriptors, which the ring rules out.
#[inline(always)]
fn reserve<'a, M: DeviceMemory>(
    slab: &'a mut super::slab::Slab,
    map: &GuestMap<M>,
    chain: &Chain,
    status: StatusByte,
    job: RequestKind,
) -> Option<(Token, &'a mut Slot)> {
    let (token, slot) = slab.reserve()?;
    slot.head = chain.head();
    slot.job = job;
    slot.status = status;
    slot.writable_len = chain.writable_len();
    slot.hold(map);
    if map.tracks_dirty() {
        slot.dirty.clear();
        slot.dirty.extend_from_slice(chain.writable());
    }
    Some((token, slot))
}

/// Translates the data of the request in `chain` into `buf`.
#[inline(always)]
fn data<M: DeviceMemory>(
    job: RequestKind,
    chain: &Chain,
    buf: &mut IoBuf,
    map: &GuestMap<M>,
) -> Result<(), Unmapped> {
    match job {
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
