// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

//! The fast path with devices of other classes and with packed rings: what is offered, and what is refused.

mod common;

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use vdpa_bus::{Callback, VdpaDevice, VdpaError, VqAddress, VqState, backend_feature};
use vhost_vdpa_frontend::{FastPath, GuestQueue, PathError};
use virtio_blk_core::memory::{HostMemory, IotlbTable};
use virtio_blk_core::spec::feature;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

const NET: u32 = 1;
const BLOCK: u32 = 2;
const ENTROPY: u32 = 4;

/// A device that does nothing and offers everything.
struct Other {
    class: u32,
    backend: u64,
    status: AtomicU8,
    features: AtomicU64,
    resets: AtomicU32,
}

impl Other {
    fn new(class: u32, backend: u64) -> Arc<Self> {
        Arc::new(Self {
            class,
            backend,
            status: AtomicU8::new(0),
            features: AtomicU64::new(0),
            resets: AtomicU32::new(0),
        })
    }
}

impl VdpaDevice for Other {
    fn nvqs(&self) -> u16 {
        2
    }
    fn ngroups(&self) -> u32 {
        1
    }
    fn nas(&self) -> u32 {
        1
    }
    fn set_vq_address(&self, _: u16, _: VqAddress) -> Result<(), VdpaError> {
        Ok(())
    }
    fn set_vq_num(&self, _: u16, _: u32) -> Result<(), VdpaError> {
        Ok(())
    }
    fn kick_vq(&self, _: u16) {}
    fn set_vq_kick(&self, _: u16, _: Option<Arc<EventFd>>) -> Result<(), VdpaError> {
        Ok(())
    }
    fn set_vq_cb(&self, _: u16, _: Option<Callback>) -> Result<(), VdpaError> {
        Ok(())
    }
    fn set_vq_ready(&self, _: u16, _: bool) -> Result<(), VdpaError> {
        Ok(())
    }
    fn get_vq_ready(&self, _: u16) -> bool {
        true
    }
    fn set_vq_state(&self, _: u16, state: VqState) -> Result<(), VdpaError> {
        let packed = self.features.load(Ordering::SeqCst) & feature::RING_PACKED != 0;
        if matches!(state, VqState::Packed { .. }) != packed {
            return Err(VdpaError::Invalid("another kind of ring".into()));
        }
        Ok(())
    }
    fn get_vq_state(&self, _: u16) -> Result<VqState, VdpaError> {
        // In flight: more was taken than returned.
        Ok(VqState::Packed {
            last_avail_counter: true,
            last_avail_idx: 17,
            last_used_counter: true,
            last_used_idx: 5,
        })
    }
    fn get_vq_align(&self) -> u32 {
        4096
    }
    fn get_vq_num_max(&self) -> u16 {
        256
    }
    fn get_device_features(&self) -> u64 {
        u64::MAX
    }
    fn get_backend_features(&self) -> u64 {
        self.backend
    }
    fn set_driver_features(&self, features: u64) -> Result<(), VdpaError> {
        self.features.store(features, Ordering::SeqCst);
        Ok(())
    }
    fn get_driver_features(&self) -> u64 {
        self.features.load(Ordering::SeqCst)
    }
    fn set_config_cb(&self, _: Option<Callback>) -> Result<(), VdpaError> {
        Ok(())
    }
    fn get_device_id(&self) -> u32 {
        self.class
    }
    fn get_vendor_id(&self) -> u32 {
        0
    }
    fn get_status(&self) -> u8 {
        self.status.load(Ordering::SeqCst)
    }
    fn set_status(&self, status: u8) -> Result<(), VdpaError> {
        self.status.store(status, Ordering::SeqCst);
        Ok(())
    }
    fn reset(&self) -> Result<(), VdpaError> {
        self.resets.fetch_add(1, Ordering::SeqCst);
        self.set_status(0)
    }
    fn suspend(&self) -> Result<(), VdpaError> {
        Ok(())
    }
    fn resume(&self) -> Result<(), VdpaError> {
        Ok(())
    }
    fn get_config_size(&self) -> usize {
        16
    }
    fn get_config(&self, _: usize, _: &mut [u8]) -> Result<(), VdpaError> {
        Ok(())
    }
    fn set_config(&self, _: usize, _: &[u8]) -> Result<(), VdpaError> {
        Ok(())
    }
    fn get_iova_range(&self) -> RangeInclusive<u64> {
        0..=u64::MAX
    }
    fn set_map(&self, _: u32, _: &IotlbTable) -> Result<(), VdpaError> {
        Ok(())
    }
    fn free(&self) {}
}

/// A driver that took what it was offered, but for `declined`.
fn load(device: &Arc<Other>, declined: u64) -> FastPath {
    let path = FastPath::new(device.clone()).unwrap();
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0x1_0000), 0x1_0000)]);
    path.set_memory(&HostMemory::of_map(&Arc::new(memory.unwrap())))
        .unwrap();
    for byte in [0, 1, 3] {
        path.set_status(byte).unwrap();
    }
    path.set_features(path.offered() & !declined).unwrap();
    path.set_status(11).unwrap();
    let queue = GuestQueue {
        size: 256,
        address: VqAddress {
            desc: 0x1_0000,
            driver: 0x1_1000,
            device: 0x1_2000,
        },
        kick: common::eventfd(),
        call: Callback::Trigger(common::eventfd()),
    };
    path.set_queue(0, queue).unwrap();
    path.set_status(15).unwrap();
    path
}

#[test]
fn only_features_that_are_honoured_reach_the_guest() {
    // ACCESS_PLATFORM (33), SR_IOV (37), NOTIFICATION_DATA, NOTIF_CONFIG_DATA, RING_RESET, ADMIN_VQ, what comes next.
    let nobodys: u64 = 0b11_1111 << 37 | 1 << 33 | 0x7f << 43 | 0b1111 << 24;
    for class in [NET, BLOCK, ENTROPY] {
        let path = FastPath::new(Other::new(class, 0)).unwrap();
        assert_eq!(path.offered() & nobodys, 0, "class {class}");
        let ring = feature::VERSION_1 | feature::RING_PACKED | feature::RING_EVENT_IDX;
        assert_eq!(path.offered() & ring, ring);
    }
    let block = FastPath::new(Other::new(BLOCK, 0)).unwrap().offered();
    let all = feature::MQ | feature::CONFIG_WCE | feature::ZONED | feature::DISCARD;
    assert_eq!(block & all, all);
    assert_eq!(block & (1 << 18 | 1 << 60), 0, "no bits of a block device");
    let net = FastPath::new(Other::new(NET, 0)).unwrap().offered();
    assert_ne!(net & 1 << 60, 0, "a network device's own");
}

#[test]
fn pauses_that_lose_state_are_refused_before_anything_is_changed() {
    use backend_feature::{RESUME, SUSPEND};
    let packed = feature::RING_PACKED;
    let cases = [
        // What a packed ring has in flight can't be told without SUSPEND.
        (BLOCK, 0, 0),
        (NET, 0, 0),
        // A control queue's settings, a receive queue that is never empty.
        (NET, 0, packed),
        (NET, SUSPEND, 0),
    ];
    for (class, backend, declined) in cases {
        let device = Other::new(class, backend);
        let path = load(&device, declined);
        let resets = device.resets.load(Ordering::SeqCst);
        let error = path.pause(Duration::from_secs(5)).unwrap_err();
        assert!(matches!(error, PathError::Unsupported(_)), "{error}");
        assert_eq!(device.resets.load(Ordering::SeqCst), resets);
        assert!(!path.is_paused() && path.status() == 15);
    }
    // In place nothing is lost, but another device can't be given it.
    let path = load(&Other::new(NET, SUSPEND | RESUME), 0);
    path.pause(Duration::from_secs(5)).unwrap();
    assert!(matches!(path.save(), Err(PathError::Unsupported(_))));
    path.resume().unwrap();
    let path = load(&Other::new(ENTROPY, SUSPEND | RESUME), 0);
    path.pause(Duration::from_secs(5)).unwrap();
    assert_eq!(path.save().unwrap().queues.len(), 1);
    path.resume().unwrap();
}
