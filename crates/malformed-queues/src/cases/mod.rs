// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The table of malformed queues, and of odd ones that are legal.

mod chains;
mod indirect;
mod requests;
mod rings;

use super::{HostileError, HostileRing, Planned};
use virtio_blk_driver::wire::Descriptor;

/// What a device has to do with a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Each of the chains comes back with length 0, and the queue continues. Nothing is writable.
    LenZero,
    /// Each of the chains comes back with this status byte, and the queue continues. With an OK, the
    /// length is all that was writable; else at most what can have been written.
    Status(u8),
    /// The queue stops when it comes to the case. Nothing comes back, except a chain that was in flight
    /// before.
    Latched,
    /// The queue refuses to start, or stops before it uses anything.
    Refused,
    /// Anything but a panic or a hang.
    Survives,
}

/// One malformed (or odd) queue.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// What is wrong, in a few words.
    pub name: &'static str,
    /// Writes it into a clean queue. Descriptors from `size - 6` on are left alone.
    pub build: fn(&mut HostileRing<'_>) -> Result<(), HostileError>,
    /// What the device has to do.
    pub expect: Expect,
}

/// All cases.
pub fn cases() -> impl Iterator<Item = &'static Case> {
    let groups = [
        chains::CASES,
        indirect::CASES,
        requests::CASES,
        rings::CASES,
    ];
    groups.into_iter().flatten()
}

/// What the builders of the cases share.
impl HostileRing<'_> {
    /// Writes a chain from descriptor 0 on and makes it available. `status` is checked if given; the
    /// device can write at most `max_len` bytes in a row.
    fn offer_chain(
        &mut self,
        list: &[Descriptor],
        status: Option<Descriptor>,
        max_len: u32,
    ) -> Result<(), HostileError> {
        self.chain(0, list)?;
        self.offer_head(0, status, max_len)
    }

    /// Makes the chain that starts at `head` available.
    fn offer_head(
        &mut self,
        head: u16,
        status: Option<Descriptor>,
        max_len: u32,
    ) -> Result<(), HostileError> {
        self.offer(Planned {
            head,
            status: status.map(|desc| desc.addr),
            max_len,
        })
    }

    /// The parts of a good read of one sector: header, data, status.
    fn read_parts(&mut self) -> Result<[Descriptor; 3], HostileError> {
        Ok([self.read_header()?, self.writable(512)?, self.writable(1)?])
    }
}
