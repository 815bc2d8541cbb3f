// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A disk in memory that does what a test tells it to (feature `test-util`).
//!
//! It stores real data, notes every operation in a [log](TestDisk::take_log), and can complete
//! operations at once, at the next `flush_batch`, or when the test says so, in any order; fail them;
//! have no room; invent completions; and break as a whole. For tests and fuzzing, not for use: a mutex
//! guards everything.

mod buffer;
mod state;

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::disk::{
    Caps, Completion, Disk, DiskError, DiskEvent, DiskListener, Execute, IoBuf, IoQueue, Lifetime,
    Op, OpKind, Submit, Token, Wait,
};
use state::{Fault, State};

pub use buffer::removable_buffer;

/// When operations complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Inside `submit`.
    Inline,
    /// Inside `execute`; what is not offered there inside `submit`. Only right with [`WaitKind::Inline`].
    Execute,
    /// As `AtFlush`, but taken by `execute` where the caller allows that.
    Taken,
    /// As `Held`, but taken by `execute` where the caller allows that.
    TakenHeld,
    /// They are begun and done by `flush_batch`, never before, and come out of `reap`. What is
    /// submitted and not followed by a `flush_batch` never completes, as with a batching backend.
    AtFlush,
    /// When the test calls [`TestDisk::release`] or [`TestDisk::release_at`].
    Held,
}

/// How a queue of the disk tells that there is something to reap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitKind {
    /// By a descriptor.
    Fd,
    /// Not at all: the owner polls.
    Poll,
    /// Not at all: everything completes inside `submit`. Only right with [`Mode::Inline`].
    Inline,
}

/// How a queue breaks as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// The next `flush_batch` fails.
    Flush,
    /// The next `reap` fails, after handing out what is done.
    Reap,
}

/// One line of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An operation was accepted, with so many bytes of data.
    Submitted {
        /// What it was.
        kind: OpKind,
        /// Bytes in its buffer.
        len: usize,
    },
    /// An operation was returned for want of room.
    Refused,
    /// `flush_batch` was called.
    Flushed,
    /// An operation was asked to be cancelled.
    Cancelled,
    /// A queue was dropped with so many operations in it.
    Dropped(usize),
}

/// A scripted disk. Clones are handles to the same disk.
#[derive(Clone)]
pub struct TestDisk {
    state: Arc<Mutex<State>>,
}

impl TestDisk {
    /// A disk of these capabilities, full of zeroes, that completes operations inline.
    pub fn new(caps: Caps) -> Self {
        Self {
            state: Arc::new(Mutex::new(State::new(caps))),
        }
    }

    /// The same disk with operations completing at `mode`, and waited for by `wait`.
    #[must_use]
    pub fn with_mode(self, mode: Mode, wait: WaitKind) -> Self {
        {
            let mut state = self.lock();
            state.mode = mode;
            state.wait = wait;
        }
        self
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Changes when operations submitted from now on complete.
    pub fn set_mode(&self, mode: Mode) {
        self.lock().mode = mode;
    }

    /// From now on each queue returns `Full`, or declines, while it has so many operations.
    pub fn set_room(&self, room: usize) {
        self.lock().room = room;
    }

    /// From now on queues ask to be called again at this instant.
    pub fn set_deadline(&self, deadline: Option<Instant>) {
        self.lock().deadline = deadline;
    }

    /// From now on operations that are cancelled stay as they are, as at a disk that can't call them back.
    pub fn set_keeps(&self) {
        self.lock().keeps = true;
    }

    /// What the disk says of its wear, as it goes to the wire.
    pub fn set_lifetime(&self, bytes: [u8; Lifetime::SIZE]) {
        self.lock().lifetime = bytes;
    }

    /// Asks `fault` about each operation from now on, when it would be executed: with an error it fails
    /// instead, and does nothing.
    pub fn set_fault(&self, fault: impl FnMut(&OpKind) -> Option<DiskError> + Send + 'static) {
        let fault: Fault = Box::new(fault);
        self.lock().fault = Some(fault);
    }

    /// Makes every queue fail as a whole at its next call of this kind, once.
    pub fn set_break(&self, how: Break) {
        self.lock().broken = Some(how);
    }

    /// Makes `open_queue` fail from now on, or succeed again.
    pub fn set_closed(&self, closed: bool) {
        self.lock().closed = closed;
    }

    /// Operations that wait for the test.
    pub fn held(&self) -> usize {
        self.lock().held.len()
    }

    /// Completions that wait for a `reap`.
    pub fn ready(&self) -> usize {
        self.lock().ready()
    }

    /// How often `reap` was called: how often somebody looked.
    pub fn reaps(&self) -> u64 {
        self.lock().reaps
    }

    /// Makes the next `submit` panic.
    pub fn set_panic(&self) {
        self.set_fault(|_| {
            std::panic::resume_unwind(Box::new("the test asked for it"));
        });
    }

    /// Completes the `count` oldest operations that wait. Returns how many there were.
    pub fn release(&self, count: usize) -> usize {
        let mut state = self.lock();
        let count = count.min(state.held.len());
        for _ in 0..count {
            state.release_at(0);
        }
        count
    }

    /// Completes the `index`th oldest operation that waits. `false` if there is none.
    pub fn release_at(&self, index: usize) -> bool {
        self.lock().release_at(index)
    }

    /// Makes every queue hand out a completion that it was never asked for.
    pub fn invent(&self, token: Token) {
        self.lock().invent(token);
    }

    /// Makes every queue hand out the completion of the latest operation it accepted, once more or ahead
    /// of time.
    pub fn repeat(&self) {
        let mut state = self.lock();
        if let Some(token) = state.last {
            state.invent(token);
        }
    }

    /// The log since the last call.
    pub fn take_log(&self) -> Vec<Event> {
        std::mem::take(&mut self.lock().log)
    }

    /// The kinds of the operations accepted since the log was last taken; takes it.
    pub fn take_ops(&self) -> Vec<OpKind> {
        let kinds = self.take_log().into_iter().filter_map(|event| match event {
            Event::Submitted { kind, .. } => Some(kind),
            _ => None,
        });
        kinds.collect()
    }

    /// The depths that queues were opened with.
    pub fn depths(&self) -> Vec<u16> {
        self.lock().depths.clone()
    }

    /// Copies of the content, clipped to it.
    pub fn content(&self, offset: usize, len: usize) -> Vec<u8> {
        let state = self.lock();
        let bytes = state.data.iter().skip(offset).take(len);
        bytes.copied().collect()
    }

    /// Sets the content from byte `offset` on, clipped to the disk.
    pub fn set_content(&self, offset: usize, bytes: &[u8]) {
        let mut state = self.lock();
        for (to, from) in state.data.iter_mut().skip(offset).zip(bytes) {
            *to = *from;
        }
    }

    /// Gives the disk another capacity, in sectors, and tells the listeners.
    pub fn resize(&self, capacity: u64) {
        let listeners = {
            let mut state = self.lock();
            state.caps.capacity = capacity;
            let len = state.caps.capacity_bytes() as usize;
            state.data.resize(len, 0);
            state.listeners.clone()
        };
        for listener in listeners {
            listener(DiskEvent::Resized { capacity });
        }
    }

    /// Tells the listeners of an event; nothing else changes.
    pub fn emit(&self, event: DiskEvent) {
        let listeners = self.lock().listeners.clone();
        for listener in listeners {
            listener(event);
        }
    }
}

impl Disk for TestDisk {
    fn caps(&self) -> Caps {
        self.lock().caps
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        let mut state = self.lock();
        if state.closed {
            return Err(DiskError::Config("the test closed the disk".to_owned()));
        }
        let (ours, theirs) = match state.wait {
            WaitKind::Fd => {
                let (ours, theirs) = UnixStream::pair()?;
                ours.set_nonblocking(true)?;
                theirs.set_nonblocking(true)?;
                (Some(ours), Some(theirs))
            }
            WaitKind::Poll | WaitKind::Inline => (None, None),
        };
        state.depths.push(depth);
        let id = state.open(ours);
        Ok(Box::new(TestQueue {
            state: self.state.clone(),
            id,
            polled: state.wait == WaitKind::Poll,
            notifier: theirs,
        }))
    }

    fn listen(&self, listener: DiskListener) {
        self.lock().listeners.push(listener);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // A test that panicked tells more than a poisoned mutex.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

struct TestQueue {
    state: Arc<Mutex<State>>,
    id: usize,
    polled: bool,
    /// Readable while something is ready.
    notifier: Option<UnixStream>,
}

impl IoQueue for TestQueue {
    fn submit(&mut self, op: Op) -> Submit {
        lock(&self.state).submit(self.id, op)
    }

    fn execute(&mut self, kind: &OpKind, buf: &IoBuf, token: Option<Token>) -> Execute {
        lock(&self.state).execute(self.id, kind, buf, token)
    }

    fn flush_batch(&mut self) -> Result<(), DiskError> {
        lock(&self.state).flush(self.id)
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        let mut state = lock(&self.state);
        state.reaps += 1;
        let count = state.take_ready(self.id, done);
        // Under the lock, so that no byte is sent in between.
        if let Some(mut notifier) = self.notifier.as_ref() {
            while matches!(notifier.read(&mut [0; 64]), Ok(64)) {}
        }
        state.check_broken(Break::Reap)?;
        Ok(count)
    }

    fn wait(&self) -> Wait<'_> {
        match &self.notifier {
            Some(notifier) => Wait::Fd(notifier.as_fd()),
            None if self.polled => Wait::Poll,
            None => Wait::Inline,
        }
    }

    fn deadline(&self) -> Option<Instant> {
        lock(&self.state).deadline
    }

    fn cancel(&mut self, token: Token) {
        lock(&self.state).cancel(self.id, token);
    }
}

impl Drop for TestQueue {
    fn drop(&mut self) {
        lock(&self.state).close(self.id);
    }
}

/// Signals that a queue has completions. A full socket is signalled already.
fn signal(mut notifier: &UnixStream) {
    let _ = notifier.write(&[1]);
}
