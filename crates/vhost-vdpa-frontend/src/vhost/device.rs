// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The table of operations over vhost-vdpa.

use std::ops::RangeInclusive;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vdpa_bus::{Callback, VdpaDevice, VdpaError, VqAddress, VqState, backend_feature};
use virtio_blk_core::memory::{IotlbMapping, IotlbTable};
use virtio_blk_core::spec::feature;
use vmm_sys_util::eventfd::EventFd;

use super::{AddressSpace, VhostVdpa, abi};
use crate::lock;

/// Reads of a configuration space that keeps changing, before that is an error.
const CONFIG_READS: usize = 64;
/// `VIRTIO_CONFIG_S_DRIVER_OK`.
const DRIVER_OK: u8 = 4;

impl VhostVdpa {
    fn packed(&self) -> bool {
        self.driver_features.load(Ordering::Acquire) & feature::RING_PACKED != 0
    }

    /// The eventfd of a callback.
    fn eventfd(callback: Option<&Callback>) -> Result<Option<&EventFd>, VdpaError> {
        match callback {
            None => Ok(None),
            Some(Callback::Trigger(fd)) => Ok(Some(fd)),
            Some(Callback::Call(_)) => Err(VdpaError::NotSupported("vhost only writes eventfds")),
        }
    }

    fn read_config(&self, offset: u32, buf: &mut [u8]) -> Result<(), VdpaError> {
        let mut arg = abi::config(offset, buf);
        self.ask()?
            .ioctl("VHOST_VDPA_GET_CONFIG", abi::GET_CONFIG, &mut arg)?;
        if let Some(content) = arg.get(abi::CONFIG_HEADER..) {
            buf.copy_from_slice(content);
        }
        Ok(())
    }

    fn check_config(&self, offset: usize, len: usize) -> Result<u32, VdpaError> {
        let end = offset.checked_add(len);
        match (u32::try_from(offset), end) {
            (Ok(offset), Some(end)) if len != 0 && end <= self.config_size => Ok(offset),
            _ => Err(VdpaError::Invalid(format!(
                "{len} bytes at {offset} of a configuration space of {}",
                self.config_size
            ))),
        }
    }
}

impl VdpaDevice for VhostVdpa {
    fn nvqs(&self) -> u16 {
        // At most `MAX_VQS`.
        self.vqs.len() as u16
    }

    fn ngroups(&self) -> u32 {
        self.groups
    }

    fn nas(&self) -> u32 {
        lock(&self.spaces).len() as u32
    }

    fn set_vq_address(&self, vq: u16, address: VqAddress) -> Result<(), VdpaError> {
        self.check_vq(vq)?;
        let mut arg = abi::vring_addr(vq.into(), address);
        self.ask()?
            .ioctl("VHOST_SET_VRING_ADDR", abi::SET_VRING_ADDR, &mut arg)
    }

    fn set_vq_num(&self, vq: u16, num: u32) -> Result<(), VdpaError> {
        self.check_vq(vq)?;
        self.ask()?
            .pair("VHOST_SET_VRING_NUM", abi::SET_VRING_NUM, vq.into(), num)
            .map(drop)
    }

    fn kick_vq(&self, vq: u16) {
        let Some(queue) = self.vqs.get(usize::from(vq)) else {
            return;
        };
        let kick = lock(&queue.kick).clone();
        if let Some(kick) = kick {
            match queue.doorbell.get() {
                Some(doorbell) => doorbell.ring(),
                // It only fails where the counter is about to overflow: it is readable then.
                None => drop(kick.write(1)),
            }
        }
    }

    fn set_vq_kick(&self, vq: u16, kick: Option<Arc<EventFd>>) -> Result<(), VdpaError> {
        let queue = self.vq(vq)?;
        let mut slot = lock(&queue.kick);
        self.vring_fd(
            "VHOST_SET_VRING_KICK",
            abi::SET_VRING_KICK,
            vq,
            kick.as_deref(),
        )?;
        *slot = kick;
        Ok(())
    }

    fn set_vq_cb(&self, vq: u16, callback: Option<Callback>) -> Result<(), VdpaError> {
        let queue = self.vq(vq)?;
        let fd = Self::eventfd(callback.as_ref())?;
        self.vring_fd("VHOST_SET_VRING_CALL", abi::SET_VRING_CALL, vq, fd)?;
        queue.called.store(fd.is_some(), Ordering::Release);
        Ok(())
    }

    /// A queue without a kick eventfd gets one of its own, for [`VdpaDevice::kick_vq`].
    fn set_vq_ready(&self, vq: u16, ready: bool) -> Result<(), VdpaError> {
        let queue = self.vq(vq)?;
        if ready && lock(&queue.kick).is_none() {
            let kick = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(|source| {
                VdpaError::System {
                    what: "no eventfd to be had".to_owned(),
                    source,
                }
            })?;
            self.set_vq_kick(vq, Some(Arc::new(kick)))?;
        }
        self.ask()?.pair(
            "VHOST_VDPA_SET_VRING_ENABLE",
            abi::SET_VRING_ENABLE,
            vq.into(),
            ready.into(),
        )?;
        queue.ready.store(ready, Ordering::Release);
        Ok(())
    }

    fn get_vq_ready(&self, vq: u16) -> bool {
        self.vq(vq)
            .is_ok_and(|queue| queue.ready.load(Ordering::Acquire))
    }

    fn set_vq_state(&self, vq: u16, state: VqState) -> Result<(), VdpaError> {
        self.check_vq(vq)?;
        if matches!(state, VqState::Packed { .. }) != self.packed() {
            return Err(VdpaError::Invalid(
                "the state is one of another kind of ring than was negotiated".to_owned(),
            ));
        }
        self.ask()?
            .pair(
                "VHOST_SET_VRING_BASE",
                abi::SET_VRING_BASE,
                vq.into(),
                state.vring_base(),
            )
            .map(drop)
    }

    fn get_vq_state(&self, vq: u16) -> Result<VqState, VdpaError> {
        self.check_vq(vq)?;
        let base = self
            .ask()?
            .pair("VHOST_GET_VRING_BASE", abi::GET_VRING_BASE, vq.into(), 0)?;
        VqState::from_vring_base(base, self.packed())
            .ok_or_else(|| VdpaError::Invalid(format!("a split ring at index {base:#x}")))
    }

    fn get_vq_align(&self) -> u32 {
        // The uAPI has no way to ask; parents want at most a page.
        4096
    }

    fn get_vq_group(&self, vq: u16) -> Result<u32, VdpaError> {
        self.check_vq(vq)?;
        self.ask()?.pair(
            "VHOST_VDPA_GET_VRING_GROUP",
            abi::GET_VRING_GROUP,
            vq.into(),
            0,
        )
    }

    fn get_vq_desc_group(&self, vq: u16) -> Result<u32, VdpaError> {
        self.check_vq(vq)?;
        self.ask()?.pair(
            "VHOST_VDPA_GET_VRING_DESC_GROUP",
            abi::GET_VRING_DESC_GROUP,
            vq.into(),
            0,
        )
    }

    fn get_vq_size(&self, vq: u16) -> Result<u16, VdpaError> {
        self.check_vq(vq)?;
        let size = self.ask()?.pair(
            "VHOST_VDPA_GET_VRING_SIZE",
            abi::GET_VRING_SIZE,
            vq.into(),
            0,
        )?;
        u16::try_from(size).map_err(|_| VdpaError::Invalid(format!("a queue of {size}")))
    }

    fn get_vq_num_max(&self) -> u16 {
        self.num_max
    }

    fn get_device_features(&self) -> u64 {
        self.ask()
            .and_then(|ask| ask.u64("VHOST_GET_FEATURES", abi::GET_FEATURES))
            .unwrap_or(0)
    }

    fn get_backend_features(&self) -> u64 {
        self.backend_features
    }

    fn set_driver_features(&self, features: u64) -> Result<(), VdpaError> {
        self.ask()?.ioctl(
            "VHOST_SET_FEATURES",
            abi::SET_FEATURES,
            &mut features.to_ne_bytes(),
        )?;
        self.driver_features.store(features, Ordering::Release);
        Ok(())
    }

    fn get_driver_features(&self) -> u64 {
        self.driver_features.load(Ordering::Acquire)
    }

    fn set_config_cb(&self, callback: Option<Callback>) -> Result<(), VdpaError> {
        let fd = Self::eventfd(callback.as_ref())?;
        let raw = fd.map_or(-1, |fd| fd.as_raw_fd());
        self.ask()?.ioctl(
            "VHOST_VDPA_SET_CONFIG_CALL",
            abi::SET_CONFIG_CALL,
            &mut raw.to_ne_bytes(),
        )?;
        self.config_call.store(fd.is_some(), Ordering::Release);
        Ok(())
    }

    fn get_device_id(&self) -> u32 {
        self.device_id
    }

    fn get_vendor_id(&self) -> u32 {
        // Not in the uAPI.
        0
    }

    fn get_status(&self) -> u8 {
        let mut status = [0];
        match self
            .ask()
            .and_then(|ask| ask.ioctl("VHOST_VDPA_GET_STATUS", abi::GET_STATUS, &mut status))
        {
            Ok(()) => status[0],
            Err(_) => 0,
        }
    }

    fn set_status(&self, status: u8) -> Result<(), VdpaError> {
        if status == 0 {
            return self.reset();
        }
        let ask = self.ask()?;
        if status & DRIVER_OK != 0 {
            for asid in 0..self.nas() {
                self.change(asid, |space, sender| space.refresh(sender))?;
            }
        }
        ask.ioctl("VHOST_VDPA_SET_STATUS", abi::SET_STATUS, &mut [status])
    }

    fn reset(&self) -> Result<(), VdpaError> {
        let ask = self.ask()?;
        ask.ioctl("VHOST_VDPA_SET_STATUS", abi::SET_STATUS, &mut [0])?;
        self.driver_features.store(0, Ordering::Release);
        if self.backend_features & backend_feature::IOTLB_PERSIST == 0 {
            lock(&self.spaces).iter_mut().for_each(AddressSpace::forget);
        }
        for (vq, queue) in (0..).zip(&self.vqs) {
            queue.ready.store(false, Ordering::Release);
            if queue.called.load(Ordering::Acquire) {
                self.set_vq_cb(vq, None)?;
            }
        }
        if self.config_call.load(Ordering::Acquire) {
            self.set_config_cb(None)?;
        }
        Ok(())
    }

    fn compat_reset(&self, clean_map: bool) -> Result<(), VdpaError> {
        self.reset()?;
        if clean_map {
            for asid in 0..self.nas() {
                self.set_map(asid, &IotlbTable::new())?;
            }
        }
        Ok(())
    }

    fn suspend(&self) -> Result<(), VdpaError> {
        self.ask()?
            .ioctl("VHOST_VDPA_SUSPEND", abi::SUSPEND, &mut [])
    }

    fn resume(&self) -> Result<(), VdpaError> {
        self.ask()?.ioctl("VHOST_VDPA_RESUME", abi::RESUME, &mut [])
    }

    fn get_config_size(&self) -> usize {
        self.config_size
    }

    fn get_config(&self, offset: usize, buf: &mut [u8]) -> Result<(), VdpaError> {
        let offset = self.check_config(offset, buf.len())?;
        self.read_config(offset, buf)?;
        let mut again = vec![0; buf.len()];
        for _ in 0..CONFIG_READS {
            self.read_config(offset, &mut again)?;
            if again == buf {
                return Ok(());
            }
            buf.copy_from_slice(&again);
        }
        Err(VdpaError::Busy(
            "the configuration space never stands still",
        ))
    }

    fn set_config(&self, offset: usize, buf: &[u8]) -> Result<(), VdpaError> {
        let offset = self.check_config(offset, buf.len())?;
        let mut arg = abi::config(offset, buf);
        self.ask()?
            .ioctl("VHOST_VDPA_SET_CONFIG", abi::SET_CONFIG, &mut arg)
    }

    fn get_iova_range(&self) -> RangeInclusive<u64> {
        self.iova_range.clone()
    }

    fn set_group_asid(&self, group: u32, asid: u32) -> Result<(), VdpaError> {
        self.ask()?
            .pair(
                "VHOST_VDPA_SET_GROUP_ASID",
                abi::SET_GROUP_ASID,
                group,
                asid,
            )
            .map(drop)
    }

    fn set_map(&self, asid: u32, table: &IotlbTable) -> Result<(), VdpaError> {
        self.change(asid, |space, sender| space.replace(sender, table))
    }

    fn dma_map(&self, asid: u32, mapping: IotlbMapping) -> Result<(), VdpaError> {
        self.change(asid, |space, sender| space.map(sender, mapping))
    }

    fn dma_unmap(&self, asid: u32, iova: u64, size: u64) -> Result<(), VdpaError> {
        let last = size.checked_sub(1).and_then(|span| iova.checked_add(span));
        let last = last.ok_or_else(|| {
            VdpaError::Invalid(format!("a range of {size:#x} bytes from {iova:#x} on"))
        })?;
        self.change(asid, |space, sender| space.unmap(sender, iova, last))
    }

    fn free(&self) {
        let unmapped = self.compat_reset(true);
        if let Err(error) = unmapped {
            log::debug!("{}: freed with {error}", self.name());
        }
        for vq in 0..self.nvqs() {
            // Nothing to be done about an error: the descriptor is closed soon.
            let _ = self.set_vq_kick(vq, None);
        }
        self.gone.store(true, Ordering::Release);
    }
}
