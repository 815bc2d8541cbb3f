// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One queue of a client.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use virtio_blk_driver::request::{Done, Driver, Request, Token};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{GuestMemory, PATIENCE, Result};

/// A driver and its event descriptors.
pub struct Queue {
    /// The driver.
    pub driver: Driver<GuestMemory>,
    /// Tells the device of requests.
    pub kick: EventFd,
    /// Signalled for completions.
    pub call: EventFd,
    /// Tells us that the device gave the queue up.
    pub err: EventFd,
}

/// An event descriptor.
///
/// # Errors
/// The system has none.
pub fn event() -> std::io::Result<EventFd> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
}

/// Waits until a descriptor is readable, at most that long. Returns whether it is.
pub fn readable(fd: &impl AsRawFd, timeout: Duration) -> bool {
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one valid entry.
    unsafe { libc::poll(&raw mut poll, 1, millis) > 0 }
}

impl Queue {
    pub(super) fn new(driver: Driver<GuestMemory>) -> Result<Self> {
        Ok(Self {
            driver,
            kick: event()?,
            call: event()?,
            err: event()?,
        })
    }

    /// Makes requests visible, and kicks the device if it asked for that.
    ///
    /// # Errors
    /// The ring is broken.
    pub fn publish(&mut self) -> Result<()> {
        if self.driver.publish()? {
            self.kick.write(1)?;
        }
        Ok(())
    }

    /// Submits a request and makes it visible.
    ///
    /// # Errors
    /// There is no room for it, or the ring is broken.
    pub fn send(&mut self, request: &Request<'_>) -> Result<Token> {
        let token = self.driver.submit(request)?;
        self.publish()?;
        Ok(token)
    }

    /// The next answer, waited for as a driver does: by the call descriptor only.
    ///
    /// # Errors
    /// The ring is broken, or there is no answer for a minute.
    pub fn answer(&mut self) -> Result<Done> {
        let started = Instant::now();
        loop {
            if let Some(done) = self.driver.poll()? {
                return Ok(done);
            }
            let (ring, mem) = self.driver.ring_mut();
            if ring.enable_interrupts(mem)? {
                continue;
            }
            if !readable(&self.call, PATIENCE.saturating_sub(started.elapsed())) {
                let in_flight = self.driver.in_flight();
                return Err(format!("no call for {PATIENCE:?}, {in_flight} in flight").into());
            }
            // Another reader there is none; an empty counter says the same.
            let _ = self.call.read();
        }
    }

    /// Submits a request and waits for its answer. Nothing else may be in flight.
    ///
    /// # Errors
    /// As for [`Queue::send`] and [`Queue::answer`].
    pub fn run(&mut self, request: &Request<'_>) -> Result<Done> {
        let token = self.send(request)?;
        let done = self.answer()?;
        if done.token != token {
            return Err(format!("{token:?} was asked, {done:?} answered").into());
        }
        Ok(done)
    }

    /// Writes, and wants an OK.
    ///
    /// # Errors
    /// Anything else.
    pub fn write(&mut self, sector: u64, data: &[u8]) -> Result<()> {
        let done = self.run(&Request::write(sector, data))?;
        done.is_ok()
            .then_some(())
            .ok_or_else(|| format!("write: {done:?}").into())
    }

    /// Reads, and wants an OK.
    ///
    /// # Errors
    /// Anything else.
    pub fn read(&mut self, sector: u64, len: u32) -> Result<Vec<u8>> {
        let done = self.run(&Request::read(sector, len))?;
        if !done.is_ok() || done.len != len + 1 {
            return Err(format!("read: {done:?}").into());
        }
        let mut data = vec![0; usize::try_from(len)?];
        self.driver.read_data(done.token, 0, &mut data)?;
        Ok(data)
    }
}
