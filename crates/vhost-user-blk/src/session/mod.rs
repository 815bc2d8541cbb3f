// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The vhost-user protocol with one client.

mod requests;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Error, Result};
use virtio_blk_core::device::Device;
use virtio_blk_core::memory::HostMemory;
use virtio_blk_core::runner::{InFlightArea, Medium, QueueSet, Stop, Stopped};
use virtio_blk_core::spec::config::WRITEBACK_OFFSET;

use crate::config_channel::ConfigChannel;
use crate::dirty_log::DirtyLog;
use crate::memory::{Memory, MemoryTable, Table};
use crate::shared_file::Alarm;
use crate::stops::{LeaveError, Stops, Stuck};
use crate::told::Told;
use crate::vring::{Vring, VringContext};

/// Told of a client's memory: see [`Server::on_memory`](crate::Server::on_memory).
pub(crate) type MemoryListener = Arc<dyn Fn(&[(u64, HostMemory)]) + Send + Sync>;

const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
const LOG_ALL: u64 = VhostUserVirtioFeatures::LOG_ALL.bits();

/// Bits of the feature word that belong to the protocol and not to the device.
const PROTOCOL_BITS: u64 = PROTOCOL_FEATURES | LOG_ALL;

/// The protocol features offered.
fn offered() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::LOG_SHMFD
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::BACKEND_REQ
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::INFLIGHT_SHMFD
        | VhostUserProtocolFeatures::RESET_DEVICE
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
}

/// The names of the vhost-user protocol features that every server offers.
pub fn protocol_feature_names() -> Vec<String> {
    offered()
        .iter_names()
        .map(|(name, _)| name.to_owned())
        .collect()
}

/// What a server gives to each of its sessions.
#[derive(Clone)]
pub(crate) struct SessionContext {
    pub(crate) device: Arc<Device>,
    /// How long a queue's thread looks for new work before it sleeps.
    pub(crate) poll: Duration,
    /// Told of the client's memory.
    pub(crate) listener: Option<MemoryListener>,
    pub(crate) channel: Arc<ConfigChannel>,
    pub(crate) told: Arc<Told>,
    pub(crate) medium: Medium,
    pub(crate) stops: Arc<Stops>,
}

/// The state of the protocol with one client. Dropping it stops all queues as far as the disk finishes in
/// time: drained, or with requests left in the in-flight area for the next server if the client has one.
pub(crate) struct Session {
    device: Arc<Device>,
    poll: Duration,
    listener: Option<MemoryListener>,
    channel: Arc<ConfigChannel>,
    told: Arc<Told>,
    threads: QueueSet<Memory>,
    stops: Arc<Stops>,
    features: u64,
    protocol_features: u64,
    table: MemoryTable,
    log: Arc<DirtyLog>,
    alarm: Alarm,
    in_flight: Option<InFlightArea>,
    /// The device presents what this client's guest was told by another server.
    adopted: bool,
    /// The cache mode of an earlier server, until the features are known.
    kept_cache_mode: Option<u8>,
    vrings: Vec<Vring>,
    /// Nothing more can be done for the client: its connection ends, whether or not it can be told.
    is_over: bool,
}

/// The protocol's word for a failure of ours; the client sees it where it asked for an acknowledgement.
fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::ReqHandlerError(io::Error::other(error))
}

impl Session {
    /// # Errors
    /// The system has no descriptor left.
    pub(crate) fn new(context: SessionContext) -> io::Result<Self> {
        let log = Arc::new(DirtyLog::default());
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        let alarm = Arc::new(eventfd(0, flags)?);
        let queues = context.device.options().queues;
        Ok(Self {
            vrings: (0..queues).map(|_| Vring::default()).collect(),
            device: context.device,
            poll: context.poll,
            listener: context.listener,
            channel: context.channel,
            told: context.told,
            threads: QueueSet::new(context.medium, queues, || {}),
            stops: context.stops,
            features: 0,
            protocol_features: 0,
            table: MemoryTable::new(log.clone(), alarm.clone()),
            log,
            alarm,
            in_flight: None,
            adopted: false,
            kept_cache_mode: None,
            is_over: false,
        })
    }

    /// Becomes readable when the client has taken memory away that it shares, and this side has noticed.
    pub(crate) fn alarm(&self) -> &Alarm {
        &self.alarm
    }

    /// Whether the client can be told of a failed request.
    pub(crate) fn acks(&self) -> bool {
        self.protocol_features & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0
    }

    /// Whether the connection must end after the message that was handled last.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    fn vring(&mut self, index: u32) -> Result<&mut Vring> {
        let queues = self.vrings.len();
        usize::try_from(index)
            .ok()
            .and_then(|index| self.vrings.get_mut(index))
            .ok_or_else(|| failed(format!("queue {index} of a device with {queues}")))
    }

    /// Starts queue `index` if it has become ready.
    fn start(&mut self, index: u32) -> Result<()> {
        self.restore_cache_mode();
        let mut context = VringContext {
            device: &self.device,
            table: &self.table,
            in_flight: self.in_flight.as_ref(),
            poll: self.poll,
            threads: &mut self.threads,
            deadline: self.stops.start_deadline(),
            needs_enable: self.features & PROTOCOL_FEATURES != 0,
        };
        let found = self.vrings.iter_mut().zip(0..);
        for (vring, number) in found.filter(|(_, number)| u32::from(*number) == index) {
            match vring.start(number, &mut context) {
                Ok(true) => self.channel.queue_started(),
                Ok(false) => {}
                Err(error) => {
                    vring.signal_error();
                    let error = failed(format!("queue {number} can't be started: {error}"));
                    self.leave_unused(self.stops.deadline());
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Starts queue `index`, which was stopped, if it is ready; without it the disk may not be in use any more.
    fn start_or_leave(&mut self, index: u32, deadline: Instant) -> Result<()> {
        self.start(index)?;
        self.leave_unused(deadline);
        Ok(())
    }

    /// Starts every queue that has become ready. What is wrong with one of them is not the fault of the
    /// request at hand, and does not keep the others from starting.
    fn start_ready(&mut self) {
        for index in 0..self.vrings.len() as u32 {
            if let Err(error) = self.start(index) {
                log::warn!("{error}");
            }
        }
    }

    /// Releases the disk if no queue uses it.
    ///
    /// # Errors
    /// What the disk kept could not be made stable, or not in time.
    fn leave(&self, deadline: Instant) -> std::result::Result<(), LeaveError> {
        if self.vrings.iter().any(Vring::is_used) {
            return Ok(());
        }
        match self.threads.release(deadline) {
            Some(left) => left.map_err(LeaveError::Lost),
            None => Err(LeaveError::Slow(self.stops.time())),
        }
    }

    /// As [`Session::leave`], where the client can't be told of a failure. What is lost was logged as it happened.
    fn leave_unused(&self, deadline: Instant) {
        if let Err(error @ LeaveError::Slow(_)) = self.leave(deadline) {
            log::error!("{error}");
        }
    }

    /// Leaves the driver's cache mode to the server that comes after this process.
    fn keep_cache_mode(&self) {
        if let Some(area) = &self.in_flight {
            area.keep_cache_mode(self.device.config().writeback);
        }
    }

    /// Takes over the cache mode that an earlier server left. Without CONFIG_WCE there is none to take.
    fn restore_cache_mode(&mut self) {
        if self.device.accepted() != 0
            && let Some(mode) = self.kept_cache_mode.take()
        {
            let _ = self.device.write_config(WRITEBACK_OFFSET as u64, &[mode]);
        }
    }

    /// Queues that run without the area, or with another one, would leave no trace in it.
    fn check_in_flight_area_unused(&self) -> Result<()> {
        if self.vrings.iter().any(Vring::is_running) {
            return Err(failed("the in-flight area can't change while queues run"));
        }
        Ok(())
    }

    /// Stops those queues that `which` chooses, all of them until `deadline`.
    ///
    /// # Errors
    /// The disk did not release some of them: the session is over.
    fn stop(
        &mut self,
        mode: Stop,
        which: impl Fn(u16, &Vring) -> bool,
        deadline: Instant,
    ) -> Result<()> {
        let vrings = (0..).zip(&self.vrings);
        let chosen: Vec<bool> = vrings.map(|(index, vring)| which(index, vring)).collect();
        let chosen = |index: u16| chosen.get(usize::from(index)) == Some(&true);
        let vrings = &mut self.vrings;
        let mut set_stopped = |index: u16, stopped: Option<&Stopped>| {
            if let Some(vring) = vrings.get_mut(usize::from(index)) {
                vring.set_stopped(stopped);
            }
        };
        let queues = self.threads.stop(chosen, mode, deadline, |index, stopped| {
            set_stopped(index, stopped.as_ref());
        });
        if queues.is_empty() {
            return Ok(());
        }
        self.is_over = true;
        self.threads.leave_behind(|index| queues.contains(&index));
        queues.iter().for_each(|index| set_stopped(*index, None));
        let time = self.stops.time();
        Err(failed(Stuck { queues, time }))
    }

    /// As [`Session::stop`], for queue `index`, drained.
    fn stop_one(&mut self, index: u32, deadline: Instant) -> Result<&mut Vring> {
        self.vring(index)?;
        let is_it = |number, _: &Vring| u32::from(number) == index;
        self.stop(Stop::Drain, is_it, deadline)?;
        self.vring(index)
    }

    /// Takes out of the in-flight area what it names of queue `index`: requests of a ring that is no more.
    fn discard_in_flight(&self, index: u16) {
        if let Some(area) = &self.in_flight {
            // A queue that the area does not have is not in it.
            let _ = area.discard(index);
        }
    }

    fn tell_memory(&self) {
        if let Some(listener) = &self.listener {
            listener(&HostMemory::of_map(&self.table.memory()));
        }
    }

    /// Brings another memory table into force. Queues whose rings it does not have where they were wait
    /// until it has.
    fn change_memory(&mut self, next: Table) -> Result<()> {
        let now = self.table.table();
        let losing: Vec<bool> = (self.vrings.iter())
            .map(|vring| vring.loses_ring(now, &next))
            .collect();
        let mut losers = losing.iter();
        // While the ring is still there.
        for vring in &mut self.vrings {
            vring.set_parked(losers.next() == Some(&true));
        }
        let is_parked = |_, vring: &Vring| vring.is_parked();
        self.stop(Stop::Drain, is_parked, self.stops.deadline())?;
        self.table.replace(next);
        self.remap();
        self.tell_memory();
        self.start_ready();
        Ok(())
    }

    /// Makes running queues release memory that is no longer in the table. Where a disk keeps a queue's
    /// thread busy for longer than a stop may take, that is later.
    fn remap(&self) {
        let deadline = self.stops.deadline();
        let left = deadline.saturating_duration_since(Instant::now());
        if self.threads.remap().recv_timeout(left) == Err(RecvTimeoutError::Timeout) {
            log::warn!("a queue is busy: it lets go of memory that was taken away later");
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // What can be executed for the client's next connection need not be waited for, and what a policy
        // holds back must not fail.
        let mode = match self.in_flight {
            Some(_) => Stop::HandOver,
            None => Stop::Drain,
        };
        // What the disk does not finish was logged, and is in the in-flight area.
        let deadline = self.stops.deadline();
        if let Err(error) = self.stop(mode, |_, vring| vring.is_running(), deadline) {
            log::error!("{error}");
        }
        self.vrings.clear();
        self.leave_unused(deadline);
        // Before the device changes: the record of what this client's guest was told stays as it is.
        self.told.close();
        self.device.reset();
        if self.adopted {
            // The next client may have another guest.
            self.device.present_own();
        }
        if let Some(listener) = &self.listener {
            listener(&[]);
        }
    }
}
