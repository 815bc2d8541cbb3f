// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The socket, and one client after another.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::Level;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost::vhost_user::{BackendReqHandler, Error as VhostError};
use virtio_blk_core::device::Device;
use virtio_blk_core::memory::HostMemory;
use virtio_blk_core::runner::{Medium, MediumEvent};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::config_channel::ConfigChannel;
use crate::header::Header;
use crate::session::{MemoryListener, Session, SessionContext};
use crate::shared_file::Alarm;
use crate::socket::{Listener, SocketError, SocketOptions};
use crate::stops::{LeaveError, STOP_TIME, Stops};
use crate::told::Told;

/// The most queues a device can have on this transport: descriptors are handed over with an index of 8
/// bits.
pub const MAX_QUEUES: u16 = 256;

/// Why a server could not be set up, or could not continue.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// There is no socket to listen on.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The system has no descriptor left.
    #[error("the server can't be set up: {0}")]
    SetUp(#[source] io::Error),
    /// The protocol names queues with 8 bits.
    #[error("{0} queues: vhost-user has room for {MAX_QUEUES}")]
    Queues(u16),
    /// Waiting for clients failed.
    #[error("can't accept clients: {0}")]
    Accept(#[source] io::Error),
}

/// How a server treats its queues.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// How long a queue's thread looks for new work before it sleeps; zero: not at all.
    pub poll: Duration,
    /// How long a stop may take: of one queue, of all when a client goes or resets the device, of the server.
    /// Layers release what they hold back then; this is the time for the disk to finish what it has. What
    /// happens when it does not is said at [`Server::run`].
    pub stop_time: Duration,
}

impl Default for ServerOptions {
    /// No polling, and [`STOP_TIME`].
    fn default() -> Self {
        Self {
            poll: Duration::ZERO,
            stop_time: STOP_TIME,
        }
    }
}

#[derive(Debug)]
struct Shared {
    stopping: AtomicBool,
    wake: EventFd,
    /// The present client's connection, to cut it.
    client: Mutex<Option<UnixStream>>,
    clients: AtomicU64,
    stops: Arc<Stops>,
    medium: Medium,
}

impl Shared {
    fn client(&self) -> MutexGuard<'_, Option<UnixStream>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stops a server and tells how it is, from any thread.
#[derive(Clone, Debug)]
pub struct ServerHandle(Arc<Shared>);

impl ServerHandle {
    /// Makes [`Server::run`] return, and does not wait for it. The present client's queues are stopped before:
    /// requests of a client with an in-flight area are left to the next server, those of another are finished.
    /// From the first call on this takes [`ServerOptions::stop_time`] at most, and 200 ms more if the disk does
    /// not finish in time, as [`Server::run`] says; what takes longer is a call of [`Disk::open_queue`] that a
    /// message of the client has begun.
    ///
    /// [`Disk::open_queue`]: virtio_blk_core::disk::Disk::open_queue
    pub fn stop(&self) {
        self.0.stops.begin_end();
        self.0.stopping.store(true, Ordering::Release);
        // The counter can't overflow within a process's life.
        let _ = self.0.wake.write(1);
        if let Some(client) = self.0.client().as_ref() {
            let _ = client.shutdown(Shutdown::Both);
        }
    }

    /// Queues whose requests the disk has not finished although their stop's time was over.
    pub fn unfinished(&self) -> usize {
        self.0.medium.left_behind()
    }

    /// Waits until `deadline` for the disk, whose last queue has stopped, to be released, and returns whether nothing was
    /// lost. To be called once [`Server::run`] has returned: there may be no client to tell. What is lost is returned once.
    ///
    /// # Errors
    /// What the disk kept in memory may be lost, or it is still being written. Then the process has to stay until it is,
    /// or it is lost, too.
    pub fn wait_disk_left(&self, deadline: Instant) -> Result<(), LeaveError> {
        if self.0.medium.wait_left(deadline).is_none() {
            return Err(LeaveError::Slow(self.0.stops.time()));
        }
        let lost = self.0.medium.take_lost();
        lost.map_or(Ok(()), |error| Err(LeaveError::Lost(error.to_string())))
    }

    /// Whether a client is connected.
    pub fn is_connected(&self) -> bool {
        self.0.client().is_some()
    }

    /// Clients served so far, the present one included.
    pub fn clients(&self) -> u64 {
        self.0.clients.load(Ordering::Relaxed)
    }
}

/// Serves a device to vhost-user clients, one after another, on a unix socket.
pub struct Server {
    listener: Listener,
    device: Arc<Device>,
    poll: Duration,
    memory: Option<MemoryListener>,
    shared: Arc<Shared>,
    channel: Arc<ConfigChannel>,
    told: Arc<Told>,
    /// Locked while a client is served. Whether the one before was turned away.
    turned_away: Mutex<bool>,
}

impl Server {
    /// Listens on `path`, with the mode that the umask leaves. A socket that a dead server left is replaced.
    ///
    /// # Errors
    /// [`ServerError`]; see [`Listener::bind`].
    pub fn bind(
        path: &Path,
        device: Arc<Device>,
        options: ServerOptions,
    ) -> Result<Self, ServerError> {
        let listener = Listener::bind(path, &SocketOptions::default())?;
        Self::new(listener, device, options)
    }

    /// Listens on a socket that was made before: with another mode or group, or by another process.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn new(
        listener: Listener,
        device: Arc<Device>,
        options: ServerOptions,
    ) -> Result<Self, ServerError> {
        let queues = device.options().queues;
        if queues > MAX_QUEUES {
            return Err(ServerError::Queues(queues));
        }
        // Somebody else may take a client before this does.
        let socket = listener.socket();
        socket.set_nonblocking(true).map_err(ServerError::SetUp)?;
        let (channel, told) = (
            Arc::new(ConfigChannel::default()),
            Arc::new(Told::default()),
        );
        let weak = (
            Arc::downgrade(&channel),
            Arc::downgrade(&told),
            Arc::downgrade(&device),
        );
        device.listen(Box::new(move || {
            if let (Some(channel), Some(told), Some(device)) =
                (weak.0.upgrade(), weak.1.upgrade(), weak.2.upgrade())
            {
                told.keep(&device);
                channel.notify();
            }
        }));
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(ServerError::SetUp)?;
        let medium = Medium::new(device.disk().clone(), log_medium);
        let stops = Arc::new(Stops::new(options.stop_time));
        Ok(Self {
            listener,
            device,
            poll: options.poll,
            memory: None,
            shared: Arc::new(Shared {
                stopping: AtomicBool::new(false),
                wake,
                client: Mutex::new(None),
                clients: AtomicU64::new(0),
                stops,
                medium,
            }),
            channel,
            told,
            turned_away: Mutex::new(false),
        })
    }

    /// Has `listener` told of each client's memory, for a disk that can use it better if it knows it beforehand (a
    /// device that has it mapped).
    ///
    /// It is called on the thread of [`Server::run`] whenever the client changed its memory table: with all of the
    /// table, by guest physical address, before a queue is started on it, and with nothing once the client has gone.
    /// Requests in flight may still use memory that is no longer in the table. A piece stays mapped as long as a clone
    /// of its [`HostMemory`] lives; drop what is in no later table. The client waits meanwhile. The client may
    /// shrink the memory's file at any time.
    #[must_use]
    pub fn on_memory(
        mut self,
        listener: impl Fn(&[(u64, HostMemory)]) + Send + Sync + 'static,
    ) -> Self {
        self.memory = Some(Arc::new(listener));
        self
    }

    /// The device that is served.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// A handle to stop this server.
    pub fn handle(&self) -> ServerHandle {
        ServerHandle(self.shared.clone())
    }

    /// Serves until [`ServerHandle::stop`]. When it returns, no request is in flight and no memory of a
    /// client is mapped, unless the disk did not finish.
    ///
    /// A stop takes [`ServerOptions::stop_time`] at most, and where the disk has not finished then, 200 ms more, in
    /// which queues that are inside a call of the disk may end it: GET_VRING_BASE, a queue that is disabled or gets
    /// other addresses or another kick descriptor, RESET_DEVICE, a client that goes, and
    /// [`ServerHandle::stop`]. If the disk has not finished then, the connection is closed. The client's
    /// memory stays mapped until the disk has released it; nothing more is returned to the client, and the
    /// in-flight area still names the requests. Other clients are turned away until the disk has finished,
    /// as it could still write what they read or write; then the next one is served, and what the in-flight
    /// area names is executed again. `run` and dropping the server do not wait for such a disk, and its
    /// threads do not keep the process from ending.
    ///
    /// # Errors
    /// Clients can't be accepted any more. What goes wrong with one client ends that client's session,
    /// is logged, and the next one is served.
    pub fn run(&self) -> Result<(), ServerError> {
        while !self.shared.stopping.load(Ordering::Acquire) {
            let mut fds = [
                PollFd::new(&self.listener, PollFlags::IN),
                PollFd::from_borrowed_fd(self.wake_fd(), PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(ServerError::Accept(error.into())),
            }
            match self.listener.socket().accept() {
                Ok((stream, _)) => self.serve(stream),
                Err(error) if is_of_that_client(&error) => {}
                Err(error) if is_shortage(&error) => {
                    log::warn!("no client can be accepted, trying again: {error}");
                    self.pause();
                }
                Err(error) => return Err(ServerError::Accept(error)),
            }
        }
        Ok(())
    }

    /// Waits a moment, or until the server shall stop.
    fn pause(&self) {
        let mut fds = [PollFd::from_borrowed_fd(self.wake_fd(), PollFlags::IN)];
        let time = Timespec {
            tv_sec: 0,
            tv_nsec: 200_000_000,
        };
        // Returning early only means to try sooner.
        let _ = poll(&mut fds, Some(&time));
    }

    fn wake_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        use std::os::fd::{AsRawFd, BorrowedFd};
        // SAFETY: the eventfd is open as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.shared.wake.as_raw_fd()) }
    }

    /// Serves one client, on a connection that was made by other means (a pair of sockets, for a VMM in the same
    /// process), until it hangs up or [`ServerHandle::stop`]. [`Server::run`] does this for each client that
    /// it accepts; a client that comes while another one is served waits.
    pub fn serve(&self, stream: UnixStream) {
        let mut turned_away = (self.turned_away.lock()).unwrap_or_else(PoisonError::into_inner);
        let stuck = self.shared.medium.left_behind();
        if stuck != 0 {
            let again = std::mem::replace(&mut *turned_away, true);
            let level = if again { Level::Debug } else { Level::Warn };
            return log::log!(
                level,
                "client turned away: the disk still has requests of {stuck} queues of an earlier client"
            );
        }
        *turned_away = false;
        let control = stream
            .set_nonblocking(false)
            .and_then(|()| Ok((stream.try_clone()?, stream.try_clone()?)));
        let (control, peek) = match control {
            Ok(clones) => clones,
            Err(error) => return log::error!("client refused: {error}"),
        };
        *self.shared.client() = Some(control);
        self.shared.clients.fetch_add(1, Ordering::Relaxed);
        // `stop` may have come before the connection was known to it.
        if !self.shared.stopping.load(Ordering::Acquire) {
            log::info!("client connected");
            self.converse(stream, &peek);
            log::info!("client gone");
        }
        self.channel.close();
        *self.shared.client() = None;
    }

    /// Handles messages until the connection ends. All queues are stopped when it returns.
    fn converse(&self, stream: UnixStream, peek: &UnixStream) {
        let session = Session::new(SessionContext {
            device: self.device.clone(),
            poll: self.poll,
            listener: self.memory.clone(),
            channel: self.channel.clone(),
            told: self.told.clone(),
            medium: self.shared.medium.clone(),
            stops: self.shared.stops.clone(),
        });
        let session = match session {
            Ok(session) => session,
            Err(error) => return log::error!("client refused: {error}"),
        };
        let alarm = session.alarm().clone();
        let session = Arc::new(Mutex::new(session));
        let mut handler = BackendReqHandler::from_stream(stream, session.clone());
        let mut is_first = true;
        loop {
            let acks = lock(&session).acks();
            match wait_for_message(peek, &alarm) {
                Ok(true) => {}
                Ok(false) => {
                    return log::warn!("client sent away: it shrank memory that it shares");
                }
                Err(error) => return log::error!("can't wait for the client: {error}"),
            }
            let header = match Header::peek(peek) {
                Ok(header) => header,
                Err(error) => return log::debug!("connection lost: {error}"),
            };
            // Somebody took the socket for another one, and is told by the end of the connection.
            if is_first && header.is_some_and(|header| !header.is_of_this_protocol()) {
                return log::info!("client sent away: it does not speak vhost-user");
            }
            is_first = false;
            let name = header.map_or_else(|| "a message".to_owned(), |header| header.to_string());
            if header.is_some_and(|header| header.is_cut_off()) {
                return log::error!(
                    "client sent away: {name}: descriptors that came with it are lost: this process can have no \
                     more (raise ulimit -n), or there are more than a message may have"
                );
            }
            if let Some(header) = header.filter(Header::is_backend_channel) {
                match self.channel.take(peek, header, acks) {
                    Ok(()) => continue,
                    Err(error) => return log::warn!("client sent away: {name}: {error}"),
                }
            }
            let result = handler.handle_request();
            if lock(&session).is_over() {
                // Before the other queues stop, which takes time of its own.
                let _ = peek.shutdown(Shutdown::Both);
                return match result {
                    Err(VhostError::ReqHandlerError(error)) => {
                        log::error!("client sent away: {name}: {error}");
                    }
                    _ => log::error!("client sent away: {name}"),
                };
            }
            match result {
                Ok(()) => {}
                Err(VhostError::Disconnected | VhostError::SocketBroken(_)) => return,
                Err(VhostError::SocketRetry(_)) => {}
                Err(VhostError::ReqHandlerError(error))
                    if header.is_some_and(|header| header.may_fail(acks)) =>
                {
                    log::warn!("{name} refused: {error}");
                }
                Err(VhostError::ReqHandlerError(error)) => {
                    return log::warn!("client sent away: {name}: {error}");
                }
                Err(error) => return log::warn!("client sent away: {name}: {error}"),
            }
        }
    }
}

/// Logs what no client may be there to be told.
fn log_medium(event: MediumEvent<'_>) {
    match event {
        MediumEvent::Lost(error) => {
            log::error!("the disk can't be left in order, what it kept may be lost: {error}");
        }
        MediumEvent::Refused(error) => log::error!("the disk can't be taken into use: {error}"),
        MediumEvent::Settled => {}
    }
}

fn lock(session: &Mutex<Session>) -> MutexGuard<'_, Session> {
    session.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether accepting failed without a consequence for other clients.
fn is_of_that_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
    )
}

/// Whether accepting failed for want of descriptors or memory, which may be there later.
fn is_shortage(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}

/// Waits until the client has sent something or hung up; `false` if its memory is gone.
fn wait_for_message(stream: &UnixStream, alarm: &Alarm) -> io::Result<bool> {
    let mut fds = [
        PollFd::new(alarm, PollFlags::IN),
        PollFd::new(stream, PollFlags::IN),
    ];
    loop {
        match poll(&mut fds, None) {
            Ok(_) => return Ok(fds[0].revents().is_empty()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
