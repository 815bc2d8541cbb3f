// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What each request of the protocol does.

use std::fs::File;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_blk_core::runner::Stop;

use super::{LOG_ALL, PROTOCOL_BITS, Session, failed, offered};
use crate::event;
use crate::inflight;
use crate::memory::MAX_SLOTS;
use crate::vring::{Addresses, Vring};

/// An address of a region's start in the client, as the `postcopy` part of the protocol returns it.
type RegionBase = u64;

fn unsupported<T>(what: &'static str) -> Result<T> {
    Err(Error::InvalidOperation(what))
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
        let deadline = self.stops.deadline();
        self.stop(Stop::HandOver, |_, vring| vring.is_running(), deadline)?;
        for index in 0..self.vrings.len() {
            self.discard_in_flight(index as u16);
        }
        self.vrings.fill_with(Vring::default);
        self.leave_unused(deadline);
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
        let max = self.device.guest_abi().queue_size;
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
        let deadline = self.stops.deadline();
        if self.vring(index)?.addresses != Some(addresses)
            && self.stop_one(index, deadline)?.set_addresses(addresses)
        {
            // Below the number of queues.
            self.discard_in_flight(index as u16);
        }
        self.start_or_leave(index, deadline)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let vring = self.vring(index)?;
        if vring.is_running() {
            return Err(failed("the base can't change while the queue runs"));
        }
        let base =
            u16::try_from(base).map_err(|_| failed(format!("base {base} of a split queue")))?;
        vring.set_base(base);
        self.start(index)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let deadline = self.stops.deadline();
        let vring = self.stop_one(index, deadline)?;
        let Some(base) = vring.base() else {
            self.is_over = true;
            let text = "its thread panicked: where it stands is not known";
            return Err(failed(format!("queue {index}: {text}")));
        };
        let state = VhostUserVringState::new(index, u32::from(base));
        if vring.close() {
            // Below the number of queues.
            self.discard_in_flight(index as u16);
        }
        // A client that continues elsewhere must not believe that all is stable if it is not.
        self.leave(deadline).map_err(|error| {
            self.is_over = true;
            failed(error)
        })?;
        Ok(state)
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.vring(u32::from(index))?;
        let file =
            file.ok_or_else(|| failed("queues without a kick descriptor are not supported"))?;
        event::check(&file).map_err(failed)?;
        let (index, deadline) = (u32::from(index), self.stops.deadline());
        self.stop_one(index, deadline)?.set_kick(Some(file));
        self.start_or_leave(index, deadline)
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
        Ok(u64::from(self.device.guest_abi().queues))
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let deadline = self.stops.deadline();
        self.vring(index)?.enabled = enable;
        if !enable {
            self.stop_one(index, deadline)?;
        }
        self.start_or_leave(index, deadline)
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
        let abi = self.device.guest_abi();
        if wanted.num_queues > abi.queues || wanted.queue_size > abi.queue_size {
            return Err(failed(format!(
                "in-flight area for {} queues of {}: the device has {} of {}",
                { wanted.num_queues },
                { wanted.queue_size },
                abi.queues,
                abi.queue_size
            )));
        }
        let (queues, queue_size) = (wanted.num_queues, wanted.queue_size);
        let (area, file, size) =
            inflight::create(queues, queue_size, abi.queue_size, &self.alarm).map_err(failed)?;
        self.told.keep_in(&self.device, &area);
        self.in_flight = Some(area);
        self.keep_cache_mode();
        let reply = VhostUserInflight::new(size, 0, queues, queue_size);
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
        // A client that continued with less than its guest was told would corrupt it: it is sent away, and can
        // come back once the server was started with what is missing.
        let told = self.told.adopt(&self.device, &opened).map_err(|error| {
            self.is_over = true;
            failed(error)
        })?;
        self.adopted |= told;
        // With the record the device has taken it over.
        self.kept_cache_mode = opened.cache_mode().filter(|_| !told);
        self.in_flight = Some(opened);
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
