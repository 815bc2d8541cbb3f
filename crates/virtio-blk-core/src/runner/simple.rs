// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reads and writes of the usual shape that the disk executes inside the call. Everything else that shows
//! on the way goes on as any chain does.

use super::QueueRunner;
use super::completion::used_len;
use super::slab::{RequestKind, StatusByte};
use super::submit::{IN, OUT};
use crate::disk::OpKind;
use crate::memory::{DeviceMemory, read_16};
use crate::request::{Request, parse};
use crate::ring::SimpleChain;
use crate::spec::{HEADER_SIZE, RequestHeader, RequestStatus, RequestType};

impl<M: DeviceMemory> QueueRunner<M> {
    /// Executes a request, or answers it at once.
    #[inline(always)]
    pub(super) fn begin_simple(&mut self, simple: SimpleChain) {
        let len = simple.data.len;
        let (Some(host), Some(header), Some(data)) = (
            self.map.host(simple.status, 1),
            self.map.host(simple.header, HEADER_SIZE),
            self.map.host(simple.data.addr, len as usize),
        ) else {
            return self.begin_as_chain(simple);
        };
        let guest = simple.status;
        let status = StatusByte { host, guest };
        // SAFETY: mapped for 16 bytes. Nothing was read from there before, nor is it afterwards.
        let halves = unsafe { read_16(header) };
        // SAFETY: mapped for `len` bytes while `keep` lives, which the buffer owns.
        unsafe { self.data.set_one(self.map.keep(), data, len as usize) };
        match (halves[0] as u32, simple.writable) {
            (IN, true) => self.execute_simple(simple, status, halves, RequestType::In),
            (OUT, false) => self.execute_simple(simple, status, halves, RequestType::Out),
            _ => self.begin_with_header(simple, status, halves),
        }
    }

    #[inline(always)]
    fn execute_simple(
        &mut self,
        simple: SimpleChain,
        status: StatusByte,
        halves: [u64; 2],
        wire: RequestType,
    ) {
        let len = simple.data.len;
        let header = RequestHeader {
            kind: wire,
            sector: halves[1],
        };
        let (job, kind) = match parse(&header, len, len, &self.limits) {
            Ok(Request::Read { offset, .. }) => (RequestKind::Read, OpKind::Read { offset }),
            Ok(Request::Write { offset, .. }) => {
                let fua = self.write_through();
                (RequestKind::Write, OpKind::Write { offset, fua })
            }
            _ => return self.begin_with_header(simple, status, halves),
        };
        let result = match &mut self.io {
            Some(io) => io.execute(&kind, &self.data),
            None => None,
        };
        if !matches!(result, Some(Ok(()))) {
            self.cut(simple);
            return self.executed(status, job, kind, result);
        }
        // SAFETY: translated a moment ago from the map that `self` holds.
        unsafe { status.host.write_volatile(RequestStatus::Ok as u8) };
        let (written, writable) = if job == RequestKind::Read {
            (len, len)
        } else {
            (0, 0)
        };
        if self.map.tracks_dirty() {
            self.map.mark_dirty(simple.status, 1);
            self.map.mark_dirty(simple.data.addr, written as usize);
        }
        self.count(wire, len, RequestStatus::Ok);
        self.add_used(simple.head, used_len(written, writable));
    }

    /// The memory is not where it usually is.
    #[cold]
    fn begin_as_chain(&mut self, simple: SimpleChain) {
        self.chain.set_simple(&simple);
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
        self.chain.set_simple(&simple);
        // Both are whole segments.
        let _ = self.chain.cut_last_writable();
        let _ = self.chain.cut_first_readable(HEADER_SIZE as u32);
    }
}
