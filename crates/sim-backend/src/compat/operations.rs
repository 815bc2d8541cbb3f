// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The operations of a vDPA device, as a driver calls them and as the kernel's simulator carries them out.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vdpa_bus::{Callback, VdpaDevice, VdpaError, VqAddress, VqState, backend_feature};
use virtio_blk_core::memory::KeepAlive;
use virtio_blk_core::memory::{IotlbMapping, IotlbTable};
use virtio_blk_core::spec::{self, feature, status};
use vmm_sys_util::eventfd::EventFd;

use super::{Compat, FEATURES, QUEUE_MAX};
use crate::address_space::last;

impl VdpaDevice for Compat {
    fn nvqs(&self) -> u16 {
        1
    }

    fn ngroups(&self) -> u32 {
        1
    }

    fn nas(&self) -> u32 {
        1
    }

    fn use_va(&self) -> bool {
        self.use_va
    }

    fn set_vq_address(&self, vq: u16, address: VqAddress) -> Result<(), VdpaError> {
        self.check_vq(vq)?;
        self.control().address = address;
        Ok(())
    }

    fn set_vq_num(&self, vq: u16, num: u32) -> Result<(), VdpaError> {
        self.check_vq(vq)?;
        self.control().num = num;
        Ok(())
    }

    #[inline]
    fn kick_vq(&self, vq: u16) {
        if vq != 0 || self.faults.kicks.roll() {
            return;
        }
        let driver_ok = self.status.load(Ordering::Acquire) & status::DRIVER_OK != 0;
        if !self.running.load(Ordering::Acquire) && driver_ok {
            self.pending_kick.store(true, Ordering::Release);
        } else if self.ready.load(Ordering::Acquire) {
            self.notifier.signal(0);
        }
    }

    fn set_vq_kick(&self, vq: u16, kick: Option<Arc<EventFd>>) -> Result<(), VdpaError> {
        self.check_vq(vq)?;
        self.notifier
            .set_kick(vq, kick.as_deref())
            .map_err(|source| VdpaError::System {
                what: format!("the kick eventfd of queue {vq}"),
                source,
            })
    }

    fn set_vq_cb(&self, vq: u16, callback: Option<Callback>) -> Result<(), VdpaError> {
        self.check_vq(vq)?;
        self.callback.set(callback);
        Ok(())
    }

    fn set_vq_ready(&self, vq: u16, ready: bool) -> Result<(), VdpaError> {
        self.check_vq(vq)?;
        let mut state = self.control();
        if ready && !self.ready.load(Ordering::Acquire) {
            let (num, address) = (state.num, state.address);
            state
                .vring
                .init(num, address.desc, address.driver, address.device);
        }
        self.ready.store(ready, Ordering::Release);
        let followed = self.follow(&mut state);
        if followed.is_err() {
            self.ready.store(false, Ordering::Release);
        }
        followed
    }

    fn get_vq_ready(&self, vq: u16) -> bool {
        vq == 0 && self.ready.load(Ordering::Acquire)
    }

    fn set_vq_state(&self, vq: u16, state: VqState) -> Result<(), VdpaError> {
        self.check_vq(vq)?;
        let VqState::Split { avail_index } = state else {
            return Err(VdpaError::Invalid(
                "a packed ring's state: packed rings are not offered".into(),
            ));
        };
        self.control().vring.last_avail = avail_index;
        Ok(())
    }

    fn get_vq_state(&self, vq: u16) -> Result<VqState, VdpaError> {
        self.check_vq(vq)?;
        Ok(VqState::Split {
            avail_index: self.control().vring.last_avail,
        })
    }

    fn get_vq_align(&self) -> u32 {
        4096
    }

    fn get_vq_size(&self, vq: u16) -> Result<u16, VdpaError> {
        self.check_vq(vq)?;
        if self.batch_mapping {
            return Err(VdpaError::NotSupported("it has one size for all queues"));
        }
        let driver_ok = self.get_status() & status::DRIVER_OK != 0;
        Ok(if driver_ok {
            self.control().num as u16
        } else {
            QUEUE_MAX
        })
    }

    fn get_vq_num_max(&self) -> u16 {
        QUEUE_MAX
    }

    fn get_device_features(&self) -> u64 {
        FEATURES
    }

    fn get_backend_features(&self) -> u64 {
        use backend_feature::*;
        // What vhost makes of its operations.
        IOTLB_MSG_V2
            | IOTLB_BATCH
            | IOTLB_ASID
            | SUSPEND
            | RESUME
            | ENABLE_AFTER_DRIVER_OK
            | IOTLB_PERSIST
    }

    fn set_driver_features(&self, features: u64) -> Result<(), VdpaError> {
        if features & feature::ACCESS_PLATFORM == 0 {
            return Err(VdpaError::Invalid(
                "the driver must acknowledge ACCESS_PLATFORM".into(),
            ));
        }
        self.control().features = features & FEATURES;
        Ok(())
    }

    fn get_driver_features(&self) -> u64 {
        self.control().features
    }

    fn set_config_cb(&self, _callback: Option<Callback>) -> Result<(), VdpaError> {
        // Never called.
        Ok(())
    }

    fn get_device_id(&self) -> u32 {
        spec::DEVICE_ID
    }

    fn get_vendor_id(&self) -> u32 {
        0
    }

    fn get_status(&self) -> u8 {
        self.status.load(Ordering::Acquire)
    }

    fn set_status(&self, value: u8) -> Result<(), VdpaError> {
        if value == 0 {
            return self.reset();
        }
        let mut state = self.control();
        self.status.store(value, Ordering::Release);
        self.running
            .store(value & status::DRIVER_OK != 0, Ordering::Release);
        let followed = self.follow(&mut state);
        if followed.is_err() {
            self.status
                .store(value & !status::DRIVER_OK, Ordering::Release);
            self.running.store(false, Ordering::Release);
        }
        followed
    }

    fn reset(&self) -> Result<(), VdpaError> {
        self.compat_reset(false)
    }

    fn compat_reset(&self, clean_map: bool) -> Result<(), VdpaError> {
        self.reset_with(&mut self.control(), clean_map)
    }

    fn suspend(&self) -> Result<(), VdpaError> {
        let mut state = self.control();
        let ran = self.running.swap(false, Ordering::AcqRel);
        let left = self.follow(&mut state);
        if left.is_err() {
            // It continues if it can be used; if not, the next suspension says so again.
            self.running.store(ran, Ordering::Release);
            let _ = self.follow(&mut state);
        }
        left
    }

    fn resume(&self) -> Result<(), VdpaError> {
        let mut state = self.control();
        self.running.store(true, Ordering::Release);
        if let Err(error) = self.follow(&mut state) {
            self.running.store(false, Ordering::Release);
            return Err(error);
        }
        if self.pending_kick.swap(false, Ordering::AcqRel) && self.ready.load(Ordering::Acquire) {
            self.notifier.signal(0);
        }
        Ok(())
    }

    fn get_config_size(&self) -> usize {
        spec::config::SIZE
    }

    fn get_config(&self, offset: usize, buf: &mut [u8]) -> Result<(), VdpaError> {
        let bytes = self.config.to_bytes();
        let range = offset.checked_add(buf.len()).map(|end| offset..end);
        // Where it does not fit nothing happens, and nobody is told.
        if let Some(from) = range.and_then(|range| bytes.get(range)) {
            buf.copy_from_slice(from);
        }
        Ok(())
    }

    fn set_config(&self, _offset: usize, _buf: &[u8]) -> Result<(), VdpaError> {
        // Lost at the next read, which makes the configuration anew.
        Ok(())
    }

    fn get_generation(&self) -> u32 {
        self.control().generation
    }

    fn set_group_asid(&self, group: u32, asid: u32) -> Result<(), VdpaError> {
        if group >= self.ngroups() {
            return Err(VdpaError::Invalid(format!(
                "group {group} of a device with 1"
            )));
        }
        // The only one, which it has already.
        self.spaces.get(asid).map(|_| ())
    }

    fn set_map(&self, asid: u32, table: &IotlbTable) -> Result<(), VdpaError> {
        if !self.batch_mapping {
            return Err(VdpaError::NotSupported("it takes single mappings"));
        }
        self.spaces.get(asid)?;
        let mut state = self.control();
        state.identity = false;
        let room = self.spaces.check_room(table);
        // Without room, what was there is gone all the same.
        let table = if room.is_ok() {
            Arc::new(table.clone())
        } else {
            Arc::default()
        };
        self.spaces.set(asid, table)?;
        room
    }

    fn dma_map(&self, asid: u32, mapping: IotlbMapping) -> Result<(), VdpaError> {
        if self.batch_mapping {
            return Err(VdpaError::NotSupported("it takes whole maps"));
        }
        let mut state = self.control();
        self.own_map(&mut state, asid)?;
        self.spaces.insert(asid, mapping)
    }

    fn dma_unmap(&self, asid: u32, iova: u64, size: u64) -> Result<(), VdpaError> {
        if self.batch_mapping {
            return Err(VdpaError::NotSupported("it takes whole maps"));
        }
        let last = last(iova, size)?;
        let mut state = self.control();
        self.own_map(&mut state, asid)?;
        self.spaces.remove(asid, iova, last)
    }

    fn reset_map(&self, asid: u32) -> Result<(), VdpaError> {
        self.spaces.get(asid)?;
        let mut state = self.control();
        if !state.identity {
            self.map_identity(&mut state)?;
        }
        Ok(())
    }

    fn bind_mm(&self, mm: Arc<dyn KeepAlive>) -> Result<(), VdpaError> {
        if !self.use_va {
            return Err(VdpaError::NotSupported("it uses no virtual addresses"));
        }
        let mut state = self.control();
        state.mm = Some(mm);
        state.unbound = false;
        Ok(())
    }

    fn unbind_mm(&self) {
        let mut state = self.control();
        state.unbound |= state.mm.take().is_some();
    }

    fn free(&self) {
        let mut state = self.control();
        // Without maps to change it does not fail.
        let _ = self.reset_with(&mut state, false);
        state.gone = true;
        state.mm = None;
        // Taking a descriptor out does not fail.
        let _ = self.notifier.set_kick(0, None);
        self.spaces.clear();
    }
}
