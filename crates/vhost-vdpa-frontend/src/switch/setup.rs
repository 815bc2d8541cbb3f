// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Setting a path up on a device that was reset, and ending the slow one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vdpa_bus::VqState;
use virtio_blk_core::device::{Device, DeviceOptions};
use virtio_blk_core::disk::Disk;
use virtio_blk_core::memory::DeviceMemory;
use virtio_blk_core::runner::{QueueSetup, Stop};
use virtio_blk_core::spec::feature;
use virtio_queue::QueueState;

use super::{Inner, Path, PathSwitch, SwitchStep};
use crate::error::PathError;
use crate::guest::{self, Guest, QueuePositions};
use crate::slow::{BLOCK_FEATURES, RING_FEATURES};
use crate::virtio_init;

/// How long to wait between two looks at queues that drain.
const POLL_INTERVAL: Duration = Duration::from_micros(20);

/// A step that failed, after the device was reset: nothing is in flight, and the queues stand at `states`.
pub(super) struct StepError {
    pub(super) step: SwitchStep,
    pub(super) why: PathError,
    pub(super) states: QueuePositions,
}

impl<M: DeviceMemory + Clone> PathSwitch<M> {
    /// A device model in front of `disk`, which accepts whatever the guest was offered.
    pub(super) fn model(
        &self,
        disk: Arc<dyn Disk>,
        serial: String,
    ) -> Result<Arc<Device>, PathError> {
        let size = self.device.get_vq_num_max().max(4);
        let options = DeviceOptions {
            queues: self.queues,
            // The largest power of two: guests can't have made a larger ring.
            queue_size: 1 << size.ilog2(),
            seg_max: None,
            serial,
            read_only: self.caps.read_only,
            config_wce: false,
            transport_features: self.offered() & !feature::CONFIG_WCE,
            masked_features: feature::CONFIG_WCE,
        };
        Device::new(disk, options).map_err(|error| PathError::Config(error.to_string()))
    }

    /// After a reset: our rings on the device, the guest's rings to the executor. Answers how long the latter took.
    pub(super) fn start_slow(
        &self,
        inner: &mut Inner<M>,
        states: QueuePositions,
    ) -> Result<Duration, StepError> {
        let step = SwitchStep::Start;
        let ready = self.ready_slow(inner);
        if let Err(why) = ready {
            return Err(StepError { step, why, states });
        }
        let begun = Instant::now();
        self.serve_slow(inner, states)?;
        inner.path = Path::Slow;
        Ok(begun.elapsed())
    }

    /// As `start_slow`, with the reset before it.
    pub(super) fn start_slow_anew(
        &self,
        inner: &mut Inner<M>,
        states: QueuePositions,
    ) -> Result<Duration, StepError> {
        if let Err(why) = guest::reset(self.device.as_ref()) {
            let step = SwitchStep::Reset;
            return Err(StepError { step, why, states });
        }
        self.start_slow(inner, states)
    }

    fn ready_slow(&self, inner: &mut Inner<M>) -> Result<(), PathError> {
        let device = self.device.get_device_features();
        // Its second lane is ours to use, whether the guest accepted MQ or not: a driver that enables a queue it did not
        // ask for is served on the fast path too.
        let features =
            inner.guest.features & BLOCK_FEATURES | device & (RING_FEATURES | feature::MQ);
        let wce = inner.guest.features & feature::CONFIG_WCE;
        let config = inner.guest.config.clone();
        self.slow
            .start_with(&inner.guest.memory, features | wce, config)?;
        inner.guest.replay_config_writes(self.device.as_ref())?;
        // The device may have been resized while nobody looked.
        self.slow
            .refresh()
            .map_err(|error| PathError::Config(error.to_string()))?;
        if inner.served.is_none() {
            // The guest may ask for it later, on whatever path.
            let serial = self.slow.serial().unwrap_or_default();
            let text = |byte: u8| {
                if byte.is_ascii() {
                    char::from(byte)
                } else {
                    '?'
                }
            };
            let serial = serial.into_iter().map(text).collect();
            inner.served = Some(self.model(self.disk.clone(), serial)?);
        }
        Ok(())
    }

    pub(super) fn serve_slow(
        &self,
        inner: &mut Inner<M>,
        states: QueuePositions,
    ) -> Result<(), StepError> {
        let Some(served) = inner.served.clone() else {
            return Err(StepError {
                step: SwitchStep::TakeOver,
                why: PathError::Busy("the slow path is not ready"),
                states,
            });
        };
        self.serve(inner, &served, states)
    }

    /// Hands the guest's rings to the executor.
    pub(super) fn serve(
        &self,
        inner: &mut Inner<M>,
        served: &Device,
        mut states: QueuePositions,
    ) -> Result<(), StepError> {
        let step = SwitchStep::TakeOver;
        let runners = match self.runners(&inner.guest, served, &states) {
            Ok(runners) => runners,
            Err(why) => return Err(StepError { step, why, states }),
        };
        for (index, runner, kick) in runners {
            if let Err(source) = inner.executor.start(index, runner, kick) {
                // Those that run already may have moved on.
                self.close_intakes(inner);
                for (found, state) in self.stop_queues(inner, Stop::Drain).unwrap_or_default() {
                    if let Some(known) = states.iter_mut().find(|(index, _)| *index == found) {
                        known.1 = state;
                    }
                }
                let why = PathError::System {
                    what: "a queue can't be served",
                    source,
                };
                return Err(StepError { step, why, states });
            }
        }
        Ok(())
    }

    #[expect(clippy::type_complexity, reason = "what `QueueExecutor::start` takes")]
    fn runners(
        &self,
        guest: &Guest,
        served: &Device,
        states: &QueuePositions,
    ) -> Result<
        Vec<(
            u16,
            virtio_blk_core::runner::QueueRunner<M>,
            Arc<vmm_sys_util::eventfd::EventFd>,
        )>,
        PathError,
    > {
        served
            .accept(guest.features & !feature::CONFIG_WCE)
            .map_err(|error| PathError::Config(error.to_string()))?;
        let mut runners = Vec::new();
        for (index, queue) in guest.enabled() {
            let at = states.iter().find(|(found, _)| *found == index);
            let Some((_, VqState::Split { avail_index })) = at else {
                return Err(PathError::Queue {
                    index,
                    why: "it is not known where it stands".to_owned(),
                });
            };
            let state = QueueState {
                max_size: queue.size,
                next_avail: *avail_index,
                next_used: *avail_index,
                event_idx_enabled: guest.features & feature::RING_EVENT_IDX != 0,
                size: queue.size,
                ready: true,
                desc_table: queue.address.desc,
                avail_ring: queue.address.driver,
                used_ring: queue.address.device,
            };
            let call = queue.call.clone();
            let setup = QueueSetup::new(self.memory.clone(), move || call.notify());
            let runner =
                served
                    .start_queue(index, setup, &state)
                    .map_err(|error| PathError::Queue {
                        index,
                        why: error.to_string(),
                    })?;
            runners.push((index, runner, queue.kick.clone()));
        }
        Ok(runners)
    }

    /// Resets the device and puts the guest's rings onto it. Answers how long the reset took.
    pub(super) fn start_fast(
        &self,
        inner: &mut Inner<M>,
        states: QueuePositions,
    ) -> Result<Duration, StepError> {
        let begun = Instant::now();
        let device = self.device.as_ref();
        let step = SwitchStep::Reset;
        if let Err(why) = self.slow.stop().and_then(|()| guest::reset(device)) {
            return Err(StepError { step, why, states });
        }
        let reset = begun.elapsed();
        let started = self
            // The fence: a guest on the fast path can aim at whatever is mapped.
            .map
            .set(inner.guest.memory.clone())
            .and_then(|()| virtio_init::negotiate(device, self.fast_features(&inner.guest)))
            .and_then(|()| inner.guest.start(device, &states));
        if let Err(why) = started {
            let step = SwitchStep::Start;
            return Err(StepError { step, why, states });
        }
        inner.path = Path::Fast;
        inner.guest.signal();
        self.vmm.map_doorbells();
        Ok(reset)
    }

    /// Has the slow path take nothing new, and waits for what it has. `false`: that did not end in time.
    pub(super) fn close_intakes(&self, inner: &mut Inner<M>) -> bool {
        let Inner {
            guest, executor, ..
        } = inner;
        for (index, _) in guest.enabled() {
            executor.set_intake(index, false);
        }
        let deadline = Instant::now() + self.options.drain_timeout;
        for (index, _) in guest.enabled() {
            while executor.in_flight(index) != 0 {
                if Instant::now() >= deadline {
                    return false;
                }
                std::thread::sleep(POLL_INTERVAL);
            }
        }
        true
    }

    pub(super) fn open_intakes(&self, inner: &mut Inner<M>) {
        let Inner {
            guest, executor, ..
        } = inner;
        for (index, _) in guest.enabled() {
            executor.set_intake(index, true);
        }
    }

    /// Stops all queues that the host serves. `None`: a ring is broken, or a queue was not drained.
    pub(super) fn stop_queues(&self, inner: &mut Inner<M>, mode: Stop) -> Option<QueuePositions> {
        let Inner {
            guest, executor, ..
        } = inner;
        let mut sound = true;
        let mut states = Vec::new();
        for (index, _) in guest.enabled() {
            executor.begin_stop(index, mode);
        }
        for (index, _) in guest.enabled() {
            let Some(stopped) = executor.stop(index, mode) else {
                continue;
            };
            sound &= stopped.error.is_none() && stopped.in_flight.is_empty();
            let avail_index = stopped.state.next_avail;
            states.push((index, VqState::Split { avail_index }));
        }
        sound.then_some(states)
    }
}
