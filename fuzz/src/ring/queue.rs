// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A whole device on the queue.

use std::collections::HashSet;
use std::sync::Arc;

use virtio_blk_core::device::{Device, DeviceOptions};
use virtio_blk_core::disk::Disk;
use virtio_blk_core::runner::{QueueRunner, QueueSetup, Service, Stop, Stopped};
use virtio_blk_core::spec::feature;
use virtio_blk_disks::{FaultDisk, FaultPlan, MemoryDisk};
use vm_memory::GuestMemory;

use super::{Field, Input, MAX_SIZE, MAX_STEPS, Step};

/// Sectors of the disk.
const SECTORS: u64 = 64;

fn disk(deferred: Option<u8>) -> Arc<dyn Disk> {
    let disk = Arc::new(MemoryDisk::new(SECTORS * 512).unwrap());
    let Some(seed) = deferred else { return disk };
    let plan = FaultPlan::new(seed.into())
        .delay_reaps(0..=3)
        .reorder()
        .full_per_mille(100)
        .poll();
    Arc::new(FaultDisk::new(disk, plan))
}

pub fn run<M: GuestMemory + Send + Sync + 'static>(
    input: &Input,
    field: &Field<'_, M>,
    deferred: Option<u8>,
) {
    let options = DeviceOptions {
        queue_size: MAX_SIZE,
        ..DeviceOptions::default()
    };
    let device = Device::new(disk(deferred), options).unwrap();
    let block = feature::FLUSH | feature::DISCARD | feature::WRITE_ZEROES;
    device
        .accept(feature::VERSION_1 | block | field.features())
        .unwrap();
    let before = field.image.snapshot();
    let mut setup = QueueSetup::new(field.image.mem.clone(), || {});
    setup.replay.clone_from(&input.queue.replay);
    let Ok(mut runner) = device.start_queue(0, setup, &field.state) else {
        assert!(
            field.image.snapshot() == before,
            "a refused queue was touched"
        );
        return;
    };
    let size = field.state.size;
    let mut hand_over = false;
    let mut next = field.state.next_avail;
    field.race(input, || {
        for step in input.steps.iter().take(MAX_STEPS) {
            match step {
                Step::Work { what, .. } => work(&mut runner, usize::from(*what) + 1),
                Step::Offer { head } => {
                    field.image.store_u16(field.entry(next), (*head).into());
                    next = next.wrapping_add(1);
                    field.image.store_u16(field.avail(2), next);
                }
                Step::Write { what } => field.put(what),
                Step::Protect { how } => {
                    if field.protect(how) {
                        remap(&mut runner);
                    }
                }
                Step::Remap => remap(&mut runner),
                Step::Intake { open } => {
                    runner.set_intake(open & 1 != 0);
                }
                Step::Stop { hand_over: how } => {
                    hand_over = how & 1 != 0;
                    break;
                }
            }
            assert!(runner.in_flight() <= size.into());
            let _ = runner.has_work();
        }
    });
    if runner.error().is_some() {
        let at_rest = field.image.snapshot();
        for _ in 0..3 {
            assert_eq!(runner.service(100), Service::Fatal);
        }
        assert!(
            field.image.snapshot() == at_rest,
            "a broken queue touched memory"
        );
    }
    let mode = if hand_over {
        Stop::HandOver
    } else {
        Stop::Drain
    };
    let stopped = runner.stop(mode);
    check_stopped(
        &stopped,
        size,
        mode,
        input.queue.taken,
        input.queue.replay.len(),
    );
    let after = field.image.snapshot();
    drop(device);
    assert!(after == field.image.snapshot());
}

fn work<M: GuestMemory + Send + Sync + 'static>(runner: &mut QueueRunner<Arc<M>>, budget: usize) {
    let was_broken = runner.error().is_some();
    let answer = runner.service(budget);
    assert_eq!(answer == Service::Fatal, runner.error().is_some());
    assert!(!was_broken || answer == Service::Fatal);
}

fn remap<M: GuestMemory + Send + Sync + 'static>(runner: &mut QueueRunner<Arc<M>>) {
    let was_broken = runner.error().is_some();
    let result = runner.remap();
    assert!(!was_broken || runner.error().is_some());
    assert!(result.is_ok() || runner.error().is_some());
}

fn check_stopped(stopped: &Stopped, size: u16, mode: Stop, taken: u8, replay: usize) {
    let heads: HashSet<_> = stopped.in_flight.iter().collect();
    assert_eq!(heads.len(), stopped.in_flight.len(), "{stopped:?}");
    assert!(stopped.in_flight.iter().all(|head| *head < size));
    if stopped.error.is_some() {
        return;
    }
    // What the earlier owner had and did not name stays unaccounted for.
    let state = &stopped.state;
    let lost = usize::from(taken) - replay;
    let open = usize::from(state.next_avail.wrapping_sub(state.next_used));
    assert_eq!(open, stopped.in_flight.len() + lost, "{stopped:?}");
    if mode == Stop::Drain {
        assert!(stopped.in_flight.is_empty(), "{stopped:?}");
    }
}
