// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Saved state on its way to another device, whole or damaged.

use std::ops::ControlFlow::{self, Break, Continue};

use virtio_blk_core::device::{Device, SavedDevice, SavedQueue};
use virtio_blk_core::runner::{QueueSetup, Stop};
use virtio_blk_core::spec::config;
use vm_memory::GuestMemory;

use super::World;
use super::input::Change;
use super::spy::Stability;

impl<M: GuestMemory + Send + Sync + 'static> World<M> {
    /// Moves the state to a new device. If it was changed and is accepted all the same, whatever follows
    /// is the driver's fault, and the end.
    pub(super) fn relocate(&mut self, hand_over: bool, changes: &[Change]) -> ControlFlow<()> {
        let saved: Vec<SavedQueue> = (0..self.queues.len())
            .map(|index| self.stop(index, hand_over))
            .collect();
        let saved = self.device.save(saved);
        let fresh = || Device::new(self.disk.clone(), self.options.clone()).unwrap();
        if !changes.is_empty() {
            let mut changed = saved.clone();
            changes.iter().for_each(|change| change.apply(&mut changed));
            let device = fresh();
            if changed != saved && device.restore(&changed).is_ok() {
                // Anything may be written now.
                self.spy.expect(Stability::Any);
                self.device = device;
                self.run_changed(&changed);
                return Break(());
            }
            if changed != saved {
                assert_eq!(device.accepted(), 0, "a refused restore changed something");
            }
        }
        let (mut before, mut after) = ([0; config::SIZE], [0; config::SIZE]);
        self.device.read_config(0, &mut before);
        self.device = fresh();
        self.device.restore(&saved).unwrap();
        self.device.read_config(0, &mut after);
        assert_eq!(before, after);
        for (index, queue) in saved.queues.iter().enumerate() {
            self.start(index, queue);
        }
        Continue(())
    }

    fn run_changed(&self, changed: &SavedDevice) {
        for (index, queue) in changed.queues.iter().enumerate() {
            let mut setup = QueueSetup::new(self.mem.clone(), || {});
            setup.replay.clone_from(&queue.in_flight);
            if let Ok(mut runner) = self.device.start_queue(index as u16, setup, queue.state) {
                for _ in 0..4 {
                    runner.service(8);
                }
                runner.stop(if index == 0 {
                    Stop::Drain
                } else {
                    Stop::HandOver
                });
            }
        }
    }
}

impl Change {
    fn apply(&self, saved: &mut SavedDevice) {
        let queue = |saved: &mut SavedDevice, queue: u8| {
            let count = saved.queues.len().max(1);
            usize::from(queue) % count
        };
        match self {
            Self::Version { version } => saved.version = *version,
            Self::Features { bits } => saved.features ^= bits,
            Self::Writeback => saved.writeback = !saved.writeback,
            Self::Capacity { capacity } => saved.capacity = *capacity,
            Self::BlockSize { size } => saved.block_size = *size,
            Self::Field {
                queue: index,
                field,
                value,
            } => {
                let index = queue(saved, *index);
                let Some(queue) = saved.queues.get_mut(index) else {
                    return;
                };
                match field % 7 {
                    0 => queue.state.size = *value as u16,
                    1 => queue.state.ready = !queue.state.ready,
                    2 => queue.state.desc_table = queue.state.desc_table.wrapping_add(*value),
                    3 => queue.state.avail_ring = queue.state.avail_ring.wrapping_add(*value),
                    4 => queue.state.used_ring = queue.state.used_ring.wrapping_add(*value),
                    5 => {
                        queue.state.next_avail = queue.state.next_avail.wrapping_add(*value as u16)
                    }
                    _ => queue.state.next_used = queue.state.next_used.wrapping_add(*value as u16),
                }
            }
            Self::InFlight {
                queue: index,
                heads,
            } => {
                let index = queue(saved, *index);
                if let Some(queue) = saved.queues.get_mut(index) {
                    queue.in_flight.clone_from(heads);
                }
            }
            Self::Another => saved.queues.push(SavedQueue::default()),
        }
    }
}
