// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Failing system calls, for tests (feature `inject`).
//!
//! The disks on files make every call on them through one small type, which asks an [`Injector`] first if the
//! disk was opened with one. A test arms it to fail the Nth call of some kinds, and looks at how many calls a run
//! makes, so that it can fail each of them in turn:
//!
//! ```
//! use virtio_blk_disks::inject::{Call, Injector, Plan};
//!
//! let injector = Injector::new();
//! injector.arm(Plan::new(3, &[Call::Write, Call::Sync], libc::EIO).for_good());
//! // RawDisk::open(&RawOptions::new(path).inject(&injector)) and a run of operations
//! assert_eq!(injector.calls(Call::Write), 0);
//! ```
//!
//! With [`Injector::track`] it also keeps what is stable: what a host that loses its page cache, or that dropped
//! the pages whose write-back failed, leaves in the file. See [`Injector::cut`].
//!
//! It belongs to the disk and not to the process, as tests run side by side. A disk opened without one pays a
//! comparison per call; without the feature there is nothing.

mod cache;

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cache::Cache;
pub use cache::Keep;

/// A kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `pread`, `preadv2`, or the same through io_uring. It is not made.
    Read,
    /// `pwrite`, `pwritev2`, or the same through io_uring. It is not made.
    Write,
    /// `fdatasync`, or the same through io_uring. It is not made. What was to become stable never does.
    Sync,
    /// `fallocate`, or the same through io_uring. It is not made.
    Allocate,
    /// A discard of a block device. It is not made.
    Erase,
    /// `ftruncate`. It is not made.
    Resize,
    /// Opening the file once more, for flushes of its own. It is not done.
    Reopen,
    /// Any of these: it is made, and its outcome exchanged for the error. Counted when its outcome arrives.
    Completion,
    /// The write-back of what was written so far fails at some time after the Nth write: nothing is told at once,
    /// the pages are dropped, and the next sync of each open file description fails, as with Linux from 4.13 on.
    WriteBack,
}

/// Number of kinds.
const KINDS: usize = 9;

/// Which calls fail, and how.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    nth: u64,
    kinds: [bool; KINDS],
    errno: i32,
    times: u64,
}

impl Plan {
    /// Fails the `nth` call from now on of the given kinds, counted together from 1, with `errno`.
    pub fn new(nth: u64, kinds: &[Call], errno: i32) -> Self {
        let mut chosen = [false; KINDS];
        for kind in kinds {
            chosen[*kind as usize] = true;
        }
        Self {
            nth,
            kinds: chosen,
            errno,
            times: 1,
        }
    }

    /// Fails all later calls of these kinds, too.
    #[must_use]
    pub fn for_good(mut self) -> Self {
        self.times = u64::MAX;
        self
    }

    /// Fails this many calls of these kinds in a row, not only one.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }
}

#[derive(Debug, Default)]
struct State {
    plan: Option<Plan>,
    /// Calls of the plan's kinds since it was armed.
    seen: u64,
    /// Calls by kind.
    calls: [u64; KINDS],
    struck: u64,
    cache: Option<Cache>,
    /// The last failed write-back: its number, from 1 on, and its error.
    write_back: (u64, i32),
}

impl State {
    /// Counts a call. The error it is to fail with.
    fn count(&mut self, kind: Call) -> Option<i32> {
        self.calls[kind as usize] += 1;
        let plan = self.plan.filter(|plan| plan.kinds[kind as usize])?;
        self.seen += 1;
        let after = self.seen.checked_sub(plan.nth);
        let strikes = after.is_some_and(|after| after < plan.times);
        self.struck += u64::from(strikes);
        strikes.then_some(plan.errno)
    }
}

/// Fails the system calls of the disks that are opened with it, and counts them. Clones are the same injector.
#[derive(Clone, Debug, Default)]
pub struct Injector {
    state: Arc<Mutex<State>>,
}

impl PartialEq for Injector {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }
}

impl Eq for Injector {}

impl Injector {
    /// One that fails nothing, and counts.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails calls by this plan, instead of an earlier one, from now on.
    pub fn arm(&self, plan: Plan) {
        let mut state = self.state();
        state.plan = Some(plan);
        state.seen = 0;
    }

    /// Fails nothing any more.
    pub fn disarm(&self) {
        self.state().plan = None;
    }

    /// How many calls of a kind were made, failed ones included.
    pub fn calls(&self, kind: Call) -> u64 {
        self.state().calls[kind as usize]
    }

    /// How many calls were failed.
    pub fn struck(&self) -> u64 {
        self.state().struck
    }

    /// Keeps what is stable of the file at `path` from now on: all that it holds now, and what syncs that succeed
    /// add. For small files: their content is in memory twice. Only one file of a disk is followed. Syncs of it are no
    /// longer made, which makes a run quick.
    ///
    /// # Errors
    /// The file can't be opened or read.
    pub fn track(&self, path: &Path) -> io::Result<()> {
        let cache = Cache::new(path)?;
        self.state().cache = Some(cache);
        Ok(())
    }

    /// Leaves in the tracked file what is there after the host has lost its page cache: what is stable, and of
    /// what was written since as much as `keep` says. The disk must be closed. Does nothing without
    /// [`Injector::track`].
    ///
    /// Linux marks pages clean whose write-back failed: they are dropped some time, and no later sync writes them.
    /// So what a failed sync was to make stable is never kept, unless it was written again.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn cut(&self, keep: Keep) -> io::Result<()> {
        self.state()
            .cache
            .as_mut()
            .map_or(Ok(()), |cache| cache.cut(keep))
    }
}

/// A call that is being made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Made {
    pub kind: Call,
    /// Bytes.
    pub offset: u64,
    pub len: u64,
    /// A write that makes itself stable.
    pub stable: bool,
}

impl Made {
    pub const fn new(kind: Call, offset: u64, len: u64) -> Self {
        Self {
            kind,
            offset,
            len,
            stable: false,
        }
    }
}

/// What became of asking for a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket {
    made: Made,
    errno: Option<i32>,
    /// What was written before the call, for a sync.
    clock: u64,
    /// It succeeds without being made: a sync, where what is stable is kept here.
    pretended: bool,
}

impl Ticket {
    /// Whether the call is not to be made.
    pub const fn is_spared(&self) -> bool {
        self.errno.is_some() || self.pretended
    }
}

/// One open file description that an injector looks after.
#[derive(Debug)]
pub(crate) struct Hook {
    injector: Injector,
    file: u64,
    /// The last failed write-back that a sync of this description reported.
    reported: AtomicU64,
}

impl Hook {
    /// For a description that was just opened.
    pub fn new(injector: &Injector, file: &File) -> Self {
        let reported = AtomicU64::new(injector.state().write_back.0);
        Self {
            injector: injector.clone(),
            file: cache::identity(file),
            reported,
        }
    }

    /// For another description of the same file.
    ///
    /// # Errors
    /// The test's.
    pub fn again(&self, file: &File) -> io::Result<Self> {
        if let Some(errno) = self.injector.state().count(Call::Reopen) {
            return Err(io::Error::from_raw_os_error(errno));
        }
        Ok(Self::new(&self.injector, file))
    }

    /// The failed write-back that the next sync of this description would report. It is reported now.
    pub fn write_back_error(&self) -> Option<i32> {
        let (number, failure) = self.injector.state().write_back;
        let reported = self.reported.swap(number, Ordering::AcqRel);
        (reported < number).then_some(failure)
    }

    /// Before a call.
    pub fn begin(&self, made: Made) -> Ticket {
        let mut state = self.injector.state();
        let errno = state.count(made.kind);
        let (mut clock, mut pretended) = (0, false);
        if let Some(cache) = &mut state.cache {
            clock = cache.clock();
            let sync = made.kind == Call::Sync && cache.is(self.file);
            pretended = sync;
            if let Some(errno) = errno.filter(|_| sync) {
                cache.lose(clock);
                self.told_here(&mut state, errno);
            }
        }
        Ticket {
            made,
            errno,
            clock,
            pretended,
        }
    }

    /// After a call, with its outcome in the kernel's form. Returns the outcome to be told.
    pub fn end(&self, ticket: Ticket, outcome: i32) -> i32 {
        let mut state = self.injector.state();
        let made = ticket.made;
        let exchanged = state.count(Call::Completion);
        if let Some(errno) = ticket.errno.or(exchanged.filter(|_| outcome >= 0)) {
            let lost = exchanged.is_some() && made.kind == Call::Sync;
            if let Some(cache) = state.cache.as_mut().filter(|cache| cache.is(self.file)) {
                match made.kind {
                    // Made all the same, so its effect is there.
                    _ if ticket.errno.is_some() => {}
                    Call::Write if outcome > 0 => cache.wrote(made.offset, outcome as u64),
                    Call::Allocate | Call::Erase => cache.wrote(made.offset, made.len),
                    _ if lost => {
                        cache.lose(ticket.clock);
                        self.told_here(&mut state, errno);
                    }
                    _ => {}
                }
            }
            return -errno;
        }
        let fails_later = made.kind == Call::Write && outcome > 0;
        let failure = if fails_later {
            state.count(Call::WriteBack)
        } else {
            None
        };
        if let Some(cache) = state.cache.as_mut().filter(|cache| cache.is(self.file)) {
            match made.kind {
                Call::Write if outcome > 0 => {
                    cache.wrote(made.offset, outcome as u64);
                    if made.stable {
                        cache.settle_range(made.offset, outcome as u64);
                    }
                }
                Call::Allocate | Call::Erase if outcome >= 0 => {
                    cache.wrote(made.offset, made.len);
                }
                Call::Sync if outcome >= 0 => cache.settle(ticket.clock),
                _ => {}
            }
            if failure.is_some() {
                let now = cache.clock();
                cache.lose(now);
            }
        }
        if let Some(errno) = failure {
            state.write_back = (state.write_back.0 + 1, errno);
        }
        drop(state);
        // The kernel looks when all is written, so a failure on the way counts.
        if (made.kind == Call::Sync || made.stable)
            && let Some(errno) = self.write_back_error()
        {
            return -errno;
        }
        outcome
    }

    /// What a failed sync of this description lost is told to every other one as well, at its next sync.
    fn told_here(&self, state: &mut State, errno: i32) {
        state.write_back = (state.write_back.0 + 1, errno);
        self.reported.store(state.write_back.0, Ordering::Release);
    }

    /// A call that is waited for.
    pub fn around(&self, made: Made, call: impl FnOnce() -> i32) -> i32 {
        let ticket = self.begin(made);
        let outcome = if ticket.is_spared() { 0 } else { call() };
        self.end(ticket, outcome)
    }
}

#[cfg(test)]
mod tests;
