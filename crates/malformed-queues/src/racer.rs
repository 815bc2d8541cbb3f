// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory that changes while a device works on it.

use std::sync::atomic::{AtomicBool, Ordering};

use fastrand::Rng;
use vm_memory::GuestAddress;

use virtio_blk_driver::wire::{DESC_LEN, Descriptor, header};
use virtio_blk_driver::{AccessError, Memory};

/// A piece of guest memory to keep rewriting, and with what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A table of descriptors, of a ring or an indirect one: addresses, lengths, flags, links.
    Descriptors {
        /// The first descriptor.
        addr: GuestAddress,
        /// How many.
        count: u16,
    },
    /// A request's header: types known and unknown, sectors near and far.
    Header {
        /// Its first byte.
        addr: GuestAddress,
    },
    /// Anything else, byte by byte.
    Bytes {
        /// The first byte.
        addr: GuestAddress,
        /// Bytes.
        len: u32,
    },
}

/// Rewrites memory at random, following a seed.
///
/// Half of the rewrites put back what was there at first, so that a device makes progress in between.
/// Whatever the device reads, it must not panic or hang, and must write only to memory that some descriptor named.
#[derive(Debug)]
pub struct Racer<'m, M: ?Sized> {
    mem: &'m M,
    rng: Rng,
    targets: Vec<Target>,
    /// The pieces to rewrite at once, with their first content.
    cells: Vec<Cell>,
}

#[derive(Debug)]
struct Cell {
    target: usize,
    addr: GuestAddress,
    original: Vec<u8>,
}

impl<'m, M: Memory + ?Sized> Racer<'m, M> {
    /// A racer over `targets`, whose present content counts as what was there at first.
    ///
    /// # Errors
    /// [`AccessError`] if a target is not in memory.
    pub fn new(mem: &'m M, targets: &[Target], seed: u64) -> Result<Self, AccessError> {
        let mut cells = Vec::new();
        for (target, what) in targets.iter().enumerate() {
            let (addr, len, piece) = match *what {
                Target::Descriptors { addr, count } => {
                    (addr, DESC_LEN * u64::from(count), DESC_LEN)
                }
                Target::Header { addr } => (addr, 16, 16),
                Target::Bytes { addr, len } => (addr, u64::from(len), 8),
            };
            for offset in (0..len).step_by(piece as usize) {
                let addr = GuestAddress(addr.0.wrapping_add(offset));
                let mut original = vec![0; piece.min(len - offset) as usize];
                mem.read_at(addr, &mut original)?;
                cells.push(Cell {
                    target,
                    addr,
                    original,
                });
            }
        }
        Ok(Self {
            mem,
            rng: Rng::with_seed(seed),
            targets: targets.to_vec(),
            cells,
        })
    }

    /// Rewrites one piece: a descriptor, a header, up to 8 bytes. The same seed takes the same steps.
    ///
    /// # Errors
    /// [`AccessError`] if the memory is gone.
    pub fn step(&mut self) -> Result<(), AccessError> {
        let Some(cell) = self.rng.choice(&self.cells) else {
            return Ok(());
        };
        let mut bytes = cell.original.clone();
        if self.rng.u64(..2) == 0 {
            let (target, addr) = (self.targets[cell.target], cell.addr);
            mutate(&mut self.rng, target, &mut bytes);
            return self.mem.write_at(addr, &bytes);
        }
        self.mem.write_at(cell.addr, &bytes)
    }

    /// Takes steps until `stop` is set; at least one. Returns how many. For a thread of its own.
    ///
    /// # Errors
    /// [`AccessError`] if the memory is gone.
    pub fn run(&mut self, stop: &AtomicBool) -> Result<u64, AccessError> {
        let mut steps = 0;
        loop {
            self.step()?;
            steps += 1;
            if stop.load(Ordering::Relaxed) {
                return Ok(steps);
            }
        }
    }

    /// Puts everything back as it was at first.
    ///
    /// # Errors
    /// [`AccessError`] if the memory is gone.
    pub fn restore(&self) -> Result<(), AccessError> {
        for cell in &self.cells {
            self.mem.write_at(cell.addr, &cell.original)?;
        }
        Ok(())
    }
}

fn mutate(rng: &mut Rng, target: Target, bytes: &mut [u8]) {
    match (target, <[u8; 16]>::try_from(&*bytes)) {
        (Target::Descriptors { count, .. }, Ok(original)) => {
            let desc = mutate_descriptor(rng, Descriptor::from_bytes(original), count);
            bytes.copy_from_slice(&desc.to_bytes());
        }
        (Target::Header { .. }, Ok(original)) => {
            let [a, b, c, d, ..] = original;
            let kind = match rng.u64(..4) {
                0 => u32::from_le_bytes([a, b, c, d]),
                1 => rng.u64(..) as u32,
                _ => rng.u64(..16) as u32,
            };
            let sector = match rng.u64(..3) {
                0 => rng.u64(..),
                1 => u64::MAX / 512,
                _ => rng.u64(..64),
            };
            bytes.copy_from_slice(&header(kind, rng.u64(..) as u32, sector));
        }
        _ => {
            for byte in bytes {
                *byte = rng.u64(..) as u8;
            }
        }
    }
}

/// Changes one field, mostly to something close to plausible.
fn mutate_descriptor(rng: &mut Rng, mut desc: Descriptor, count: u16) -> Descriptor {
    match rng.u64(..4) {
        0 => {
            desc.addr = GuestAddress(match rng.u64(..4) {
                0 => u64::MAX - rng.u64(..0x2000),
                1 => rng.u64(..),
                _ => desc.addr.0 ^ (1 << rng.u64(..13)),
            });
        }
        1 => {
            desc.len = match rng.u64(..4) {
                0 => 0,
                1 => rng.u64(..) as u32,
                2 => u32::MAX,
                _ => desc.len ^ (1 << rng.u64(..11)),
            };
        }
        2 => {
            let bits = if rng.u64(..2) == 0 { 16 } else { 3 };
            desc.flags ^= 1 << rng.u64(..bits);
        }
        _ => {
            desc.next = match rng.u64(..3) {
                0 => rng.u64(..) as u16,
                _ => rng.u64(..u64::from(count) + 1) as u16,
            };
        }
    }
    desc
}
