// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One device: set up, served, taken away.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use virtio_blk_core::device::{AbiError, Device};
use virtio_blk_core::disk::DiskError;
use virtio_blk_core::runner::Medium;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::kernel::{DeviceFile, Kernel};
use crate::message::Message;
use crate::session::Session;
use crate::setup::{Established, establish};
use crate::state::State;

/// Why a device could not be served, or not any longer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The kernel module is missing.
    #[error(
        "there is no /dev/vduse/control: load the kernel module with `modprobe vduse` (and virtio_vdpa or \
         vhost_vdpa)"
    )]
    NoModule,
    /// Not allowed to create devices.
    #[error("/dev/vduse/control may not be opened: run as root")]
    Permission,
    /// The control file does not do what it should.
    #[error("VDUSE can't be used: {0}")]
    Control(#[source] io::Error),
    /// Not a name for a device.
    #[error("{0:?} is no name for a device: give up to 64 letters, digits, and any of - _ . :")]
    Name(String),
    /// The device model does not fit VDUSE.
    #[error("the device's options don't fit VDUSE: {0}")]
    Features(&'static str),
    /// The kernel does not create the device.
    #[error("device {name} can't be created: {source}")]
    Create {
        /// Its name.
        name: String,
        /// The cause.
        source: io::Error,
    },
    /// Another process serves the device.
    #[error("device {0} is served by another process: stop it, or give another name")]
    InUse(String),
    /// The device exists, must be made anew, and can't.
    #[error("device {name} {why}, and is attached: run `vdpa dev del {name}`, then start again")]
    Attached {
        /// Its name.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// The device is attached, and a driver was told something else than this server could keep to.
    #[error("device {name} is in use: {source}; or run `vdpa dev del {name}`, then start again")]
    Promised {
        /// Its name.
        name: String,
        /// What differs, and what to do.
        source: AbiError,
    },
    /// An attribute can't be set.
    #[error("{attribute} can't be set to {value}: {source}")]
    Attribute {
        /// Its name in `/sys/class/vduse/NAME`.
        attribute: &'static str,
        /// As asked for.
        value: u64,
        /// The cause.
        source: io::Error,
    },
    /// The record of the device can't be kept.
    #[error("the device's record can't be kept in {directory}: {source}")]
    State {
        /// The directory.
        directory: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The device's file does not do what it should.
    #[error("the device can't be served: {0}")]
    Device(#[source] io::Error),
    /// What the disk kept in memory could not be made stable when it was released. The disk is not in use any more.
    #[error("the disk can't be left in order: {source}; what it kept in memory may be lost")]
    Lost {
        /// What became of the device.
        outcome: Outcome,
        /// Why.
        source: DiskError,
    },
    /// A message was not answered in time: the kernel has given the device up.
    #[error(
        "the kernel gave device {0} up, as a message was not answered in time: run `vdpa dev del {0}`, then \
         start again"
    )]
    Broken(String),
}

/// How to serve a device.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Its name: `/dev/vduse/NAME`.
    pub name: String,
    /// How long a queue's thread looks for new work before it sleeps; zero: not at all. A thread that shares a
    /// single CPU with its driver never does.
    pub poll: Duration,
    /// Whether a queue's thread runs on the CPUs on which the driver takes the queue's interrupts: neither has to
    /// wake another CPU up then. virtio-vdpa gives each queue its CPUs, where there are several queues.
    pub pin: bool,
    /// Where the record is kept that lets a restarted server continue. Must not outlive a boot.
    pub state_dir: PathBuf,
    /// Bytes of the bounce buffer of virtio-vdpa (Linux 6.12: 1 MiB to 1 GiB, 64 MiB by default).
    pub bounce_size: Option<u64>,
    /// Seconds until the kernel gives the device up that does not answer (30 by default; 0: never).
    pub msg_timeout: Option<u32>,
}

/// What became of a device whose server was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is gone.
    Removed,
    /// It is attached to the vDPA bus, so it is still there: requests wait for the next server, or
    /// `vdpa dev del` takes it away.
    Attached,
    /// The disk did not release its requests in time; they are left to the next server. Their threads, and with them
    /// the device's file, stay until the disk releases them or the process ends, whichever is first; no server can
    /// take the device over before.
    Unfinished,
}

#[derive(Debug)]
struct Shared {
    wake: Arc<EventFd>,
    stopping: AtomicBool,
    config_changed: AtomicBool,
    live: AtomicBool,
}

impl Shared {
    fn signal(&self) {
        // The counter can't overflow within a process's life.
        let _ = self.wake.write(1);
    }
}

/// Stops a server and tells how it is, from any thread.
#[derive(Clone, Debug)]
pub struct ServerHandle(Arc<Shared>);

impl ServerHandle {
    /// Makes [`Server::run`] return: once the disk has released the requests that were taken, and after a fifth of the
    /// kernel's `msg_timeout` (at most 6 seconds) all the same, see [`Outcome::Unfinished`]. What was not returned to
    /// the driver by then is left to the next server, as after a kill, also what a layer holds back (a limit, a pause,
    /// a policy for errors). Returns at once.
    pub fn stop(&self) {
        self.0.stopping.store(true, Ordering::Release);
        self.0.signal();
    }

    /// Whether a driver uses the device.
    pub fn is_live(&self) -> bool {
        self.0.live.load(Ordering::Relaxed)
    }
}

/// Serves one VDUSE device. Dropping it instead of running it removes the device, unless that is attached.
pub struct Server {
    session: Session,
    file: Arc<dyn DeviceFile>,
    shared: Arc<Shared>,
    taken_over: bool,
    /// Behind what has the device open.
    presence: Presence,
}

/// A device of the kernel that nobody serves. Dropping it removes the device, unless it is attached.
struct Presence {
    kernel: Arc<dyn Kernel>,
    options: ServerOptions,
    /// Whether it exists because of this server, which has not run.
    is_unserved: bool,
}

impl Presence {
    /// Removes the device if nobody can use it.
    fn remove(&self) -> Result<Outcome, ServerError> {
        let name = &self.options.name;
        let control = self.kernel.control().map_err(ServerError::Control)?;
        match control.destroy(name) {
            Ok(()) => {
                State::remove(&self.options.state_dir, name);
                Ok(Outcome::Removed)
            }
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(Outcome::Attached),
            Err(error) => Err(ServerError::Device(error)),
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        if self.is_unserved
            && let Err(error) = self.remove()
        {
            let name = &self.options.name;
            log::error!("device {name} is not served, and can't be removed: {error}");
        }
    }
}

impl Server {
    /// Creates the device, or takes it over from a server that died: with what that had in flight, and
    /// with the disk's present size. A device that is broken, or would be another with these options, is made anew,
    /// unless it is attached. Of an attached one the driver knows features, limits, number and size of queues: they
    /// stay as they are if `device` can do as much or more ([`Device::adopt`]), else the server is refused.
    ///
    /// `device` must offer ACCESS_PLATFORM ([`virtio_blk_core::device::DeviceOptions::transport_features`]) and
    /// not CONFIG_WCE. Messages are answered by [`Server::run`] only: attach the device from another thread.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn new(
        kernel: Arc<dyn Kernel>,
        device: Arc<Device>,
        options: ServerOptions,
    ) -> Result<Self, ServerError> {
        let mut presence = Presence {
            kernel,
            options,
            is_unserved: false,
        };
        let (kernel, options) = (&presence.kernel, &presence.options);
        let Established {
            file,
            state,
            taken_over,
        } = establish(kernel.as_ref(), &device, options)?;
        presence.is_unserved = true;
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(ServerError::Device)?;
        let shared = Arc::new(Shared {
            wake: Arc::new(wake),
            stopping: AtomicBool::new(false),
            config_changed: AtomicBool::new(taken_over),
            live: AtomicBool::new(false),
        });
        shared.signal();
        let weak = Arc::downgrade(&shared);
        device.listen(Box::new(move || {
            if let Some(shared) = weak.upgrade() {
                shared.config_changed.store(true, Ordering::Release);
                shared.signal();
            }
        }));
        let session = Session::new(
            presence.kernel.clone(),
            device,
            file.clone(),
            state,
            (presence.options.poll, presence.options.pin),
            shared.wake.clone(),
        );
        Ok(Self {
            session: session.map_err(ServerError::Device)?,
            file,
            shared,
            taken_over,
            presence,
        })
    }

    /// The disk, in use or not, for a caller that must not end before it is left: after [`Outcome::Unfinished`] it may
    /// still make stable what it keeps in memory.
    pub fn medium(&self) -> Medium {
        self.session.medium().clone()
    }

    /// A handle to stop this server.
    pub fn handle(&self) -> ServerHandle {
        ServerHandle(self.shared.clone())
    }

    /// Whether the device was served before, by a server that died.
    pub fn is_taken_over(&self) -> bool {
        self.taken_over
    }

    /// Serves until [`ServerHandle::stop`], which has a bound. [`Outcome`] says what became of the device: one that is
    /// not attached was removed.
    ///
    /// # Errors
    /// [`ServerError::Lost`]. Or the kernel gave the device up, or its file does not do what it should: requests in
    /// flight are in the record for the next server. Returns within the same bound; what the disk did not release by
    /// then stays behind as with [`Outcome::Unfinished`].
    pub fn run(mut self) -> Result<Outcome, ServerError> {
        self.presence.is_unserved = false;
        if self.taken_over {
            self.session.resume();
        }
        let served = self.serve();
        let Self {
            session,
            file,
            presence,
            ..
        } = self;
        let ended = session.end();
        drop(file);
        served?;
        let outcome = if ended.finished {
            presence.remove()?
        } else {
            log::warn!("the disk does not finish: its requests are left to the next server");
            Outcome::Unfinished
        };
        match ended.lost {
            Some(source) => Err(ServerError::Lost { outcome, source }),
            None => Ok(outcome),
        }
    }

    fn serve(&mut self) -> Result<(), ServerError> {
        let mut finishing = false;
        loop {
            self.shared
                .live
                .store(self.session.is_live(), Ordering::Relaxed);
            if self.session.is_finished() {
                return Ok(());
            }
            let timeout = self.session.next();
            let timeout = timeout.map(|at| at.saturating_duration_since(Instant::now()));
            let alarm = self.session.memory().alarm().clone();
            let events = self
                .file
                .wait(
                    &[
                        borrow(&self.shared.wake),
                        borrow(self.session.kicked()),
                        alarm.as_fd(),
                    ],
                    timeout,
                )
                .map_err(ServerError::Device)?;
            if events.broken {
                return Err(ServerError::Broken(self.presence.options.name.clone()));
            }
            let _ = self.shared.wake.read();
            if rang(&alarm) {
                self.session.alarmed();
            }
            if self.shared.config_changed.swap(false, Ordering::AcqRel) {
                self.session.push_config();
            }
            // Behind the above: a driver that comes reads what is true now.
            if events.message {
                self.answer()?;
            }
            if self.shared.stopping.load(Ordering::Acquire) && !finishing {
                finishing = true;
                self.session.finish();
            }
            self.session.work();
        }
    }

    fn answer(&mut self) -> Result<(), ServerError> {
        let Some(raw) = self.file.read().map_err(ServerError::Device)? else {
            return Ok(());
        };
        let message = Message::parse(&raw);
        let answer = self.session.handle(message.request);
        match self.file.respond(&answer.to_bytes(message.id)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                log::debug!("nobody waits for the answer to {:?}", message.request);
            }
            Err(error) => return Err(ServerError::Device(error)),
        }
        Ok(())
    }
}

fn borrow(eventfd: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the eventfd is open as long as it is borrowed.
    unsafe { BorrowedFd::borrow_raw(eventfd.as_raw_fd()) }
}

/// Whether an eventfd is readable.
fn rang(fd: &impl AsFd) -> bool {
    let mut fds = [rustix::event::PollFd::new(fd, rustix::event::PollFlags::IN)];
    let now = rustix::event::Timespec::default();
    matches!(rustix::event::poll(&mut fds, Some(&now)), Ok(1))
}
