// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The `compat` profile: as the kernel's `vdpa_sim` and `vdpa_sim_blk` (6.12) behave.

mod access;
mod medium;
mod operations;
mod request;
mod vring;

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use vdpa_bus::{VdpaError, VqAddress};
use virtio_blk_core::memory::KeepAlive;
use virtio_blk_core::spec::config::Config;
use virtio_blk_core::spec::{feature, status};

use crate::address_space::{AddressSpaces, MissTable};
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
