// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The way to a server, once it is there: a socket, plain or under TLS.

mod plain;
#[cfg(feature = "tls")]
mod tls;

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

pub(crate) use plain::PlainStream;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
#[cfg(feature = "tls")]
pub(crate) use tls::TlsStream;

use crate::NbdError;
use crate::iov::{Inbound, Outbound, Scratch};

/// A way to a server. No call waits, except where it says so.
pub(crate) trait Stream: Send {
    /// What to wait on.
    fn socket(&self) -> BorrowedFd<'_>;

    /// Takes bytes to be sent. Returns how many; they may still have to be flushed.
    ///
    /// # Errors
    /// `WouldBlock` if it takes none now.
    fn send(&mut self, data: &Outbound<'_>) -> io::Result<usize>;

    /// Sends what was taken.
    ///
    /// # Errors
    /// `WouldBlock` if something is left.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Receives what is there. Returns how much; 0: the server sends nothing more.
    ///
    /// # Errors
    /// `WouldBlock` if nothing is there.
    fn receive(&mut self, into: &mut Inbound<'_>) -> io::Result<usize>;

    /// Whether something is there although the socket says nothing of it.
    fn has_received(&self) -> bool {
        false
    }
}

/// A stream in a handshake: calls wait, until a deadline.
pub(crate) struct Handshaking<'a> {
    pub stream: &'a mut dyn Stream,
    pub deadline: Deadline,
}

/// When patience ends.
#[derive(Clone, Copy)]
pub(crate) struct Deadline {
    at: Instant,
    seconds: u64,
}

impl Deadline {
    pub(crate) fn after(seconds: u64) -> Self {
        Self {
            at: Instant::now() + std::time::Duration::from_secs(seconds),
            seconds,
        }
    }

    /// Waits for the socket.
    ///
    /// # Errors
    /// [`NbdError::Silent`].
    pub(crate) fn wait(self, socket: BorrowedFd<'_>, flags: PollFlags) -> Result<(), NbdError> {
        loop {
            let left = self.at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(NbdError::Silent {
                    seconds: self.seconds,
                });
            }
            let timeout = Timespec::try_from(left).ok();
            match poll(
                &mut [PollFd::from_borrowed_fd(socket, flags)],
                timeout.as_ref(),
            ) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(NbdError::Io(error.into())),
            }
        }
    }

    pub(crate) fn is_over(self) -> bool {
        Instant::now() >= self.at
    }
}

impl Handshaking<'_> {
    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// The connection's, or [`NbdError::Silent`].
    pub(crate) fn send(&mut self, mut bytes: &[u8]) -> Result<(), NbdError> {
        let mut scratch = Scratch::default();
        while !bytes.is_empty() {
            let mut data = scratch.outbound();
            data.push(bytes);
            match self.stream.send(&data) {
                Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
                Err(error) => self.wait_after(error, PollFlags::OUT)?,
            }
        }
        while let Err(error) = self.stream.flush() {
            self.wait_after(error, PollFlags::OUT)?;
        }
        Ok(())
    }

    /// Receives `len` bytes, which the caller has limited.
    ///
    /// # Errors
    /// The connection's, [`NbdError::Closed`] or [`NbdError::Silent`].
    pub(crate) fn receive(&mut self, len: usize) -> Result<Vec<u8>, NbdError> {
        let mut bytes = vec![0; len];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    /// Receives as many bytes as there is room for in the array.
    ///
    /// # Errors
    /// As for [`Handshaking::receive`].
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], NbdError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), NbdError> {
        let mut scratch = Scratch::default();
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let mut into = scratch.inbound();
            into.push(rest);
            match self.stream.receive(&mut into) {
                Ok(0) => return Err(NbdError::Closed),
                Ok(received) => done += received,
                Err(error) => self.wait_after(error, PollFlags::IN)?,
            }
        }
        Ok(())
    }

    /// Waits if the error says that there is something to wait for.
    fn wait_after(&self, error: io::Error, flags: PollFlags) -> Result<(), NbdError> {
        match error.kind() {
            io::ErrorKind::WouldBlock => self.deadline.wait(self.stream.socket(), flags),
            io::ErrorKind::Interrupted => Ok(()),
            _ => Err(error.into()),
        }
    }
}
