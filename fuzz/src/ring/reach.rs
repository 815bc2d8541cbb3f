// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which bytes of guest memory may change.

use std::collections::HashSet;

use virtio_blk_driver::wire::{DESC_F_INDIRECT, DESC_F_WRITE, DESC_LEN, Descriptor};
use vm_memory::GuestMemory;

use super::{Device, Field, Input, Put, Step};

/// Most descriptors that are looked at; with more nothing is checked.
const LIMIT: usize = 20_000;

/// A range of guest memory: first byte and the one after the last, wide enough for the end of the
/// address space.
type Range = (u128, u128);

fn range(addr: u64, len: u64) -> Range {
    (addr.into(), u128::from(addr) + u128::from(len))
}

fn overlap(a: Range, b: Range) -> bool {
    a.0 < b.1 && b.0 < a.1
}

/// What may change in guest memory.
pub struct Reach {
    /// `None`: anything, because the device is told to write where it reads descriptors from.
    allowed: Option<Vec<Range>>,
    /// Pages that nobody may write to.
    sealed: Vec<u64>,
}

/// One descriptor as the device may see it: any of these halves, in any combination.
struct Cell {
    addrs: Vec<u64>,
    rests: Vec<u64>,
}

impl Reach {
    /// From what lies in memory and all that the driver will write there.
    pub fn new<M: GuestMemory>(input: &Input, field: &Field<'_, M>) -> Self {
        let changes = input
            .steps
            .iter()
            .any(|step| matches!(step, Step::Protect { .. }));
        Self {
            allowed: collect(input, field),
            sealed: if changes {
                Vec::new()
            } else {
                field.image.sealed()
            },
        }
    }

    /// Checks what changed.
    pub fn check(&self, before: &[(u64, Vec<u8>)], after: &[(u64, Vec<u8>)]) {
        for ((page, old), (_, new)) in before.iter().zip(after) {
            if old == new {
                continue;
            }
            assert!(!self.sealed.contains(page), "page {page:#x} is sealed");
            let Some(allowed) = &self.allowed else {
                continue;
            };
            for (offset, (old, new)) in old.iter().zip(new).enumerate() {
                let addr = u128::from(*page) + offset as u128;
                let allowed = old == new || allowed.iter().any(|r| r.0 <= addr && addr < r.1);
                assert!(allowed, "byte {addr:#x} changed from {old:#x} to {new:#x}");
            }
        }
    }
}

fn collect<M: GuestMemory>(input: &Input, field: &Field<'_, M>) -> Option<Vec<Range>> {
    let memory = field.image.snapshot();
    // What the driver writes later, descriptors and other things.
    let steps = input.steps.iter().filter_map(|step| match step {
        Step::Write { what } => Some(what),
        _ => None,
    });
    let mut written = Vec::new();
    let mut halves = Vec::new();
    for put in steps.chain(&input.race).chain(&input.content) {
        let (addr, len) = field.range(put);
        match put {
            Put::Descriptor { table, index, desc } => {
                let (_, desc) = field.descriptor(*table, *index, desc);
                let value = u128::from_le_bytes(desc.to_bytes());
                halves.push((addr, value as u64));
                halves.push((addr.wrapping_add(8), (value >> 64) as u64));
            }
            _ => written.push(range(addr, len)),
        }
    }
    let size = u64::from(field.state.size);
    let avail = range(field.state.avail_ring, 6 + 2 * size);
    let used = range(field.state.used_ring, 6 + 8 * size);
    written.extend([avail, used]);

    let mut cells = Vec::new();
    let mut seen = HashSet::new();
    let mut todo: Vec<(u64, u64)> = vec![(field.state.desc_table, size)];
    let mut allowed = Vec::new();
    while let Some((table, count)) = todo.pop() {
        for index in 0..count {
            let Some(addr) = table.checked_add(index * DESC_LEN) else {
                break;
            };
            let Some(cell) = load(&memory, &halves, addr) else {
                // No memory from here on, for any device.
                break;
            };
            if !seen.insert(addr) {
                continue;
            }
            if seen.len() > LIMIT {
                return None;
            }
            cells.push(range(addr, DESC_LEN));
            for &rest in &cell.rests {
                for &addr in &cell.addrs {
                    let value = u128::from(addr) | u128::from(rest) << 64;
                    let desc = Descriptor::from_bytes(value.to_le_bytes());
                    if desc.flags & DESC_F_INDIRECT != 0 {
                        todo.push((addr, u64::from(desc.len) / DESC_LEN));
                    } else if desc.flags & DESC_F_WRITE != 0 {
                        allowed.push(range(addr, desc.len.into()));
                    }
                }
            }
        }
    }
    // Halves that were not where the device looks for them may still be in its way.
    for (addr, _) in &halves {
        let half = range(*addr, 8);
        let exact = |cell: &Range| half.0 == cell.0 || half.0 == cell.0 + 8;
        if cells
            .iter()
            .any(|cell| overlap(half, *cell) && !exact(cell))
        {
            return None;
        }
        written.push(half);
    }
    if matches!(input.device, Device::Ring) {
        // A ring writes to no buffer.
        allowed.clear();
    }
    let rings = [avail, used];
    let others = written.iter().filter(|w| !halves_contain(&halves, w));
    let changing = allowed.iter().chain(&rings).chain(others);
    for change in changing {
        if cells.iter().any(|cell| overlap(*change, *cell)) {
            return None;
        }
    }
    allowed.extend(written);
    Some(allowed)
}

fn halves_contain(halves: &[(u64, u64)], what: &Range) -> bool {
    halves.iter().any(|(addr, _)| range(*addr, 8) == *what)
}

/// What a device may see where a descriptor lies.
fn load(memory: &[(u64, Vec<u8>)], halves: &[(u64, u64)], addr: u64) -> Option<Cell> {
    let bytes = bytes_at(memory, addr)?;
    let value = u128::from_le_bytes(bytes);
    let candidates = |at: u64, value: u64| {
        let later = halves.iter().filter(|h| h.0 == at).map(|h| h.1);
        let mut list: Vec<u64> = std::iter::once(value).chain(later).collect();
        list.sort_unstable();
        list.dedup();
        list
    };
    Some(Cell {
        addrs: candidates(addr, value as u64),
        rests: candidates(addr.wrapping_add(8), (value >> 64) as u64),
    })
}

fn bytes_at(memory: &[(u64, Vec<u8>)], addr: u64) -> Option<[u8; DESC_LEN as usize]> {
    if let Some(bytes) = rest_of_page(memory, addr)?.first_chunk() {
        return Some(*bytes);
    }
    let mut bytes = [0; DESC_LEN as usize];
    for (offset, byte) in bytes.iter_mut().enumerate() {
        *byte = *rest_of_page(memory, addr.checked_add(offset as u64)?)?.first()?;
    }
    Some(bytes)
}

fn rest_of_page(memory: &[(u64, Vec<u8>)], addr: u64) -> Option<&[u8]> {
    let index = memory.partition_point(|(page, _)| *page <= addr);
    let (page, bytes) = memory.get(index.checked_sub(1)?)?;
    bytes.get((addr - page) as usize..)
}
