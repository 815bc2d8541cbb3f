// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The switch itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vdpa_bus::{VdpaError, VqState, backend_feature};
use virtio_blk_core::device::{Device, Options};
use virtio_blk_core::disk::Disk;
use virtio_blk_core::memory::DeviceMemory;
use virtio_blk_core::runner::{QueueSetup, Stop};
use virtio_blk_core::spec::{feature, status};
use virtio_queue::QueueState;

use super::dead::DeadDisk;
use super::{
    Inner, Method, OnFailure, Path, PathSwitch, Phases, Policy, Report, SwitchError, SwitchStep,
};
use crate::bring_up;
use crate::error::{PathError, Step};
use crate::guest::{self, Drained, Guest, Halt};
use crate::slow::{BLOCK_FEATURES, RING_FEATURES};

/// How long to wait between two looks at queues that drain.
const LOOK: Duration = Duration::from_micros(20);

/// A step that failed, after the device was reset: nothing is in flight, and the queues stand at `states`.
pub(super) struct Stumble {
    pub(super) step: SwitchStep,
    pub(super) why: PathError,
    pub(super) states: Drained,
}

impl<M: DeviceMemory + Clone> PathSwitch<M> {
    /// The guest's driver starts.
    pub(super) fn begin(&self, inner: &mut Inner<M>) -> Result<(), PathError> {
        let slow = self.options.policy == Policy::Auto && !self.needs.reasons().is_empty();
        let states = inner
            .guest
            .enabled()
            .map(|(index, _)| (index, VqState::Split { avail_index: 0 }))
            .collect::<Drained>();
        let begun = if slow {
            guest::reset(self.device.as_ref())?;
            self.start_slow(inner, states)
        } else {
            self.start_fast(inner, states)
        };
        begun.map(drop).map_err(|stumble| {
            // The guest sees no DRIVER_OK, and may try again.
            self.stop_hosts(inner, Stop::HandOver);
            stumble.why
        })
    }

    /// Moves the guest.
    pub(super) fn go(
        &self,
        inner: &mut Inner<M>,
        path: Path,
    ) -> Result<Option<Report>, SwitchError> {
        let moved = match (inner.path, path) {
            (Path::Fast, Path::Slow) => self.to_slow(inner)?,
            (Path::Slow, Path::Fast) => self.to_fast(inner)?,
            (Path::Paused, Path::Fast | Path::Slow) => {
                inner.resume_to = path;
                return Ok(None);
            }
            (Path::Failed, Path::Fast | Path::Slow) => {
                return Err(refuse(inner, "neither path could be set up: retry first"));
            }
            (_, Path::Fast | Path::Slow) => return Ok(None),
            _ => {
                return Err(refuse(
                    inner,
                    "a guest is moved to the fast or to the slow path",
                ));
            }
        };
        inner.last = Some(moved.clone());
        Ok(Some(moved))
    }

    fn to_slow(&self, inner: &mut Inner<M>) -> Result<Report, SwitchError> {
        let begun = Instant::now();
        let mut report = self
            .report(inner, Path::Slow)
            .map_err(|why| prepare(inner, why))?;
        let before = self.config();
        let states = self.leave_fast(inner, &mut report, begun)?;
        let start = Instant::now();
        match self.start_slow(inner, states) {
            Ok(take_over) => {
                report.phases.take_over = take_over;
                report.phases.start = start.elapsed() - take_over;
            }
            Err(stumble) => return Err(self.go_back(inner, stumble, Path::Fast)),
        }
        self.tell_config(inner, &before);
        Ok(report)
    }

    fn to_fast(&self, inner: &mut Inner<M>) -> Result<Report, SwitchError> {
        if !self.needs.reasons().is_empty() {
            return Err(refuse(inner, "somebody needs to see requests"));
        }
        if inner.one_way {
            return Err(refuse(
                inner,
                "this device can't go on in the middle of a ring",
            ));
        }
        let begun = Instant::now();
        let mut report = self
            .report(inner, Path::Fast)
            .map_err(|why| prepare(inner, why))?;
        let before = self.config();
        let states = self.leave_slow(inner, &mut report, begun)?;
        let start = Instant::now();
        match self.start_fast(inner, states) {
            Ok(reset) => {
                report.phases.reset = reset;
                report.phases.start = start.elapsed() - reset;
            }
            Err(stumble) => {
                let device = matches!(
                    stumble.why,
                    PathError::Device {
                        step: "queue state",
                        source: VdpaError::NotSupported(_),
                    }
                );
                inner.one_way |= device;
                return Err(self.go_back(inner, stumble, Path::Slow));
            }
        }
        self.tell_config(inner, &before);
        Ok(report)
    }

    /// Stops the device on the guest's rings, and resets it. Answers where they stand.
    pub(super) fn leave_fast(
        &self,
        inner: &mut Inner<M>,
        report: &mut Report,
        begun: Instant,
    ) -> Result<Drained, SwitchError> {
        self.vmm.unmap_doorbells();
        let (states, reset) = match self.quiesce(&inner.guest, report) {
            Ok(done) => done,
            Err(halt) => return Err(self.not_quiesced(inner, halt)),
        };
        report.phases.quiesce = begun.elapsed() - report.phases.reset;
        if let Err(why) = reset {
            let step = SwitchStep::Reset;
            let stumble = Stumble { step, why, states };
            return Err(self.go_back(inner, stumble, Path::Fast));
        }
        Ok(states)
    }

    /// Stops the slow path. Answers where the guest's rings stand.
    pub(super) fn leave_slow(
        &self,
        inner: &mut Inner<M>,
        report: &mut Report,
        begun: Instant,
    ) -> Result<Drained, SwitchError> {
        if !self.close_intakes(inner) {
            self.open_intakes(inner);
            return Err(SwitchError {
                step: SwitchStep::Quiesce,
                path: inner.path,
                source: PathError::Busy("requests in flight on the slow path don't end"),
                back: None,
            });
        }
        let Some(states) = self.stop_hosts(inner, Stop::Drain) else {
            return Err(self.broken(inner));
        };
        if let Err(why) = self.slow.stop() {
            // A layer holds a queue: the guest is served on as it was.
            let step = SwitchStep::Quiesce;
            return Err(match self.serve_slow(inner, states) {
                Ok(()) => SwitchError {
                    step,
                    path: inner.path,
                    source: why,
                    back: None,
                },
                Err(stumble) => self.fail(inner, step, why, stumble.why, stumble.states),
            });
        }
        report.method = Some(Method::Drain);
        report.phases.quiesce = begun.elapsed();
        Ok(states)
    }

    /// Tries again to serve a guest that nobody serves.
    pub(super) fn try_again(&self, inner: &mut Inner<M>) -> Result<(), SwitchError> {
        if inner.path != Path::Failed {
            return Ok(());
        }
        if inner.stalled {
            return self.unstall(inner).map_err(|why| prepare(inner, why));
        }
        if self.options.on_failure == OnFailure::Fail && inner.held.is_some() {
            self.close_intakes(inner);
            inner.held = self.stop_hosts(inner, Stop::Drain);
        }
        let Some(states) = inner.held.take() else {
            return Err(refuse(
                inner,
                "where the queues stand is not known: the guest must reset its device",
            ));
        };
        let step = SwitchStep::Start;
        let first = if self.needs.reasons().is_empty() {
            self.start_fast(inner, states)
        } else {
            self.start_slow_anew(inner, states)
        };
        let stumble = match first {
            Ok(_) => return Ok(()),
            Err(stumble) => stumble,
        };
        match self.start_slow_anew(inner, stumble.states) {
            Ok(_) => Ok(()),
            Err(again) => Err(self.fail(inner, step, stumble.why, again.why, again.states)),
        }
    }

    /// Stops the device on the guest's rings (see [`crate::guest`] for the methods) and resets it. Where the latter
    /// failed, nothing is in flight all the same.
    fn quiesce(
        &self,
        guest: &Guest,
        report: &mut Report,
    ) -> Result<(Drained, Result<(), PathError>), Halt> {
        let device = self.device.as_ref();
        let suspends = device.get_backend_features() & backend_feature::SUSPEND != 0;
        if !suspends {
            return self.pause_and_drain(guest, report);
        }
        let deadline = Instant::now() + self.options.quiesce;
        match guest::suspend(device, guest, deadline, &mut report.attempts) {
            Ok(states) => {
                report.method = Some(Method::Suspend);
                Ok((states, self.timed_reset(report)))
            }
            Err(halt) if halt.stuck => Err(halt),
            Err(halt) => {
                log::debug!("SUSPEND did not do: {}", halt.why);
                self.pause_and_drain(guest, report).map_err(|_| halt)
            }
        }
    }

    fn timed_reset(&self, report: &mut Report) -> Result<(), PathError> {
        let begun = Instant::now();
        let reset = guest::reset(self.device.as_ref());
        report.phases.reset = begun.elapsed();
        reset
    }

    /// Method B: the device is reset before the vCPUs go on.
    fn pause_and_drain(
        &self,
        guest: &Guest,
        report: &mut Report,
    ) -> Result<(Drained, Result<(), PathError>), Halt> {
        let device = self.device.as_ref();
        guest::bind_kicks(device, guest, false)?;
        guest::calm(guest, Instant::now() + self.options.calm)?;
        let paused = Instant::now();
        if !self.vmm.pause_vcpus() {
            return Err(
                PathError::Busy("it has no SUSPEND, and this VMM does not stop vCPUs").into(),
            );
        }
        let drained = guest::drain(device, guest, Instant::now() + self.options.quiesce);
        let drained = drained.map(|states| {
            report.method = Some(Method::PausedVcpus);
            let reset = self.timed_reset(report);
            // The device hears nothing now. An error here shows again when it is set up.
            let _ = guest::bind_kicks(device, guest, false);
            (states, reset)
        });
        self.vmm.resume_vcpus();
        report.phases.vcpus_paused = paused.elapsed();
        drained
    }

    /// The device was not stopped: it goes on as it was, if it can.
    fn not_quiesced(&self, inner: &mut Inner<M>, halt: Halt) -> SwitchError {
        if halt.stuck {
            return self.lost(inner, halt.why, None);
        }
        match guest::go_on(self.device.as_ref(), &inner.guest) {
            Ok(()) => {
                self.vmm.map_doorbells();
                SwitchError {
                    step: SwitchStep::Quiesce,
                    path: inner.path,
                    source: halt.why,
                    back: None,
                }
            }
            Err(back) => {
                inner.stalled = true;
                self.lost(inner, halt.why, Some(back))
            }
        }
    }

    /// The device has the guest's rings and does not work on them, with requests in flight: it must not be reset. If it
    /// can't be brought to go on either, only the guest can help.
    fn lost(
        &self,
        inner: &mut Inner<M>,
        source: PathError,
        back: Option<PathError>,
    ) -> SwitchError {
        inner.path = Path::Failed;
        inner.held = None;
        inner.stalled |= self.can_resume();
        if !inner.stalled {
            ask_for_reset(&mut inner.guest);
        }
        SwitchError {
            step: SwitchStep::Quiesce,
            path: inner.path,
            source,
            back,
        }
    }

    /// The guest broke a ring: nobody knows where it stands, and only the guest can help.
    fn broken(&self, inner: &mut Inner<M>) -> SwitchError {
        self.stop_hosts(inner, Stop::HandOver);
        inner.path = Path::Failed;
        inner.held = None;
        ask_for_reset(&mut inner.guest);
        SwitchError {
            step: SwitchStep::Quiesce,
            path: inner.path,
            source: PathError::Busy("the guest broke a ring"),
            back: None,
        }
    }

    fn can_resume(&self) -> bool {
        self.device.get_backend_features() & backend_feature::RESUME != 0
    }

    /// Has a device that has the guest's rings work on them again.
    fn unstall(&self, inner: &mut Inner<M>) -> Result<(), PathError> {
        let device = self.device.as_ref();
        if self.can_resume() {
            // Of no effect on a device that is not suspended.
            device.resume().step("RESUME")?;
        }
        guest::go_on(device, &inner.guest)?;
        inner.stalled = false;
        inner.path = Path::Fast;
        self.vmm.map_doorbells();
        Ok(())
    }

    /// Sets the path up again that was left.
    pub(super) fn go_back(
        &self,
        inner: &mut Inner<M>,
        stumble: Stumble,
        path: Path,
    ) -> SwitchError {
        let Stumble { step, why, states } = stumble;
        let back = match path {
            Path::Fast => self.start_fast(inner, states),
            _ => self.start_slow_anew(inner, states),
        };
        match back {
            Ok(_) => SwitchError {
                step,
                path: inner.path,
                source: why,
                back: None,
            },
            Err(second) => self.fail(inner, step, why, second.why, second.states),
        }
    }

    /// Neither path works.
    fn fail(
        &self,
        inner: &mut Inner<M>,
        step: SwitchStep,
        source: PathError,
        back: PathError,
        states: Drained,
    ) -> SwitchError {
        log::error!("neither path could be set up: {source}; then {back}");
        inner.path = Path::Failed;
        inner.held = Some(states.clone());
        if self.options.on_failure == OnFailure::Fail
            && let Err(error) = self.serve_dead(inner, states)
        {
            log::error!("requests can't even be failed: {error}");
        }
        SwitchError {
            step,
            path: Path::Failed,
            source,
            back: Some(back),
        }
    }

    fn serve_dead(&self, inner: &mut Inner<M>, states: Drained) -> Result<(), PathError> {
        let device = self.model(Arc::new(DeadDisk(self.caps)), String::new())?;
        self.serve(inner, &device, states).map_err(|stumble| {
            inner.held = Some(stumble.states);
            stumble.why
        })
    }

    /// A device model in front of `disk`, which accepts whatever the guest was offered.
    fn model(&self, disk: Arc<dyn Disk>, serial: String) -> Result<Arc<Device>, PathError> {
        let size = self.device.get_vq_num_max().max(4);
        let options = Options {
            queues: self.queues,
            // The largest power of two: guests can't have made a larger ring.
            queue_size: 1 << size.ilog2(),
            serial,
            read_only: self.caps.read_only,
            config_wce: false,
            transport_features: self.offered() & !feature::CONFIG_WCE,
            masked_features: feature::CONFIG_WCE,
        };
        Device::new(disk, options).map_err(|error| PathError::Config(error.to_string()))
    }

    /// After a reset: our rings on the device, the guest's rings to the host. Answers how long the latter took.
    fn start_slow(&self, inner: &mut Inner<M>, states: Drained) -> Result<Duration, Stumble> {
        let step = SwitchStep::Start;
        let ready = self.ready_slow(inner);
        if let Err(why) = ready {
            return Err(Stumble { step, why, states });
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
        states: Drained,
    ) -> Result<Duration, Stumble> {
        if let Err(why) = guest::reset(self.device.as_ref()) {
            let step = SwitchStep::Reset;
            return Err(Stumble { step, why, states });
        }
        self.start_slow(inner, states)
    }

    fn ready_slow(&self, inner: &mut Inner<M>) -> Result<(), PathError> {
        let device = self.device.get_device_features();
        let features = inner.guest.features & BLOCK_FEATURES | device & RING_FEATURES;
        let wce = inner.guest.features & feature::CONFIG_WCE;
        let config = inner.guest.config.clone();
        self.slow
            .start_with(&inner.guest.memory, features | wce, config)?;
        inner.guest.write_again(self.device.as_ref())?;
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

    fn serve_slow(&self, inner: &mut Inner<M>, states: Drained) -> Result<(), Stumble> {
        let Some(served) = inner.served.clone() else {
            return Err(Stumble {
                step: SwitchStep::TakeOver,
                why: PathError::Busy("the slow path is not ready"),
                states,
            });
        };
        self.serve(inner, &served, states)
    }

    /// Hands the guest's rings to the host.
    fn serve(
        &self,
        inner: &mut Inner<M>,
        served: &Device,
        mut states: Drained,
    ) -> Result<(), Stumble> {
        let step = SwitchStep::TakeOver;
        let runners = match self.runners(&inner.guest, served, &states) {
            Ok(runners) => runners,
            Err(why) => return Err(Stumble { step, why, states }),
        };
        for (index, runner, kick) in runners {
            if let Err(source) = inner.host.start(index, runner, kick) {
                // Those that run already may have moved on.
                self.close_intakes(inner);
                for (found, state) in self.stop_hosts(inner, Stop::Drain).unwrap_or_default() {
                    if let Some(known) = states.iter_mut().find(|(index, _)| *index == found) {
                        known.1 = state;
                    }
                }
                let why = PathError::System {
                    what: "a queue can't be served",
                    source,
                };
                return Err(Stumble { step, why, states });
            }
        }
        Ok(())
    }

    #[expect(clippy::type_complexity, reason = "what `QueueHost::start` takes")]
    fn runners(
        &self,
        guest: &Guest,
        served: &Device,
        states: &Drained,
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
        states: Drained,
    ) -> Result<Duration, Stumble> {
        let begun = Instant::now();
        let device = self.device.as_ref();
        let step = SwitchStep::Reset;
        if let Err(why) = self.slow.stop().and_then(|()| guest::reset(device)) {
            return Err(Stumble { step, why, states });
        }
        let reset = begun.elapsed();
        let started = self
            // The fence: a guest on the fast path can aim at whatever is mapped.
            .map
            .set(inner.guest.memory.clone())
            .and_then(|()| bring_up::negotiate(device, self.fast_features(&inner.guest)))
            .and_then(|()| inner.guest.start(device, &states));
        if let Err(why) = started {
            let step = SwitchStep::Start;
            return Err(Stumble { step, why, states });
        }
        inner.path = Path::Fast;
        inner.guest.signal();
        self.vmm.map_doorbells();
        Ok(reset)
    }

    /// Has the slow path take nothing new, and waits for what it has. `false`: that did not end in time.
    pub(super) fn close_intakes(&self, inner: &mut Inner<M>) -> bool {
        let Inner { guest, host, .. } = inner;
        for (index, _) in guest.enabled() {
            host.set_intake(index, false);
        }
        let deadline = Instant::now() + self.options.drain;
        for (index, _) in guest.enabled() {
            while host.in_flight(index) != 0 {
                if Instant::now() >= deadline {
                    return false;
                }
                std::thread::sleep(LOOK);
            }
        }
        true
    }

    fn open_intakes(&self, inner: &mut Inner<M>) {
        let Inner { guest, host, .. } = inner;
        for (index, _) in guest.enabled() {
            host.set_intake(index, true);
        }
    }

    /// Stops all queues that the host serves. `None`: a ring is broken, or a queue was not drained.
    pub(super) fn stop_hosts(&self, inner: &mut Inner<M>, mode: Stop) -> Option<Drained> {
        let Inner { guest, host, .. } = inner;
        let mut sound = true;
        let mut states = Vec::new();
        for (index, _) in guest.enabled() {
            host.begin_stop(index, mode);
        }
        for (index, _) in guest.enabled() {
            let Some(stopped) = host.stop(index, mode) else {
                continue;
            };
            sound &= stopped.error.is_none() && stopped.in_flight.is_empty();
            let avail_index = stopped.state.next_avail;
            states.push((index, VqState::Split { avail_index }));
        }
        sound.then_some(states)
    }

    /// The beginning of a report.
    pub(super) fn report(&self, inner: &Inner<M>, to: Path) -> Result<Report, PathError> {
        let in_flight = inner
            .guest
            .rings()?
            .iter()
            .map(|(_, view)| u32::from(view.avail_idx().wrapping_sub(view.used_idx())))
            .sum();
        Ok(Report {
            from: inner.path,
            to,
            method: None,
            phases: Phases::default(),
            in_flight,
            attempts: 0,
        })
    }

    /// The configuration space as it is now.
    fn config(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.device.get_config_size()];
        match self
            .device
            .get_config(0, &mut bytes)
            .step("reading the configuration")
        {
            Ok(()) => bytes,
            // Compared only.
            Err(_) => Vec::new(),
        }
    }

    /// Tells the guest if the configuration is another one than before: the notification may have been lost.
    fn tell_config(&self, inner: &Inner<M>, before: &[u8]) {
        if self.config() != before
            && let Some(config) = &inner.guest.config
        {
            config.notify();
        }
    }
}

/// Tells the guest that only its reset helps.
fn ask_for_reset(guest: &mut Guest) {
    guest.status |= status::DEVICE_NEEDS_RESET;
    if let Some(config) = &guest.config {
        config.notify();
    }
}

pub(super) fn refuse<M: DeviceMemory>(inner: &Inner<M>, why: &'static str) -> SwitchError {
    prepare(inner, PathError::Busy(why))
}

pub(super) fn prepare<M: DeviceMemory>(inner: &Inner<M>, source: PathError) -> SwitchError {
    SwitchError {
        step: SwitchStep::Prepare,
        path: inner.path,
        source,
        back: None,
    }
}
