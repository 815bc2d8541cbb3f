// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Starting and stopping queues, apart from any message: taking a device over, what failed and is tried again, queues
//! that start again after their state was told, and the end.

use std::time::{Duration, Instant};

use virtio_blk_core::device::StatusChange;
use virtio_blk_core::runner::Stop;

use super::{Ended, Session};
use crate::kernel::VqInfo;
use crate::queue::{Context, Queue, Wish};
use crate::state::Place;

/// Queues whose state was told start again after this time, all together, if there is no message and no kick.
const HOLD: Duration = Duration::from_millis(500);
/// Between two tries of what failed for a reason that may pass.
const RETRY: Duration = Duration::from_secs(1);
/// Between two looks at whether the kernel has done what it asked to be allowed to do: it does that after the answer.
const SOON: Duration = Duration::from_millis(1);
/// For how long after a message such looks are taken.
const PATIENCE: Duration = Duration::from_secs(1);

impl Session {
    /// Continues where a server that died has left off.
    pub(crate) fn resume(&mut self) {
        let (status, accepted) = (self.state.status(), self.state.accepted());
        if status == 0 {
            return;
        }
        log::info!(
            "taking over: status {status:#x}, {} resets so far",
            self.state.generation()
        );
        match self.status.write(status, accepted, &self.device) {
            StatusChange::Start => {
                self.all_wanted();
                if self.state.is_held() {
                    self.held_until = Some(Instant::now() + HOLD);
                }
                self.start_wanted();
            }
            StatusChange::Refused => {
                log::error!("the driver uses features that this server does not offer");
            }
            StatusChange::None | StatusChange::Reset => {}
        }
    }

    /// All queues should run that the kernel knows as enabled.
    pub(super) fn all_wanted(&mut self) {
        for queue in &mut self.queues {
            queue.wish = Wish::IfReady;
        }
        self.stale = true;
        self.expect_kernel();
        self.ask();
    }

    /// The kernel is about to do what a message asked for.
    pub(super) fn expect_kernel(&mut self) {
        self.soon_until = Some(Instant::now() + PATIENCE);
    }

    /// When to look whether the kernel has done it. `None`: it had its time.
    fn soon(&self) -> Option<Instant> {
        let now = Instant::now();
        self.soon_until
            .is_some_and(|until| now < until)
            .then(|| now + SOON)
    }

    /// Asks the kernel how the queues are set up that should run and don't. Returns what it says of those that are
    /// enabled.
    fn ask(&mut self) -> Vec<(u16, VqInfo)> {
        let mut found = Vec::new();
        let (mut failed, mut later) = (None, false);
        let due: Vec<bool> = (0..)
            .zip(&self.queues)
            .map(|(index, queue)| self.is_due(index, queue))
            .collect();
        for ((index, queue), due) in (0..).zip(&mut self.queues).zip(due) {
            if !due {
                continue;
            }
            match self.file.vq_info(index) {
                Ok(info) if info.ready => found.push((index, info)),
                Ok(_) if queue.wish == Wish::IfReady => queue.wish = Wish::Rest,
                // Its message was answered, or will be.
                Ok(_) => later = true,
                Err(error) => {
                    failed = Some(format!(
                        "queue {index}: the kernel does not tell how it is set up: {error}"
                    ));
                }
            }
        }
        if let Some(failure) = failed {
            self.try_again(failure);
        } else if later {
            self.retry_at = self.soon().or_else(|| Some(Instant::now() + RETRY));
        }
        found
    }

    /// Something failed for a reason that may pass.
    fn try_again(&mut self, failure: String) {
        self.try_again_at(Instant::now() + RETRY, failure);
    }

    fn try_again_at(&mut self, at: Instant, failure: String) {
        self.retry_at = Some(at);
        // Once, and not each second.
        if self.complaint != failure {
            log::error!("{failure}: trying again");
            self.complaint = failure;
        }
    }

    /// Whether queues may start, as far as messages decide that.
    fn may_start(&self) -> bool {
        self.status.is_live() && !self.state.is_suspended() && self.finish_by.is_none()
    }

    /// Whether a queue should run and doesn't.
    fn is_waiting(&self, index: u16, queue: &Queue) -> bool {
        queue.should_run() && !self.threads.is_running(index)
    }

    /// Whether a queue should start now. A hold is for queues whose state was told; one that an earlier server left
    /// with requests in flight is none of those.
    fn is_due(&self, index: u16, queue: &Queue) -> bool {
        self.is_waiting(index, queue) && (self.held_until.is_none() || self.is_unfinished(index))
    }

    /// Whether an earlier server may have left requests of this queue in flight, which is not running.
    fn is_unfinished(&self, index: u16) -> bool {
        matches!(self.state.place(index), Place::Started { .. })
    }

    fn any_due(&self) -> bool {
        (0..)
            .zip(&self.queues)
            .any(|(index, queue)| self.is_due(index, queue))
    }

    /// Has queues started that an earlier server left with requests in flight: before these are finished, no queue is
    /// drained. Returns whether there are none any more that wait.
    pub(super) fn start_unfinished(&mut self, deadline: Instant) -> bool {
        let waits = |session: &Self| {
            let mut queues = (0..).zip(&session.queues);
            queues.any(|(index, queue)| {
                session.is_waiting(index, queue) && session.is_unfinished(index)
            })
        };
        if !self.may_start() || !waits(self) {
            return true;
        }
        // If it failed, that is told below.
        let _ = self.threads.medium().take(deadline);
        self.start_wanted();
        !waits(self)
    }

    /// Whether the disk is in use, or should be.
    pub(super) fn needs_medium(&self) -> bool {
        let starting = self.may_start() && self.any_due();
        starting || self.uses_memory()
    }

    /// Starts the queues that should run and don't.
    pub(super) fn start_wanted(&mut self) {
        self.retry_at = None;
        if !self.may_start() || !self.any_due() {
            return;
        }
        if self.threads.medium().left_behind() != 0 {
            log::debug!("the disk still works on requests from before the reset: waiting for it");
            return;
        }
        let infos = self.ask();
        if infos.is_empty() {
            return;
        }
        if !self.take_medium() {
            return;
        }
        if self.stale && !self.walk() {
            return;
        }
        self.start(&infos);
    }

    /// Takes the disk into use. Returns whether it is by now; if not, it rings, or it was refused and is tried again.
    fn take_medium(&mut self) -> bool {
        let now = Instant::now();
        let medium = self.threads.medium();
        let refused = medium.refused();
        if refused.is_none_or(|refused| now >= refused.until) {
            medium.want(true);
        }
        match medium.wait_taken(now) {
            None => false,
            Some(Ok(())) => true,
            Some(Err(refused)) => {
                self.try_again_at(refused.until, refused.to_string());
                false
            }
        }
    }

    fn start(&mut self, infos: &[(u16, VqInfo)]) {
        let mut context = Context {
            kernel: self.kernel.as_ref(),
            name: &self.state.shape().name,
            device: &self.device,
            file: &self.file,
            memory: self.memory.iotlb(),
            state: &self.state,
            threads: &mut self.threads,
            poll: self.poll,
            pin: self.pin,
            gate: &self.gate,
            wake: &self.wake,
        };
        let mut failed = None;
        for (index, info) in infos {
            let Some(queue) = self.queues.get_mut(usize::from(*index)) else {
                continue;
            };
            match queue.start(*index, info, &mut context) {
                Ok(()) => queue.wish = Wish::Run,
                Err(error) if error.may_pass() => {
                    failed = Some(format!("queue {index} can't be started: {error}"));
                }
                Err(error) => {
                    log::error!("queue {index} does not work until the driver resets it: {error}");
                    queue.wish = Wish::Rest;
                }
            }
        }
        match failed {
            Some(failure) => self.try_again(failure),
            None => self.complaint.clear(),
        }
    }

    /// Takes the address space over; nothing runs on it yet.
    fn walk(&mut self) -> bool {
        let bounce = self.bounce_size();
        match self.memory.walk(self.file.as_ref(), bounce) {
            Ok(_) => {
                self.stale = false;
                true
            }
            Err(error) => {
                self.try_again(format!("the driver's memory can't be used: {error}"));
                false
            }
        }
    }

    /// Whether anything runs on the address space, or hangs on it.
    pub(super) fn uses_memory(&self) -> bool {
        !self.threads.is_idle() || self.threads.medium().left_behind() != 0
    }

    /// Takes the address space over while queues run. Returns whether what was taken away is not used any more.
    pub(super) fn renew_memory(&mut self, deadline: Instant) -> bool {
        let bounce = self.bounce_size();
        let removed = match self.memory.walk(self.file.as_ref(), bounce) {
            Ok(removed) => removed,
            // The queues must not stay on what there was.
            Err(error) => {
                self.try_again(format!("the driver's memory can't be used: {error}"));
                return false;
            }
        };
        self.stale = false;
        // Each does so as soon as it gets to it.
        drop(self.threads.remap());
        match removed.settle(deadline) {
            Ok(false) => {}
            Ok(true) => log::warn!("requests in flight lost memory that the driver took away"),
            Err(error) => {
                log::error!("memory that the driver took away can't be released: {error}");
                return false;
            }
        }
        true
    }

    /// Stops those queues that `which` chooses. Returns whether they stand still.
    pub(super) fn stop(
        &mut self,
        which: impl Fn(u16) -> bool,
        mode: Stop,
        deadline: Instant,
    ) -> bool {
        self.threads.begin_stop(&which, mode);
        self.wait_stopped(which, deadline)
    }

    /// Waits for stops that were begun, and notes where the queues stand. Returns whether they stand still.
    fn wait_stopped(&mut self, which: impl Fn(u16) -> bool, deadline: Instant) -> bool {
        let (queues, state) = (&mut self.queues, &self.state);
        let late = self
            .threads
            .wait_stopped(which, deadline, |index, stopped| {
                if let Some(queue) = queues.get_mut(usize::from(index)) {
                    queue.set_stopped(index, state, stopped.as_ref());
                }
            });
        late.is_empty()
    }

    /// Releases the disk if nothing uses it any more, and waits for that. Returns whether what it held in memory is
    /// stable, as far as is known by `deadline`. If it was released before, that counts.
    pub(super) fn release_medium(&mut self, deadline: Instant) -> bool {
        if self.uses_memory() {
            return true;
        }
        match self.threads.release(deadline) {
            Some(Ok(())) => true,
            Some(Err(error)) => {
                log::warn!("the disk was not left in order, what it kept may be lost: {error}");
                false
            }
            None => {
                log::warn!("the disk still makes stable what it held in memory");
                false
            }
        }
    }

    /// The state of a queue is told: nothing starts until it is clear that the VMM continues with this device.
    pub(super) fn hold(&mut self, index: u16) {
        self.state.set_held(true);
        // Kicks of before.
        let _ = self.kicked.read();
        if let Err(error) = self.file.set_kick(index, Some(&self.kicked)) {
            log::debug!("queue {index}: its kicks go unseen for a while: {error}");
        }
        self.held_until = Some(Instant::now() + HOLD);
    }

    /// What was told stays true for as long as there are messages.
    pub(super) fn extend_hold(&mut self) {
        if self.held_until.is_some() {
            self.held_until = Some(Instant::now() + HOLD);
        }
    }

    /// Queues whose state was told may start again.
    pub(super) fn unhold(&mut self) {
        self.held_until = None;
        self.state.set_held(false);
    }

    /// Something happened that is no message: a queue stopped, was kicked, or a moment came.
    pub(crate) fn work(&mut self) {
        let now = Instant::now();
        self.wait_stopped(|_| true, now);
        let kicked = self.kicked.read().is_ok();
        if self.held_until.is_some_and(|at| kicked || now >= at) {
            self.unhold();
        }
        self.retry_irqs();
        self.start_wanted();
        if self.stale && !self.threads.is_idle() {
            let deadline = self.deadline();
            self.renew_memory(deadline);
        }
        if !self.needs_medium() {
            self.threads.medium().want(false);
        }
    }

    fn retry_irqs(&mut self) {
        let mut refused = false;
        for (index, queue) in (0..).zip(&self.queues) {
            refused |= queue.retry_irq(index, self.file.as_ref());
        }
        self.irqs_at = if refused { self.soon() } else { None };
    }

    /// When [`Session::work`] must be called.
    pub(crate) fn next(&self) -> Option<Instant> {
        let times = [self.held_until, self.retry_at, self.irqs_at, self.finish_by];
        times.into_iter().flatten().min()
    }

    /// Memory that was touched was gone: nothing the driver says can be relied on.
    pub(crate) fn alarmed(&mut self) {
        self.memory.acknowledge();
        log::error!("the driver's memory is gone: the device stops until it is reset");
        for queue in &mut self.queues {
            queue.wish = Wish::Rest;
        }
        self.threads.begin_stop(|_| true, Stop::HandOver);
    }

    /// Shows the driver the configuration space as it is now.
    pub(crate) fn push_config(&self) {
        // Whatever the driver sees, it sees no more than this.
        self.state.set_capacity(self.device.capacity());
        if let Err(error) = self.file.set_config(&self.device.config().to_bytes()) {
            return log::error!("the driver can't be shown the new size: {error}");
        }
        // Without a driver nobody needs to know.
        if self.is_live()
            && let Err(error) = self.file.inject_config_irq()
        {
            log::debug!("no config interrupt: {error}");
        }
    }

    /// Begins to hand everything over to the next server; nothing starts any more. [`Session::is_finished`] says when
    /// that is done, or its time over.
    pub(crate) fn finish(&mut self) {
        self.finish_by = Some(self.deadline());
        // What can be executed by the next server need not be waited for, and what a policy for errors holds back must
        // not fail.
        self.threads.begin_stop(|_| true, Stop::HandOver);
    }

    /// Whether nothing needs to be waited for any more.
    pub(crate) fn is_finished(&self) -> bool {
        let Some(deadline) = self.finish_by else {
            return false;
        };
        let now = Instant::now();
        now >= deadline || !self.needs_medium() && self.threads.medium().wait_left(now).is_some()
    }

    /// The end. What the disk does not release in time is left behind, with what it works with: memory mapped, the
    /// device's file open.
    pub(crate) fn end(mut self) -> Ended {
        let deadline = match self.finish_by {
            Some(at) => at,
            None => self.deadline(),
        };
        let mut finished = self.stop(|_| true, Stop::HandOver, deadline);
        finished &= self.threads.medium().wait_left_behind(deadline);
        let released = self.release_medium(deadline);
        let lost = self.threads.medium().take_lost();
        // What is lost is over, too.
        finished &= released || lost.is_some();
        self.threads.leave_behind(|_| true);
        Ended { finished, lost }
    }
}
