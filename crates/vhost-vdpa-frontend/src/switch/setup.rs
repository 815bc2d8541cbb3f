// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Setting a path up on a device, and stopping the slow one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vdpa_bus::VqState;
use virtio_blk_core::device::{Device, DeviceOptions};
use virtio_blk_core::disk::Disk;
use virtio_blk_core::memory::DeviceMemory;
use virtio_blk_core::ring::QueueState;
use virtio_blk_core::runner::{ErrorCause, QueueRunner, QueueSetup, Stop};
use virtio_blk_core::spec::feature;
use vmm_sys_util::eventfd::EventFd;

use super::state::State;
use super::{Inner, PathSwitch, SwitchStep};
use crate::error::PathError;
use crate::frontend::Frontend;
use crate::guest::{self, Guest, QueuePositions};
use crate::slow::{BLOCK_FEATURES, RING_FEATURES};

/// How long to wait between two looks at queues that drain.
const POLL_INTERVAL: Duration = Duration::from_micros(20);

/// A step that failed at a moment at which nothing is in flight.
pub(super) struct StepError {
    pub(super) step: SwitchStep,
    pub(super) source: PathError,
    /// Where the queues stand.
    pub(super) positions: QueuePositions,
}

/// A queue that was stopped in disorder.
fn unknown(index: u16) -> PathError {
    PathError::Queue {
        index,
        why: "it is not known where it stands".to_owned(),
    }
}

/// A device model in front of `disk`, which accepts whatever the guest is offered.
pub(super) fn new_model(
    frontend: &Frontend,
    disk: Arc<dyn Disk>,
    queues: u16,
    serial: String,
) -> Result<Arc<Device>, PathError> {
    let size = frontend.device().get_vq_num_max().max(4);
    let options = DeviceOptions {
        queues,
        // The largest power of two: guests can't have made a larger ring.
        queue_size: 1 << size.ilog2(),
        seg_max: None,
        serial,
        read_only: false,
        config_wce: false,
        transport_features: frontend.offered() & !feature::CONFIG_WCE,
        masked_features: feature::CONFIG_WCE,
    };
    let model = Device::new(disk, options).map_err(|error| PathError::Config(error.to_string()))?;
    let status = frontend.guest_status().clone();
    model.on_request_error(move |error| {
        // On the thread that serves the queue, at the moment of the break, or of a panic.
        if let ErrorCause::Queue(_) = error.cause {
            status.need_reset();
        }
    });
    Ok(model)
}

impl<M: DeviceMemory + Clone> PathSwitch<M> {
    /// Resets the device, and starts the slow path. Returns how long handing the guest's rings over took.
    pub(super) fn start_slow_after_reset(
        &self,
        inner: &mut Inner<M>,
        positions: QueuePositions,
    ) -> Result<Duration, StepError> {
        if let Err(source) = guest::reset(self.device().as_ref()) {
            return Err(StepError {
                step: SwitchStep::Reset,
                source,
                positions,
            });
        }
        self.start_slow(inner, positions)
    }

    /// Starts the slow path on a device that was just reset: our rings in the device, the guest's rings to the executor.
    /// Returns how long the latter took.
    pub(super) fn start_slow(
        &self,
        inner: &mut Inner<M>,
        positions: QueuePositions,
    ) -> Result<Duration, StepError> {
        if let Err(source) = self.ready_slow(inner) {
            return Err(StepError {
                step: SwitchStep::Start,
                source,
                positions,
            });
        }
        let begun = Instant::now();
        self.serve(inner, positions)?;
        inner.state = State::Slow;
        Ok(begun.elapsed())
    }

    /// Sets our rings up in the device, with what the guest chose.
    fn ready_slow(&self, inner: &Inner<M>) -> Result<(), PathError> {
        let guest = &inner.guest;
        let device = self.device().get_device_features();
        // Its other queues are ours to use, whether the guest accepted MQ or not: a driver that enables a queue it did not
        // ask for is served on the fast path too.
        let features = guest.features & (BLOCK_FEATURES | feature::CONFIG_WCE)
            | device & (RING_FEATURES | feature::MQ);
        self.slow
            .start_with(&guest.memory, features, guest.status.config_call())?;
        guest.replay_config_writes(self.device().as_ref())?;
        // The device may have been resized while nobody looked.
        self.slow
            .refresh()
            .map_err(|error| PathError::Config(error.to_string()))
    }

    /// Takes the slow path's disk into use, and hands the guest's rings to the executor.
    pub(super) fn serve(
        &self,
        inner: &mut Inner<M>,
        positions: QueuePositions,
    ) -> Result<(), StepError> {
        let served = match self.take_disk() {
            Ok(()) => self.serve_with(inner, &self.model, positions),
            Err(source) => Err(StepError {
                step: SwitchStep::TakeOver,
                source,
                positions,
            }),
        };
        if served.is_err() {
            // Nothing was written that could be lost. It needs a device that works, for as long as it takes.
            let _ = self.leave_disk();
        }
        served
    }

    /// Hands the guest's rings to the executor, over the disk of `model`.
    pub(super) fn serve_with(
        &self,
        inner: &mut Inner<M>,
        model: &Device,
        mut positions: QueuePositions,
    ) -> Result<(), StepError> {
        let step = SwitchStep::TakeOver;
        let runners = match self.runners(&inner.guest, model, &positions) {
            Ok(runners) => runners,
            Err(source) => {
                return Err(StepError {
                    step,
                    source,
                    positions,
                });
            }
        };
        for (index, runner, kick) in runners {
            let started = inner.executor.start(index, runner, kick);
            if started.is_ok() {
                inner.served.push(index);
            }
            if let Err(source) = started {
                // Those that run already may have moved on.
                if !self.close_intakes(inner) {
                    // Nobody may wait longer, with the switch locked: what is in flight fails.
                    self.slow.cancel_all();
                }
                for (found, state) in self.stop_each(inner, Stop::Drain) {
                    positions.retain(|(index, _)| *index != found);
                    match state {
                        Some(state) => positions.push((found, state)),
                        // No path takes it: only the guest's reset helps.
                        None => inner.guest.status.need_reset(),
                    }
                }
                return Err(StepError {
                    step,
                    source: PathError::System {
                        what: "a queue can't be served",
                        source,
                    },
                    positions,
                });
            }
        }
        Ok(())
    }

    #[expect(clippy::type_complexity, reason = "what `QueueExecutor::start` takes")]
    fn runners(
        &self,
        guest: &Guest,
        model: &Device,
        positions: &QueuePositions,
    ) -> Result<Vec<(u16, QueueRunner<M>, Arc<EventFd>)>, PathError> {
        model
            .accept(guest.features & !feature::CONFIG_WCE)
            .map_err(|error| PathError::Config(error.to_string()))?;
        let mut runners = Vec::new();
        for (index, queue) in guest.enabled() {
            let at = positions.iter().find(|(found, _)| *found == index);
            let Some((_, VqState::Split { avail_index })) = at else {
                return Err(unknown(index));
            };
            let state = QueueState {
                max_size: queue.size,
                next_avail: *avail_index,
                next_used: *avail_index,
                size: queue.size,
                ready: true,
                desc_table: queue.address.desc,
                avail_ring: queue.address.driver,
                used_ring: queue.address.device,
                ..QueueState::default()
            };
            let call = queue.call.clone();
            let setup = QueueSetup::new(self.memory.clone(), move || call.notify());
            let started = model.start_queue(index, setup, state);
            let runner = started.map_err(|error| PathError::Queue {
                index,
                why: error.to_string(),
            })?;
            runners.push((index, runner, queue.kick.clone()));
        }
        Ok(runners)
    }

    /// Resets the device and puts the guest's rings onto it. Returns how long the reset took.
    pub(super) fn start_fast(
        &self,
        inner: &mut Inner<M>,
        positions: QueuePositions,
    ) -> Result<Duration, StepError> {
        let is_unknown = |index| positions.iter().all(|(known, _)| *known != index);
        let mut enabled = inner.guest.enabled();
        if let Some((index, _)) = enabled.find(|(index, _)| is_unknown(*index)) {
            return Err(StepError {
                step: SwitchStep::Prepare,
                source: unknown(index),
                positions,
            });
        }
        drop(enabled);
        let begun = Instant::now();
        let reset = self
            .slow
            .stop()
            .and_then(|()| guest::reset(self.device().as_ref()));
        if let Err(source) = reset {
            return Err(StepError {
                step: SwitchStep::Reset,
                source,
                positions,
            });
        }
        let reset = begun.elapsed();
        if let Err(source) = self.frontend.restart_guest(&inner.guest, &positions) {
            return Err(StepError {
                step: SwitchStep::Start,
                source,
                positions,
            });
        }
        inner.state = State::Fast;
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

    /// Stops all queues that the executor serves, and returns where they stand. `None`: that is not known, as a ring is
    /// broken, a queue was not drained, or its thread panicked. The disk is not wanted any more.
    pub(super) fn stop_queues(&self, inner: &mut Inner<M>, mode: Stop) -> Option<QueuePositions> {
        let stopped = self.stop_each(inner, mode).into_iter();
        let positions = stopped
            .map(|(index, state)| Some((index, state?)))
            .collect();
        self.stop_wanting_disk();
        positions
    }

    /// Stops all queues that the executor serves. `None` for one of which it is not known where it stands.
    fn stop_each(&self, inner: &mut Inner<M>, mode: Stop) -> Vec<(u16, Option<VqState>)> {
        let Inner {
            executor, served, ..
        } = inner;
        for index in &*served {
            executor.begin_stop(*index, mode);
        }
        let stop = |index| {
            let stopped = executor.stop(index, mode);
            let sound =
                stopped.filter(|stopped| stopped.error.is_none() && stopped.in_flight.is_empty());
            let state = sound.map(|stopped| VqState::Split {
                avail_index: stopped.state.next_avail,
            });
            (index, state)
        };
        served.drain(..).map(stop).collect()
    }
}
