// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! TLS over a socket that is not waited for: of either side, which brings a connection of rustls.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, send, sendmsg};
use rustls::Connection;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// Bytes that are copied at a time: what one record holds.
const RECORD: usize = 16 << 10;

/// Bytes that may wait for room in the socket.
const UNSENT: usize = 256 << 10;

/// How often one call looks at the socket: a peer that sends records with nothing in them does not keep it.
const LOOKS: usize = 64;

/// The certificates in a file in PEM, of which there is one at least.
///
/// # Errors
/// What is wrong with the file, in words.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let found: Vec<_> = found.map_err(|error| error.to_string())?;
    match found.is_empty() {
        true => Err("there is no certificate in it".to_owned()),
        false => Ok(found),
    }
}

/// What a transfer came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// So many bytes; not 0.
    Bytes(usize),
    /// None now.
    WouldBlock,
    /// The peer sends no more. Whether it said so is left to the protocol above: a message that is cut is noticed there.
    End,
}

/// What a handshake waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: it is complete.
    Done,
    /// Something from the peer.
    Receive,
    /// Room in the socket.
    Send,
}

/// The state of a connection's TLS. Data is copied between memory and records.
pub struct TlsSession {
    tls: Connection,
    record: Box<[u8]>,
    /// There may be more to receive in the records that are here.
    more: bool,
}

/// What came of a look at the socket.
enum Taken {
    /// Records, or parts of them.
    Some,
    /// Nothing now.
    Later,
    /// Nothing more.
    End,
}

/// The socket, as rustls wants it.
struct Socket<'a>(BorrowedFd<'a>);

const SEND: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);

impl Read for Socket<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        Ok(recv(self.0, into, RecvFlags::DONTWAIT)?.0)
    }
}

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(self.0, bytes, SEND)?)
    }

    /// All records in one call.
    fn write_vectored(&mut self, records: &[IoSlice<'_>]) -> io::Result<usize> {
        let nothing = &mut SendAncillaryBuffer::default();
        Ok(sendmsg(self.0, records, nothing, SEND)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn is_later(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

impl TlsSession {
    /// Before its handshake.
    pub fn new(tls: impl Into<Connection>) -> Self {
        let mut tls = tls.into();
        tls.set_buffer_limit(Some(UNSENT));
        Self {
            tls,
            record: vec![0; RECORD].into_boxed_slice(),
            more: true,
        }
    }

    /// Does of the handshake what can be done without waiting. The caller limits how long that may take.
    ///
    /// # Errors
    /// The socket's; [`io::ErrorKind::InvalidData`] if the peer is not believed or breaks the protocol;
    /// [`io::ErrorKind::UnexpectedEof`] if it goes.
    pub fn handshake(&mut self, socket: BorrowedFd<'_>) -> io::Result<Step> {
        for _ in 0..LOOKS {
            self.flush(socket)?;
            if self.has_unsent() {
                return Ok(Step::Send);
            }
            if !self.tls.is_handshaking() {
                return Ok(Step::Done);
            }
            match self.take_records(socket)? {
                Taken::Some => {}
                Taken::Later => return Ok(Step::Receive),
                Taken::End => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        Ok(Step::Receive)
    }

    /// Whether there may be something to receive although the socket says nothing of it.
    pub const fn has_more(&self) -> bool {
        self.more
    }

    /// Whether something was taken to be sent that the socket had no room for.
    pub fn has_unsent(&self) -> bool {
        self.tls.wants_write()
    }

    /// Sends what is encrypted already, as far as there is room.
    ///
    /// # Errors
    /// The socket's; [`io::ErrorKind::InvalidData`] if the peer said why it went.
    pub fn flush(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut Socket(socket)) {
                Ok(_) => {}
                Err(error) if is_later(&error) => break,
                Err(error) => return Err(self.alert(socket).unwrap_or(error)),
            }
        }
        Ok(())
    }

    /// What a peer that went has said last. A server that wants a certificate says so after the client believes that the
    /// handshake is complete.
    fn alert(&mut self, socket: BorrowedFd<'_>) -> Option<io::Error> {
        for _ in 0..LOOKS {
            if !matches!(self.tls.read_tls(&mut Socket(socket)), Ok(1..)) {
                break;
            }
            if let Err(error) = self.tls.process_new_packets() {
                return Some(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
        None
    }

    /// Takes over what the socket has.
    fn take_records(&mut self, socket: BorrowedFd<'_>) -> io::Result<Taken> {
        match self.tls.read_tls(&mut Socket(socket)) {
            Ok(0) => return Ok(Taken::End),
            Ok(_) => {}
            Err(error) if is_later(&error) => return Ok(Taken::Later),
            Err(error) => return Err(error),
        }
        if let Err(error) = self.tls.process_new_packets() {
            // The peer is told why, if it listens.
            let _ = self.flush(socket);
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        Ok(Taken::Some)
    }

    /// Receives what is there.
    ///
    /// # Errors
    /// The socket's, or [`io::ErrorKind::InvalidData`] if the peer breaks the protocol. What came before is lost.
    ///
    /// # Safety
    /// The segments must be valid for writes for the length of the call.
    pub unsafe fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        segments: &[libc::iovec],
    ) -> io::Result<Transfer> {
        let (mut moved, mut looks) = (0, 0);
        self.more = true;
        for segment in segments {
            let mut done = 0;
            while done < segment.iov_len {
                let room = (segment.iov_len - done).min(self.record.len());
                let place = self.record.get_mut(..room).unwrap_or_default();
                match self.tls.reader().read(place) {
                    // The peer ended it in order, or without a word.
                    Ok(0) => return Ok(received(moved, Transfer::End)),
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                        return Ok(received(moved, Transfer::End));
                    }
                    Ok(read) => {
                        let to = segment.iov_base.cast::<u8>().wrapping_add(done);
                        // SAFETY: the segment has room for what is read, by the caller's word; the record is ours.
                        unsafe { std::ptr::copy_nonoverlapping(self.record.as_ptr(), to, read) };
                        done += read;
                        moved += read;
                        continue;
                    }
                    Err(error) if is_later(&error) => {}
                    Err(error) => return Err(error),
                }
                looks += 1;
                if looks > LOOKS {
                    return Ok(received(moved, Transfer::WouldBlock));
                }
                match self.take_records(socket)? {
                    Taken::Some => {}
                    Taken::End => return Ok(received(moved, Transfer::End)),
                    Taken::Later => {
                        self.more = false;
                        return Ok(received(moved, Transfer::WouldBlock));
                    }
                }
            }
        }
        Ok(received(moved, Transfer::WouldBlock))
    }

    /// Takes what there is room for. What it takes may still have to be flushed.
    ///
    /// # Errors
    /// The socket's.
    ///
    /// # Safety
    /// The segments must be valid for reads for the length of the call.
    pub unsafe fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        segments: &[libc::iovec],
    ) -> io::Result<Transfer> {
        let mut moved = 0;
        'segments: for segment in segments {
            let mut done = 0;
            while done < segment.iov_len {
                let len = (segment.iov_len - done).min(self.record.len());
                let from = segment.iov_base.cast::<u8>().wrapping_add(done);
                let Some(record) = self.record.get_mut(..len) else {
                    break 'segments;
                };
                // SAFETY: the segment has so many bytes, by the caller's word; the record is ours.
                unsafe { std::ptr::copy_nonoverlapping(from, record.as_mut_ptr(), len) };
                let taken = self.tls.writer().write(record)?;
                done += taken;
                moved += taken;
                if taken < len {
                    self.flush(socket)?;
                    if self.tls.wants_write() {
                        break 'segments;
                    }
                }
            }
        }
        self.flush(socket)?;
        Ok(received(moved, Transfer::WouldBlock))
    }

    /// Says that nothing more comes, if there is room for that.
    pub fn close(&mut self, socket: BorrowedFd<'_>) {
        self.tls.send_close_notify();
        let _ = self.flush(socket);
    }
}

/// What a transfer of so many bytes came to, which ended so.
const fn received(moved: usize, end: Transfer) -> Transfer {
    match moved {
        0 => end,
        moved => Transfer::Bytes(moved),
    }
}
