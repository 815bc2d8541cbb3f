// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a device must answer, and what the disk may hold.

use std::rc::Rc;

use virtio_blk_core::spec::feature;
use virtio_blk_driver::wire::{
    HEADER_LEN, ID_LEN, LIFETIME_LEN, RANGE_F_UNMAP, S_IOERR, S_OK, S_UNSUPP, T_DISCARD, T_FLUSH,
    T_GET_ID, T_GET_LIFETIME, T_IN, T_OUT, T_SECURE_ERASE, T_WRITE_ZEROES,
};

/// Sectors that are kept account of; no disk here is larger.
pub const MAX_SECTORS: u64 = 256;
/// Limits of the memory disk.
const MAX_SEGMENTS: usize = 32;
const MAX_RANGE: u32 = 1 << 24;

/// A sector's content.
pub type Content = Rc<[u8]>;

/// What requests are judged by.
#[derive(Clone, Debug)]
pub struct Rules {
    pub capacity: u64,
    pub block: u64,
    pub read_only: bool,
    pub features: u64,
    pub serial: Vec<u8>,
    pub lifetime: [u8; LIFETIME_LEN as usize],
}

/// A request as the device sees it.
#[derive(Clone, Debug)]
pub struct Asked {
    /// All bytes the device may read.
    pub readable: Vec<u8>,
    /// Bytes it may write, status included.
    pub writable: u32,
    /// Capacities since it was submitted.
    pub capacities: Vec<u64>,
    /// The disk may fail it.
    pub faulty: bool,
    /// It changes the disk, if all goes well.
    active: bool,
    /// Something else ran in the same place meanwhile.
    shared: bool,
    /// For each sector of a read: what it may find.
    seen: Vec<Vec<Content>>,
}

/// What a request means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// No place for a status.
    Void,
    /// To be answered like this.
    Refused(u8),
    Read {
        sector: u64,
        count: u64,
    },
    Write {
        sector: u64,
        count: u64,
    },
    Flush,
    GetId,
    GetLifetime,
    /// Ranges that become zeroes; first sector and count.
    Zero(Vec<(u64, u64)>),
}

impl Asked {
    pub fn new(readable: Vec<u8>, writable: u32, faulty: bool) -> Self {
        Self {
            readable,
            writable,
            capacities: Vec::new(),
            faulty,
            active: false,
            shared: false,
            seen: Vec::new(),
        }
    }

    fn data(&self) -> &[u8] {
        self.readable.get(HEADER_LEN as usize..).unwrap_or_default()
    }

    /// The type, if there is a whole header.
    pub fn kind(&self) -> Option<u32> {
        let header = self.readable.get(..HEADER_LEN as usize)?;
        Some(u32::from_le_bytes(header[..4].try_into().unwrap()))
    }

    /// What it means on a disk of this capacity.
    pub fn meaning(&self, rules: &Rules, capacity: u64) -> Meaning {
        let Some(room) = self.writable.checked_sub(1) else {
            return Meaning::Void;
        };
        let Some(kind) = self.kind() else {
            return Meaning::Refused(S_IOERR);
        };
        let sector = u64::from_le_bytes(self.readable[8..16].try_into().unwrap());
        let data = self.data();
        // As many bytes from there on, in whole blocks.
        let place = |sector: u64, len: u64| {
            let end = sector
                .checked_mul(512)
                .and_then(|first| first.checked_add(len));
            let fits = end.is_some_and(|end| end <= capacity * 512 && end % rules.block == 0);
            fits && len.is_multiple_of(rules.block)
        };
        let has = |bit: u64| rules.features & bit != 0;
        match kind {
            T_IN if place(sector, room.into()) => Meaning::Read {
                sector,
                count: u64::from(room) / 512,
            },
            T_OUT if !rules.read_only && place(sector, data.len() as u64) => Meaning::Write {
                sector,
                count: data.len() as u64 / 512,
            },
            T_IN | T_OUT => Meaning::Refused(S_IOERR),
            T_FLUSH => Meaning::Flush,
            T_GET_ID => Meaning::GetId,
            T_GET_LIFETIME if !has(feature::LIFETIME) => Meaning::Refused(S_UNSUPP),
            T_GET_LIFETIME if room < LIFETIME_LEN => Meaning::Refused(S_IOERR),
            T_GET_LIFETIME => Meaning::GetLifetime,
            T_DISCARD | T_WRITE_ZEROES | T_SECURE_ERASE if rules.read_only => {
                Meaning::Refused(S_IOERR)
            }
            T_DISCARD if has(feature::DISCARD) => zero(data, 0, place),
            T_WRITE_ZEROES if has(feature::WRITE_ZEROES) => zero(data, RANGE_F_UNMAP, place),
            T_SECURE_ERASE if has(feature::SECURE_ERASE) => zero(data, 0, place),
            _ => Meaning::Refused(S_UNSUPP),
        }
    }

    /// What it may get: status and used length. `lost`: the disk's queue may have broken, and the
    /// data of a read gone with it.
    pub fn answers(&self, rules: &Rules, lost: bool) -> Vec<(u8, u32)> {
        let room = self.writable.saturating_sub(1);
        // The status counts if all before it was written.
        let used = |written: u32| written + u32::from(written == room);
        let all_of = |data: bool| used(if data { room } else { 0 });
        let mut answers = Vec::new();
        let mut fine = false;
        for &capacity in &self.capacities {
            let (status, written) = match self.meaning(rules, capacity) {
                Meaning::Void => (S_OK, 0),
                Meaning::Refused(status) => (status, all_of(self.kind() == Some(T_IN))),
                Meaning::Read { .. } => (S_OK, all_of(true)),
                Meaning::GetId => (S_OK, used(room.min(ID_LEN))),
                Meaning::GetLifetime => (S_OK, used(LIFETIME_LEN)),
                Meaning::Write { .. } | Meaning::Flush | Meaning::Zero(_) => (S_OK, all_of(false)),
            };
            fine |= status == S_OK && self.kind() != Some(T_GET_ID);
            answers.push((status, written));
        }
        if fine && (self.faulty || self.capacities.len() > 1) {
            let written = all_of(self.kind() == Some(T_IN));
            answers.push((S_IOERR, written));
            if self.faulty {
                answers.push((S_UNSUPP, written));
            }
            if lost {
                answers.push((S_IOERR, used(0)));
            }
        }
        answers
    }

    /// Sectors it changes, with their new content, on a disk of this capacity.
    fn changes(&self, rules: &Rules, capacity: u64) -> Vec<(u64, Content)> {
        match self.meaning(rules, capacity) {
            Meaning::Write { sector, .. } => (sector..)
                .zip(self.data().chunks_exact(512))
                .map(|(sector, data)| (sector, data.into()))
                .collect(),
            Meaning::Zero(ranges) => {
                let zeroes: Content = vec![0; 512].into();
                ranges
                    .iter()
                    .flat_map(|(first, count)| *first..first + count)
                    .map(|sector| (sector, zeroes.clone()))
                    .collect()
            }
            _ => Vec::new(),
        }
    }

    /// Sectors it reads.
    fn reads(&self, rules: &Rules, capacity: u64) -> std::ops::Range<u64> {
        match self.meaning(rules, capacity) {
            Meaning::Read { sector, count } => sector..sector + count,
            _ => 0..0,
        }
    }
}

/// A request to erase `data`'s ranges.
fn zero(data: &[u8], known: u32, place: impl Fn(u64, u64) -> bool) -> Meaning {
    let ranges: Vec<(u64, u32, u32)> = data
        .chunks_exact(16)
        .map(|r| {
            let word = |at: usize| u32::from_le_bytes(r[at..at + 4].try_into().unwrap());
            let sector = u64::from_le_bytes(r[..8].try_into().unwrap());
            (sector, word(8), word(12))
        })
        .collect();
    if data.is_empty() || !data.len().is_multiple_of(16) || ranges.len() > MAX_SEGMENTS {
        return Meaning::Refused(S_IOERR);
    }
    if ranges.iter().any(|r| r.2 & !known != 0) {
        return Meaning::Refused(S_UNSUPP);
    }
    if ranges
        .iter()
        .any(|r| r.1 > MAX_RANGE || !place(r.0, u64::from(r.1) * 512))
    {
        return Meaning::Refused(S_IOERR);
    }
    Meaning::Zero(ranges.iter().map(|r| (r.0, r.1.into())).collect())
}

/// What each sector may hold.
pub struct Model {
    pub rules: Rules,
    sectors: Vec<Vec<Content>>,
}

fn add(list: &mut Vec<Content>, content: &Content) {
    if !list.contains(content) {
        list.push(content.clone());
    }
}

impl Model {
    pub fn new(rules: Rules) -> Self {
        let zeroes: Content = vec![0; 512].into();
        Self {
            sectors: vec![vec![zeroes]; MAX_SECTORS as usize],
            rules,
        }
    }

    /// Takes note of a request that the device may see from now on. `open` are the others.
    pub fn submit<'a>(
        &mut self,
        asked: &mut Asked,
        open: impl Iterator<Item = &'a mut Asked> + 'a,
    ) {
        self.capacity_changed(asked, open.collect());
    }

    /// Takes note of the present capacity for a request.
    fn capacity_changed(&mut self, asked: &mut Asked, mut open: Vec<&mut Asked>) {
        let capacity = self.rules.capacity;
        if !asked.capacities.contains(&capacity) {
            asked.capacities.push(capacity);
        }
        let changes = asked.changes(&self.rules, capacity);
        if !changes.is_empty() && !asked.active {
            asked.active = true;
            for (sector, content) in &changes {
                add(&mut self.sectors[*sector as usize], content);
            }
        }
        if asked.seen.is_empty() {
            let reads = asked.reads(&self.rules, capacity);
            asked.seen = reads.map(|s| self.sectors[s as usize].clone()).collect();
        }
        for other in &mut open {
            let meets = self.meet(asked, other);
            asked.shared |= meets;
            other.shared |= meets;
        }
    }

    /// Lets a read know what a write may do to it, and the other way round. Returns whether they meet.
    fn meet(&self, one: &mut Asked, other: &mut Asked) -> bool {
        let rules = &self.rules;
        let touched = |asked: &Asked| -> Vec<(u64, Option<Content>)> {
            let mut list = Vec::new();
            for &capacity in &asked.capacities {
                list.extend(asked.reads(rules, capacity).map(|sector| (sector, None)));
                let changes = asked.changes(rules, capacity);
                list.extend(changes.into_iter().map(|(s, c)| (s, Some(c))));
            }
            list
        };
        let (a, b) = (touched(one), touched(other));
        let mut meets = false;
        for (sector, mine) in &a {
            for (_, theirs) in b.iter().filter(|(s, _)| s == sector) {
                match (mine, theirs) {
                    (None, None) => continue,
                    (Some(content), None) => other.may_see(*sector, content),
                    (None, Some(content)) => one.may_see(*sector, content),
                    (Some(_), Some(_)) => {}
                }
                meets = true;
            }
        }
        meets
    }

    /// The disk has another capacity now.
    pub fn resize(&mut self, capacity: u64, mut open: Vec<&mut Asked>) {
        let old = std::mem::replace(&mut self.rules.capacity, capacity);
        if old == capacity {
            return;
        }
        let zeroes: Content = vec![0; 512].into();
        for sector in capacity..old {
            let under_way = open
                .iter()
                .any(|a| a.touches(&self.rules, sector, &[old, capacity]));
            let list = &mut self.sectors[sector as usize];
            if !under_way {
                list.clear();
            }
            add(list, &zeroes);
            for asked in &mut open {
                if asked.touches(&self.rules, sector, &[old]) {
                    asked.shared = true;
                    asked.may_see(sector, &zeroes);
                }
            }
        }
        for index in 0..open.len() {
            let asked = open.swap_remove(index);
            let others: Vec<&mut Asked> = open.iter_mut().map(|a| &mut **a).collect();
            self.capacity_changed(asked, others);
            open.push(asked);
            let last = open.len() - 1;
            open.swap(index, last);
        }
    }

    /// Takes note of a request's end. `data` is what a read found.
    ///
    /// # Panics
    /// It can't have found that.
    pub fn complete(&mut self, asked: &Asked, status: u8, data: &[u8]) {
        if status != S_OK {
            return;
        }
        if !asked.seen.is_empty() && asked.kind() == Some(T_IN) {
            let first = u64::from_le_bytes(asked.readable[8..16].try_into().unwrap());
            for ((sector, found), allowed) in (first..).zip(data.chunks_exact(512)).zip(&asked.seen)
            {
                let known = allowed.iter().find(|content| &content[..] == found);
                let Some(content) = known else {
                    panic!("sector {sector} reads {found:?}, may be {allowed:?}");
                };
                if !asked.shared {
                    self.sectors[sector as usize] = vec![content.clone()];
                }
            }
        }
        if asked.active && !asked.shared {
            for capacity in &asked.capacities {
                for (sector, content) in asked.changes(&self.rules, *capacity) {
                    self.sectors[sector as usize] = vec![content];
                }
            }
        }
    }
}

impl Asked {
    fn may_see(&mut self, sector: u64, content: &Content) {
        let first = u64::from_le_bytes(self.readable[8..16].try_into().unwrap());
        let index = sector.checked_sub(first).map(|index| index as usize);
        if let Some(list) = index.and_then(|index| self.seen.get_mut(index)) {
            add(list, content);
        }
    }

    fn touches(&self, rules: &Rules, sector: u64, capacities: &[u64]) -> bool {
        capacities.iter().any(|&capacity| {
            self.reads(rules, capacity).contains(&sector)
                || self.changes(rules, capacity).iter().any(|c| c.0 == sector)
        })
    }
}
