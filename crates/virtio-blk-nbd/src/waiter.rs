// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a queue's owner learns that there is something.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, epoll, eventfd};

/// What the owner of a queue waits on: the socket of its connection, and a bell for everything else.
pub(crate) struct Waiter {
    epoll: OwnedFd,
    bell: OwnedFd,
    rung: AtomicBool,
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
            rung: AtomicBool::new(false),
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
    pub(crate) fn ring(&self) {
        if !self.rung.load(Ordering::SeqCst) {
            // The counter can't overflow, as it is only written while nobody has taken the last ring.
            let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
            self.rung.store(true, Ordering::SeqCst);
        }
    }

    /// The owner comes, and looks after this.
    pub(crate) fn come(&self) {
        if self.rung.load(Ordering::SeqCst) {
            self.rung.store(false, Ordering::SeqCst);
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
