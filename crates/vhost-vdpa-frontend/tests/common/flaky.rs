// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device that refuses one operation, and a witness of the fence.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use vdpa_bus::{Callback, VdpaDevice, VdpaError, VqAddress, VqState};
use virtio_blk_core::memory::{IotlbMapping, IotlbTable};
use vmm_sys_util::eventfd::EventFd;

use super::device::TestDevice;

pub struct Flaky {
    pub device: Arc<TestDevice>,
    /// Operations until failures begin; negative: never.
    countdown: AtomicI64,
    /// How many fail then.
    failures: AtomicI64,
    /// How many failed.
    pub failed: AtomicI64,
    /// Looks at queue states that differ from the used index, as where a request is in flight.
    pub undrained: AtomicI64,
    /// DRIVER_OK is taken with success and does not stay, as where a parent behind the kernel refuses it.
    pub deaf: AtomicBool,
    /// First address of the shadow window; 0: not watched.
    pub window: AtomicU64,
    pub breach: AtomicBool,
}

impl Flaky {
    pub fn new(device: Arc<TestDevice>) -> Arc<Self> {
        Arc::new(Self {
            device,
            countdown: AtomicI64::new(-1),
            failures: AtomicI64::new(0),
            failed: AtomicI64::new(0),
            undrained: AtomicI64::new(0),
            deaf: AtomicBool::new(false),
            window: AtomicU64::new(0),
            breach: AtomicBool::new(false),
        })
    }

    /// The operation after `skip` others fails, and `count - 1` after it.
    pub fn fail(&self, skip: i64, count: i64) {
        self.failed.store(0, Ordering::SeqCst);
        self.failures.store(count, Ordering::SeqCst);
        self.countdown.store(skip, Ordering::SeqCst);
    }

    /// No failures any more. Returns how many there were.
    pub fn heal(&self) -> i64 {
        self.countdown.store(-1, Ordering::SeqCst);
        self.failures.store(0, Ordering::SeqCst);
        self.failed.load(Ordering::SeqCst)
    }

    fn may(&self) -> Result<(), VdpaError> {
        if self.countdown.load(Ordering::SeqCst) < 0 {
            return Ok(());
        }
        if self.countdown.load(Ordering::SeqCst) > 0 {
            self.countdown.fetch_sub(1, Ordering::SeqCst);
            return Ok(());
        }
        if self.failures.fetch_sub(1, Ordering::SeqCst) > 0 {
            self.failed.fetch_add(1, Ordering::SeqCst);
            return Err(VdpaError::Failed("sabotage".into()));
        }
        Ok(())
    }
}

impl VdpaDevice for Flaky {
    fn nvqs(&self) -> u16 {
        self.device.nvqs()
    }
    fn ngroups(&self) -> u32 {
        1
    }
    fn nas(&self) -> u32 {
        1
    }
    fn set_vq_address(&self, vq: u16, address: VqAddress) -> Result<(), VdpaError> {
        self.may()?;
        let window = self.window.load(Ordering::SeqCst);
        if window != 0 && address.desc < window && self.device.is_mapped(window) {
            // A guest's ring is set up while the shadow window is in reach.
            self.breach.store(true, Ordering::SeqCst);
        }
        self.device.set_vq_address(vq, address)
    }
    fn set_vq_num(&self, vq: u16, num: u32) -> Result<(), VdpaError> {
        self.may()?;
        self.device.set_vq_num(vq, num)
    }
    fn kick_vq(&self, vq: u16) {
        self.device.kick_vq(vq);
    }
    fn set_vq_kick(&self, vq: u16, kick: Option<Arc<EventFd>>) -> Result<(), VdpaError> {
        self.may()?;
        self.device.set_vq_kick(vq, kick)
    }
    fn set_vq_cb(&self, vq: u16, callback: Option<Callback>) -> Result<(), VdpaError> {
        self.may()?;
        self.device.set_vq_cb(vq, callback)
    }
    fn set_vq_ready(&self, vq: u16, ready: bool) -> Result<(), VdpaError> {
        self.may()?;
        self.device.set_vq_ready(vq, ready)
    }
    fn get_vq_ready(&self, vq: u16) -> bool {
        self.device.get_vq_ready(vq)
    }
    fn set_vq_state(&self, vq: u16, state: VqState) -> Result<(), VdpaError> {
        self.may()?;
        self.device.set_vq_state(vq, state)
    }
    fn get_vq_state(&self, vq: u16) -> Result<VqState, VdpaError> {
        self.may()?;
        let state = self.device.get_vq_state(vq)?;
        match state {
            VqState::Split { avail_index } if self.undrained.fetch_sub(1, Ordering::SeqCst) > 0 => {
                Ok(VqState::Split {
                    avail_index: avail_index.wrapping_sub(1),
                })
            }
            other => Ok(other),
        }
    }
    fn get_vq_align(&self) -> u32 {
        4096
    }
    fn get_vq_num_max(&self) -> u16 {
        self.device.get_vq_num_max()
    }
    fn get_device_features(&self) -> u64 {
        self.device.get_device_features()
    }
    fn get_backend_features(&self) -> u64 {
        self.device.get_backend_features()
    }
    fn set_driver_features(&self, features: u64) -> Result<(), VdpaError> {
        self.may()?;
        self.device.set_driver_features(features)
    }
    fn get_driver_features(&self) -> u64 {
        self.device.get_driver_features()
    }
    fn set_config_cb(&self, callback: Option<Callback>) -> Result<(), VdpaError> {
        self.may()?;
        self.device.set_config_cb(callback)
    }
    fn get_device_id(&self) -> u32 {
        2
    }
    fn get_vendor_id(&self) -> u32 {
        0
    }
    fn get_status(&self) -> u8 {
        self.device.get_status()
    }
    fn set_status(&self, status: u8) -> Result<(), VdpaError> {
        self.may()?;
        if status & 4 != 0 && self.deaf.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.device.set_status(status)
    }
    fn reset(&self) -> Result<(), VdpaError> {
        self.may()?;
        self.device.reset()
    }
    fn suspend(&self) -> Result<(), VdpaError> {
        self.may()?;
        self.device.suspend()
    }
    fn resume(&self) -> Result<(), VdpaError> {
        self.may()?;
        self.device.resume()
    }
    fn get_config_size(&self) -> usize {
        self.device.get_config_size()
    }
    fn get_config(&self, offset: usize, buf: &mut [u8]) -> Result<(), VdpaError> {
        self.may()?;
        self.device.get_config(offset, buf)
    }
    fn set_config(&self, offset: usize, buf: &[u8]) -> Result<(), VdpaError> {
        self.may()?;
        self.device.set_config(offset, buf)
    }
    fn get_iova_range(&self) -> RangeInclusive<u64> {
        self.device.get_iova_range()
    }
    fn set_map(&self, asid: u32, table: &IotlbTable) -> Result<(), VdpaError> {
        self.may()?;
        self.device.set_map(asid, table)
    }
    fn dma_map(&self, asid: u32, mapping: IotlbMapping) -> Result<(), VdpaError> {
        self.may()?;
        self.device.dma_map(asid, mapping)
    }
    fn dma_unmap(&self, asid: u32, iova: u64, size: u64) -> Result<(), VdpaError> {
        self.may()?;
        self.device.dma_unmap(asid, iova, size)
    }
    fn free(&self) {
        self.device.free();
    }
}
