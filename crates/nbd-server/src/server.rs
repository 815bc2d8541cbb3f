// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The sockets, and a thread for each connection.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::net::sockopt;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::channel::{self, Channel, Talk};
use crate::connection::{Connection, ConnectionError};
use crate::counters::add;
use crate::exports::Exports;
use crate::handshake::{HandshakeError, shake_hands};

/// How long connections that are inside a call of the disk may take to say that they have ended, after their time is over.
const LET_GO: Duration = Duration::from_millis(200);

/// A TCP connection that is quiet for so long is asked whether it is still there, and then again and again, 9 times.
const QUIET: Duration = Duration::from_secs(60);
const PROBES: Duration = Duration::from_secs(10);

/// Where clients connect.
#[derive(Debug)]
pub enum Listener {
    /// A unix socket.
    Unix(UnixListener),
    /// A TCP port. Without TLS who can reach it can use every export, and who is in between can read and change all data:
    /// that is for networks that are trusted.
    Tcp(TcpListener),
}

impl Listener {
    fn accept(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Unix(listener) => Ok(listener.accept()?.0.into()),
            Self::Tcp(listener) => {
                let stream = listener.accept()?.0;
                stream.set_nodelay(true)?;
                // A client whose machine is gone would keep its connection for ever; one that is only slow may.
                sockopt::set_socket_keepalive(&stream, true)?;
                sockopt::set_tcp_keepidle(&stream, QUIET)?;
                sockopt::set_tcp_keepintvl(&stream, PROBES)?;
                Ok(stream.into())
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(listener) => listener.as_fd(),
            Self::Tcp(listener) => listener.as_fd(),
        }
    }
}

/// How a server treats its clients.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Connections at a time, of all exports together; more are closed at once. Each takes a thread, a queue of the disk
    /// and up to 32 MiB of memory for data that is on its way.
    pub connections: usize,
    /// How long a client may take until it has begun to use an export. It also waits for a disk that is taken into use.
    pub handshake_time: Duration,
    /// How long the disk may take to finish what it was given when the server ends, and the clients to receive the
    /// replies.
    pub stop_time: Duration,
    /// Without it, nothing is encrypted.
    pub security: Security,
}

/// Whether connections are under TLS.
#[derive(Clone, Debug, Default)]
pub enum Security {
    /// Never.
    #[default]
    Plain,
    /// Always: a client that does not begin it is refused.
    #[cfg(feature = "tls")]
    Tls(crate::TlsIdentity),
}

impl Security {
    pub(crate) const fn is_required(&self) -> bool {
        !matches!(self, Self::Plain)
    }

    #[cfg(feature = "tls")]
    pub(crate) const fn identity(&self) -> Option<&crate::TlsIdentity> {
        match self {
            Self::Plain => None,
            Self::Tls(identity) => Some(identity),
        }
    }
}

impl Default for ServerOptions {
    /// 32 connections, 10 seconds for a handshake and 5 for a stop.
    fn default() -> Self {
        Self {
            connections: 32,
            handshake_time: Duration::from_secs(10),
            stop_time: Duration::from_secs(5),
            security: Security::Plain,
        }
    }
}

/// Why a server could not be set up, or could not continue, or did not end in order.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The system has no descriptor left.
    #[error("the server can't be set up: {0}")]
    SetUp(#[source] io::Error),
    /// Waiting for clients failed.
    #[error("can't accept clients: {0}")]
    Accept(#[source] io::Error),
    /// The disk has requests of so many connections that it did not finish in time. Their clients had no replies.
    #[error(
        "the disk has not finished what {0} connections asked for; their clients were told nothing"
    )]
    Unfinished(usize),
}

struct Shared {
    stopping: AtomicBool,
    /// Readable from the stop on.
    stop: EventFd,
    live: Mutex<usize>,
    ended: Condvar,
    exports: Exports,
    options: ServerOptions,
}

impl Shared {
    fn live(&self) -> MutexGuard<'_, usize> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the eventfd is open as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.stop.as_raw_fd()) }
    }
}

/// A connection that counts.
struct Live(Arc<Shared>);

impl Drop for Live {
    fn drop(&mut self) {
        *self.0.live() -= 1;
        self.0.ended.notify_all();
    }
}

/// Stops a server and tells how it is, from any thread.
#[derive(Clone)]
pub struct ServerHandle(Arc<Shared>);

impl ServerHandle {
    /// Makes [`Server::run`] return, and does not wait for it.
    pub fn stop(&self) {
        self.0.stopping.store(true, Ordering::Release);
        // The counter can't overflow within a process's life.
        let _ = self.0.stop.write(1);
    }

    /// Connections there are now, those in their handshake included.
    pub fn connections(&self) -> usize {
        *self.0.live()
    }

    /// The exports.
    pub fn exports(&self) -> &Exports {
        &self.0.exports
    }
}

/// Serves exports on a socket.
pub struct Server {
    listener: Listener,
    shared: Arc<Shared>,
}

impl Server {
    /// A server that has not begun to accept clients.
    ///
    /// # Errors
    /// [`ServerError::SetUp`].
    pub fn new(
        listener: Listener,
        exports: Exports,
        options: ServerOptions,
    ) -> Result<Self, ServerError> {
        // Somebody else may take a client before this does.
        let nonblocking = match &listener {
            Listener::Unix(listener) => listener.set_nonblocking(true),
            Listener::Tcp(listener) => listener.set_nonblocking(true),
        };
        nonblocking.map_err(ServerError::SetUp)?;
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(ServerError::SetUp)?;
        Ok(Self {
            listener,
            shared: Arc::new(Shared {
                stopping: AtomicBool::new(false),
                stop,
                live: Mutex::new(0),
                ended: Condvar::new(),
                exports,
                options,
            }),
        })
    }

    /// A handle to stop this server.
    pub fn handle(&self) -> ServerHandle {
        ServerHandle(self.shared.clone())
    }

    /// Serves until [`ServerHandle::stop`]. From then on no request is taken; those that the disk has are finished and
    /// replied to. Layers let go of what they hold back. That takes [`ServerOptions::stop_time`] at most, and 200 ms more
    /// if the disk has not let go then: connections are closed then without a reply to what the disk still has, and
    /// neither this nor the end of the process waits for it. Disks that kept something in memory may still have to write
    /// it: [`Export::wait_left`](crate::Export::wait_left).
    ///
    /// # Errors
    /// Clients can't be accepted any more; or [`ServerError::Unfinished`]. What goes wrong with one client ends that
    /// client's connection.
    pub fn run(&self) -> Result<(), ServerError> {
        let accepted = self.accept();
        self.handle().stop();
        let deadline = Instant::now() + self.shared.options.stop_time + LET_GO;
        let mut live = self.shared.live();
        while *live != 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.shared.ended.wait_timeout(live, left);
            live = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let unfinished = *live;
        drop(live);
        accepted?;
        match unfinished {
            0 => Ok(()),
            _ => Err(ServerError::Unfinished(unfinished)),
        }
    }

    fn accept(&self) -> Result<(), ServerError> {
        let shared = &self.shared;
        while !shared.stopping.load(Ordering::Acquire) {
            let mut fds = [
                PollFd::new(&self.listener, PollFlags::IN),
                PollFd::from_borrowed_fd(shared.stop_fd(), PollFlags::IN),
            ];
            channel::wait(&mut fds, None).map_err(ServerError::Accept)?;
            match self.listener.accept() {
                Ok(socket) => self.connect(socket),
                Err(error) if is_shortage(&error) => {
                    log::warn!("no client can be accepted, trying again: {error}");
                    let mut fds = [PollFd::from_borrowed_fd(shared.stop_fd(), PollFlags::IN)];
                    let again = Instant::now() + Duration::from_millis(200);
                    // Returning early only means to try sooner.
                    let _ = channel::wait(&mut fds, Some(again));
                }
                Err(error) if is_of_that_client(&error) => {}
                Err(error) => return Err(ServerError::Accept(error)),
            }
        }
        Ok(())
    }

    /// Counts a connection, if there may be another one.
    fn admit(&self) -> Option<Live> {
        let mut live = self.shared.live();
        if *live >= self.shared.options.connections {
            log::info!("client turned away: there are {} connections", *live);
            return None;
        }
        *live += 1;
        drop(live);
        Some(Live(self.shared.clone()))
    }

    /// Serves one client, on a connection that was made by other means (a pair of sockets), on this thread: until it goes,
    /// or [`ServerHandle::stop`]. It counts as one of [`ServerOptions::connections`].
    pub fn serve(&self, socket: OwnedFd) {
        if let Some(live) = self.admit() {
            serve(&live.0, socket);
        }
    }

    /// Serves a client on a thread of its own.
    fn connect(&self, socket: OwnedFd) {
        let Some(live) = self.admit() else {
            return;
        };
        let thread = std::thread::Builder::new().name("nbd-client".to_owned());
        let started = thread.spawn(move || {
            let shared = &live.0;
            // A disk that panics ends its connection alone.
            if catch_unwind(AssertUnwindSafe(|| serve(shared, socket))).is_err() {
                log::error!("a connection's thread panicked");
            }
            drop(live);
        });
        if let Err(error) = started {
            log::warn!("client turned away: no thread for it: {error}");
        }
    }
}

/// Serves a client until it goes, or the server stops.
fn serve(shared: &Shared, socket: OwnedFd) {
    let mut channel = Channel::new(socket);
    let talk = Talk {
        channel: &mut channel,
        stop: shared.stop_fd(),
        deadline: Instant::now() + shared.options.handshake_time,
    };
    let agreed = match shake_hands(talk, &shared.exports, &shared.options.security) {
        Ok(agreed) => agreed,
        Err(HandshakeError::Aborted) => return,
        Err(error) => return log::info!("a client's handshake failed: {error}"),
    };
    let export = agreed.using.export.clone();
    let name = export.label();
    add(&export.counting.clients, 1);
    log::info!("{name}: client connected");
    let mut connection = match Connection::new(channel, agreed) {
        Ok(connection) => connection,
        Err(error) => return log::warn!("{name}: client turned away: {error}"),
    };
    match connection.serve(shared.stop_fd(), shared.options.stop_time) {
        Ok(()) => log::info!("{name}: client gone"),
        Err(error) => {
            if let ConnectionError::Proto(_) = error {
                add(&export.counting.malformed, 1);
            }
            log::info!("{name}: connection closed: {error}");
        }
    }
}

/// Whether accepting failed because of who wanted to connect.
fn is_of_that_client(error: &io::Error) -> bool {
    let raw = error.raw_os_error();
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::NotConnected
            | io::ErrorKind::Interrupted
    ) || matches!(
        raw,
        Some(
            libc::EINVAL
                | libc::EPROTO
                | libc::EPERM
                | libc::ENOPROTOOPT
                | libc::EOPNOTSUPP
                | libc::ETIMEDOUT
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::ENETDOWN
                | libc::ENETUNREACH
        )
    )
}

/// Whether accepting failed for want of descriptors or memory, which may be there later.
fn is_shortage(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}
