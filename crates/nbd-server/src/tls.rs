// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! TLS: who the server says that it is, and whom it believes.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::event::PollFlags;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, crypto};

use crate::channel::{Moved, Talk};

/// Bytes that are copied at a time: what one record holds.
const RECORD: usize = 16 << 10;

/// Bytes that may wait for room in the socket.
const UNSENT: usize = 256 << 10;

/// Files in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, with those between it and the authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Certificates of authorities: only clients with a certificate of theirs are served. `None`: every client is.
    pub client_ca: Option<PathBuf>,
}

/// Why a file can't be used.
#[derive(Debug, thiserror::Error)]
#[error("TLS: {path}: {why}")]
pub struct TlsError {
    path: String,
    why: String,
}

impl TlsError {
    fn new(path: &Path, why: impl std::fmt::Display) -> Self {
        Self {
            path: path.display().to_string(),
            why: why.to_string(),
        }
    }
}

/// Who a server is, and whom it believes.
#[derive(Clone, Debug)]
pub struct TlsIdentity(Arc<ServerConfig>);

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let found: Vec<_> = found.map_err(|error| TlsError::new(path, error))?;
    match found.is_empty() {
        true => Err(TlsError::new(path, "there is no certificate in it")),
        false => Ok(found),
    }
}

impl TlsIdentity {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`] with the file that can't be used.
    pub fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        let TlsFiles {
            certificate,
            key,
            client_ca,
        } = files;
        let provider = Arc::new(crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::new(certificate, error))?;
        let builder = match client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for root in certificates(path)? {
                    roots
                        .add(root)
                        .map_err(|error| TlsError::new(path, error))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                let verifier = verifier
                    .build()
                    .map_err(|error| TlsError::new(path, error))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let chain = certificates(certificate)?;
        let secret =
            PrivateKeyDer::from_pem_file(key).map_err(|error| TlsError::new(key, error))?;
        let config = builder.with_single_cert(chain, secret);
        let config = config.map_err(|error| TlsError::new(certificate, error))?;
        Ok(Self(Arc::new(config)))
    }

    /// Makes the handshake on a connection that is plain so far.
    ///
    /// # Errors
    /// The client is not believed, or does not believe the server, broke the protocol, or took too long.
    pub(crate) fn shake_hands(&self, talk: &mut Talk<'_>) -> io::Result<Box<Session>> {
        let mut tls = ServerConnection::new(self.0.clone()).map_err(io::Error::other)?;
        tls.set_buffer_limit(Some(UNSENT));
        let mut session = Box::new(Session {
            tls,
            record: vec![0; RECORD].into_boxed_slice(),
            more: true,
        });
        loop {
            session.flush(talk.channel.as_fd())?;
            if session.has_unsent() {
                talk.wait(PollFlags::OUT)?;
            } else if !session.tls.is_handshaking() {
                return Ok(session);
            } else {
                match session.take_records(talk.channel.as_fd())? {
                    Taken::Some => {}
                    Taken::Later => talk.wait(PollFlags::IN)?,
                    Taken::End => return Err(io::ErrorKind::UnexpectedEof.into()),
                }
            }
        }
    }
}

/// The state of a connection's TLS.
pub(crate) struct Session {
    tls: ServerConnection,
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

/// A socket that is not waited for.
struct Socket<'a>(BorrowedFd<'a>);

impl Read for Socket<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        Ok(recv(self.0, into, RecvFlags::DONTWAIT)?.0)
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

fn is_later(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

impl Session {
    pub(crate) const fn has_more(&self) -> bool {
        self.more
    }

    pub(crate) fn has_unsent(&self) -> bool {
        self.tls.wants_write()
    }

    /// Sends what is encrypted already, as far as there is room.
    ///
    /// # Errors
    /// The socket's.
    pub(crate) fn flush(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut Socket(socket)) {
                Ok(_) => {}
                Err(error) if is_later(&error) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
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
            // The client is told why, if it listens.
            let _ = self.flush(socket);
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        Ok(Taken::Some)
    }

    /// As [`Channel::receive`](crate::channel::Channel::receive).
    ///
    /// # Safety
    /// The segments must be valid for writes for the length of the call.
    pub(crate) unsafe fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        segments: &[libc::iovec],
    ) -> io::Result<Moved> {
        let mut moved = 0;
        'segments: for segment in segments {
            let mut done = 0;
            while done < segment.iov_len {
                let room = (segment.iov_len - done).min(self.record.len());
                let Some(record) = self.record.get_mut(..room) else {
                    break 'segments;
                };
                let read = match self.tls.reader().read(record) {
                    // The client ended it in order.
                    Ok(0) => break 'segments,
                    Ok(read) => read,
                    Err(error) if is_later(&error) => match self.take_records(socket)? {
                        Taken::Some => continue,
                        Taken::End => break 'segments,
                        Taken::Later => {
                            self.more = false;
                            if moved == 0 {
                                return Ok(Moved::WouldBlock);
                            }
                            break 'segments;
                        }
                    },
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break 'segments,
                    Err(error) => return Err(error),
                };
                let to = segment.iov_base.cast::<u8>().wrapping_add(done);
                // SAFETY: the segment has room for what is read, by the caller's word; the record is ours.
                unsafe { std::ptr::copy_nonoverlapping(self.record.as_ptr(), to, read) };
                done += read;
                moved += read;
                self.more = true;
            }
        }
        Ok(match moved {
            0 => Moved::End,
            moved => Moved::Bytes(moved),
        })
    }

    /// As [`Channel::send`](crate::channel::Channel::send). What it takes may still have to be flushed.
    ///
    /// # Safety
    /// The segments must be valid for reads for the length of the call.
    pub(crate) unsafe fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        segments: &[libc::iovec],
    ) -> io::Result<Moved> {
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
        Ok(match moved {
            0 => Moved::WouldBlock,
            moved => Moved::Bytes(moved),
        })
    }

    /// Says that nothing more comes, if there is room for that.
    pub(crate) fn close(&mut self, socket: BorrowedFd<'_>) {
        self.tls.send_close_notify();
        let _ = self.flush(socket);
    }
}
