// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The io_uring engine: one ring per queue.
//!
//! The ring's own descriptor is what the owner waits on: it polls readable while the completion ring
//! holds anything. `SINGLE_ISSUER` and `DEFER_TASKRUN` are not used on purpose: a queue is `Send`, and
//! with them a queue that was moved to, or dropped on, another thread could never learn that the
//! kernel is done with its buffers. What they save was not measurable here.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use io_uring::{IoUring, opcode, squeue, types};
use virtio_blk_core::disk::{
    Completion, DiskError, Execute, IoBuf, IoQueue, Op, OpKind, Submit, Token, Wait,
};

#[cfg(feature = "inject")]
use super::ring_entry::Ticket;
use super::ring_entry::{Ready, entry};
use super::ring_setup::set_up;
use super::sync;
use crate::raw::bounce::Pool;
use crate::raw::host_file::HostFile;
use crate::raw::job::{Call, Job, Step};
use crate::raw::medium::Medium;
use crate::raw::page_cache::Inline;

/// Most aligned chunks of one queue: 2 MiB as a rule.
const CHUNKS: usize = 8;
/// Marks the completions of cancellation requests.
const CANCEL: u64 = u64::MAX;
/// Marks the completion of the queue's flush.
const SYNC: u64 = u64::MAX - 1;
/// How often in a row the kernel may refuse to take anything before the queue counts as broken.
const MAX_REFUSALS: u32 = 1000;

/// A data path through a ring of its own.
pub(super) struct RingQueue {
    ring: IoUring,
    medium: Arc<Medium>,
    /// For what the page cache can do inside `execute`.
    inline: Option<Inline>,
    pool: Pool,
    /// Jobs by number. The number goes through the kernel.
    slots: Vec<Option<Job>>,
    free: Vec<u32>,
    /// Most jobs.
    limit: usize,
    /// Jobs whose next call is due.
    ready: VecDeque<u32>,
    /// Jobs that need aligned memory, which others hold.
    waiting: VecDeque<u32>,
    /// What flushes go through. One at a time, as an error is told to one only.
    flush: Option<HostFile>,
    /// Jobs that the flush in the ring is for.
    syncing: Vec<u32>,
    /// Jobs that the next flush is for.
    to_sync: Vec<u32>,
    /// Entries put into the ring whose completion was not seen.
    pending: usize,
    /// By the entry's user data.
    #[cfg(feature = "inject")]
    tickets: std::collections::HashMap<u64, Ticket>,
}

/// How far a job got.
enum Driven {
    /// It is over.
    Done(Result<(), DiskError>),
    /// This has to go through the ring.
    Entry(Ready),
    /// It needs a flush.
    Sync,
    /// It waits for aligned memory.
    Wait,
}

/// Takes a job as far as it gets without the ring.
fn drive(job: &mut Job, medium: &Medium, flush: Option<&HostFile>, pool: &mut Pool) -> Driven {
    loop {
        let urgent = job.is_urgent();
        let call = match job.step(medium, pool) {
            Step::Done(result) => return Driven::Done(result),
            Step::Wait => return Driven::Wait,
            Step::Call(call) => call,
        };
        match entry(&call) {
            _ if matches!(call, Call::Sync) && flush.is_some() => return Driven::Sync,
            Some(entry) if !urgent && !matches!(call, Call::Sync) => {
                return Driven::Entry(Ready::new(entry, &call, &medium.file));
            }
            _ => {
                let outcome = sync::call(medium, None, call);
                job.apply(medium, outcome);
            }
        }
    }
}

impl RingQueue {
    /// Opens a ring for `depth` jobs at a time. `page_cache`: what that can do is done inside `execute`.
    ///
    /// # Errors
    /// The ring could not be set up.
    pub fn new(medium: Arc<Medium>, depth: u16, page_cache: bool) -> Result<Self, DiskError> {
        let depth = depth.max(1);
        let ring = set_up(depth.into())?;
        let flush = medium.durability.open(&medium.file);
        let files = [
            medium.file.as_raw_fd(),
            flush.as_ref().unwrap_or(&medium.file).as_raw_fd(),
        ];
        ring.submitter().register_files(&files)?;
        Ok(Self {
            ring,
            flush,
            syncing: Vec::new(),
            to_sync: Vec::new(),
            pool: Pool::new(medium.bounce_align(), CHUNKS),
            medium,
            inline: page_cache.then(|| Inline::new(false)),
            slots: Vec::new(),
            free: Vec::new(),
            limit: depth.into(),
            ready: VecDeque::new(),
            waiting: VecDeque::new(),
            pending: 0,
            #[cfg(feature = "inject")]
            tickets: Default::default(),
        })
    }

    /// Whether an entry can be pushed, after making room if need be.
    fn room(&mut self) -> Result<bool, DiskError> {
        if !self.ring.submission().is_full() {
            return Ok(true);
        }
        self.enter()?;
        Ok(!self.ring.submission().is_full())
    }

    /// Puts an entry into the ring. The caller made sure of room.
    fn push(&mut self, entry: squeue::Entry, data: u64) -> bool {
        // SAFETY: what the entry points to is owned by a job in `slots` (or by the medium), and stays
        // there until the entry's completion was seen; dropping the queue waits for that.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(data)) }.is_ok();
        self.pending += usize::from(pushed);
        pushed
    }

    /// Puts a job's call into the ring.
    fn push_call(&mut self, ready: Ready, data: u64) -> bool {
        #[cfg(feature = "inject")]
        self.tickets.insert(data, ready.ticket);
        self.push(ready.entry, data)
    }

    /// Starts a flush for all jobs that need one, if none is on its way.
    #[cold]
    fn start_sync(&mut self) -> Result<(), DiskError> {
        if !self.syncing.is_empty() {
            return Ok(());
        }
        let Some(file) = &self.flush else {
            return Ok(());
        };
        let job = |number: &u32| self.slots.get(*number as usize).and_then(Option::as_ref);
        if self.to_sync.iter().filter_map(job).any(Job::is_urgent) {
            let outcome = file.fdatasync();
            self.syncing = std::mem::take(&mut self.to_sync);
            self.synced(outcome);
            // Brings the owner to `reap`.
            if self.room()? {
                self.push(opcode::Nop::new().build(), CANCEL);
            }
            return Ok(());
        }
        if let Some(entry) = entry(&Call::Sync) {
            let ready = Ready::new(entry, &Call::Sync, file);
            if self.room()? && self.push_call(ready, SYNC) {
                self.syncing = std::mem::take(&mut self.to_sync);
            }
        }
        Ok(())
    }

    /// Takes the outcome of a flush.
    fn synced(&mut self, outcome: i32) {
        for number in std::mem::take(&mut self.syncing) {
            if let Some(Some(job)) = self.slots.get_mut(number as usize) {
                job.apply(&self.medium, outcome);
                self.ready.push_back(number);
            }
        }
    }

    /// The outcome of a job's call, unless a test exchanges it.
    #[cfg(feature = "inject")]
    fn outcome(&mut self, data: u64, result: i32) -> i32 {
        let file = match &self.flush {
            Some(file) if data == SYNC => file,
            _ => &self.medium.file,
        };
        match (self.tickets.remove(&data).flatten(), &file.hook) {
            (Some(ticket), Some(hook)) => hook.end(ticket, result),
            _ => result,
        }
    }

    /// Gives the kernel everything that was pushed. What it can't take now stays in the ring.
    fn enter(&mut self) -> Result<(), DiskError> {
        let mut refusals = 0;
        loop {
            let (submitter, mut queue, _) = self.ring.split();
            queue.sync();
            if queue.is_empty() {
                return Ok(());
            }
            let left = queue.len();
            drop(queue);
            match submitter.submit() {
                Ok(0) => {}
                Ok(_) => continue,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => continue,
                    Some(libc::EAGAIN | libc::EBUSY) => {}
                    _ => return Err(error.into()),
                },
            }
            // Out of memory or of room for completions. A completion that is on its way will bring the
            // owner back here; without one, only trying again can help.
            if self.pending > left {
                return Ok(());
            }
            refusals += 1;
            if refusals == MAX_REFUSALS {
                return Err(DiskError::from_errno(libc::EBUSY));
            }
            std::thread::yield_now();
        }
    }

    /// Finishes a job.
    fn finish(&mut self, number: u32, result: Result<(), DiskError>, done: &mut Vec<Completion>) {
        if let Some(mut job) = self
            .slots
            .get_mut(number as usize)
            .and_then(|slot| slot.take())
        {
            job.release(&mut self.pool);
            self.free.push(number);
            done.push(job.op.complete(result));
        }
    }

    /// Keeps a job. Returns its number.
    fn store(&mut self, job: Job) -> u32 {
        if let Some(number) = self.free.pop() {
            self.slots[number as usize] = Some(job);
            return number;
        }
        self.slots.push(Some(job));
        (self.slots.len() - 1) as u32
    }

    /// Takes what the kernel finished out of the ring.
    fn collect(&mut self, done: &mut Vec<Completion>) {
        loop {
            let Some(entry) = self.ring.completion().next() else {
                return;
            };
            self.pending -= 1;
            let number = entry.user_data();
            if number == CANCEL {
                continue;
            }
            let result = entry.result();
            #[cfg(feature = "inject")]
            let result = self.outcome(number, result);
            if number == SYNC {
                self.synced(result);
                continue;
            }
            let Some(Some(job)) = self.slots.get_mut(number as usize) else {
                continue;
            };
            job.apply(&self.medium, result);
            match job.result() {
                Some(result) => self.finish(number as u32, result, done),
                None => self.ready.push_back(number as u32),
            }
        }
    }

    /// Continues the jobs that have more to do.
    fn advance(&mut self, done: &mut Vec<Completion>) -> Result<(), DiskError> {
        while !(self.ready.is_empty() && self.waiting.is_empty()) && self.room()? {
            let (number, waited) = match self.ready.pop_front() {
                Some(number) => (number, false),
                None => match self.waiting.pop_front() {
                    Some(number) => (number, true),
                    None => break,
                },
            };
            let Some(Some(job)) = self.slots.get_mut(number as usize) else {
                continue;
            };
            match drive(job, &self.medium, self.flush.as_ref(), &mut self.pool) {
                Driven::Done(result) => self.finish(number, result, done),
                Driven::Entry(ready) => {
                    self.push_call(ready, number.into());
                }
                Driven::Sync => self.to_sync.push(number),
                Driven::Wait if waited => {
                    self.waiting.push_front(number);
                    break;
                }
                Driven::Wait => self.waiting.push_back(number),
            }
        }
        if !self.to_sync.is_empty() {
            self.start_sync()?;
        }
        self.enter()
    }
}

impl IoQueue for RingQueue {
    fn submit(&mut self, op: Op) -> Submit {
        if let Err(error) = self.medium.check_bounds(&op.kind, op.buf.len()) {
            return Submit::Done(op.complete(Err(error)));
        }
        if self.free.is_empty() && self.slots.len() == self.limit {
            return Submit::Full(op);
        }
        // A ring that takes nothing: `flush_batch` or `reap` will say so.
        if !matches!(self.room(), Ok(true)) {
            return Submit::Full(op);
        }
        let mut job = Job::new(op, &self.medium);
        match drive(&mut job, &self.medium, self.flush.as_ref(), &mut self.pool) {
            Driven::Done(result) => {
                job.release(&mut self.pool);
                return Submit::Done(job.op.complete(result));
            }
            Driven::Entry(ready) => {
                let number = self.store(job);
                self.push_call(ready, number.into());
            }
            Driven::Sync => {
                let number = self.store(job);
                self.to_sync.push(number);
            }
            Driven::Wait => {
                let number = self.store(job);
                self.waiting.push_back(number);
            }
        }
        Submit::Queued
    }

    fn execute(&mut self, kind: &OpKind, buf: &IoBuf, _token: Option<Token>) -> Execute {
        if let Err(error) = self.medium.check_bounds(kind, buf.len()) {
            return Execute::Done(Err(error));
        }
        match &mut self.inline {
            Some(inline) => inline.execute(&self.medium, kind, buf),
            None => Execute::Declined,
        }
    }

    fn flush_batch(&mut self) -> Result<(), DiskError> {
        if !self.to_sync.is_empty() {
            self.start_sync()?;
        }
        self.enter()
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        let before = done.len();
        {
            let (submitter, queue, completions) = self.ring.split();
            let held_back = queue.cq_overflow() || (completions.is_empty() && queue.taskrun());
            drop(queue);
            drop(completions);
            if held_back {
                // Completions that the kernel keeps until we enter it. Failing to is no error: they
                // stay, and the descriptor stays readable.
                let _ = submitter.submit();
            }
        }
        self.collect(done);
        // Once only: what this finishes at once makes the descriptor readable again, and a long job
        // can't keep the owner here.
        self.advance(done)?;
        Ok(done.len() - before)
    }

    fn wait(&self) -> Wait<'_> {
        // SAFETY: the ring's descriptor is open as long as `self`.
        Wait::Fd(unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) })
    }

    fn cancel(&mut self, token: Token) {
        let found = self
            .slots
            .iter_mut()
            .enumerate()
            .find_map(|(number, slot)| {
                let job = slot.as_mut().filter(|job| job.op.token == token)?;
                job.cancelled = true;
                Some(number as u64)
            });
        // The entry comes after the job's in the ring, and before any that reuses the number.
        if let Some(number) = found
            && matches!(self.room(), Ok(true))
        {
            self.push(opcode::AsyncCancel::new(number).build(), CANCEL);
            // An error will show at the next `flush_batch` or `reap`.
            let _ = self.enter();
        }
    }
}

impl Drop for RingQueue {
    fn drop(&mut self) {
        if self.pending > 0 && matches!(self.room(), Ok(true)) {
            let all = types::CancelBuilder::any();
            self.push(opcode::AsyncCancel2::new(all).build(), CANCEL);
        }
        while self.pending > 0 {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN | libc::EBUSY) => std::thread::yield_now(),
                    _ => {
                        // Nobody can tell when the kernel is done: the memory must stay for good.
                        std::mem::forget(std::mem::take(&mut self.slots));
                        std::mem::forget(self.medium.clone());
                        return;
                    }
                },
            }
            self.pending -= self.ring.completion().count();
        }
        // Closing a ring lets go of its files some time later only. The next to open the image would
        // find it locked until then.
        let _ = self.ring.submitter().unregister_files();
    }
}
