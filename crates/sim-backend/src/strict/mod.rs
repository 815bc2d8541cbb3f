// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The `strict` profile: as virtio 1.4 and the vDPA interface want it.

mod control;
mod operations;
mod queue;

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};

use vdpa_bus::{VdpaDevice, VdpaError};
use virtio_blk_core::device::{Device, StatusRegister};
use virtio_blk_core::spec::feature;

use crate::address_space::AddressSpaces;
use crate::callback::{ConfigCallback, VqCallback};
use crate::faults::FaultState;
use crate::in_use::InUse;
use crate::lock;
use crate::model::{Model, Work};
use crate::notifier::Notifier;
use crate::options::{Execution, SimOptions, SimOptionsError, StrictOptions};
use control::Control;
use queue::Queue;

/// A device of the `strict` profile.
///
/// Locks, in the order in which they are taken: `control`, a queue, `status` or a callback. A pass of the
/// worker takes only the latter two; the control side does what it wants of a queue itself, under the
/// queue's lock, so that it never waits for the worker beyond a pass.
pub(crate) struct Strict {
    device: Arc<Device>,
    groups: u32,
    iova_range: RangeInclusive<u64>,
    use_va: bool,
    /// A worker sleeps: it needs to know the disks' descriptors.
    threaded: bool,
    spaces: AddressSpaces,
    queues: Box<[Queue]>,
    status: Mutex<StatusRegister>,
    control: Mutex<Control>,
    config: Arc<ConfigCallback>,
    notifier: Arc<Notifier>,
    faults: Arc<FaultState>,
}

impl Strict {
    pub(crate) fn new(
        disk: InUse,
        strict: &StrictOptions,
        options: &SimOptions,
    ) -> Result<Self, SimOptionsError> {
        for (count, what) in [
            (strict.groups, "groups"),
            (strict.address_spaces, "address_spaces"),
        ] {
            if count == 0 {
                return Err(SimOptionsError::Zero(what));
            }
        }
        let mut device = strict.device.clone();
        device.transport_features |= feature::ACCESS_PLATFORM;
        let device = Device::new(disk.disk().clone(), device)?;
        let queues = device.options().queues;
        let faults = Arc::new(FaultState::new(&options.faults));
        let config = Arc::new(ConfigCallback::default());
        device.listen(Box::new({
            let config = config.clone();
            move || config.notify()
        }));
        Ok(Self {
            groups: strict.groups,
            iova_range: strict.iova_range.clone(),
            use_va: options.use_va,
            threaded: options.execution == Execution::Thread,
            spaces: AddressSpaces::new(
                strict.address_spaces,
                &options.physical,
                options.max_mappings,
            )?,
            queues: (0..queues)
                .map(|_| Queue::new(VqCallback::new(faults.clone())))
                .collect(),
            status: Mutex::default(),
            control: Mutex::new(Control::new(
                disk,
                queues,
                device.options().queue_size,
                strict.groups,
            )),
            config,
            notifier: Arc::new(Notifier::new(queues)?),
            faults,
            device,
        })
    }

    fn queue(&self, vq: u16) -> Result<&Queue, VdpaError> {
        self.check_vq(vq)?;
        self.queues
            .get(usize::from(vq))
            .ok_or_else(|| VdpaError::Invalid(format!("queue {vq}")))
    }

    /// The device can't continue: the driver is told.
    fn need_reset(&self) {
        let tell = lock(&self.status).need_reset();
        if tell {
            self.config.notify();
        }
    }

    /// Whether `range` can be mapped.
    fn check_iova(&self, first: u64, last: u64) -> Result<(), VdpaError> {
        if self.iova_range.contains(&first) && self.iova_range.contains(&last) {
            return Ok(());
        }
        Err(VdpaError::Invalid(format!(
            "I/O addresses {first:#x} to {last:#x} are not in {:#x} to {:#x}",
            self.iova_range.start(),
            self.iova_range.end()
        )))
    }
}

impl Model for Strict {
    #[inline]
    fn work(&self, vq: u16, budget: usize) -> Work {
        let Some(queue) = self.queues.get(usize::from(vq)) else {
            return Work::Idle;
        };
        if queue.is_wanted() {
            // Held until the control side is done.
            drop(lock(&self.control));
        }
        queue.serve(budget).unwrap_or_else(|| {
            self.need_reset();
            Work::Idle
        })
    }

    fn is_busy(&self, vq: u16) -> bool {
        self.queues.get(usize::from(vq)).is_some_and(Queue::is_busy)
    }

    fn notifier(&self) -> &Arc<Notifier> {
        &self.notifier
    }

    fn faults(&self) -> &FaultState {
        &self.faults
    }
}
