// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use malformed_queues::testmem::{self, Space};
use virtio_queue::QueueState;
use vm_memory::GuestMemoryMmap;

use super::*;
use crate::ring::RingError;
use crate::runner::{QueueRunner, QueueSetup};
use crate::spec::feature::VERSION_1;

type Memory = Arc<GuestMemoryMmap<()>>;

fn memory() -> (Memory, QueueState) {
    let (mem, mut space): (_, Space) = testmem::single(64 * 1024).unwrap();
    let layout = space.layout(16).unwrap();
    let state = QueueState {
        max_size: 0,
        next_avail: 0,
        next_used: 0,
        event_idx_enabled: false,
        size: 16,
        ready: true,
        desc_table: layout.desc().0,
        avail_ring: layout.avail().0,
        used_ring: layout.used().0,
    };
    (Arc::new(mem), state)
}

fn start(
    device: &Device,
    mem: &Memory,
    index: u16,
    state: &QueueState,
) -> Result<QueueRunner<Memory>, StartError> {
    device.start_queue(index, QueueSetup::new(mem.clone(), || {}), state)
}

#[test]
fn a_queue_starts_only_after_negotiation() {
    let device = device(full(), DeviceOptions::default());
    let (mem, state) = memory();
    assert!(matches!(
        start(&device, &mem, 0, &state),
        Err(StartError::NotNegotiated)
    ));
    device.accept(VERSION_1).unwrap();
    assert!(start(&device, &mem, 0, &state).is_ok());
    device.reset();
    assert!(matches!(
        start(&device, &mem, 0, &state),
        Err(StartError::NotNegotiated)
    ));
}

#[test]
fn num_queues_queues_exist_and_no_more() {
    let options = DeviceOptions {
        queues: 3,
        ..DeviceOptions::default()
    };
    let device = device(full(), options);
    device.accept(VERSION_1).unwrap();
    let (mem, state) = memory();
    for index in 0..3 {
        assert!(start(&device, &mem, index, &state).is_ok());
        assert!(device.counters(index).is_some());
    }
    for index in [3, u16::MAX] {
        let refused = start(&device, &mem, index, &state);
        assert!(matches!(refused, Err(StartError::Index { queues: 3, .. })));
        assert!(device.counters(index).is_none());
    }
}

#[test]
fn a_ring_of_nonsense_does_not_reach_the_disk() {
    let disk = TestDisk::new(full());
    let options = DeviceOptions {
        queue_size: 32,
        ..DeviceOptions::default()
    };
    let device = Device::new(Arc::new(disk.clone()), options).unwrap();
    device.accept(VERSION_1).unwrap();
    let (mem, state) = memory();
    for size in [0, 3, 64, 32768, 65535] {
        // Whatever maximum the state itself claims.
        for max_size in [0, u16::MAX] {
            let state = QueueState {
                size,
                max_size,
                ..state
            };
            let refused = start(&device, &mem, 0, &state);
            assert!(matches!(
                refused,
                Err(StartError::Ring(RingError::Size { max: 32, .. }))
            ));
        }
    }
    let state_of = |desc_table| QueueState {
        desc_table,
        ..state
    };
    assert!(start(&device, &mem, 0, &state_of(u64::MAX - 15)).is_err());
    assert!(disk.depths().is_empty());
    assert!(start(&device, &mem, 0, &state).is_ok());
    assert_eq!(disk.depths(), [16]);
}

#[test]
fn a_disk_that_gives_no_queue_says_why() {
    let disk = TestDisk::new(full());
    let device = Device::new(Arc::new(disk.clone()), DeviceOptions::default()).unwrap();
    device.accept(VERSION_1).unwrap();
    let (mem, state) = memory();
    disk.set_closed(true);
    let refused = start(&device, &mem, 0, &state);
    let Err(error @ StartError::Disk(_)) = refused else {
        panic!("it started");
    };
    assert!(error.to_string().contains("the test closed the disk"));
    disk.set_closed(false);
    assert!(start(&device, &mem, 0, &state).is_ok());
}
