// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A connection's bytes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::time::Instant;
#[cfg(feature = "tls")]
use virtio_blk_nbd::tls_session::{TlsSession, Transfer};

/// A socket that is neither waited for nor a source of signals, plain or under TLS. Descriptors that a client sends along
/// are not received.
pub(crate) struct Channel {
    socket: OwnedFd,
    #[cfg(feature = "tls")]
    tls: Option<Box<TlsSession>>,
}

/// What a transfer came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moved {
    /// So many bytes; not 0.
    Bytes(usize),
    /// None now.
    WouldBlock,
    /// The peer sends no more.
    End,
}

#[cfg(feature = "tls")]
impl From<Transfer> for Moved {
    fn from(transfer: Transfer) -> Self {
        match transfer {
            Transfer::Bytes(bytes) => Self::Bytes(bytes),
            Transfer::WouldBlock => Self::WouldBlock,
            Transfer::End => Self::End,
        }
    }
}

fn outcome(result: libc::ssize_t) -> io::Result<Moved> {
    match usize::try_from(result) {
        Ok(0) => Ok(Moved::End),
        Ok(bytes) => Ok(Moved::Bytes(bytes)),
        Err(_) => {
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(Moved::WouldBlock),
                _ => Err(error),
            }
        }
    }
}

fn message(segments: &[libc::iovec]) -> libc::msghdr {
    // SAFETY: all zeroes is a value of this plain structure: no address, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    // Only read by the calls.
    message.msg_iov = segments.as_ptr().cast_mut();
    message.msg_iovlen = segments.len() as _;
    message
}

/// A list of segments that is filled for a call, and kept for the next one.
#[derive(Default)]
pub(crate) struct Segments(pub(crate) Vec<libc::iovec>);

// SAFETY: what they point to is only used by the call that they were filled for.
unsafe impl Send for Segments {}

/// A segment of a slice.
pub(crate) fn segment_of(bytes: &[u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }
}

/// A segment of a slice that is received into.
pub(crate) fn segment_of_mut(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    }
}

impl Channel {
    pub(crate) const fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            #[cfg(feature = "tls")]
            tls: None,
        }
    }

    /// Whether the bytes are under TLS.
    pub(crate) const fn is_secret(&self) -> bool {
        #[cfg(feature = "tls")]
        return self.tls.is_some();
        #[cfg(not(feature = "tls"))]
        false
    }

    /// From here on everything is under TLS.
    #[cfg(feature = "tls")]
    pub(crate) fn secure(&mut self, session: Box<TlsSession>) {
        self.tls = Some(session);
    }

    /// Whether there may be something to receive although the socket says nothing of it.
    pub(crate) fn has_more(&self) -> bool {
        #[cfg(feature = "tls")]
        return self.tls.as_ref().is_some_and(|tls| tls.has_more());
        #[cfg(not(feature = "tls"))]
        false
    }

    /// Whether something was taken to be sent that the socket had no room for.
    pub(crate) fn has_unsent(&self) -> bool {
        #[cfg(feature = "tls")]
        return self.tls.as_ref().is_some_and(|tls| tls.has_unsent());
        #[cfg(not(feature = "tls"))]
        false
    }

    /// Sends what was taken, as far as there is room.
    ///
    /// # Errors
    /// The socket's.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        #[cfg(feature = "tls")]
        if let Some(tls) = &mut self.tls {
            tls.flush(self.socket.as_fd())?;
        }
        Ok(())
    }

    /// Receives what is there.
    ///
    /// # Safety
    /// The segments must be valid for writes for the length of the call.
    pub(crate) unsafe fn receive(&mut self, segments: &[libc::iovec]) -> io::Result<Moved> {
        #[cfg(feature = "tls")]
        if let Some(tls) = &mut self.tls {
            // SAFETY: by the caller's word.
            return unsafe { tls.receive(self.socket.as_fd(), segments) }.map(Moved::from);
        }
        let mut message = message(segments);
        // SAFETY: the descriptor is open, the message refers to segments that are valid by the caller's word.
        outcome(unsafe {
            libc::recvmsg(
                self.socket.as_raw_fd(),
                &raw mut message,
                libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC,
            )
        })
    }

    /// Sends what there is room for.
    ///
    /// # Safety
    /// The segments must be valid for reads for the length of the call.
    pub(crate) unsafe fn send(&mut self, segments: &[libc::iovec]) -> io::Result<Moved> {
        #[cfg(feature = "tls")]
        if let Some(tls) = &mut self.tls {
            // SAFETY: by the caller's word.
            return unsafe { tls.send(self.socket.as_fd(), segments) }.map(Moved::from);
        }
        let message = message(segments);
        // SAFETY: the descriptor is open, the message refers to segments that are valid by the caller's word.
        outcome(unsafe {
            libc::sendmsg(
                self.socket.as_raw_fd(),
                &raw const message,
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            )
        })
    }
}

#[cfg(feature = "tls")]
impl Drop for Channel {
    fn drop(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.close(self.socket.as_fd());
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What is left until `deadline`, for [`poll`].
pub(crate) fn timeout(deadline: Option<Instant>) -> Option<Timespec> {
    let left = deadline?.saturating_duration_since(Instant::now());
    Some(Timespec {
        tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    })
}

/// Waits until one of `fds` is as asked for or `deadline` has passed. Returns whether one is.
pub(crate) fn wait(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<bool> {
    match poll(fds, timeout(deadline).as_ref()) {
        Ok(ready) => Ok(ready != 0),
        // The caller looks again anyway.
        Err(rustix::io::Errno::INTR) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Sends and receives whole messages, each until one deadline, and no longer than `stop` is quiet.
pub(crate) struct Talk<'a> {
    pub(crate) channel: &'a mut Channel,
    pub(crate) stop: BorrowedFd<'a>,
    pub(crate) deadline: Instant,
}

impl Talk<'_> {
    /// Waits for the socket.
    ///
    /// # Errors
    /// As for [`Talk::read`].
    pub(crate) fn wait(&self, flags: PollFlags) -> io::Result<()> {
        self.wait_until(flags, self.deadline)
    }

    /// Whether there is time, without waiting: a client that sends without end is never waited for.
    ///
    /// # Errors
    /// As for [`Talk::read`].
    pub(crate) fn check(&self) -> io::Result<()> {
        self.wait_until(PollFlags::empty(), Instant::now())
    }

    fn wait_until(&self, flags: PollFlags, until: Instant) -> io::Result<()> {
        let mut fds = [
            PollFd::from_borrowed_fd(self.stop, PollFlags::IN),
            PollFd::new(self.channel, flags),
        ];
        let used = if flags.is_empty() { 1 } else { 2 };
        let ready = wait(fds.get_mut(..used).unwrap_or_default(), Some(until))?;
        if !fds[0].revents().is_empty() {
            let text = "the server is about to end";
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, text));
        }
        if !ready && Instant::now() >= self.deadline {
            let text = "the handshake took too long";
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        Ok(())
    }

    /// Fills `bytes`.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] if the client goes, `TimedOut`, `ConnectionAborted` at a stop, or the socket's.
    pub(crate) fn read(&mut self, mut bytes: &mut [u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.check()?;
            // SAFETY: a segment of a slice that is ours.
            match unsafe { self.channel.receive(&[segment_of_mut(bytes)]) }? {
                Moved::Bytes(n) => bytes = bytes.get_mut(n..).unwrap_or_default(),
                Moved::WouldBlock => self.wait(PollFlags::IN)?,
                Moved::End => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        Ok(())
    }

    /// Receives so many bytes and forgets them.
    ///
    /// # Errors
    /// As for [`Talk::read`].
    pub(crate) fn skip(&mut self, mut len: usize) -> io::Result<()> {
        let mut bytes = [0; 4096];
        while len > 0 {
            let part = len.min(bytes.len());
            self.read(bytes.get_mut(..part).unwrap_or_default())?;
            len -= part;
        }
        Ok(())
    }

    /// Sends `bytes`.
    ///
    /// # Errors
    /// As for [`Talk::read`].
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            // SAFETY: a segment of a slice that lives on.
            match unsafe { self.channel.send(&[segment_of(bytes)]) }? {
                Moved::Bytes(n) => bytes = bytes.get(n..).unwrap_or_default(),
                Moved::WouldBlock => self.wait(PollFlags::OUT)?,
                Moved::End => return Err(io::ErrorKind::WriteZero.into()),
            }
        }
        self.channel.flush()?;
        while self.channel.has_unsent() {
            self.wait(PollFlags::OUT)?;
            self.channel.flush()?;
        }
        Ok(())
    }
}
