// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The `compat` profile: as the kernel's `vdpa_sim` and `vdpa_sim_blk` (6.12) behave.

mod access;
mod medium;
mod request;
mod vring;

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use vdpa_bus::{Callback, VdpaDevice, VdpaError, VqAddress, VqState, backend_feature};
use virtio_blk_core::memory::KeepAlive;
use virtio_blk_core::memory::{IotlbMapping, IotlbTable};
use virtio_blk_core::spec::config::Config;
use virtio_blk_core::spec::{self, feature, status};
use vmm_sys_util::eventfd::EventFd;

use crate::address_space::{AddressSpaces, MissTable, last};
use crate::callback::VqCallback;
use crate::faults::FaultState;
use crate::in_use::InUse;
use crate::lock;
use crate::model::{Model, Work};
use crate::notifier::Notifier;
use crate::options::{CompatOptions, SimOptions, SimOptionsError};
use medium::Medium;
use request::Handler;
use vring::Vring;

/// Sectors of the kernel's disk.
pub(crate) const CAPACITY: u64 = 0x4_0000;
/// Largest queue.
const QUEUE_MAX: u16 = 256;
/// Requests of a pass.
const PASS: usize = 5;
/// `VIRTIO_F_ANY_LAYOUT`, of drivers before virtio 1.0.
const ANY_LAYOUT: u64 = 1 << 27;
/// What it offers, whatever the disk.
const FEATURES: u64 = feature::SIZE_MAX
    | feature::SEG_MAX
    | feature::BLK_SIZE
    | feature::FLUSH
    | feature::TOPOLOGY
    | feature::MQ
    | feature::DISCARD
    | feature::WRITE_ZEROES
    | ANY_LAYOUT
    | feature::VERSION_1
    | feature::ACCESS_PLATFORM;

/// A device of the `compat` profile: one queue, one group, one address space.
pub(crate) struct Compat {
    batch_mapping: bool,
    use_va: bool,
    spaces: AddressSpaces,
    config: Config,
    /// The kernel's one mutex: held by each operation and each pass.
    state: Mutex<State>,
    /// Operations that wait for `state`: the worker lets them go first.
    waiting: AtomicUsize,
    callback: VqCallback,
    // Read without the mutex by a kick.
    status: AtomicU8,
    running: AtomicBool,
    ready: AtomicBool,
    /// A kick came while the device was suspended.
    pending_kick: AtomicBool,
    notifier: Arc<Notifier>,
    faults: Arc<FaultState>,
}

struct State {
    features: u64,
    generation: u32,
    address: VqAddress,
    num: u32,
    vring: Vring,
    /// The identity map is in place.
    identity: bool,
    mm: Option<Arc<dyn KeepAlive>>,
    /// An address space was bound and is gone.
    unbound: bool,
    /// Freed.
    gone: bool,
    /// While the queue runs.
    medium: Option<Medium>,
    /// Behind what uses it.
    disk: InUse,
    handler: Handler,
}

impl Compat {
    pub(crate) fn new(
        disk: InUse,
        compat: &CompatOptions,
        options: &SimOptions,
    ) -> Result<Self, SimOptionsError> {
        let faults = Arc::new(FaultState::new(&options.faults));
        Ok(Self {
            batch_mapping: compat.batch_mapping,
            use_va: options.use_va,
            spaces: AddressSpaces::new(1, &options.physical, options.max_mappings)?,
            config: config(disk.disk().caps().capacity),
            state: Mutex::new(State {
                features: 0,
                generation: 0,
                address: VqAddress::default(),
                num: 0,
                vring: Vring::new(QUEUE_MAX.into()),
                identity: true,
                mm: None,
                unbound: false,
                gone: false,
                medium: None,
                disk,
                handler: Handler::new(),
            }),
            waiting: AtomicUsize::new(0),
            callback: VqCallback::new(faults.clone()),
            status: AtomicU8::new(0),
            running: AtomicBool::new(false),
            ready: AtomicBool::new(false),
            pending_kick: AtomicBool::new(false),
            notifier: Arc::new(Notifier::new(1)?),
            faults,
        })
    }

    /// The state, for an operation.
    fn control(&self) -> MutexGuard<'_, State> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let state = lock(&self.state);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        state
    }

    fn reset_with(&self, state: &mut State, clean_map: bool) -> Result<(), VdpaError> {
        self.running.store(false, Ordering::Release);
        self.ready.store(false, Ordering::Release);
        state.medium = None;
        state.disk.reset();
        self.callback.set(None);
        state.address = VqAddress::default();
        // `num` stays, and so does a pending kick (until 7.3).
        state.vring = Vring::new(QUEUE_MAX.into());
        if clean_map {
            self.map_identity(state)?;
        }
        state.features = 0;
        self.status.store(0, Ordering::Release);
        state.generation = state.generation.wrapping_add(1);
        Ok(())
    }

    /// Takes the disk into use if the queue runs, or releases it.
    ///
    /// # Errors
    /// The disk can't be used, or what it kept in memory may be lost.
    fn follow(&self, state: &mut State) -> Result<(), VdpaError> {
        if !self.running.load(Ordering::Acquire) || !self.ready.load(Ordering::Acquire) {
            state.medium = None;
            return state.disk.leave();
        }
        if state.medium.is_some() {
            return Ok(());
        }
        let taken = state.disk.take();
        match taken.and_then(|()| Medium::open(&**state.disk.disk())) {
            Ok(medium) => {
                state.medium = Some(medium);
                Ok(())
            }
            Err(error) => {
                // Nothing was written that could be lost.
                let _ = state.disk.leave();
                Err(VdpaError::Failed(error.into()))
            }
        }
    }

    fn map_identity(&self, state: &mut State) -> Result<(), VdpaError> {
        self.spaces.set(0, self.spaces.identity())?;
        state.identity = true;
        Ok(())
    }

    /// Takes the identity map away, to be changed.
    fn own_map(&self, state: &mut State, asid: u32) -> Result<(), VdpaError> {
        if state.identity {
            self.spaces.set(asid, Arc::default())?;
            state.identity = false;
        }
        Ok(())
    }
}

/// The configuration space. `discard_sector_alignment` is the kernel's, which means bytes.
fn config(capacity: u64) -> Config {
    Config {
        capacity,
        size_max: 0x1000,
        seg_max: 32,
        blk_size: 512,
        num_queues: 1,
        min_io_size: 1,
        opt_io_size: 1,
        max_discard_sectors: u32::MAX,
        max_discard_seg: 1,
        discard_sector_alignment: 512,
        max_write_zeroes_sectors: u32::MAX,
        max_write_zeroes_seg: 1,
        ..Config::default()
    }
}

impl Model for Compat {
    fn work(&self, vq: u16, _budget: usize) -> Work {
        while self.waiting.load(Ordering::Relaxed) != 0 {
            std::thread::yield_now();
        }
        let mut state = lock(&self.state);
        let live = self.status.load(Ordering::Acquire) & status::DRIVER_OK != 0
            && self.running.load(Ordering::Acquire)
            && self.ready.load(Ordering::Acquire);
        // What came too early or too late is lost.
        if vq != 0 || !live || state.unbound || state.gone {
            return Work::Idle;
        }
        let Ok(table) = self.spaces.get(0) else {
            return Work::Idle;
        };
        let memory = MissTable::new(table, self.faults.clone(), true);
        let State {
            vring,
            medium: Some(medium),
            handler,
            ..
        } = &mut *state
        else {
            return Work::Idle;
        };
        for _ in 0..PASS {
            if !handler.handle(vring, &memory, medium) {
                return Work::Idle;
            }
            if vring.needs_notify(memory.table()) {
                self.callback.notify();
            }
        }
        Work::More
    }

    fn is_busy(&self, _vq: u16) -> bool {
        false
    }

    fn notifier(&self) -> &Arc<Notifier> {
        &self.notifier
    }

    fn faults(&self) -> &FaultState {
        &self.faults
    }
}

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
