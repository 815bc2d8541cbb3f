// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Header and status of the chain at hand, wherever they lie in it.

use super::fetch::Fetch;
use super::slab::StatusByte;
use crate::memory::{DeviceMemory, Permissions};
use crate::spec::HEADER_SIZE;

/// Sixteen bytes as two little-endian numbers.
fn halves(bytes: [u8; HEADER_SIZE]) -> [u64; 2] {
    let number = u128::from_le_bytes(bytes);
    [number as u64, (number >> 64) as u64]
}

impl<M: DeviceMemory> Fetch<M> {
    /// Takes the last writable byte off the chain.
    #[inline(always)]
    pub(super) fn cut_status(&mut self) -> Option<StatusByte> {
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
    pub(super) fn cut_header(&mut self) -> Option<[u64; 2]> {
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
}
