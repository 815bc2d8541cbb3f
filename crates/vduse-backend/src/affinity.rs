// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where the threads of queues run.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use virtio_blk_core::runner::Counters;

/// Reads a mask of CPUs as the kernel prints it (`%*pb`): groups of 32 bits in hexadecimal, the highest first.
pub(crate) fn parse_mask(text: &str) -> io::Result<CpuSet> {
    let mut cpus = CpuSet::new();
    for (group, digits) in text.trim().rsplit(',').enumerate() {
        let bits = u32::from_str_radix(digits, 16)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        for bit in (0..32).filter(|bit| bits >> bit & 1 != 0) {
            let cpu = group * 32 + bit;
            if cpu < CpuSet::MAX_CPU {
                cpus.set(cpu);
            }
        }
    }
    Ok(cpus)
}

/// How the thread of a queue is to run.
#[derive(Clone, Debug)]
pub(crate) struct Placement {
    /// On these CPUs, if not on any.
    pub(crate) cpus: Option<CpuSet>,
    /// How long to look for work.
    pub(crate) poll: Duration,
    /// The thread shares a single CPU with the driver.
    pub(crate) alone: bool,
}

impl Placement {
    /// For a queue whose driver takes interrupts on the CPUs `driver`, if that is known, and has its requests
    /// from there; within the CPUs `allowed`.
    ///
    /// The thread shares the driver's CPUs: then neither has to wake the other's up. Where that is a single
    /// one, looking for work would only keep the driver from making it.
    pub(crate) fn choose(driver: Option<&CpuSet>, allowed: &CpuSet, poll: Duration) -> Self {
        let mut shared = CpuSet::new();
        for cpu in 0..CpuSet::MAX_CPU {
            if allowed.is_set(cpu) && driver.is_some_and(|driver| driver.is_set(cpu)) {
                shared.set(cpu);
            }
        }
        let cpus = (shared.count() != 0 && shared != *allowed).then_some(shared);
        let alone = cpus.as_ref().unwrap_or(allowed).count() == 1;
        Self {
            cpus,
            poll: if alone { Duration::ZERO } else { poll },
            alone,
        }
    }

    /// As [`Placement::choose`], within what this thread may use.
    pub(crate) fn of_thread(driver: Option<&CpuSet>, poll: Duration) -> Self {
        match sched_getaffinity(None) {
            Ok(allowed) => Self::choose(driver, &allowed, poll),
            Err(_) => Self {
                cpus: None,
                poll,
                alone: false,
            },
        }
    }

    /// Has the calling thread run there.
    pub(crate) fn apply(&self) {
        if let Some(cpus) = &self.cpus
            && let Err(error) = sched_setaffinity(None, cpus)
        {
            log::debug!("a queue's thread runs anywhere: {error}");
        }
    }
}

/// Interrupts between two looks at how requests come.
const LOOK_EVERY: u32 = 64;

/// When a thread that shares a CPU with its driver gets that CPU.
///
/// The scheduler lets a thread that is woken go ahead of the one that woke it. Where a driver has several requests
/// to give, that is a change of threads and an interrupt for each, in place of some for all. As a batch thread
/// (`SCHED_BATCH`) it gets its turn when the driver has nothing more to do. Where requests come one by one that
/// would only be slower.
pub(crate) struct Pace {
    counters: Arc<Counters>,
    seen: Cell<(u64, u64)>,
    left: Cell<u32>,
    batch: Cell<bool>,
}

impl Pace {
    pub(crate) fn new(counters: &Arc<Counters>) -> Self {
        Self {
            counters: counters.clone(),
            seen: Cell::default(),
            left: Cell::new(LOOK_EVERY),
            batch: Cell::new(false),
        }
    }

    /// To be called on the thread, at each interrupt.
    pub(crate) fn tick(&self) {
        let left = self.left.get() - 1;
        self.left.set(if left == 0 { LOOK_EVERY } else { left });
        if left != 0 {
            return;
        }
        let counters = &self.counters;
        let (passes, requests) = (
            counters.batches.get(),
            counters.reads.get() + counters.writes.get(),
        );
        let (passes_before, requests_before) = self.seen.replace((passes, requests));
        let batch = Self::choose(
            self.batch.get(),
            passes.wrapping_sub(passes_before),
            requests.wrapping_sub(requests_before),
        );
        if self.batch.replace(batch) != batch {
            set_policy(batch);
        }
    }

    /// Whether to be a batch thread after so many requests in so many passes.
    const fn choose(batch: bool, passes: u64, requests: u64) -> bool {
        // Between the two it stays as it is.
        if batch {
            requests.saturating_mul(10) > passes.saturating_mul(11)
        } else {
            requests.saturating_mul(10) > passes.saturating_mul(12)
        }
    }
}

/// Makes the calling thread a batch thread, or a usual one. Neither needs a privilege.
fn set_policy(batch: bool) {
    let policy = if batch {
        libc::SCHED_BATCH
    } else {
        libc::SCHED_OTHER
    };
    let priority: libc::c_int = 0;
    // SAFETY: thread 0 is the caller; `sched_param` is one int, which both policies want to be 0. (Some C libraries
    // have no such function.)
    let result =
        unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &raw const priority) };
    if result != 0 {
        log::debug!(
            "a queue's thread stays as it is: {}",
            io::Error::last_os_error()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpus(all: &[usize]) -> CpuSet {
        let mut set = CpuSet::new();
        all.iter().for_each(|cpu| set.set(*cpu));
        set
    }

    #[test]
    fn masks_are_read_as_the_kernel_prints_them() {
        for (text, expected) in [
            ("3\n", cpus(&[0, 1])),
            ("00000000,00000002", cpus(&[1])),
            ("80000001,00000000,00000010\n", cpus(&[4, 64, 95])),
            ("0", cpus(&[])),
        ] {
            assert_eq!(parse_mask(text).unwrap(), expected, "{text}");
        }
        // More CPUs than anybody has.
        let long = vec!["ffffffff"; 40].join(",");
        assert_eq!(parse_mask(&long).unwrap().count(), CpuSet::MAX_CPU as u32);
        for bad in ["", "x", "1,,1", "100000000"] {
            assert!(parse_mask(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_thread_shares_its_driver_s_cpus() {
        let poll = Duration::from_micros(20);
        let all = cpus(&[0, 1, 2, 3]);
        let choose = |driver: Option<&[usize]>, allowed: &CpuSet| {
            let placement = Placement::choose(driver.map(cpus).as_ref(), allowed, poll);
            (placement.cpus, !placement.poll.is_zero())
        };
        assert_eq!(choose(None, &all), (None, true));
        assert_eq!(choose(Some(&[0, 1, 2, 3, 4]), &all), (None, true));
        assert_eq!(choose(Some(&[1, 3]), &all), (Some(cpus(&[1, 3])), true));
        // Alone with its driver it does not look for work, which the driver could not make meanwhile.
        assert_eq!(choose(Some(&[3, 7]), &all), (Some(cpus(&[3])), false));
        assert_eq!(choose(None, &cpus(&[2])), (None, false));
        // The administrator's choice stands.
        assert_eq!(choose(Some(&[5]), &all), (None, true));
    }

    #[test]
    fn several_at_a_time_make_a_batch_thread() {
        // (before, passes, requests, after)
        for (batch, passes, requests, after) in [
            (false, 64, 64, false),
            (false, 64, 76, false),
            (false, 64, 77, true),
            (true, 64, 71, true),
            (true, 64, 70, false),
            (true, 0, 0, false),
            (false, u64::MAX, u64::MAX, false),
        ] {
            assert_eq!(
                Pace::choose(batch, passes, requests),
                after,
                "{batch} {passes} {requests}"
            );
        }
    }

    #[test]
    fn a_thread_may_become_a_batch_thread_and_back() {
        // SAFETY: thread 0 is the caller.
        let policy = || unsafe { libc::syscall(libc::SYS_sched_getscheduler, 0) } as i32;
        for (batch, expected) in [(true, libc::SCHED_BATCH), (false, libc::SCHED_OTHER)] {
            set_policy(batch);
            assert_eq!(policy(), expected);
        }
    }
}
