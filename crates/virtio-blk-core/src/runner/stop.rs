// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The end of a queue's work, and what is left of it.

use std::time::Instant;

use super::outstanding::Outstanding;
use super::queue_runner::{QueueRunner, Service};
use super::stopped::{Stop, Stopped};
use super::wait;
use crate::disk::{Completion, DiskError, IoQueue, Op, Submit, Wait};
use crate::memory::DeviceMemory;

impl<M: DeviceMemory> QueueRunner<M> {
    /// Ends the queue's work. No guest memory is touched after it returns. The ring of a sound queue is left
    /// so that the driver kicks for the next buffer, also where its next owner is another. Blocks until the disk is done
    /// with every buffer (`Drain`: with every request).
    pub fn stop(mut self, mode: Stop) -> Stopped {
        if mode == Stop::Drain {
            self.drain();
        }
        // Not after the disk was waited for: the driver may use the memory for something else then.
        self.leave();
        self.abandon()
    }

    /// Leaves the ring as the next owner needs it.
    pub(super) fn leave(&mut self) {
        self.fetch.leave();
    }

    /// As [`Stop::HandOver`], without a write to the ring.
    pub(super) fn abandon(mut self) -> Stopped {
        self.fetch.open = false;
        self.outstanding.cancel();
        // Waits until no buffer is used any more.
        self.outstanding.close();
        let mut in_flight = self.outstanding.heads();
        in_flight.extend(self.fetch.unreplayed());
        Stopped {
            state: self.state(),
            in_flight,
            error: self.error,
        }
    }

    /// Takes nothing new from now on, and has the disk let go of what it holds back.
    pub(super) fn begin_drain(&mut self) {
        self.fetch.open = false;
        self.outstanding.release_held();
    }

    /// Whether every request taken, or to be taken again, was returned.
    pub(super) fn is_drained(&self) -> bool {
        self.in_flight() == 0 && self.fetch.replay.as_slice().is_empty()
    }

    fn drain(&mut self) {
        self.begin_drain();
        while !self.is_drained() {
            match self.service(usize::from(u16::MAX)) {
                Service::Fatal if self.in_flight() == 0 => break,
                Service::Fatal => self.wait_for_disk(self.deadline()),
                Service::More => {}
                Service::WaitUntil(at) => self.wait_for_disk(Some(at)),
                // The call may have returned the last request.
                Service::Idle if self.in_flight() == 0 => {}
                Service::Idle => self.wait_for_disk(None),
            }
        }
    }

    fn wait_for_disk(&self, deadline: Option<Instant>) {
        match self.wait() {
            Wait::Fd(fd) => wait::readable(fd, deadline),
            Wait::Poll | Wait::Inline => std::thread::yield_now(),
        }
    }
}

impl Outstanding {
    /// Has the disk finish early what it has. What it was not given yet is not given to it any more.
    pub(super) fn cancel(&mut self) {
        self.stalled.clear();
        for token in self.tokens() {
            self.io.cancel(token);
        }
    }

    /// Gives up the disk's queue. Blocks until no buffer is used any more.
    pub(super) fn close(&mut self) {
        self.io = Box::new(Closed);
        self.unflushed = false;
        self.stalled.clear();
    }

    /// The heads of all requests in flight, in the order in which they were taken.
    pub(super) fn heads(&mut self) -> Vec<u16> {
        let tokens = self.tokens().into_iter();
        tokens
            .filter_map(|token| self.get(token).map(|slot| slot.head))
            .collect()
    }

    /// Of a broken ring, to which nothing is returned any more: has the disk finish early what it has, and
    /// forgets what it was not given yet.
    #[cold]
    pub(super) fn give_up(&mut self) {
        for op in std::mem::take(&mut self.stalled) {
            self.release(op.token);
        }
        self.cancel();
        self.release_held();
        self.collect();
    }

    /// Of a broken ring: collects what the disk has finished, so that a reset finds the queue at rest.
    #[cold]
    pub(super) fn collect(&mut self) {
        let started = self.flush_batch();
        let mut reaped = Ok(());
        if let Some((mut done, result)) = self.reap() {
            for completion in done.drain(..) {
                if self.get(completion.token).is_some() {
                    self.release(completion.token);
                }
            }
            self.recycle(done);
            reaped = result;
        }
        self.release_memory();
        if started.is_err() || reaped.is_err() {
            self.close();
            for token in self.tokens() {
                self.release(token);
            }
        }
    }
}

/// In the place of a disk's queue that was given up.
struct Closed;

impl IoQueue for Closed {
    fn submit(&mut self, op: Op) -> Submit {
        Submit::Done(op.complete(Err(DiskError::Cancelled)))
    }

    fn reap(&mut self, _done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        Ok(0)
    }

    fn wait(&self) -> Wait<'_> {
        Wait::Inline
    }
}
