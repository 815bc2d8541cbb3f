// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The operations of a vDPA device, as a driver calls them.

use std::ops::RangeInclusive;
use std::sync::Arc;

use vdpa_bus::{Callback, VdpaDevice, VdpaError, VqAddress, VqState, backend_feature};
use virtio_blk_core::device::StatusChange;
use virtio_blk_core::memory::KeepAlive;
use virtio_blk_core::memory::{IotlbMapping, IotlbTable};
use virtio_blk_core::spec::{self, feature, status};
use vmm_sys_util::eventfd::EventFd;

use super::Strict;
use super::control::Mm;
use crate::address_space::last;
use crate::lock;

impl VdpaDevice for Strict {
    fn nvqs(&self) -> u16 {
        self.device.options().queues
    }

    fn ngroups(&self) -> u32 {
        self.groups
    }

    fn nas(&self) -> u32 {
        self.spaces.count()
    }

    fn use_va(&self) -> bool {
        self.use_va
    }

    fn set_vq_address(&self, vq: u16, address: VqAddress) -> Result<(), VdpaError> {
        for (what, at, align) in [
            ("descriptor table", address.desc, 16),
            ("available ring", address.driver, 2),
            ("used ring", address.device, 4),
        ] {
            if !at.is_multiple_of(align) {
                return Err(VdpaError::Invalid(format!(
                    "the {what} at {at:#x} is not aligned to {align} bytes"
                )));
            }
        }
        lock(&self.control).vq(vq)?.address = address;
        Ok(())
    }

    fn set_vq_num(&self, vq: u16, num: u32) -> Result<(), VdpaError> {
        let max = self.get_vq_num_max();
        let size = u16::try_from(num)
            .ok()
            .filter(|size| size.is_power_of_two() && *size <= max)
            .ok_or_else(|| {
                VdpaError::Invalid(format!("queue size {num}: give a power of two up to {max}"))
            })?;
        lock(&self.control).vq(vq)?.num = size;
        Ok(())
    }

    #[inline]
    fn kick_vq(&self, vq: u16) {
        if !self.faults.kicks.roll() {
            self.notifier.signal(vq);
        }
    }

    fn set_vq_kick(&self, vq: u16, kick: Option<Arc<EventFd>>) -> Result<(), VdpaError> {
        self.check_vq(vq)?;
        self.notifier
            .set_kick(vq, kick.as_deref())
            .map_err(|source| VdpaError::System {
                what: format!("the kick eventfd of queue {vq}"),
                source,
            })?;
        // A worker that sleeps is woken by its epoll.
        Ok(())
    }

    fn set_vq_cb(&self, vq: u16, callback: Option<Callback>) -> Result<(), VdpaError> {
        self.queue(vq)?.callback.set(callback);
        Ok(())
    }

    fn set_vq_ready(&self, vq: u16, ready: bool) -> Result<(), VdpaError> {
        let mut control = lock(&self.control);
        let state = control.vq(vq)?;
        if ready == state.active.is_some() {
            return Ok(());
        }
        if ready {
            state.active = Some((state.address, state.num));
            self.start(&mut control, vq);
            return Ok(());
        }
        self.drain(&mut control, vq);
        control.vq(vq)?.active = None;
        self.release(&mut control)
    }

    fn get_vq_ready(&self, vq: u16) -> bool {
        lock(&self.control)
            .vq(vq)
            .is_ok_and(|state| state.active.is_some())
    }

    fn set_vq_state(&self, vq: u16, state: VqState) -> Result<(), VdpaError> {
        let VqState::Split { avail_index } = state else {
            return Err(VdpaError::Invalid(
                "a packed ring's state: packed rings are not offered".into(),
            ));
        };
        let mut control = lock(&self.control);
        let state = control.vq(vq)?;
        if self.queue(vq)?.control().is_some() {
            return Err(VdpaError::Busy("the queue is running"));
        }
        state.avail = avail_index;
        Ok(())
    }

    fn get_vq_state(&self, vq: u16) -> Result<VqState, VdpaError> {
        let mut control = lock(&self.control);
        let stopped_at = control.vq(vq)?.avail;
        let slot = self.queue(vq)?.control();
        let avail_index = slot.as_ref().map_or(stopped_at, |r| r.next_avail());
        Ok(VqState::Split { avail_index })
    }

    fn get_vendor_vq_stats(&self, vq: u16) -> Result<Vec<(String, u64)>, VdpaError> {
        self.check_vq(vq)?;
        let counters = self.device.counters(vq).map(|c| c.snapshot());
        Ok(counters
            .into_iter()
            .flatten()
            .map(|(name, value)| (name.to_owned(), value))
            .collect())
    }

    fn get_vq_align(&self) -> u32 {
        // The descriptor table's, the largest of the three (virtio 1.4, 2.7).
        16
    }

    fn get_vq_group(&self, vq: u16) -> Result<u32, VdpaError> {
        self.check_vq(vq)?;
        Ok(self.group_of(vq))
    }

    fn get_vq_size(&self, vq: u16) -> Result<u16, VdpaError> {
        let mut control = lock(&self.control);
        let num = control.vq(vq)?.num;
        Ok(if lock(&self.status).is_live() {
            num
        } else {
            self.get_vq_num_max()
        })
    }

    fn get_vq_num_max(&self) -> u16 {
        self.device.options().queue_size
    }

    fn get_device_features(&self) -> u64 {
        self.device.offered()
    }

    fn get_backend_features(&self) -> u64 {
        use backend_feature::*;
        IOTLB_MSG_V2
            | IOTLB_BATCH
            | IOTLB_ASID
            | SUSPEND
            | RESUME
            | ENABLE_AFTER_DRIVER_OK
            | IOTLB_PERSIST
    }

    fn set_driver_features(&self, features: u64) -> Result<(), VdpaError> {
        let mut control = lock(&self.control);
        if lock(&self.status).get() & status::FEATURES_OK != 0 {
            return Err(VdpaError::Busy("FEATURES_OK is set: reset first"));
        }
        let extra = features & !self.device.offered();
        if extra != 0 {
            return Err(VdpaError::Invalid(format!(
                "features {extra:#x} are not offered"
            )));
        }
        let needed = feature::VERSION_1 | feature::ACCESS_PLATFORM;
        if features & needed != needed {
            return Err(VdpaError::Invalid(
                "the driver must acknowledge VERSION_1 and ACCESS_PLATFORM".into(),
            ));
        }
        control.features = features;
        Ok(())
    }

    fn get_driver_features(&self) -> u64 {
        lock(&self.control).features
    }

    fn set_config_cb(&self, callback: Option<Callback>) -> Result<(), VdpaError> {
        self.config.set(callback);
        Ok(())
    }

    fn get_device_id(&self) -> u32 {
        spec::DEVICE_ID
    }

    fn get_vendor_id(&self) -> u32 {
        0
    }

    fn get_status(&self) -> u8 {
        lock(&self.status).get()
    }

    fn set_status(&self, value: u8) -> Result<(), VdpaError> {
        if value == 0 {
            return self.reset();
        }
        let mut control = lock(&self.control);
        let change = {
            let mut register = lock(&self.status);
            let cleared = register.get() & !value & !status::DEVICE_NEEDS_RESET;
            if cleared != 0 {
                return Err(VdpaError::Invalid(format!(
                    "status bits {cleared:#x} can only be cleared by a reset"
                )));
            }
            register.write(value, control.features, &self.device)
        };
        if change == StatusChange::Start {
            self.start_all(&mut control);
        }
        Ok(())
    }

    fn reset(&self) -> Result<(), VdpaError> {
        self.reset_with(&mut lock(&self.control));
        Ok(())
    }

    fn compat_reset(&self, clean_map: bool) -> Result<(), VdpaError> {
        let mut control = lock(&self.control);
        self.reset_with(&mut control);
        if clean_map {
            for asid in 0..self.nas() {
                self.spaces.set(asid, self.spaces.identity())?;
            }
        }
        Ok(())
    }

    fn suspend(&self) -> Result<(), VdpaError> {
        let mut control = lock(&self.control);
        if !lock(&self.status).is_live() || control.suspended {
            return Ok(());
        }
        control.suspended = true;
        self.config.hold(true);
        for vq in 0..self.nvqs() {
            if self.faults.undrained.roll() {
                if let Some(running) = &mut *self.queue(vq)?.control() {
                    running.paused = true;
                }
            } else {
                self.drain(&mut control, vq);
            }
        }
        // The driver may continue with another device over this medium.
        let left = self.release(&mut control);
        if left.is_err() {
            self.go_on(&mut control);
        }
        left
    }

    fn resume(&self) -> Result<(), VdpaError> {
        let mut control = lock(&self.control);
        if control.suspended {
            self.go_on(&mut control);
        }
        Ok(())
    }

    fn get_config_size(&self) -> usize {
        spec::config::SIZE
    }

    fn get_config(&self, offset: usize, buf: &mut [u8]) -> Result<(), VdpaError> {
        check_config(offset, buf.len())?;
        self.device.read_config(offset as u64, buf);
        Ok(())
    }

    fn set_config(&self, offset: usize, buf: &[u8]) -> Result<(), VdpaError> {
        check_config(offset, buf.len())?;
        self.device
            .write_config(offset as u64, buf)
            .map_err(|error| VdpaError::Invalid(error.to_string()))
    }

    fn get_generation(&self) -> u32 {
        self.device.config_generation()
    }

    fn get_iova_range(&self) -> RangeInclusive<u64> {
        self.iova_range.clone()
    }

    fn set_group_asid(&self, group: u32, asid: u32) -> Result<(), VdpaError> {
        self.spaces.get(asid)?;
        let mut control = lock(&self.control);
        let now = control.asid(group)?;
        if now != asid {
            self.while_stopped(
                &mut control,
                |_, vq| self.group_of(vq) == group,
                |control| control.set_asid(group, asid),
            );
        }
        Ok(())
    }

    fn set_map(&self, asid: u32, table: &IotlbTable) -> Result<(), VdpaError> {
        self.spaces.get(asid)?;
        self.spaces.check_room(table)?;
        if let [first, .., end] | [first @ end] = table.mappings() {
            self.check_iova(first.iova(), end.last())?;
        }
        let table = Arc::new(table.clone());
        self.change_map(asid, |spaces| spaces.set(asid, table))
    }

    fn dma_map(&self, asid: u32, mapping: IotlbMapping) -> Result<(), VdpaError> {
        self.check_iova(mapping.iova(), mapping.last())?;
        self.change_map(asid, |spaces| spaces.insert(asid, mapping))
    }

    fn dma_unmap(&self, asid: u32, iova: u64, size: u64) -> Result<(), VdpaError> {
        let last = last(iova, size)?;
        self.change_map(asid, |spaces| spaces.remove(asid, iova, last))
    }

    fn reset_map(&self, asid: u32) -> Result<(), VdpaError> {
        self.change_map(asid, |spaces| spaces.set(asid, spaces.identity()))
    }

    fn bind_mm(&self, mm: Arc<dyn KeepAlive>) -> Result<(), VdpaError> {
        if !self.use_va {
            return Err(VdpaError::NotSupported("it uses no virtual addresses"));
        }
        let mut control = lock(&self.control);
        control.mm = Mm::Bound { _mm: mm };
        self.start_all(&mut control);
        Ok(())
    }

    fn unbind_mm(&self) {
        let mut control = lock(&self.control);
        if matches!(control.mm, Mm::Bound { .. }) {
            self.while_stopped(
                &mut control,
                |_, _| true,
                |control| control.mm = Mm::Unbound,
            );
        }
    }

    fn free(&self) {
        let mut control = lock(&self.control);
        self.reset_with(&mut control);
        control.gone = true;
        control.mm = Mm::Unbound;
        for vq in 0..self.nvqs() {
            // Taking a descriptor out does not fail.
            let _ = self.notifier.set_kick(vq, None);
        }
        self.spaces.clear();
    }
}

/// Refuses a range that is not inside the configuration space, as vhost does.
fn check_config(offset: usize, len: usize) -> Result<(), VdpaError> {
    let inside = offset
        .checked_add(len)
        .is_some_and(|end| end <= spec::config::SIZE);
    if len != 0 && inside {
        return Ok(());
    }
    Err(VdpaError::Invalid(format!(
        "{len} bytes at {offset} of a configuration space of {}",
        spec::config::SIZE
    )))
}
