// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From a chain to an operation on the disk.

use super::slab::{Job, StatusByte};
use super::{QueueRunner, WriteCache};
use crate::disk::{IoBuf, Lifetime, Op, OpKind, Submit};
use crate::memory::{DeviceMemory, GuestMap, Permissions, Unmapped};
use crate::request::{Range, RangeKind, Request, parse, parse_ranges};
use crate::ring::{Chain, Segment};
use crate::spec::{HEADER_SIZE, RequestHeader, RequestStatus, RequestType};

/// Most host segments of one request. Only memory fragmented below an IOMMU comes near; the list of a
/// request stays below 256 KiB.
const MAX_HOST_SEGMENTS: usize = 16 * 1024;

impl<M: DeviceMemory> QueueRunner<M> {
    /// Executes the request in `self.chain`, or answers it at once.
    pub(super) fn begin(&mut self) {
        let writable_len = self.chain.writable_len();
        let Some(status) = self.status_byte() else {
            // No place for a status: hand the chain back, the queue is sound (checklist 25).
            self.counters.malformed.add(1);
            return self.give_back(self.chain.head(), 0);
        };
        let header = match self.header() {
            Ok(header) => header,
            Err(refused) => return self.answer(status, RequestType::Unknown(0), refused, 0),
        };
        let readable = self.chain.readable_len() - HEADER_SIZE as u32;
        let request = match parse(&header, readable, writable_len - 1, &self.rules) {
            Ok(request) => request,
            Err(refused) => return self.refuse(status, header.kind, refused),
        };
        match request {
            Request::Read { len: 0, .. } => self.answer(status, header.kind, RequestStatus::Ok, 0),
            Request::Write { len: 0, .. } => self.answer(status, header.kind, RequestStatus::Ok, 0),
            Request::Read { offset, len } => {
                self.transfer(status, Job::Read, OpKind::Read { offset }, len)
            }
            Request::Write { offset, len } => {
                let fua = self.write_through();
                self.transfer(status, Job::Write, OpKind::Write { offset, fua }, len);
            }
            Request::Flush => self.transfer(status, Job::Flush, OpKind::Flush, 0),
            Request::GetLifetime => self.transfer(
                status,
                Job::Lifetime,
                OpKind::Lifetime,
                Lifetime::SIZE as u32,
            ),
            Request::GetId { len } => {
                let mut buf = IoBuf::new();
                let serial = self.serial;
                let (result, written) =
                    match fill(&mut buf, &self.map, writable(&self.chain), 0, len) {
                        Ok(()) => (RequestStatus::Ok, buf.copy_in(0, &serial) as u32),
                        Err(_) => (RequestStatus::IoErr, 0),
                    };
                self.answer(status, header.kind, result, written);
            }
            Request::Ranges { kind, len } => self.ranges(status, header.kind, kind, len),
        }
    }

    /// The last writable byte of the chain.
    #[inline]
    fn status_byte(&self) -> Option<StatusByte> {
        let last = self.chain.writable().last()?;
        let guest = last.addr.checked_add(u64::from(last.len) - 1)?;
        let mut host = std::ptr::null_mut();
        self.map
            .translate(guest, 1, Permissions::Write, |base, _| host = base)
            .ok()?;
        Some(StatusByte { host, guest })
    }

    /// The first 16 readable bytes, wherever they lie, read once.
    #[inline]
    fn header(&self) -> Result<RequestHeader, RequestStatus> {
        let segments = self.chain.readable();
        let first = segments.first().ok_or(RequestStatus::IoErr)?;
        let bytes = if first.len as usize >= HEADER_SIZE {
            self.map
                .read_array(first.addr)
                .map_err(|_| RequestStatus::IoErr)?
        } else {
            if self.chain.readable_len() < HEADER_SIZE as u32 {
                return Err(RequestStatus::IoErr);
            }
            let mut bytes = [0; HEADER_SIZE];
            let mut buf = IoBuf::new();
            fill(
                &mut buf,
                &self.map,
                readable(&self.chain),
                0,
                HEADER_SIZE as u32,
            )
            .map_err(|_| RequestStatus::IoErr)?;
            buf.copy_out(0, &mut bytes);
            bytes
        };
        Ok(RequestHeader::from_bytes(&bytes))
    }

    /// Whether a write must be stable before it completes, now.
    #[inline]
    fn write_through(&self) -> bool {
        match self.write_cache {
            WriteCache::Back => false,
            WriteCache::Through => true,
            WriteCache::Switchable => !self.live.writeback(),
        }
    }

    /// Starts a request that is one operation with `len` bytes of data.
    #[inline]
    fn transfer(&mut self, status: StatusByte, job: Job, kind: OpKind, len: u32) {
        let writable_len = self.chain.writable_len();
        let head = self.chain.head();
        let Some((token, slot)) = self.slab.reserve() else {
            return self.give_back(head, 0);
        };
        slot.head = head;
        slot.job = job;
        slot.status = status;
        slot.data_len = len;
        slot.writable_len = writable_len;
        hold(&mut slot.keep, &self.map);
        let (stream, skip) = match job {
            Job::Write => (readable(&self.chain), HEADER_SIZE as u32),
            _ => (writable(&self.chain), 0),
        };
        let mapped = fill(&mut slot.buf, &self.map, stream, skip, len);
        note_dirty(&mut slot.dirty, &self.map, &self.chain);
        if mapped.is_err() {
            slot.buf.clear();
            return self.finish(token, RequestStatus::IoErr);
        }
        let buf = match job {
            // Checked before the guest sees it, so read into private memory first.
            Job::Lifetime => IoBuf::zeroed(Lifetime::SIZE),
            _ => std::mem::take(&mut slot.buf),
        };
        self.submit(Op { token, kind, buf });
    }

    /// Starts a discard, write-zeroes or secure-erase request: one operation a range, one after another.
    fn ranges(&mut self, status: StatusByte, wire: RequestType, kind: RangeKind, len: u32) {
        let mut buf = IoBuf::new();
        if fill(
            &mut buf,
            &self.map,
            readable(&self.chain),
            HEADER_SIZE as u32,
            len,
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
        let parsed = parse_ranges(kind, &self.scratch, &self.rules, &mut ranges);
        // A range of nothing needs no operation (checklist 50).
        ranges.retain(|range| range.len != 0);
        ranges.reverse();
        let fua = self.write_through();
        match (parsed, ranges.pop()) {
            (Err(refused), _) => self.refuse(status, wire, refused),
            (Ok(()), None) => self.refuse(status, wire, RequestStatus::Ok),
            (Ok(()), Some(first)) => self.first_range(status, kind, fua, first, ranges),
        }
    }

    fn first_range(
        &mut self,
        status: StatusByte,
        kind: RangeKind,
        fua: bool,
        first: Range,
        rest: Vec<Range>,
    ) {
        let head = self.chain.head();
        let Some((token, slot)) = self.slab.reserve() else {
            return self.give_back(head, 0);
        };
        slot.head = head;
        slot.job = Job::Ranges { kind, fua };
        slot.status = status;
        slot.data_len = 0;
        slot.writable_len = self.chain.writable_len();
        hold(&mut slot.keep, &self.map);
        note_dirty(&mut slot.dirty, &self.map, &self.chain);
        slot.buf.clear();
        self.spare_ranges = std::mem::replace(&mut slot.ranges, rest);
        self.submit(Op {
            token,
            kind: first.op(kind, fua),
            buf: IoBuf::new(),
        });
    }

    /// Gives an operation to the disk, and the ones that follow from it as long as they are done at once.
    /// `false` if there was no room: it waits in `stalled`.
    #[inline]
    pub(super) fn submit(&mut self, mut op: Op) -> bool {
        loop {
            let submitted = match &mut self.io {
                Some(io) => io.submit(op),
                None => Submit::Done(op.complete(Err(crate::disk::DiskError::Cancelled))),
            };
            match submitted {
                Submit::Done(completion) => match self.complete(completion) {
                    Some(next) => op = next,
                    None => return true,
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
    /// written reads as zeroes, so that the status lies inside the used length (checklist 20).
    fn refuse(&mut self, status: StatusByte, wire: RequestType, result: RequestStatus) {
        let mut written = 0;
        let data = self.chain.writable_len() - 1;
        if wire == RequestType::In && data != 0 {
            let mut buf = IoBuf::new();
            if fill(&mut buf, &self.map, writable(&self.chain), 0, data).is_ok() {
                written = buf.fill(0, data as usize, 0) as u32;
            }
        }
        self.answer(status, wire, result, written);
    }

    /// Writes the status of the chain at hand and returns it. `written`: bytes of data written from the
    /// first writable byte on.
    fn answer(
        &mut self,
        status: StatusByte,
        wire: RequestType,
        result: RequestStatus,
        written: u32,
    ) {
        self.count(wire, 0, result);
        // SAFETY: translated a moment ago from the map that `self` holds.
        unsafe { status.host.write_volatile(result as u8) };
        let writable_len = self.chain.writable_len();
        let len = super::complete::used_len(written, writable_len);
        if self.map.tracks_dirty() {
            self.map.mark_dirty(status.guest, 1);
            let mut left = written;
            for segment in self.chain.writable() {
                let part = segment.len.min(left);
                self.map.mark_dirty(segment.addr, part as usize);
                left -= part;
            }
        }
        self.give_back(self.chain.head(), len);
    }
}

/// Makes `keep` an owner of the map's present memory.
#[inline]
fn hold<M: DeviceMemory>(
    keep: &mut Option<std::sync::Arc<dyn crate::disk::KeepAlive>>,
    map: &GuestMap<M>,
) {
    match keep {
        Some(held) if std::sync::Arc::ptr_eq(held, map.keep()) => {}
        _ => *keep = Some(map.keep().clone()),
    }
}

/// Notes the writable part for the dirty bitmap, where there is one.
#[inline]
fn note_dirty<M: DeviceMemory>(dirty: &mut Vec<Segment>, map: &GuestMap<M>, chain: &Chain) {
    if map.tracks_dirty() {
        dirty.clear();
        dirty.extend_from_slice(chain.writable());
    }
}

/// The stream the device reads.
#[inline]
fn readable(chain: &Chain) -> (&[Segment], Permissions) {
    (chain.readable(), Permissions::Read)
}

/// The stream the device writes.
#[inline]
fn writable(chain: &Chain) -> (&[Segment], Permissions) {
    (chain.writable(), Permissions::Write)
}

/// Translates bytes `skip..skip + len` of a stream into `buf`, together with the owner of the memory.
#[inline]
fn fill<M: DeviceMemory>(
    buf: &mut IoBuf,
    map: &GuestMap<M>,
    (segments, access): (&[Segment], Permissions),
    mut skip: u32,
    len: u32,
) -> Result<(), Unmapped> {
    buf.ensure_keep(map.keep());
    let mut left = len;
    for segment in segments {
        if left == 0 {
            break;
        }
        if skip >= segment.len {
            skip -= segment.len;
            continue;
        }
        let addr = segment.addr.wrapping_add(u64::from(skip));
        let part = (segment.len - skip).min(left);
        skip = 0;
        left -= part;
        let unmapped = Unmapped {
            addr: segment.addr,
            len: u64::from(segment.len),
        };
        if addr < segment.addr {
            return Err(unmapped);
        }
        let mut room = true;
        map.translate(addr, part as usize, access, |base, len| {
            room = room && buf.segments().len() < MAX_HOST_SEGMENTS;
            if room {
                // SAFETY: `base` is mapped for `len` bytes while `map.keep()` lives, which `buf` owns.
                // The sum is below 2^32.
                unsafe { buf.push(base, len) };
            }
        })?;
        if !room {
            return Err(unmapped);
        }
    }
    Ok(())
}
