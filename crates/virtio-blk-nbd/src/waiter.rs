// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a queue's owner learns that there is something.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::{EventfdFlags, epoll, eventfd};

/// What the owner of a queue waits on: the socket of its connection, and a bell for everything else.
pub(crate) struct Waiter {
    epoll: OwnedFd,
    bell: OwnedFd,
    rings: AtomicU64,
    /// As many of them were there when the owner came last.
    taken: AtomicU64,
}

impl Waiter {
    /// Without a socket.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub(crate) fn new() -> io::Result<Self> {
        let waiter = Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            rings: AtomicU64::new(0),
            taken: AtomicU64::new(0),
        };
        let data = epoll::EventData::new_u64(0);
        epoll::add(&waiter.epoll, &waiter.bell, data, epoll::EventFlags::IN)?;
        Ok(waiter)
    }

    /// What to wait on.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Has the owner come. What it shall find is there already.
    ///
    /// It writes each time: to leave that out where an earlier ring was not taken yet would lose rings, as the owner
    /// may be about to take it.
    pub(crate) fn ring(&self) {
        // The counter can't overflow within a process's life.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        self.rings.fetch_add(1, Ordering::SeqCst);
    }

    /// The owner comes, and looks after this.
    pub(crate) fn come(&self) {
        let rings = self.rings.load(Ordering::SeqCst);
        if self.taken.swap(rings, Ordering::SeqCst) != rings {
            let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        }
    }

    /// Waits on a new socket as well. It leaves when it is closed.
    ///
    /// # Errors
    /// The kernel has no memory.
    pub(crate) fn watch(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let data = epoll::EventData::new_u64(1);
        Ok(epoll::add(
            &self.epoll,
            socket,
            data,
            epoll::EventFlags::IN,
        )?)
    }

    /// Waits for room in the socket, too, or no longer.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn want_room(&self, socket: BorrowedFd<'_>, yes: bool) -> io::Result<()> {
        let mut flags = epoll::EventFlags::IN;
        flags.set(epoll::EventFlags::OUT, yes);
        let data = epoll::EventData::new_u64(1);
        Ok(epoll::modify(&self.epoll, socket, data, flags)?)
    }

    /// No longer waits on the socket.
    pub(crate) fn unwatch(&self, socket: BorrowedFd<'_>) {
        let _ = epoll::delete(&self.epoll, socket);
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    /// The owner sleeps whenever there is nothing, and several threads ring, each once it was heard.
    #[test]
    fn no_ring_is_lost() {
        const ROUNDS: u64 = 3_000;
        const RINGERS: u64 = 3;
        let waiter = Waiter::new().unwrap();
        let (sent, seen) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..RINGERS {
                scope.spawn(|| {
                    for _ in 0..ROUNDS {
                        let mine = sent.fetch_add(1, Ordering::SeqCst) + 1;
                        waiter.ring();
                        while seen.load(Ordering::SeqCst) < mine {
                            std::thread::yield_now();
                        }
                    }
                });
            }
            let patience = Timespec {
                tv_sec: 10,
                tv_nsec: 0,
            };
            while seen.load(Ordering::SeqCst) < RINGERS * ROUNDS {
                let mut fd = [PollFd::from_borrowed_fd(waiter.as_fd(), PollFlags::IN)];
                let heard = poll(&mut fd, Some(&patience)) == Ok(1);
                waiter.come();
                let before = seen.swap(sent.load(Ordering::SeqCst), Ordering::SeqCst);
                if !heard {
                    // The threads end before the test fails.
                    seen.store(u64::MAX, Ordering::SeqCst);
                    panic!("a ring was lost after {before}");
                }
            }
        });
        // Nothing is left behind that would keep the owner awake.
        waiter.come();
        let mut fd = [PollFd::from_borrowed_fd(waiter.as_fd(), PollFlags::IN)];
        assert_eq!(poll(&mut fd, Some(&Timespec::default())), Ok(0));
    }
}
