// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! MSI-X: a table of messages, each behind an irqfd.

use serde::{Deserialize, Serialize};
use std::sync::Arc;

use crate::error::Result;
use crate::interrupt::{Line, Router};

/// Bytes of one entry of the table.
pub const ENTRY: u64 = 16;
const MASKED: u32 = 1;

struct Vector {
    entry: Entry,
    pending: bool,
    line: Line,
    /// The message that the line leads to now.
    routed: Option<(u64, u32)>,
}

/// An entry of the table as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    address: u64,
    data: u32,
    control: u32,
}

/// The vectors of one function.
pub struct Msix {
    pub enabled: bool,
    function_masked: bool,
    vectors: Vec<Vector>,
    router: Arc<Router>,
}

impl Msix {
    pub fn new(vectors: u16, router: Arc<Router>) -> Result<Self> {
        let vector = |_| {
            Ok(Vector {
                entry: Entry {
                    address: 0,
                    data: 0,
                    control: MASKED,
                },
                pending: false,
                line: router.message()?,
                routed: None,
            })
        };
        Ok(Self {
            enabled: false,
            function_masked: false,
            vectors: (0..vectors).map(vector).collect::<Result<_>>()?,
            router,
        })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.vectors.len()
    }

    /// The message control register was written, or what else keeps the function from sending messages changed.
    pub fn set_control(&mut self, enabled: bool, function_masked: bool) {
        (self.enabled, self.function_masked) = (enabled, function_masked);
        self.settle();
    }

    /// Raises a vector, or notes it while it is masked. One that doesn't exist is nobody's.
    pub fn trigger(&mut self, vector: u16) {
        let open = self.enabled && !self.function_masked;
        if let Some(vector) = self.vectors.get_mut(usize::from(vector)) {
            if open && vector.entry.control & MASKED == 0 {
                vector.line.trigger();
            } else {
                vector.pending = true;
            }
        }
    }

    /// Forgets what waits behind masks, as a reset of the device does.
    pub fn forget_pending(&mut self) {
        for vector in &mut self.vectors {
            vector.pending = false;
        }
    }

    /// The interrupt that a vector leads to now, if nothing holds it up.
    pub fn open_line(&self, vector: u16) -> Option<u32> {
        let vector = self.vectors.get(usize::from(vector))?;
        let Entry {
            address,
            data,
            control,
        } = vector.entry;
        let open = self.enabled && !self.function_masked && control & MASKED == 0;
        (open && vector.routed == Some((address, data))).then_some(vector.line.number)
    }

    /// Routes what was unmasked, and raises what came meanwhile.
    fn settle(&mut self) {
        if !self.enabled || self.function_masked {
            return;
        }
        for vector in &mut self.vectors {
            let Entry {
                address,
                data,
                control,
            } = vector.entry;
            if control & MASKED != 0 {
                continue;
            }
            if vector.routed != Some((address, data)) {
                match self.router.route(&vector.line, address, data) {
                    Ok(()) => vector.routed = Some((address, data)),
                    Err(error) => log::info!("an interrupt leads nowhere: {error}"),
                }
            }
            if std::mem::take(&mut vector.pending) {
                vector.line.trigger();
            }
        }
    }

    /// Reads the table.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        for (offset, byte) in (offset..).zip(data) {
            let vector = self.vectors.get((offset / ENTRY) as usize);
            let bytes = vector.map_or([0; ENTRY as usize], |vector| vector.entry.bytes());
            *byte = bytes.get((offset % ENTRY) as usize).copied().unwrap_or(0);
        }
    }

    /// Writes the table: four or eight bytes, aligned, as the standard has it; others do nothing.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) {
        let aligned = matches!(data.len(), 4 | 8) && offset.is_multiple_of(data.len() as u64);
        let vector = self.vectors.get_mut((offset / ENTRY) as usize);
        let Some(vector) = vector.filter(|_| aligned) else {
            return;
        };
        let mut bytes = vector.entry.bytes();
        for (to, from) in bytes.iter_mut().skip((offset % ENTRY) as usize).zip(data) {
            *to = *from;
        }
        vector.entry = Entry::from_bytes(bytes);
        self.settle();
    }

    /// Reads the array of pending bits.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (offset, byte) in (offset..).zip(data) {
            let first = offset as usize * 8;
            let bits = self.vectors.iter().skip(first).take(8).enumerate();
            *byte = bits.fold(0, |byte, (bit, vector)| {
                byte | u8::from(vector.pending) << bit
            });
        }
    }

    /// The table and what is pending.
    pub fn save(&self) -> Vec<(Entry, bool)> {
        let vectors = self.vectors.iter();
        vectors
            .map(|vector| (vector.entry, vector.pending))
            .collect()
    }

    /// Takes over a saved table; the control register comes after it.
    pub fn restore(&mut self, saved: &[(Entry, bool)]) {
        for (vector, (entry, pending)) in self.vectors.iter_mut().zip(saved) {
            (vector.entry, vector.pending) = (*entry, *pending);
        }
    }
}

impl Entry {
    fn bytes(self) -> [u8; ENTRY as usize] {
        let low = u128::from(self.address);
        let high = u128::from(self.data) | u128::from(self.control) << 32;
        (low | high << 64).to_le_bytes()
    }

    fn from_bytes(bytes: [u8; ENTRY as usize]) -> Self {
        let value = u128::from_le_bytes(bytes);
        Self {
            address: value as u64,
            data: (value >> 64) as u32,
            control: (value >> 96) as u32,
        }
    }
}
