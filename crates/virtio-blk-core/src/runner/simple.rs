// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Simple reads and writes that the disk executes inside the call. Everything else that shows on the way
//! continues as any chain does.

use super::QueueRunner;
use super::completion::Finished;
use super::fetch::{Fetch, HEADER_LEN, STATUS_LEN};
use super::slab::{RequestKind, StatusByte};
use super::submit::{IN, OUT};
use crate::disk::{Execute, OpKind};
use crate::memory::{DeviceMemory, read_16};
use crate::request::{Request, parse};
use crate::ring::SimpleChain;
use crate::spec::{HEADER_SIZE, RequestHeader, RequestStatus, RequestType};

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
            self.cut(simple);
            self.executed(status, request, kind, result);
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
}
