// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Making a medium stable, for many at once.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// The syncs of one medium.
///
/// The kernel tells a failed write-back to one caller only, and the next sync succeeds although the data is
/// lost. So one sync runs at a time, and after one has failed all others do. Those that wait meanwhile share the
/// next one.
#[derive(Debug, Default)]
pub(super) struct Stable {
    /// Syncs that were begun.
    begun: AtomicU64,
    /// The number of the last one that succeeded.
    done: Mutex<u64>,
    lost: OnceLock<i32>,
}

impl Stable {
    /// Makes stable what was written before the call, by `sync` or by what another caller began meanwhile.
    ///
    /// # Errors
    /// This sync, or an earlier one, failed.
    pub fn make(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let wanted = self.begun.load(Ordering::SeqCst) + 1;
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(errno) = self.lost.get() {
            return Err(io::Error::from_raw_os_error(*errno));
        }
        if *done >= wanted {
            return Ok(());
        }
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        match sync() {
            Ok(()) => {
                *done = number;
                Ok(())
            }
            Err(error) => {
                // Without a lock no other sync can have begun.
                let _ = self.lost.set(error.raw_os_error().unwrap_or(libc::EIO));
                Err(error)
            }
        }
    }

    /// The `errno` of the sync that failed.
    pub fn lost(&self) -> Option<i32> {
        self.lost.get().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn a_failure_is_everybodys_and_stays() {
        let stable = Stable::default();
        stable.make(|| Ok(())).unwrap();
        let failed = stable.make(|| Err(io::Error::from_raw_os_error(libc::ENOSPC)));
        assert_eq!(failed.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        let later = stable.make(|| panic!("nothing is tried any more"));
        assert_eq!(later.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        assert_eq!(stable.lost(), Some(libc::ENOSPC));
    }

    /// Callers that come while a sync runs are not satisfied by it, but share the next.
    #[test]
    fn those_who_wait_share_a_sync() {
        const WAITING: usize = 4;
        let stable = Stable::default();
        let (running, all) = (Barrier::new(WAITING + 1), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let first = scope.spawn(|| {
                stable.make(|| {
                    running.wait();
                    // Until the others have read the count: they then wait for the lock.
                    while all.load(Ordering::SeqCst) < WAITING as u64 {
                        std::thread::yield_now();
                    }
                    Ok(())
                })
            });
            for _ in 0..WAITING {
                scope.spawn(|| {
                    running.wait();
                    all.fetch_add(1, Ordering::SeqCst);
                    stable.make(|| Ok(())).unwrap();
                });
            }
            first.join().unwrap().unwrap();
        });
        // The first, and one or more for those that came meanwhile; never none.
        let syncs = stable.begun.load(Ordering::SeqCst);
        assert!((2..=1 + WAITING as u64).contains(&syncs), "{syncs}");
    }
}
