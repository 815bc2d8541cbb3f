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

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use virtio_blk_core::disk::{Caps, Disk, DiskError, DiskListener, IoQueue};

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
    queues: Vec<Seat>,
    next: u64,
    error: Option<String>,
    /// Until when queues that have followed take nothing up again.
    hold: Option<Instant>,
}

struct Seat {
    id: u64,
    version: u64,
    bell: OwnedFd,
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
        if let Some(seat) = self.state().queues.iter_mut().find(|seat| seat.id == id) {
            seat.version = version;
        }
    }

    /// Until when queues hold still, and the version of which that was said.
    fn hold(&self) -> (Option<Instant>, u64) {
        let state = self.state();
        let now = Instant::now();
        (state.hold.filter(|until| *until > now), self.version())
    }

    /// Notes that a queue can't follow.
    fn failed(&self, error: &DiskError) {
        self.state().error = Some(error.to_string());
    }

    fn leave(&self, id: u64) {
        self.state().queues.retain(|seat| seat.id != id);
    }
}

/// Makes an eventfd readable.
fn ring(bell: &OwnedFd) {
    // Fails only where it is readable already.
    let _ = rustix::io::write(bell, &1_u64.to_ne_bytes());
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

    /// Has every queue end what it has in flight, and keep what comes afterwards until [`SwitchDisk::resume`]
    /// or `until`. Returns at once: when [`SwitchDisk::is_settled`] says so, the disk underneath has nothing in
    /// flight. What a layer could still cancel (a throttle) is kept, too. A queue that is opened meanwhile
    /// holds still as well.
    pub fn hold(&self, until: Instant) {
        let mut state = self.shared.state();
        state.hold = Some(until);
        self.call(&state);
    }

    /// Ends [`SwitchDisk::hold`].
    pub fn resume(&self) {
        let mut state = self.shared.state();
        state.hold = None;
        self.call(&state);
    }

    /// Has every queue follow.
    fn call(&self, state: &State) {
        self.shared.version.fetch_add(1, Ordering::Release);
        for seat in &state.queues {
            ring(&seat.bell);
        }
    }

    /// Whether every open queue uses the disk that was given last.
    pub fn is_settled(&self) -> bool {
        let version = self.shared.version();
        (self.shared.state().queues.iter()).all(|seat| seat.version == version)
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

    fn refresh(&self) -> Result<(), DiskError> {
        self.shared.current().0.refresh()
    }

    /// Listens to the disk in force now: its medium stays the same.
    fn listen(&self, listener: DiskListener) {
        self.shared.current().0.listen(listener);
    }
}

#[cfg(test)]
mod tests;
