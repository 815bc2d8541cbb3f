// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A vDPA block device in process: the project's device model over a disk, behind the bus's trait. One thread serves
//! all queues; control operations exclude it.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{Timespec, epoll};
use vdpa_bus::{Callback, VdpaDevice, VdpaError, VqAddress, VqState, backend_feature};
use virtio_blk_core::device::{Device, Options};
use virtio_blk_core::disk::Disk;
use virtio_blk_core::memory::{Iotlb, IotlbTable};
use virtio_blk_core::runner::{QueueRunner, QueueSetup, Service, Stop};
use virtio_blk_core::spec::{config, feature, status};
use virtio_queue::QueueState;
use vmm_sys_util::eventfd::EventFd;

use super::eventfd;

/// What the device can do.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    pub queues: u16,
    pub suspend: bool,
    pub resume: bool,
    /// It can start in the middle of a ring.
    pub midway: bool,
    pub features: u64,
    /// Callbacks may only be eventfds, as a kernel device's.
    pub triggers_only: bool,
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
        }
    }
}

#[derive(Default)]
struct Vq {
    num: u16,
    address: VqAddress,
    avail: u16,
    ready: bool,
    kick: Option<Arc<EventFd>>,
    callback: Arc<Mutex<Option<Callback>>>,
    runner: Option<QueueRunner<Iotlb>>,
}

struct State {
    vqs: Vec<Vq>,
    status: u8,
    features: u64,
    suspended: bool,
    gone: bool,
    config: Arc<Mutex<Option<Callback>>>,
}

struct Shared {
    model: Arc<Device>,
    iotlb: Iotlb,
    table: Mutex<IotlbTable>,
    state: Mutex<State>,
    epoll: rustix::fd::OwnedFd,
    wake: Arc<EventFd>,
    end: AtomicBool,
    waiting: AtomicUsize,
}

pub struct TestDevice {
    shared: Arc<Shared>,
    profile: Profile,
    thread: Option<JoinHandle<()>>,
}

const WAKE: u64 = u64::MAX;

impl TestDevice {
    pub fn new(disk: Arc<dyn Disk>, profile: Profile) -> Arc<Self> {
        let model = Device::new(
            disk,
            Options {
                queues: profile.queues,
                serial: "a serial".into(),
                transport_features: feature::ACCESS_PLATFORM,
                masked_features: !profile.features,
                ..Options::default()
            },
        )
        .unwrap();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let wake = eventfd();
        let config = Arc::new(Mutex::new(None::<Callback>));
        let shared = Arc::new(Shared {
            model,
            iotlb: Iotlb::new(IotlbTable::new()),
            table: Mutex::default(),
            state: Mutex::new(State {
                vqs: (0..profile.queues).map(|_| Vq::default()).collect(),
                status: 0,
                features: 0,
                suspended: false,
                gone: false,
                config: config.clone(),
            }),
            epoll,
            wake,
            end: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
        });
        shared.model.listen(Box::new(move || {
            if let Some(callback) = &*config.lock().unwrap() {
                callback.notify();
            }
        }));
        add(&shared.epoll, &shared.wake, WAKE);
        let thread = std::thread::spawn({
            let shared = shared.clone();
            move || serve(&shared)
        });
        Arc::new(Self {
            shared,
            profile,
            thread: Some(thread),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The server's thread lets others in.
        self.shared.waiting.fetch_add(1, Ordering::SeqCst);
        let guard = self
            .shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.shared.waiting.fetch_sub(1, Ordering::SeqCst);
        guard
    }

    fn alive(&self) -> Result<MutexGuard<'_, State>, VdpaError> {
        let state = self.lock();
        if state.gone {
            return Err(VdpaError::Gone);
        }
        Ok(state)
    }

    /// The device vanishes under its driver.
    pub fn vanish(&self) {
        let mut state = self.lock();
        state.gone = true;
        stop(&mut state);
    }

    /// Whether an address is mapped now.
    pub fn is_mapped(&self, iova: u64) -> bool {
        !self
            .shared
            .table
            .lock()
            .unwrap()
            .find(iova, iova)
            .is_empty()
    }

    pub fn mappings(&self) -> usize {
        self.shared.table.lock().unwrap().mappings().len()
    }

    fn start(&self, state: &mut State) {
        let features = state.features;
        for (index, vq) in (0..).zip(&mut state.vqs) {
            if !vq.ready || vq.runner.is_some() {
                continue;
            }
            let queue = QueueState {
                max_size: vq.num,
                next_avail: vq.avail,
                next_used: vq.avail,
                event_idx_enabled: features & feature::RING_EVENT_IDX != 0,
                size: vq.num,
                ready: true,
                desc_table: vq.address.desc,
                avail_ring: vq.address.driver,
                used_ring: vq.address.device,
            };
            let callback = vq.callback.clone();
            let notify = move || {
                if let Some(callback) = &*callback.lock().unwrap() {
                    callback.notify();
                }
            };
            let setup = QueueSetup::new(self.shared.iotlb.clone(), notify);
            vq.runner = self.shared.model.start_queue(index, setup, &queue).ok();
        }
    }

    fn vq<R>(&self, vq: u16, f: impl FnOnce(&mut Vq) -> R) -> Result<R, VdpaError> {
        self.check_vq(vq)?;
        Ok(f(&mut self.alive()?.vqs[usize::from(vq)]))
    }
}

fn add(epoll: &rustix::fd::OwnedFd, event: &EventFd, data: u64) {
    // SAFETY: open while the caller holds it.
    let fd = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
    let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
    epoll::add(epoll, fd, epoll::EventData::new_u64(data), flags).unwrap();
}

/// Stops all queues after what they have in flight.
fn stop(state: &mut State) {
    for vq in &mut state.vqs {
        if let Some(runner) = vq.runner.take() {
            vq.avail = runner.stop(Stop::Drain).state.next_avail;
        }
    }
}

fn serve(shared: &Shared) {
    let mut busy = false;
    while !shared.end.load(Ordering::SeqCst) {
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }; 8];
        let nap = Timespec {
            tv_sec: 0,
            tv_nsec: if busy { 0 } else { 50_000_000 },
        };
        let _ = epoll::wait(&shared.epoll, &mut events, Some(&nap));
        let _ = shared.wake.read();
        while shared.waiting.load(Ordering::SeqCst) != 0 {
            std::thread::yield_now();
        }
        let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        busy = false;
        for vq in &mut state.vqs {
            if let Some(runner) = &mut vq.runner {
                busy |= runner.service(64) == Service::More || runner.in_flight() != 0;
            }
        }
    }
}

impl Drop for TestDevice {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::SeqCst);
        self.shared.wake.write(1).unwrap();
        self.thread.take().unwrap().join().unwrap();
        stop(&mut self.lock());
    }
}

impl VdpaDevice for TestDevice {
    fn nvqs(&self) -> u16 {
        self.profile.queues
    }

    fn ngroups(&self) -> u32 {
        1
    }

    fn nas(&self) -> u32 {
        1
    }

    fn set_vq_address(&self, vq: u16, address: VqAddress) -> Result<(), VdpaError> {
        self.vq(vq, |vq| vq.address = address)
    }

    fn set_vq_num(&self, vq: u16, num: u32) -> Result<(), VdpaError> {
        self.vq(vq, |vq| vq.num = num as u16)
    }

    fn kick_vq(&self, vq: u16) {
        let _ = vq;
        let _ = self.shared.wake.write(1);
    }

    fn set_vq_kick(&self, vq: u16, kick: Option<Arc<EventFd>>) -> Result<(), VdpaError> {
        self.vq(vq, |queue| {
            if let Some(old) = queue.kick.take() {
                // SAFETY: open while we hold it.
                let fd = unsafe { BorrowedFd::borrow_raw(old.as_raw_fd()) };
                epoll::delete(&self.shared.epoll, fd).unwrap();
            }
            if let Some(new) = &kick {
                add(&self.shared.epoll, new, vq.into());
            }
            queue.kick = kick;
        })
    }

    fn set_vq_cb(&self, vq: u16, callback: Option<Callback>) -> Result<(), VdpaError> {
        if self.profile.triggers_only && matches!(callback, Some(Callback::Call(_))) {
            return Err(VdpaError::NotSupported("eventfds only"));
        }
        self.vq(vq, |vq| *vq.callback.lock().unwrap() = callback)
    }

    fn set_vq_ready(&self, vq: u16, ready: bool) -> Result<(), VdpaError> {
        self.vq(vq, |vq| vq.ready = ready)
    }

    fn get_vq_ready(&self, vq: u16) -> bool {
        self.vq(vq, |vq| vq.ready).unwrap_or(false)
    }

    fn set_vq_state(&self, vq: u16, state: VqState) -> Result<(), VdpaError> {
        let VqState::Split { avail_index } = state else {
            return Err(VdpaError::Invalid("a packed ring".into()));
        };
        if avail_index != 0 && !self.profile.midway {
            return Err(VdpaError::NotSupported("it starts at 0"));
        }
        self.vq(vq, |vq| vq.avail = avail_index)
    }

    fn get_vq_state(&self, vq: u16) -> Result<VqState, VdpaError> {
        self.vq(vq, |vq| VqState::Split {
            avail_index: vq.avail,
        })
    }

    fn get_vq_align(&self) -> u32 {
        4096
    }

    fn get_vq_num_max(&self) -> u16 {
        256
    }

    fn get_device_features(&self) -> u64 {
        self.shared.model.offered()
    }

    fn get_backend_features(&self) -> u64 {
        let mut bits = backend_feature::IOTLB_PERSIST;
        if self.profile.suspend {
            bits |= backend_feature::SUSPEND;
        }
        if self.profile.resume {
            bits |= backend_feature::RESUME;
        }
        bits
    }

    fn set_driver_features(&self, features: u64) -> Result<(), VdpaError> {
        if features & feature::ACCESS_PLATFORM == 0 {
            return Err(VdpaError::Invalid("ACCESS_PLATFORM is needed".into()));
        }
        self.alive()?.features = features;
        Ok(())
    }

    fn get_driver_features(&self) -> u64 {
        self.lock().features
    }

    fn set_config_cb(&self, callback: Option<Callback>) -> Result<(), VdpaError> {
        *self.alive()?.config.lock().unwrap() = callback;
        Ok(())
    }

    fn get_device_id(&self) -> u32 {
        2
    }

    fn get_vendor_id(&self) -> u32 {
        0
    }

    fn get_status(&self) -> u8 {
        let state = self.lock();
        if state.gone { 0 } else { state.status }
    }

    fn set_status(&self, byte: u8) -> Result<(), VdpaError> {
        if byte == 0 {
            return self.reset();
        }
        let mut state = self.alive()?;
        let new = byte & !state.status;
        state.status = byte;
        if new & status::FEATURES_OK != 0 && self.shared.model.accept(state.features).is_err() {
            state.status &= !status::FEATURES_OK;
        }
        if new & status::DRIVER_OK != 0 {
            self.start(&mut state);
        }
        drop(state);
        self.kick_vq(0);
        Ok(())
    }

    fn reset(&self) -> Result<(), VdpaError> {
        let mut state = self.alive()?;
        stop(&mut state);
        for vq in &mut state.vqs {
            (vq.ready, vq.avail) = (false, 0);
            *vq.callback.lock().unwrap() = None;
        }
        *state.config.lock().unwrap() = None;
        (state.status, state.features, state.suspended) = (0, 0, false);
        self.shared.model.reset();
        Ok(())
    }

    fn suspend(&self) -> Result<(), VdpaError> {
        if !self.profile.suspend {
            return Err(VdpaError::NotSupported("SUSPEND"));
        }
        let mut state = self.alive()?;
        if state.status & status::DRIVER_OK != 0 {
            stop(&mut state);
            state.suspended = true;
        }
        Ok(())
    }

    fn resume(&self) -> Result<(), VdpaError> {
        if !self.profile.resume {
            return Err(VdpaError::NotSupported("RESUME"));
        }
        let mut state = self.alive()?;
        if std::mem::take(&mut state.suspended) {
            self.start(&mut state);
        }
        Ok(())
    }

    fn get_config_size(&self) -> usize {
        config::SIZE
    }

    fn get_config(&self, offset: usize, buf: &mut [u8]) -> Result<(), VdpaError> {
        drop(self.alive()?);
        self.shared.model.read_config(offset as u64, buf);
        Ok(())
    }

    fn set_config(&self, offset: usize, buf: &[u8]) -> Result<(), VdpaError> {
        self.shared
            .model
            .write_config(offset as u64, buf)
            .map_err(|error| VdpaError::Invalid(error.to_string()))
    }

    fn set_map(&self, asid: u32, table: &IotlbTable) -> Result<(), VdpaError> {
        assert_eq!(asid, 0);
        // Excludes the server: nothing is in flight with the old map where disks work inline.
        let mut state = self.alive()?;
        *self.shared.table.lock().unwrap() = table.clone();
        table.clone().publish(&self.shared.iotlb);
        for vq in &mut state.vqs {
            if let Some(runner) = &mut vq.runner {
                let _ = runner.remap();
            }
        }
        Ok(())
    }

    fn free(&self) {
        self.vanish();
    }
}
