// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Connecting sockets.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, ipproto, socket_with, sockopt,
};

use crate::stream::Deadline;
use crate::{Address, NbdError};

/// A quiet connection is tried for this long before the peer is taken for dead, and so is one that takes nothing:
/// a network that was cut tells nobody.
const DEAD_AFTER: Duration = Duration::from_secs(30);
const PROBE_EVERY: Duration = Duration::from_secs(5);

/// Connects to a server.
///
/// # Errors
/// [`NbdError::Connect`], [`NbdError::Silent`]. A host's name is looked up first, by the system, in its own time.
pub(crate) fn connect_to(address: &Address, deadline: Deadline) -> Result<OwnedFd, NbdError> {
    let failed = |source: io::Error| NbdError::Connect {
        address: address.clone(),
        source,
    };
    match address {
        Address::Unix(path) => match unix(path, deadline) {
            Err(NbdError::Io(source)) => Err(failed(source)),
            other => other,
        },
        Address::Tcp { host, port } => {
            let found = (host.as_str(), *port).to_socket_addrs().map_err(failed)?;
            let mut last = io::Error::from(io::ErrorKind::NotFound);
            for place in found {
                match tcp(place, deadline) {
                    Ok(socket) => return Ok(socket),
                    Err(NbdError::Io(error)) => last = error,
                    Err(other) => return Err(other),
                }
            }
            Err(failed(last))
        }
    }
}

fn unix(path: &Path, deadline: Deadline) -> Result<OwnedFd, NbdError> {
    let place = SocketAddrUnix::new(path).map_err(io::Error::from)?;
    loop {
        let socket = new_socket(AddressFamily::UNIX, None)?;
        match connect(&socket, &place) {
            Ok(()) => return Ok(socket),
            // The server's backlog is full, and nothing tells when that ends.
            Err(Errno::AGAIN) if !deadline.is_over() => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => return Err(NbdError::Io(error.into())),
        }
    }
}

fn tcp(place: SocketAddr, deadline: Deadline) -> Result<OwnedFd, NbdError> {
    let family = if place.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let socket = new_socket(family, Some(ipproto::TCP))?;
    match connect(&socket, &place) {
        Ok(()) => {}
        Err(Errno::INPROGRESS) => {
            deadline.wait(socket.as_fd(), PollFlags::OUT)?;
            let outcome = sockopt::socket_error(&socket).map_err(io::Error::from)?;
            outcome.map_err(io::Error::from)?;
        }
        Err(error) => return Err(NbdError::Io(error.into())),
    }
    let set = || {
        // Requests are sent in batches of our own.
        sockopt::set_tcp_nodelay(&socket, true)?;
        sockopt::set_socket_keepalive(&socket, true)?;
        sockopt::set_tcp_keepidle(&socket, PROBE_EVERY)?;
        sockopt::set_tcp_keepintvl(&socket, PROBE_EVERY)?;
        sockopt::set_tcp_keepcnt(&socket, 5)?;
        sockopt::set_tcp_user_timeout(&socket, DEAD_AFTER.as_millis() as u32)
    };
    set().map_err(io::Error::from)?;
    Ok(socket)
}

fn new_socket(
    family: AddressFamily,
    protocol: Option<rustix::net::Protocol>,
) -> Result<OwnedFd, NbdError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(family, SocketType::STREAM, flags, protocol).map_err(io::Error::from)?)
}

/// Which process is at the other end, as far as that can be told: of a unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pid: i32,
    /// When it started, in the clock of `/proc`: numbers of processes are used again.
    started: u64,
}

impl Peer {
    /// The process that listens at the other end. `None` if it is gone, out of sight (in another container), or the
    /// first process, which listens for others.
    pub(crate) fn of(socket: impl AsFd) -> Option<Self> {
        let pid = peer_pid(socket.as_fd()).filter(|pid| *pid > 1)?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in brackets, may hold anything; the start is field 22, and field 3 the first after it.
        let (_, fields) = stat.rsplit_once(')')?;
        let started = fields.split_ascii_whitespace().nth(22 - 3)?.parse().ok()?;
        Some(Self { pid, started })
    }
}

/// The process that called `listen` (`SO_PEERCRED`); 0 if it is out of sight, which rustix's type can't hold.
fn peer_pid(socket: BorrowedFd<'_>) -> Option<i32> {
    let mut credentials = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `credentials`, which has so many.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &mut len,
        )
    };
    (result == 0).then_some(credentials.pid)
}
