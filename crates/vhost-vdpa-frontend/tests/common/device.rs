// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The simulator, with what other parents lack taken away.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};

use sim_backend::{BlkSim, CompatOptions, Faults, SimOptions, SimProfile, StrictOptions};
use vdpa_bus::{Callback, VdpaDevice, VdpaError, VqAddress, VqState, backend_feature};
use virtio_blk_core::device;
use virtio_blk_core::disk::Disk;
use virtio_blk_core::memory::{IotlbMapping, IotlbTable};
use vmm_sys_util::eventfd::EventFd;

/// What the device can do.
#[derive(Clone, Debug)]
pub struct Profile {
    pub queues: u16,
    pub suspend: bool,
    pub resume: bool,
    /// It can start in the middle of a ring.
    pub midway: bool,
    pub features: u64,
    /// Callbacks may only be eventfds, as a kernel device's.
    pub triggers_only: bool,
    /// It is as the kernel's simulator, with one queue; `features` has no effect then.
    pub compat: bool,
    /// It takes single mappings and no maps.
    pub single_maps: bool,
    /// It does nothing by itself.
    pub stepped: bool,
    pub faults: Faults,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            queues: 4,
            suspend: true,
            resume: true,
            midway: true,
            features: u64::MAX,
            triggers_only: false,
            compat: false,
            single_maps: false,
            stepped: false,
            faults: Faults::default(),
        }
    }
}

pub struct TestDevice {
    sim: BlkSim,
    profile: Profile,
    table: Mutex<IotlbTable>,
    /// Where its rings are.
    rings: Mutex<BTreeMap<u16, VqAddress>>,
}

impl TestDevice {
    pub fn new(disk: Arc<dyn Disk>, profile: Profile) -> Arc<Self> {
        let strict = StrictOptions {
            device: device::DeviceOptions {
                queues: profile.queues,
                serial: "a serial".into(),
                masked_features: !profile.features,
                ..device::DeviceOptions::default()
            },
            ..StrictOptions::default()
        };
        let kind = if profile.compat {
            SimProfile::Compat(CompatOptions {
                batch_mapping: !profile.single_maps,
            })
        } else {
            SimProfile::Strict(strict)
        };
        let mut options = SimOptions {
            profile: kind,
            ..SimOptions::strict().faults(profile.faults.clone())
        };
        if profile.stepped {
            options = options.stepped();
        }
        Arc::new(Self {
            sim: BlkSim::new(disk, options).unwrap(),
            profile,
            table: Mutex::default(),
            rings: Mutex::default(),
        })
    }

    /// The device vanishes under its driver.
    pub fn vanish(&self) {
        self.sim.free();
    }

    pub fn sim(&self) -> &BlkSim {
        &self.sim
    }

    /// Whether an address is mapped now.
    pub fn is_mapped(&self, iova: u64) -> bool {
        !self.table.lock().unwrap().find(iova, iova).is_empty()
    }

    /// Where the ring of a queue is.
    pub fn ring(&self, vq: u16) -> VqAddress {
        self.rings.lock().unwrap()[&vq]
    }

    /// The host address of `len` bytes that the device knows as `iova`. Mapped as long as the mapping is.
    pub fn host(&self, iova: u64, len: usize) -> *mut u8 {
        let table = self.table.lock().unwrap();
        let mapping = &table.find(iova, iova)[0];
        let offset = (iova - mapping.iova()) as usize;
        assert!(offset + len <= mapping.memory().len());
        mapping.memory().as_ptr().wrapping_add(offset)
    }

    pub fn mappings(&self) -> usize {
        self.table.lock().unwrap().mappings().len()
    }
}

impl VdpaDevice for TestDevice {
    fn nvqs(&self) -> u16 {
        self.sim.nvqs()
    }
    fn ngroups(&self) -> u32 {
        self.sim.ngroups()
    }
    fn nas(&self) -> u32 {
        self.sim.nas()
    }
    fn set_vq_address(&self, vq: u16, address: VqAddress) -> Result<(), VdpaError> {
        self.rings.lock().unwrap().insert(vq, address);
        self.sim.set_vq_address(vq, address)
    }
    fn set_vq_num(&self, vq: u16, num: u32) -> Result<(), VdpaError> {
        self.sim.set_vq_num(vq, num)
    }
    fn kick_vq(&self, vq: u16) {
        self.sim.kick_vq(vq);
    }
    fn set_vq_kick(&self, vq: u16, kick: Option<Arc<EventFd>>) -> Result<(), VdpaError> {
        self.sim.set_vq_kick(vq, kick)
    }
    fn set_vq_cb(&self, vq: u16, callback: Option<Callback>) -> Result<(), VdpaError> {
        if self.profile.triggers_only && matches!(callback, Some(Callback::Call(_))) {
            return Err(VdpaError::NotSupported("eventfds only"));
        }
        self.sim.set_vq_cb(vq, callback)
    }
    fn set_vq_ready(&self, vq: u16, ready: bool) -> Result<(), VdpaError> {
        self.sim.set_vq_ready(vq, ready)
    }
    fn get_vq_ready(&self, vq: u16) -> bool {
        self.sim.get_vq_ready(vq)
    }
    fn set_vq_state(&self, vq: u16, state: VqState) -> Result<(), VdpaError> {
        if !self.profile.midway && state != (VqState::Split { avail_index: 0 }) {
            return Err(VdpaError::NotSupported("it starts at 0"));
        }
        self.sim.set_vq_state(vq, state)
    }
    fn get_vq_state(&self, vq: u16) -> Result<VqState, VdpaError> {
        self.sim.get_vq_state(vq)
    }
    fn get_vq_align(&self) -> u32 {
        self.sim.get_vq_align()
    }
    fn get_vq_num_max(&self) -> u16 {
        self.sim.get_vq_num_max()
    }
    fn get_device_features(&self) -> u64 {
        self.sim.get_device_features()
    }
    fn get_backend_features(&self) -> u64 {
        let mut bits = self.sim.get_backend_features();
        for (has, bit) in [
            (self.profile.suspend, backend_feature::SUSPEND),
            (self.profile.resume, backend_feature::RESUME),
        ] {
            if !has {
                bits &= !bit;
            }
        }
        bits
    }
    fn set_driver_features(&self, features: u64) -> Result<(), VdpaError> {
        self.sim.set_driver_features(features)
    }
    fn get_driver_features(&self) -> u64 {
        self.sim.get_driver_features()
    }
    fn set_config_cb(&self, callback: Option<Callback>) -> Result<(), VdpaError> {
        self.sim.set_config_cb(callback)
    }
    fn get_device_id(&self) -> u32 {
        self.sim.get_device_id()
    }
    fn get_vendor_id(&self) -> u32 {
        self.sim.get_vendor_id()
    }
    fn get_status(&self) -> u8 {
        self.sim.get_status()
    }
    fn set_status(&self, status: u8) -> Result<(), VdpaError> {
        self.sim.set_status(status)
    }
    fn reset(&self) -> Result<(), VdpaError> {
        self.sim.reset()
    }
    fn suspend(&self) -> Result<(), VdpaError> {
        if !self.profile.suspend {
            return Err(VdpaError::NotSupported("SUSPEND"));
        }
        self.sim.suspend()
    }
    fn resume(&self) -> Result<(), VdpaError> {
        if !self.profile.resume {
            return Err(VdpaError::NotSupported("RESUME"));
        }
        self.sim.resume()
    }
    fn get_config_size(&self) -> usize {
        self.sim.get_config_size()
    }
    fn get_config(&self, offset: usize, buf: &mut [u8]) -> Result<(), VdpaError> {
        self.sim.get_config(offset, buf)
    }
    fn set_config(&self, offset: usize, buf: &[u8]) -> Result<(), VdpaError> {
        self.sim.set_config(offset, buf)
    }
    fn get_iova_range(&self) -> RangeInclusive<u64> {
        self.sim.get_iova_range()
    }
    fn set_map(&self, asid: u32, table: &IotlbTable) -> Result<(), VdpaError> {
        if self.profile.single_maps {
            return Err(VdpaError::NotSupported("single mappings only"));
        }
        self.sim.set_map(asid, table)?;
        *self.table.lock().unwrap() = table.clone();
        Ok(())
    }
    fn dma_map(&self, asid: u32, mapping: IotlbMapping) -> Result<(), VdpaError> {
        self.sim.dma_map(asid, mapping.clone())?;
        self.table.lock().unwrap().insert(mapping)?;
        Ok(())
    }
    fn dma_unmap(&self, asid: u32, iova: u64, size: u64) -> Result<(), VdpaError> {
        self.sim.dma_unmap(asid, iova, size)?;
        self.table.lock().unwrap().remove(iova, iova + (size - 1));
        Ok(())
    }
    fn free(&self) {
        self.sim.free();
    }
}
