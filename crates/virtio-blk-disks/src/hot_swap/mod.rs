// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A disk that is exchanged while it is in use: layers come and go, no request is lost.
//!
//! ```
//! use std::sync::Arc;
//! use virtio_blk_disks::{MemoryDisk, MeterDisk, SwitchDisk};
//!
//! let memory = Arc::new(MemoryDisk::new(4 << 20)?);
//! let disk = SwitchDisk::new(memory.clone())?;
//! // … queues are opened and busy …
//! disk.switch(Arc::new(MeterDisk::new(memory)));
//! # assert!(disk.is_settled());
//! # Ok::<(), virtio_blk_core::disk::DiskError>(())
//! ```

mod queue;

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use virtio_blk_core::disk::{
    Caps, Disk, DiskError, DiskListener, Extent, FoundBitmap, Handover, IoQueue,
};

use queue::SwitchQueue;

/// A disk that can be exchanged for another view of the same medium.
///
/// Each queue follows on its own: it takes no new operations, cancels what is in flight, waits until all of
/// that has ended, moves over, and gives the new disk what was cancelled. Its owner notices nothing but a
/// pause. The old disk's queue is closed afterwards.
///
/// A queue opens its successor before it closes itself; so the disk offers half the queues of the one
/// underneath. If the successor can't be opened, the queue stays where it was, and
/// [`SwitchDisk::last_error`] says why.
pub struct SwitchDisk {
    shared: Arc<Shared>,
}

/// What the disk shares with its queues.
struct Shared {
    /// Counts the exchanges.
    version: AtomicU64,
    state: Mutex<State>,
}

struct State {
    disk: Arc<dyn Disk>,
    /// The version of each open queue, and what wakes it.
    queues: Vec<QueueSlot>,
    next: u64,
    error: Option<String>,
    /// The last time of which nobody was told yet whether it held.
    hold: Option<Hold>,
}

/// A time in which queues that have followed take nothing up again.
#[derive(Clone, Copy)]
struct Hold {
    until: Instant,
    /// When a queue that was about to stop let something go all the same.
    broken: Option<Instant>,
}

impl Hold {
    /// When it ended, if it has.
    fn ended(&self) -> Option<HoldError> {
        if let Some(at) = self.broken {
            return Some(HoldError::Broken { ago: at.elapsed() });
        }
        let is_over = self.until <= Instant::now();
        is_over.then(|| HoldError::RanOut {
            ago: self.until.elapsed(),
        })
    }
}

/// Why [`SwitchDisk::resume`] or [`SwitchDisk::extend`] found no hold in force. A copy that was made meanwhile is not
/// of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HoldError {
    /// Nobody asked for one since the last was ended.
    #[error(
        "no request is held: there was no hold since the server started, or it was ended before"
    )]
    None,
    /// Its time is over.
    #[error(
        "the hold had ended {:.3} seconds ago, when its time ran out: requests run since then, so a copy made \
         meanwhile is not of one moment",
        ago.as_secs_f64()
    )]
    RanOut {
        /// How long ago.
        ago: Duration,
    },
    /// A queue was stopped, for which what it held was released.
    #[error(
        "the hold had ended {:.3} seconds ago, when a queue with waiting requests was stopped: these were \
         executed, so a copy made meanwhile is not of one moment",
        ago.as_secs_f64()
    )]
    Broken {
        /// How long ago.
        ago: Duration,
    },
}

struct QueueSlot {
    id: u64,
    version: u64,
    notifier: OwnedFd,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The disk in force and its version.
    fn current(&self) -> (Arc<dyn Disk>, u64) {
        let state = self.state();
        (state.disk.clone(), self.version())
    }

    /// Notes that a queue follows `version` now.
    fn moved(&self, id: u64, version: u64) {
        if let Some(slot) = self.state().queues.iter_mut().find(|slot| slot.id == id) {
            slot.version = version;
        }
    }

    /// Until when queues hold still, and the version of which that was said.
    fn hold(&self) -> (Option<Instant>, u64) {
        let state = self.state();
        let until = state.hold.map(|hold| hold.until);
        let now = Instant::now();
        (until.filter(|until| *until > now), self.version())
    }

    /// Notes that a queue can't hold still.
    fn breach(&self) {
        if let Some(hold) = &mut self.state().hold
            && hold.ended().is_none()
        {
            hold.broken = Some(Instant::now());
        }
    }

    /// Notes that a queue can't follow.
    fn failed(&self, error: &DiskError) {
        self.state().error = Some(error.to_string());
    }

    fn leave(&self, id: u64) {
        self.state().queues.retain(|slot| slot.id != id);
    }
}

/// Makes an eventfd readable.
fn signal(notifier: &OwnedFd) {
    // Fails only where it is readable already.
    let _ = rustix::io::write(notifier, &1_u64.to_ne_bytes());
}

impl SwitchDisk {
    /// Starts with this disk.
    ///
    /// # Errors
    /// [`DiskError::Config`]: the disk has one queue only.
    pub fn new(disk: Arc<dyn Disk>) -> Result<Self, DiskError> {
        if disk.caps().max_queues < 2 {
            return Err(DiskError::Config(
                "a disk of one queue can't be exchanged while it is in use: put its layers on it from the start"
                    .to_owned(),
            ));
        }
        Ok(Self {
            shared: Arc::new(Shared {
                version: AtomicU64::new(0),
                state: Mutex::new(State {
                    disk,
                    queues: Vec::new(),
                    next: 0,
                    error: None,
                    hold: None,
                }),
            }),
        })
    }

    /// Exchanges the disk for `disk`, which must show the same medium with the same abilities (what
    /// [`Disk::caps`] says): usually the same disk under other layers. Returns at once; queues follow
    /// when they are next served, for which idle ones are woken.
    pub fn switch(&self, disk: Arc<dyn Disk>) {
        let mut state = self.shared.state();
        state.disk = disk;
        state.error = None;
        self.call(&state);
    }

    /// Makes every queue complete what it has in flight, and hold what comes afterwards until [`SwitchDisk::resume`]
    /// or `until`. Returns at once: when [`SwitchDisk::is_settled`] says so, the disk underneath has nothing in
    /// flight. What a layer could still cancel (a throttle) is kept, too. A queue that is opened meanwhile
    /// holds still as well.
    ///
    /// A queue that is about to stop ([`IoQueue::release_held`]) does not hold still. If it lets something go,
    /// [`SwitchDisk::resume`] tells of it.
    pub fn hold(&self, until: Instant) {
        let mut state = self.shared.state();
        state.hold = Some(Hold {
            until,
            broken: None,
        });
        self.call(&state);
    }

    /// Sets another end to a hold that is in force. Nothing moves in between.
    ///
    /// # Errors
    /// None is in force.
    pub fn extend(&self, until: Instant) -> Result<(), HoldError> {
        let mut state = self.shared.state();
        let hold = state.hold.as_mut().ok_or(HoldError::None)?;
        if let Some(ended) = hold.ended() {
            return Err(ended);
        }
        hold.until = until;
        self.call(&state);
        Ok(())
    }

    /// Ends [`SwitchDisk::hold`].
    ///
    /// # Errors
    /// It had ended before, or there was none. Told once: the next call knows of no hold.
    pub fn resume(&self) -> Result<(), HoldError> {
        let mut state = self.shared.state();
        let hold = state.hold.take().ok_or(HoldError::None)?;
        self.call(&state);
        hold.ended().map_or(Ok(()), Err)
    }

    /// Makes every queue follow.
    fn call(&self, state: &State) {
        self.shared.version.fetch_add(1, Ordering::Release);
        for slot in &state.queues {
            signal(&slot.notifier);
        }
    }

    /// Whether every open queue uses the disk that was given last.
    pub fn is_settled(&self) -> bool {
        let version = self.shared.version();
        (self.shared.state().queues.iter()).all(|slot| slot.version == version)
    }

    /// Why a queue could not follow the last [`SwitchDisk::switch`], and stayed with its disk for good or
    /// until the next one.
    pub fn last_error(&self) -> Option<String> {
        self.shared.state().error.clone()
    }
}

impl Disk for SwitchDisk {
    fn caps(&self) -> Caps {
        let mut caps = self.shared.current().0.caps();
        caps.max_queues /= 2;
        caps
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        let queue = SwitchQueue::open(self.shared.clone(), depth)?;
        Ok(Box::new(queue))
    }

    // The disk in force stands for all: the medium stays the same.

    fn flush_error(&self) -> Option<DiskError> {
        self.shared.current().0.flush_error()
    }

    fn activate(&self) -> Result<(), DiskError> {
        self.shared.current().0.activate()
    }

    fn deactivate(&self) -> Result<(), DiskError> {
        self.shared.current().0.deactivate()
    }

    fn handover(&self) -> Handover {
        self.shared.current().0.handover()
    }

    fn refresh(&self) -> Result<(), DiskError> {
        self.shared.current().0.refresh()
    }

    fn resize(&self, bytes: u64) -> Result<(), DiskError> {
        self.shared.current().0.resize(bytes)
    }

    fn extents(&self, range: Range<u64>, most: usize) -> Result<Vec<Extent>, DiskError> {
        self.shared.current().0.extents(range, most)
    }

    fn stored_bitmap(&self, name: &str) -> Result<Option<FoundBitmap>, DiskError> {
        self.shared.current().0.stored_bitmap(name)
    }

    fn listen(&self, listener: DiskListener) {
        self.shared.current().0.listen(listener);
    }
}

#[cfg(test)]
mod tests;
