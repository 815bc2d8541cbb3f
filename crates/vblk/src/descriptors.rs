// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How many file descriptors this process may have, and how many queues that is enough for.

use std::cell::Cell;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What a queue takes: kick, call and error of the driver's, two for its thread, three for the disk's queue.
const PER_QUEUE: u64 = 8;

/// What a process takes besides, generously: disks, sockets and their clients, memory regions on their way.
const BESIDES: u64 = 128;

/// Raises the soft limit to the hard one: the soft one is low for the sake of programs that use `select`.
pub fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        log::debug!("the limit on file descriptors stays at {limit:?}: {error}");
    }
}

/// What is left for queues, of all disks together.
pub struct Budget {
    limit: Option<u64>,
    left: Cell<u64>,
}

impl Budget {
    /// As the limit is now.
    pub fn new() -> Self {
        Self::of(getrlimit(Resource::Nofile).current)
    }

    fn of(limit: Option<u64>) -> Self {
        let left = limit.unwrap_or(u64::MAX).saturating_sub(BESIDES) / PER_QUEUE;
        Self {
            limit,
            left: Cell::new(left),
        }
    }

    /// Takes what a disk's queues need: those `wanted`, or else the `usual` number as far as there is room.
    ///
    /// # Errors
    /// There is no room for them.
    pub fn queues(&self, wanted: Option<u16>, usual: u16) -> Result<u16, String> {
        let left = self.left.get();
        let queues = wanted.unwrap_or_else(|| usual.min(u16::try_from(left).unwrap_or(u16::MAX)));
        if queues == 0 || u64::from(queues) > left {
            let limit = self.limit.unwrap_or(u64::MAX);
            let needed = u64::from(queues.max(1)) * PER_QUEUE;
            return Err(format!(
                "{} queues need {needed} file descriptors, and of {limit} there is room for {left} queues: raise \
                 the limit (ulimit -Hn, LimitNOFILE=), or give fewer --queues",
                queues.max(1)
            ));
        }
        self.left.set(left - u64::from(queues));
        Ok(queues)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_queues_than_descriptors() {
        let budget = Budget::of(Some(BESIDES + 10 * PER_QUEUE + 7));
        let refused = budget.queues(Some(11), 1).unwrap_err();
        assert!(refused.contains("11 queues") && refused.contains("room for 10"));
        assert_eq!(budget.queues(Some(4), 1), Ok(4));
        assert_eq!(budget.queues(None, 2), Ok(2));
        // As many as there is room for.
        assert_eq!(budget.queues(None, 256), Ok(4));
        assert!(budget.queues(None, 256).is_err());
        assert_eq!(Budget::of(None).queues(Some(256), 1), Ok(256));
        assert!(Budget::of(Some(3)).queues(None, 1).is_err());
    }
}
