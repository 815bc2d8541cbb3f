// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One sector's history, as far as a read may still see it.

use super::{Effect, Time};
use crate::pattern::{self, Stamp};

const NEVER: Time = Time::MAX;

/// A change that a read may still see.
#[derive(Debug)]
struct Version {
    stamp: Stamp,
    submitted: Time,
    /// `NEVER` while it is in flight.
    completed: Time,
    /// When a write completed that was submitted after this one's completion: reads submitted later
    /// can't see this one.
    hidden: Time,
    /// Whether it hides earlier ones. A discard doesn't: it may have done nothing.
    hides: bool,
}

/// How a read's content was explained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// By the only possible content.
    Only,
    /// By one of several.
    OneOfSeveral,
    /// By several together.
    Mix,
}

/// One sector.
#[derive(Debug)]
pub(super) struct Sector {
    versions: Vec<Version>,
    /// Reads in flight.
    readers: u32,
}

impl Sector {
    pub(super) fn new(initial: Stamp) -> Self {
        Self {
            versions: vec![Version {
                stamp: initial,
                submitted: 0,
                completed: 0,
                hidden: NEVER,
                hides: true,
            }],
            readers: 0,
        }
    }

    pub(super) fn begin_write(&mut self, submitted: Time, effect: Effect) {
        let (stamp, hides) = match effect {
            Effect::Data(stamp) => (stamp, true),
            Effect::Zero => (Stamp::ZERO, true),
            Effect::Discard => (Stamp::ZERO, false),
        };
        self.versions.push(Version {
            stamp,
            submitted,
            completed: NEVER,
            hidden: NEVER,
            hides,
        });
    }

    pub(super) fn end_write(&mut self, submitted: Time, completed: Time) {
        if let Some(done) = self.versions.iter_mut().find(|v| v.submitted == submitted) {
            done.completed = completed;
        }
        self.settle();
    }

    pub(super) fn begin_read(&mut self) {
        self.readers += 1;
    }

    /// Compares what a read submitted at `submitted` returned with what it may have seen. An error is
    /// the list of allowed contents.
    pub(super) fn end_read(
        &mut self,
        number: u64,
        submitted: Time,
        data: &[u8],
    ) -> Result<Seen, Vec<Stamp>> {
        self.readers = self.readers.saturating_sub(1);
        let seen = match self.versions.as_slice() {
            // The usual case, kept free of allocation.
            [only] if pattern::matches(data, number, only.stamp) => Seen::Only,
            versions => {
                let mut allowed: Vec<Stamp> = versions
                    .iter()
                    .filter(|v| v.hidden > submitted)
                    .map(|v| v.stamp)
                    .collect();
                allowed.sort_unstable();
                allowed.dedup();
                let matching = allowed
                    .iter()
                    .find(|&&stamp| pattern::matches(data, number, stamp));
                match matching {
                    Some(&stamp) => {
                        self.pin(submitted, stamp);
                        match allowed.len() {
                            1 => Seen::Only,
                            _ => Seen::OneOfSeveral,
                        }
                    }
                    None if pattern::is_mix(data, number, &allowed) => Seen::Mix,
                    None => return Err(allowed),
                }
            }
        };
        if self.readers == 0 {
            self.versions.retain(|v| v.hidden == NEVER);
        }
        Ok(seen)
    }

    /// A read submitted at `submitted` saw `stamp`: if nothing was in flight beside it, later reads
    /// can't see anything else. Those submitted earlier may have met the other versions in flight.
    fn pin(&mut self, submitted: Time, stamp: Stamp) {
        let quiet = self.versions.iter().all(|v| v.completed < submitted);
        let visible = |v: &Version| v.hidden == NEVER && v.stamp == stamp;
        if quiet && self.versions.iter().any(visible) {
            for other in self.versions.iter_mut().filter(|v| !visible(v)) {
                other.hidden = other.hidden.min(submitted);
            }
        }
    }

    /// Works out what is hidden now, and forgets what no read can see.
    fn settle(&mut self) {
        for i in 0..self.versions.len() {
            let Version {
                stamp,
                completed,
                hidden,
                ..
            } = self.versions[i];
            if completed == NEVER || hidden != NEVER {
                continue;
            }
            let hidden = self
                .versions
                .iter()
                .filter(|v| v.completed != NEVER)
                .filter(|v| {
                    // The same content again makes the older one redundant, whatever its kind.
                    (v.hides && v.submitted > completed)
                        || (v.stamp == stamp && v.completed > completed)
                })
                .map(|v| v.completed)
                .min();
            if let Some(hidden) = hidden {
                self.versions[i].hidden = hidden;
            }
        }
        if self.readers == 0 {
            self.versions.retain(|v| v.hidden == NEVER);
        }
    }
}
