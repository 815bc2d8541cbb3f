// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A socket under TLS.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustls::Connection;

use super::{Deadline, Stream};
use crate::NbdError;
use crate::iov::{Inbound, Outbound};
use crate::tls_session::{Step, TlsSession, Transfer};

/// A socket under TLS.
pub(crate) struct TlsStream {
    socket: OwnedFd,
    session: TlsSession,
}

impl TlsStream {
    /// Makes the handshake.
    ///
    /// # Errors
    /// [`NbdError::Tls`], or the connection's.
    pub(crate) fn open(
        socket: OwnedFd,
        tls: impl Into<Connection>,
        deadline: Deadline,
    ) -> Result<Self, NbdError> {
        let mut session = TlsSession::new(tls);
        loop {
            let flags = match session.handshake(socket.as_fd()) {
                Ok(Step::Done) => return Ok(Self { socket, session }),
                Ok(Step::Receive) => PollFlags::IN,
                Ok(Step::Send) => PollFlags::OUT,
                Err(error) => {
                    return Err(match error.kind() {
                        io::ErrorKind::UnexpectedEof => NbdError::Closed,
                        io::ErrorKind::InvalidData => NbdError::Tls(error.to_string()),
                        _ => NbdError::Io(error),
                    });
                }
            };
            deadline.wait(socket.as_fd(), flags)?;
        }
    }
}

/// As the socket's calls say it.
fn outcome(transfer: Transfer) -> io::Result<usize> {
    match transfer {
        Transfer::Bytes(bytes) => Ok(bytes),
        Transfer::WouldBlock => Err(io::ErrorKind::WouldBlock.into()),
        Transfer::End => Ok(0),
    }
}

impl Stream for TlsStream {
    fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn send(&mut self, data: &Outbound<'_>) -> io::Result<usize> {
        // SAFETY: the pieces are valid for reads as long as `data`; other writers to a guest's memory only change what is
        // sent.
        let sent = unsafe { self.session.send(self.socket.as_fd(), data.segments()) };
        outcome(sent?)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.session.flush(self.socket.as_fd())?;
        match self.session.has_unsent() {
            true => Err(io::ErrorKind::WouldBlock.into()),
            false => Ok(()),
        }
    }

    fn receive(&mut self, into: &mut Inbound<'_>) -> io::Result<usize> {
        // SAFETY: the pieces are valid for writes as long as `into`, and written to before the call returns.
        let received = unsafe { self.session.receive(self.socket.as_fd(), into.segments()) };
        outcome(received?)
    }

    fn has_received(&self) -> bool {
        self.session.has_more()
    }
}
