// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The vhost-user protocol with one client.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_blk_core::device::Device;
use virtio_blk_core::memory::HostMemory;
use virtio_blk_core::runner::{InFlightArea, InFlightLog, Stop};
use virtio_blk_core::spec::config::WRITEBACK_OFFSET;

use crate::config_channel::ConfigChannel;
use crate::dirty_log::DirtyLog;
use crate::event;
use crate::inflight;
use crate::memory::{MAX_SLOTS, MemoryTable, Table};
use crate::server::MemoryListener;
use crate::shared_file::Alarm;
use crate::stops::Stops;
use crate::vring::{Addresses, Vring, VringContext};

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

/// An address of a region's start in the client, as the `postcopy` part of the protocol answers it.
type RegionBase = u64;

/// What a server gives to each of its sessions.
#[derive(Clone)]
pub(crate) struct SessionContext {
    pub(crate) device: Arc<Device>,
    /// How long a queue's thread looks for new work before it sleeps.
    pub(crate) poll: Duration,
    /// Told of the client's memory.
    pub(crate) listener: Option<MemoryListener>,
    pub(crate) channel: Arc<ConfigChannel>,
    pub(crate) stops: Arc<Stops>,
}

/// The in-flight area, and the size of queues that it has room for.
struct KeptArea {
    area: InFlightArea,
    queue_size: u16,
}

/// The state of the protocol with one client. Dropping it stops all queues, drained as far as the disk
/// finishes in time.
pub(crate) struct Session {
    device: Arc<Device>,
    poll: Duration,
    listener: Option<MemoryListener>,
    channel: Arc<ConfigChannel>,
    stops: Arc<Stops>,
    features: u64,
    protocol_features: u64,
    table: MemoryTable,
    log: Arc<DirtyLog>,
    alarm: Alarm,
    in_flight: Option<KeptArea>,
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

fn unsupported<T>(what: &'static str) -> Result<T> {
    Err(Error::InvalidOperation(what))
}

impl Session {
    /// # Errors
    /// The system has no descriptor left.
    pub(crate) fn new(context: SessionContext) -> io::Result<Self> {
        let log = Arc::new(DirtyLog::default());
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        let alarm = Arc::new(eventfd(0, flags)?);
        Ok(Self {
            vrings: (0..context.device.options().queues)
                .map(|_| Vring::default())
                .collect(),
            device: context.device,
            poll: context.poll,
            listener: context.listener,
            channel: context.channel,
            stops: context.stops,
            features: 0,
            protocol_features: 0,
            table: MemoryTable::new(log.clone(), alarm.clone()),
            log,
            alarm,
            in_flight: None,
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
        let context = VringContext {
            device: &self.device,
            table: &self.table,
            in_flight: self.in_flight.as_ref().map(|kept| &kept.area),
            poll: self.poll,
            needs_enable: self.features & PROTOCOL_FEATURES != 0,
        };
        let found = self.vrings.iter_mut().zip(0..);
        for (vring, number) in found.filter(|(_, number)| u32::from(*number) == index) {
            match vring.start(number, &context) {
                Ok(true) => self.channel.queue_started(),
                Ok(false) => {}
                Err(error) => {
                    vring.signal_error();
                    return Err(failed(format!("queue {number} can't be started: {error}")));
                }
            }
        }
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

    /// Leaves the driver's cache mode to whoever serves it after this process.
    fn keep_cache_mode(&self) {
        if let Some(KeptArea { area, .. }) = &self.in_flight {
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

    /// Stops those queues that `which` chooses, all of them in the time for one.
    ///
    /// # Errors
    /// The disk did not let go of some of them: the session is over.
    fn stop(&mut self, mode: Stop, which: impl Fn(&Vring) -> bool) -> Result<()> {
        let deadline = self.stops.deadline();
        let chosen = self.vrings.iter_mut().zip(0..);
        let mut chosen: Vec<_> = chosen.filter(|(vring, _)| which(vring)).collect();
        for (vring, _) in &chosen {
            vring.begin_stop(mode);
        }
        let mut result = Ok(());
        for (vring, index) in &mut chosen {
            if let Err(stuck) = vring.end_stop(*index, &self.stops, deadline) {
                log::error!("{stuck}");
                self.is_over = true;
                result = Err(failed(stuck));
            }
        }
        result
    }

    /// As [`Session::stop`], for queue `index`, drained.
    fn stop_one(&mut self, index: u32) -> Result<&mut Vring> {
        let deadline = self.stops.deadline();
        let stops = self.stops.clone();
        let vring = self.vring(index)?;
        vring.begin_stop(Stop::Drain);
        // Below the number of queues.
        if let Err(stuck) = vring.end_stop(index as u16, &stops, deadline) {
            self.is_over = true;
            return Err(failed(stuck));
        }
        self.vring(index)
    }

    /// Takes out of the in-flight area what it names of queue `index`: requests of a ring that is no more.
    fn discard_in_flight(&self, index: u16) {
        if let Some(KeptArea { area, queue_size }) = &self.in_flight
            && let Ok((mut log, heads)) = area.queue(index, *queue_size, 0)
        {
            log.returned(&heads, 0);
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
        self.stop(Stop::Drain, Vring::is_parked)?;
        self.table.replace(next);
        self.remap();
        self.tell_memory();
        self.start_ready();
        Ok(())
    }

    /// Makes running queues let go of memory that is no longer in the table. Where a disk keeps a queue's
    /// thread busy for longer than a stop may take, that is later.
    fn remap(&self) {
        let deadline = self.stops.deadline();
        let waits: Vec<_> = self.vrings.iter().filter_map(Vring::remap).collect();
        for wait in waits {
            // It ends when the queue has done it.
            let left = deadline.saturating_duration_since(Instant::now());
            if wait.recv_timeout(left) == Err(RecvTimeoutError::Timeout) {
                log::warn!("a queue is busy: it lets go of memory that was taken away later");
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // What the disk does not finish was logged, and is in the in-flight area.
        let _ = self.stop(Stop::Drain, Vring::is_running);
        self.device.reset();
        if let Some(listener) = &self.listener {
            listener(&[]);
        }
    }
}

impl VhostUserBackendReqHandlerMut for Session {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> Result<()> {
        // Its requests are the guest's no more: they need not be executed.
        self.stop(Stop::HandOver, Vring::is_running)?;
        for index in 0..self.vrings.len() {
            self.discard_in_flight(index as u16);
        }
        self.vrings.fill_with(Vring::default);
        self.kept_cache_mode = None;
        self.features = 0;
        self.log.enable(false);
        self.device.reset();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.device.offered() | PROTOCOL_BITS)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        let device_features = features & !PROTOCOL_BITS;
        // Sent again while queues run, to switch the log of a migration on and off.
        if device_features != self.device.accepted() || self.device.accepted() == 0 {
            if self.vrings.iter().any(Vring::is_running) {
                return Err(failed("features can't change while queues run"));
            }
            self.device.accept(device_features).map_err(failed)?;
        }
        self.features = features;
        self.log.enable(features & LOG_ALL != 0);
        self.start_ready();
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<RegionBase>>> {
        let next = self.table.other(regions, files).map_err(failed)?;
        self.change_memory(next)?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let max = self.device.options().queue_size;
        let vring = self.vring(index)?;
        let size = u16::try_from(num)
            .ok()
            .filter(|size| size.is_power_of_two() && *size <= max)
            .ok_or_else(|| failed(format!("queue size {num}: a power of two up to {max}")))?;
        if vring.is_running() && size != vring.size {
            return Err(failed("the queue size can't change while the queue runs"));
        }
        vring.size = size;
        self.start(index)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let addresses = Addresses {
            descriptor,
            available,
            used,
        };
        // Sent again with the log's flag set. The used ring is logged with the memory it lies in.
        if self.vring(index)?.addresses != Some(addresses)
            && self.stop_one(index)?.set_addresses(addresses)
        {
            // Below the number of queues.
            self.discard_in_flight(index as u16);
        }
        self.start(index)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let vring = self.vring(index)?;
        if vring.is_running() {
            return Err(failed("the base can't change while the queue runs"));
        }
        vring.base =
            u16::try_from(base).map_err(|_| failed(format!("base {base} of a split queue")))?;
        self.start(index)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let vring = self.stop_one(index)?;
        let state = VhostUserVringState::new(index, u32::from(vring.base));
        if vring.close() {
            // Below the number of queues.
            self.discard_in_flight(index as u16);
        }
        Ok(state)
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.vring(u32::from(index))?;
        let file =
            file.ok_or_else(|| failed("queues without a kick descriptor are not supported"))?;
        event::check(&file).map_err(failed)?;
        self.stop_one(u32::from(index))?.set_kick(Some(file));
        self.start(u32::from(index))
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let vring = self.vring(u32::from(index))?;
        if let Some(file) = &file {
            event::check(file).map_err(failed)?;
        }
        vring.set_call(file);
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let vring = self.vring(u32::from(index))?;
        if let Some(file) = &file {
            event::check(file).map_err(failed)?;
        }
        vring.set_err(file);
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(offered())
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        let extra = features & !offered().bits();
        if extra != 0 {
            return Err(failed(format!(
                "protocol features {extra:#x} were not offered"
            )));
        }
        self.protocol_features = features;
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.vrings.len() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.vring(index)?.enabled = enable;
        if !enable {
            self.stop_one(index)?;
        }
        self.start(index)
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        let mut bytes = vec![0; size as usize];
        self.device.read_config(u64::from(offset), &mut bytes);
        Ok(bytes)
    }

    fn set_config(
        &mut self,
        offset: u32,
        bytes: &[u8],
        _flags: VhostUserConfigFlags,
    ) -> Result<()> {
        self.device
            .write_config(u64::from(offset), bytes)
            .map_err(failed)?;
        self.keep_cache_mode();
        Ok(())
    }

    fn get_inflight_fd(&mut self, wanted: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        self.check_in_flight_area_unused()?;
        let options = self.device.options();
        if wanted.num_queues > options.queues || wanted.queue_size > options.queue_size {
            return Err(failed(format!(
                "in-flight area for {} queues of {}: the device has {} of {}",
                { wanted.num_queues },
                { wanted.queue_size },
                options.queues,
                options.queue_size
            )));
        }
        let (area, file, size) =
            inflight::create(wanted.num_queues, wanted.queue_size, &self.alarm).map_err(failed)?;
        self.in_flight = Some(KeptArea {
            area,
            queue_size: wanted.queue_size,
        });
        self.keep_cache_mode();
        let reply = VhostUserInflight::new(size, 0, wanted.num_queues, wanted.queue_size);
        Ok((reply, file))
    }

    fn set_inflight_fd(&mut self, area: &VhostUserInflight, file: File) -> Result<()> {
        self.check_in_flight_area_unused()?;
        let opened = inflight::open(
            &file,
            area.mmap_offset,
            area.mmap_size,
            area.num_queues,
            area.queue_size,
            &self.alarm,
        );
        let opened = opened.map_err(failed)?;
        self.kept_cache_mode = opened.cache_mode();
        self.in_flight = Some(KeptArea {
            area: opened,
            queue_size: area.queue_size,
        });
        Ok(())
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_SLOTS)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<RegionBase>> {
        let next = self.table.with(region, file).map_err(failed)?;
        self.change_memory(next)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let next = self.table.without(region).map_err(failed)?;
        self.change_memory(next)
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        self.log
            .replace(&file, log.mmap_offset, log.mmap_size, &self.alarm)
            .map_err(failed)
    }

    // Parts of the protocol that are not offered.

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        unsupported("a block device has no GPU socket")
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        unsupported("shared objects are not offered")
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        unsupported("device state transfer is not offered")
    }

    fn check_device_state(&mut self) -> Result<()> {
        unsupported("device state transfer is not offered")
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        unsupported("shared memory regions are not offered")
    }
}
