// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A socket under TLS.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustls::Connection;

use super::{Deadline, Stream};
use crate::NbdError;
use crate::iov::{Inbound, Outbound};

/// Bytes that are copied at a time: what one record holds.
const RECORD: usize = 16 << 10;

/// A socket under TLS, of either side. Data is copied between guest memory and records.
pub(crate) struct TlsStream {
    socket: OwnedFd,
    tls: Connection,
    bounce: Box<[u8]>,
    /// The last call took all that there was room for: there may be more in the records that are here.
    more: bool,
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
        let mut stream = Self {
            socket,
            tls: tls.into(),
            bounce: vec![0; RECORD].into_boxed_slice(),
            more: false,
        };
        while stream.tls.is_handshaking() || stream.tls.wants_write() {
            if stream.tls.wants_write() {
                match stream.flush() {
                    Ok(()) => continue,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        deadline.wait(stream.socket.as_fd(), PollFlags::OUT)?;
                    }
                    Err(error) => return Err(error.into()),
                }
            } else {
                deadline.wait(stream.socket.as_fd(), PollFlags::IN)?;
                match stream.take_records() {
                    Ok(0) => return Err(NbdError::Closed),
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(NbdError::Tls(error.to_string())),
                }
            }
        }
        Ok(stream)
    }

    /// Receives and decrypts once. Returns the bytes received; 0: the peer sends nothing more.
    fn take_records(&mut self) -> io::Result<usize> {
        let received = self.tls.read_tls(&mut Socket(&self.socket))?;
        if let Err(error) = self.tls.process_new_packets() {
            // The peer is told why, if it can be.
            let _ = self.flush();
            return Err(io::Error::other(error));
        }
        Ok(received)
    }
}

impl Stream for TlsStream {
    fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn send(&mut self, data: &Outbound<'_>) -> io::Result<usize> {
        // At most a few records wait here.
        self.flush()?;
        let mut done = 0;
        loop {
            let len = data.copy_to(done, &mut self.bounce);
            if len == 0 {
                return Ok(done);
            }
            let taken = (self.tls.writer()).write(self.bounce.get(..len).unwrap_or_default())?;
            done += taken;
            match self.flush() {
                Ok(()) if taken != 0 => {}
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => return Ok(done),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut Socket(&self.socket))?;
        }
        Ok(())
    }

    fn receive(&mut self, into: &mut Inbound<'_>) -> io::Result<usize> {
        let room = into.len();
        let mut done = 0;
        self.more = false;
        while done < room {
            let len = (room - done).min(self.bounce.len());
            let place = self.bounce.get_mut(..len).unwrap_or_default();
            match self.tls.reader().read(place) {
                // The peer said that nothing more comes.
                Ok(0) => return Ok(done),
                Ok(len) => {
                    done += into.copy_from(done, self.bounce.get(..len).unwrap_or_default());
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The peer ended without saying so: the data before is good, and a cut reply is noticed.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(done),
                Err(error) => return Err(error),
            }
            match self.take_records() {
                Ok(_) => {}
                Err(_) if done != 0 => return Ok(done),
                Err(error) => return Err(error),
            }
        }
        self.more = true;
        Ok(done)
    }

    fn has_received(&self) -> bool {
        self.more
    }
}

/// The socket, as rustls wants it.
struct Socket<'a>(&'a OwnedFd);

impl Read for Socket<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let (received, _) = recv(self.0, into, RecvFlags::DONTWAIT)?;
        Ok(received)
    }
}

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(
            self.0,
            bytes,
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        )?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
