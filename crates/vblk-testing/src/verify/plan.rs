// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which request comes next.

use std::ops::Range;

use fastrand::Rng;

use crate::SECTOR;
use crate::client::Properties;

/// Longest read or write.
pub(super) const MAX_LEN: usize = 64 << 10;

/// Sectors that all queues fight for.
const HOT: u64 = 512;

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write { fua: bool },
    Discard,
    WriteZeroes { unmap: bool, fua: bool },
    Flush,
}

/// A request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub kind: Kind,
    /// First sector.
    pub sector: u64,
    /// How many.
    pub sectors: u64,
    /// Data segments, for reads and writes.
    pub segments: usize,
    /// Whether it lies inside the disk; else it must be refused.
    pub fits: bool,
}

impl Plan {
    pub(super) fn range(&self) -> Range<u64> {
        self.sector..self.sector + self.sectors
    }

    /// The same as a line for messages.
    pub(super) fn describe(&self) -> String {
        format!(
            "{:?} of {} sectors at {} in {} segments",
            self.kind, self.sectors, self.sector, self.segments
        )
    }
}

/// Where one queue works and what the device can do.
#[derive(Clone, Debug)]
pub(super) struct Space {
    whole: Range<u64>,
    own: Range<u64>,
    hot: Range<u64>,
    /// Sectors of a block.
    block: u64,
    max_segments: usize,
    /// In sectors.
    max_discard: u64,
    max_write_zeroes: u64,
    read_only: bool,
}

impl Space {
    /// For queue `index` of `count`, on the sectors `whole` of the device.
    pub(super) fn new(
        properties: &Properties,
        whole: Range<u64>,
        index: usize,
        count: usize,
        read_only: bool,
    ) -> Self {
        let block = (properties.block / SECTOR) as u64;
        let hot = whole.start..(whole.start + HOT.max(block)).min(whole.end);
        let (index, count) = (index as u64, count as u64);
        let part = ((whole.end - whole.start) / count / block).max(1) * block;
        let own_start = (whole.start + part * index).min(whole.end - block);
        let own = own_start..(own_start + part).min(whole.end);
        let limit = |bytes: u64| (bytes / SECTOR as u64).min((MAX_LEN / SECTOR) as u64 * 4);
        Self {
            whole,
            own,
            hot,
            block,
            max_segments: properties.max_segments.clamp(1, 8),
            max_discard: limit(properties.max_discard),
            max_write_zeroes: limit(properties.max_write_zeroes),
            read_only,
        }
    }

    /// The sectors of the device that are worked on. They end where the device ends.
    pub(super) fn whole(&self) -> Range<u64> {
        self.whole.clone()
    }

    /// Draws a request.
    pub(super) fn draw(&self, rng: &mut Rng) -> Plan {
        let kind = self.kind(rng);
        let max_blocks = self.max_sectors(kind) / self.block;
        let wanted = match rng.u8(..20) {
            0..14 => rng.u64(1..=8),
            14..19 => rng.u64(1..=32),
            _ => rng.u64(1..=512),
        };
        let sectors = wanted.min(max_blocks) * self.block;
        let mut plan = Plan {
            kind,
            sector: 0,
            sectors,
            segments: 1,
            fits: true,
        };
        if kind == Kind::Flush {
            plan.sectors = 0;
            return plan;
        }
        if rng.u8(..) < 3 {
            plan.sector = self.past_the_end(rng, sectors);
            plan.fits = false;
        } else {
            let area = match rng.u8(..10) {
                0..4 => &self.own,
                4..8 => &self.hot,
                _ => &self.whole,
            };
            plan.sectors = sectors.min(area.end - area.start);
            let room = (area.end - area.start - plan.sectors) / self.block;
            plan.sector = if rng.u8(..) == 0 {
                area.end - plan.sectors
            } else {
                area.start + rng.u64(..=room) * self.block
            };
        }
        if matches!(kind, Kind::Read | Kind::Write { .. }) && rng.u8(..4) == 0 {
            plan.segments = rng.usize(1..=self.max_segments);
        }
        plan
    }

    /// Requests on and around the end of the disk, to be made one after the other.
    pub(super) fn edges(&self) -> Vec<Plan> {
        let end = self.whole.end;
        let one = self.block;
        let huge = (1 << 54) / one * one;
        let kinds = [
            Kind::Write { fua: false },
            Kind::Read,
            Kind::WriteZeroes {
                unmap: true,
                fua: false,
            },
            Kind::Read,
            Kind::Write { fua: true },
            Kind::Discard,
            Kind::Read,
            Kind::WriteZeroes {
                unmap: false,
                fua: false,
            },
            Kind::Read,
        ];
        let mut plans = Vec::new();
        for kind in kinds.into_iter().filter(|kind| self.can(*kind)) {
            let mut add = |sector, blocks: u64, fits| {
                plans.push(Plan {
                    kind,
                    sector,
                    sectors: blocks * one,
                    segments: 1,
                    fits,
                });
            };
            add(end - one, 1, true);
            add(end - 2 * one, 2, true);
            add(end, 1, false);
            add(end - one, 2, false);
            add(end + one, 1, false);
            add(huge, 1, false);
            add(end - one, 1, true);
        }
        plans
    }

    fn can(&self, kind: Kind) -> bool {
        match kind {
            Kind::Read | Kind::Flush => true,
            Kind::Write { .. } => !self.read_only,
            Kind::Discard => !self.read_only && self.max_discard >= 2 * self.block,
            Kind::WriteZeroes { .. } => !self.read_only && self.max_write_zeroes >= 2 * self.block,
        }
    }

    fn kind(&self, rng: &mut Rng) -> Kind {
        let kind = match rng.u16(..1000) {
            0..470 => Kind::Read,
            470..850 => Kind::Write { fua: false },
            850..857 => Kind::Write { fua: true },
            857..860 => Kind::WriteZeroes {
                unmap: rng.bool(),
                fua: true,
            },
            860..900 => Kind::WriteZeroes {
                unmap: true,
                fua: false,
            },
            900..940 => Kind::WriteZeroes {
                unmap: false,
                fua: false,
            },
            940..990 => Kind::Discard,
            _ => Kind::Flush,
        };
        if self.can(kind) { kind } else { Kind::Read }
    }

    /// In sectors.
    fn max_sectors(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Read | Kind::Write { .. } | Kind::Flush => (MAX_LEN / SECTOR) as u64,
            Kind::Discard => self.max_discard,
            Kind::WriteZeroes { .. } => self.max_write_zeroes,
        }
    }

    /// A first sector from which `sectors` don't fit.
    fn past_the_end(&self, rng: &mut Rng, sectors: u64) -> u64 {
        let end = self.whole.end;
        match rng.u8(..4) {
            0 => end,
            1 => end - rng.u64(..sectors / self.block) * self.block,
            2 => end + rng.u64(..1 << 20) * self.block,
            // The driver counts bytes, so this is as far as a 64-bit offset goes.
            _ => (rng.u64(1 << 40..1 << 54) / self.block) * self.block,
        }
    }
}
