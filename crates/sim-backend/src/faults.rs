// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Injection of faults, repeatably.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use virtio_blk_disks::fault::FaultPlan;

/// Faults to inject. A new plan injects none. All rates are in a thousand.
///
/// Each kind of fault draws from its own sequence, which follows from the seed: the n-th kick is dropped or
/// not whatever else happens. A device that is driven step by step therefore repeats itself exactly.
#[derive(Clone, Debug)]
pub struct Faults {
    pub(crate) seed: u64,
    pub(crate) kicks: u32,
    pub(crate) callbacks: u32,
    pub(crate) iotlb: u32,
    pub(crate) spared: u32,
    pub(crate) undrained: u32,
    pub(crate) disk: Option<FaultPlan>,
}

impl Default for Faults {
    fn default() -> Self {
        Self::new(0)
    }
}

impl Faults {
    /// A plan that changes nothing yet.
    pub const fn new(seed: u64) -> Self {
        Self {
            seed,
            kicks: 0,
            callbacks: 0,
            iotlb: 0,
            spared: 0,
            undrained: 0,
            disk: None,
        }
    }

    /// Loses so many kicks, whether called or by eventfd.
    #[must_use]
    pub const fn drop_kicks(mut self, per_mille: u32) -> Self {
        self.kicks = per_mille;
        self
    }

    /// Loses so many callbacks of queues.
    #[must_use]
    pub const fn drop_callbacks(mut self, per_mille: u32) -> Self {
        self.callbacks = per_mille;
        self
    }

    /// Fails so many translations of buffers (headers, data, status, indirect tables; not the rings) as if
    /// nothing were mapped there.
    #[must_use]
    pub const fn miss_iotlb(mut self, per_mille: u32) -> Self {
        self.iotlb = per_mille;
        self
    }

    /// After a translation that failed, so many of the same queue do not. A chain whose buffer is missing can be
    /// answered with an error then (64 translations find its status byte); one that can't be answered stops the device.
    /// `strict` only.
    #[must_use]
    pub const fn spare_after_miss(mut self, translations: u32) -> Self {
        self.spared = translations;
        self
    }

    /// So many suspends leave a queue's requests in flight, which the kernel's interface allows a device:
    /// they end after the resume. `strict` only: in `compat` nothing is ever in flight between two passes.
    #[must_use]
    pub const fn suspend_undrained(mut self, per_mille: u32) -> Self {
        self.undrained = per_mille;
        self
    }

    /// What the disk does: delays, another order, errors.
    #[must_use]
    pub fn disk(mut self, plan: FaultPlan) -> Self {
        self.disk = Some(plan);
        self
    }
}

/// How many faults of each kind were injected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounts {
    /// Kicks lost.
    pub kicks: u64,
    /// Callbacks lost.
    pub callbacks: u64,
    /// Translations failed.
    pub iotlb: u64,
    /// Queues suspended without draining.
    pub undrained: u64,
}

/// A plan in force in one device.
#[derive(Debug)]
pub(crate) struct FaultState {
    pub(crate) kicks: Dice,
    pub(crate) callbacks: Dice,
    pub(crate) iotlb: Dice,
    /// Translations that don't fail after one that did.
    pub(crate) spared: u32,
    pub(crate) undrained: Dice,
}

impl FaultState {
    pub(crate) fn new(plan: &Faults) -> Self {
        let dice = |per_mille, number: u64| Dice {
            state: AtomicU64::new(mix(plan.seed ^ number)),
            per_mille,
            armed: AtomicBool::new(true),
            hits: AtomicU64::new(0),
        };
        Self {
            kicks: dice(plan.kicks, 1),
            callbacks: dice(plan.callbacks, 2),
            iotlb: dice(plan.iotlb, 3),
            spared: plan.spared,
            undrained: dice(plan.undrained, 4),
        }
    }

    fn all(&self) -> [&Dice; 4] {
        [&self.kicks, &self.callbacks, &self.iotlb, &self.undrained]
    }

    pub(crate) fn arm(&self, on: bool) {
        for dice in self.all() {
            dice.armed.store(on, Ordering::SeqCst);
        }
    }

    pub(crate) fn counts(&self) -> FaultCounts {
        let [kicks, callbacks, iotlb, undrained] =
            self.all().map(|dice| dice.hits.load(Ordering::Relaxed));
        FaultCounts {
            kicks,
            callbacks,
            iotlb,
            undrained,
        }
    }
}

/// A sequence of decisions, for any thread.
#[derive(Debug)]
pub(crate) struct Dice {
    state: AtomicU64,
    per_mille: u32,
    armed: AtomicBool,
    hits: AtomicU64,
}

impl Dice {
    /// Whether it can ever hit.
    pub(crate) const fn is_loaded(&self) -> bool {
        self.per_mille != 0
    }

    /// The next decision.
    #[inline]
    pub(crate) fn roll(&self) -> bool {
        self.per_mille != 0 && self.roll_loaded()
    }

    #[cold]
    fn roll_loaded(&self) -> bool {
        let state = self.state.fetch_add(STEP, Ordering::Relaxed);
        let hit =
            mix(state) % 1000 < u64::from(self.per_mille) && self.armed.load(Ordering::Relaxed);
        if hit {
            self.hits.fetch_add(1, Ordering::Relaxed);
        }
        hit
    }
}

/// The step and the finaliser of splitmix64.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

const fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(STEP);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_itself_and_the_rate_is_kept() {
        let run = |seed| {
            let state = FaultState::new(&Faults::new(seed).drop_kicks(100).miss_iotlb(100));
            let kicks: Vec<_> = (0..10_000).map(|_| state.kicks.roll()).collect();
            let misses: Vec<_> = (0..10_000).map(|_| state.iotlb.roll()).collect();
            assert_ne!(kicks, misses, "kinds draw from sequences of their own");
            assert_eq!(
                state.counts().kicks,
                kicks.iter().filter(|hit| **hit).count() as u64
            );
            kicks
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
        let hits = run(1).iter().filter(|hit| **hit).count();
        assert!(
            (900..1100).contains(&hits),
            "{hits} of 10,000 at 100 in a thousand"
        );
    }

    #[test]
    fn a_disarmed_plan_changes_nothing() {
        let state = FaultState::new(&Faults::new(1).drop_callbacks(1000));
        state.arm(false);
        assert!(!state.callbacks.roll());
        state.arm(true);
        assert!(state.callbacks.roll());
        assert_eq!(state.counts().callbacks, 1);
    }
}
