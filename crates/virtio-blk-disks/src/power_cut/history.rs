// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What was written when, and what of it a cut may leave.

use std::collections::BTreeMap;
use std::sync::Arc;

use virtio_blk_core::disk::SECTOR_SIZE;

/// Bytes of a sector.
pub(super) const SECTOR: usize = SECTOR_SIZE as usize;

/// A point in the order of events. The first event has 1.
pub type Moment = u64;

/// The content of a sector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// These 512 bytes.
    Data(Arc<[u8]>),
    /// Zeroes.
    Zero,
    /// Anything: it was discarded.
    Any,
}

impl Content {
    /// Whether a sector that holds `bytes` may be this.
    pub fn matches(&self, bytes: &[u8]) -> bool {
        match self {
            Self::Data(data) => **data == *bytes,
            Self::Zero => bytes.iter().all(|&byte| byte == 0),
            Self::Any => true,
        }
    }
}

/// One change of one sector.
#[derive(Clone, Debug)]
pub(super) struct Version {
    submitted: Moment,
    /// When it ended, well or badly.
    ended: Option<Moment>,
    /// It ended well. What failed may have had any effect.
    done: bool,
    /// Stable by itself when it is done.
    fua: bool,
    pub(super) content: Content,
}

/// Names a change that has begun.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    pub(super) first: u64,
    pub(super) count: u64,
    pub(super) at: Moment,
}

/// Everything that happened to a disk.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    now: Moment,
    sectors: BTreeMap<u64, Vec<Version>>,
    /// Moments at which flushes that succeeded were submitted and completed.
    flushes: Vec<(Moment, Moment)>,
}

impl History {
    fn tick(&mut self) -> Moment {
        self.now += 1;
        self.now
    }

    pub(super) fn now(&self) -> Moment {
        self.now
    }

    /// A change of consecutive sectors from `first` on is submitted.
    pub(super) fn submit(
        &mut self,
        first: u64,
        contents: impl Iterator<Item = Content>,
        fua: bool,
    ) -> Begun {
        let at = self.tick();
        let mut count = 0;
        for (sector, content) in (first..).zip(contents) {
            count += 1;
            self.sectors.entry(sector).or_default().push(Version {
                submitted: at,
                ended: None,
                done: false,
                fua,
                content,
            });
        }
        Begun { first, count, at }
    }

    /// A change has ended, well if `done`.
    pub(super) fn end(&mut self, begun: Begun, done: bool) {
        let at = self.tick();
        for (_, versions) in (self.sectors).range_mut(begun.first..begun.first + begun.count) {
            for version in versions.iter_mut().filter(|v| v.submitted == begun.at) {
                version.ended = Some(at);
                version.done = done;
            }
        }
    }

    /// Forgets a change that was never made.
    pub(super) fn withdraw(&mut self, begun: Begun) {
        for (_, versions) in (self.sectors).range_mut(begun.first..begun.first + begun.count) {
            versions.retain(|version| version.submitted != begun.at);
        }
    }

    pub(super) fn submit_flush(&mut self) -> Moment {
        self.tick()
    }

    pub(super) fn complete_flush(&mut self, submitted: Moment) {
        let at = self.tick();
        self.flushes.push((submitted, at));
    }

    /// What a cut right after `moment` may leave.
    pub(super) fn cut(&self, moment: Moment) -> Cut {
        let flushed = (self.flushes.iter())
            .filter(|(_, completed)| *completed <= moment)
            .map(|(submitted, _)| *submitted)
            .max()
            .unwrap_or(0);
        let stable = |version: &Version| {
            version.ended.is_some_and(|ended| {
                version.done && ended <= moment && (version.fua || ended < flushed)
            })
        };
        let mut sectors = BTreeMap::new();
        for (&sector, versions) in &self.sectors {
            let begun = || versions.iter().filter(|v| v.submitted <= moment);
            // What had ended before a stable change began can't come back.
            let since = (begun().filter(|v| stable(v)).map(|v| v.submitted)).max();
            let left: Vec<Content> = begun()
                .filter(|v| match (since, v.ended) {
                    (Some(since), Some(ended)) => ended >= since,
                    _ => true,
                })
                .map(|v| v.content.clone())
                .collect();
            if !left.is_empty() {
                sectors.insert(
                    sector,
                    Choice {
                        original: since.is_none(),
                        contents: left,
                    },
                );
            }
        }
        Cut { moment, sectors }
    }
}

/// What one sector may hold after a cut.
#[derive(Clone, Debug)]
pub struct Choice {
    /// What it held before anything was written.
    pub original: bool,
    /// Or one of these, in the order of submission.
    pub contents: Vec<Content>,
}

/// Everything that a power cut at one moment may leave. Sectors are independent of each other: a write of
/// several may arrive in parts.
#[derive(Clone, Debug)]
pub struct Cut {
    moment: Moment,
    sectors: BTreeMap<u64, Choice>,
}

/// A sector that holds what it must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "after a power cut at event {moment}, sector {sector} holds none of its {allowed} possible contents"
)]
pub struct BrokenPromise {
    /// When the power was cut.
    pub moment: Moment,
    /// Which sector.
    pub sector: u64,
    /// How many contents it may have.
    pub allowed: usize,
}

impl Cut {
    /// The sectors that were changed before the cut, and what each may hold.
    pub fn sectors(&self) -> impl Iterator<Item = (u64, &Choice)> {
        self.sectors
            .iter()
            .map(|(sector, choice)| (*sector, choice))
    }

    /// What a sector may hold; `None`: what it held before anything was written.
    pub fn sector(&self, sector: u64) -> Option<&Choice> {
        self.sectors.get(&sector)
    }

    /// How many different disks the cut may leave; saturates.
    pub fn states(&self) -> u64 {
        let choices =
            |choice: &Choice| (choice.contents.len() + usize::from(choice.original)) as u64;
        (self.sectors.values().map(choices)).fold(1, u64::saturating_mul)
    }

    /// State number `number` (from 0, below [`Cut::states`]; beyond, they repeat): what each changed
    /// sector holds, `None` for what it held before. Discarded sectors hold zeroes.
    pub fn state(&self, mut number: u64) -> impl Iterator<Item = (u64, Option<Content>)> {
        self.sectors.iter().map(move |(sector, choice)| {
            let count = choice.contents.len() + usize::from(choice.original);
            let index = (number % count as u64) as usize;
            number /= count as u64;
            (*sector, choice.contents.get(index).cloned())
        })
    }

    /// Checks a disk that went through the cut. `read` fills its argument from the first byte given on; `original`
    /// does the same for what was there before anything was written.
    ///
    /// # Errors
    /// The first sector that holds what it must not.
    pub fn check(
        &self,
        mut read: impl FnMut(u64, &mut [u8]),
        mut original: impl FnMut(u64, &mut [u8]),
    ) -> Result<(), BrokenPromise> {
        let (mut found, mut before) = ([0; SECTOR], [0; SECTOR]);
        for (&sector, choice) in &self.sectors {
            read(sector * SECTOR_SIZE, &mut found);
            let kept = choice.original && {
                original(sector * SECTOR_SIZE, &mut before);
                found == before
            };
            if !kept && !choice.contents.iter().any(|c| c.matches(&found)) {
                return Err(BrokenPromise {
                    moment: self.moment,
                    sector,
                    allowed: choice.contents.len() + usize::from(choice.original),
                });
            }
        }
        Ok(())
    }
}
