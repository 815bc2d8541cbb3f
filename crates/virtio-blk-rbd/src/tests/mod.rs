// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks over a library that does what the tests tell it to.

mod data;
mod ends;
mod failures;
mod lock;
mod readers;
mod size;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_blk_core::disk::{Completion, Disk, IoBuf, IoQueue, Op, OpKind, Submit, Token, Wait};

use crate::fake::{self, Fake};
use crate::{ImageName, RbdDisk, RbdError, RbdOptions, State};

/// Bytes of the image at first.
const LEN: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

/// A cluster, and a directory for the state.
struct Rig {
    fake: Arc<Fake>,
    state: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        Self {
            fake: Fake::new(LEN),
            state: tempfile::tempdir().unwrap(),
        }
    }

    fn options(&self) -> RbdOptions {
        let name: ImageName = "pool/disk".parse().unwrap();
        RbdOptions::new(name)
            .id(self.fake.user.as_str())
            .state(State::In(self.state.path().to_owned()))
    }

    fn open(&self) -> RbdDisk {
        self.try_open(&self.options()).unwrap()
    }

    fn try_open(&self, options: &RbdOptions) -> Result<RbdDisk, RbdError> {
        RbdDisk::open_with(fake::api(), options, PATIENCE)
    }
}

/// A queue, and what it does one by one.
struct Queue(Box<dyn IoQueue>);

impl Queue {
    fn of(disk: &RbdDisk) -> Self {
        Self(disk.open_queue(8).unwrap())
    }

    /// Hands an operation over. Returns its completion if it is there at once.
    fn submit(&mut self, token: u64, kind: OpKind, buf: IoBuf) -> Option<Completion> {
        let token = Token(token);
        match self.0.submit(Op { token, kind, buf }) {
            Submit::Queued => None,
            Submit::Done(completion) => Some(completion),
            Submit::Full(op) => panic!("full: {op:?}"),
        }
    }

    /// Whether there is something to reap, at once or in time.
    fn is_ready(&self, wait: Duration) -> bool {
        let Wait::Fd(fd) = self.0.wait() else {
            panic!("no descriptor");
        };
        let wait = Timespec::try_from(wait).unwrap();
        poll(
            &mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)],
            Some(&wait),
        )
        .unwrap()
            == 1
    }

    /// Waits for one completion.
    fn next(&mut self) -> Completion {
        let mut done = Vec::new();
        let since = Instant::now();
        while done.is_empty() {
            assert!(self.is_ready(PATIENCE) && since.elapsed() < PATIENCE);
            self.0.reap(&mut done).unwrap();
        }
        assert_eq!(done.len(), 1);
        done.remove(0)
    }

    /// One operation from beginning to end.
    fn run(&mut self, kind: OpKind, buf: IoBuf) -> Completion {
        match self.submit(1, kind, buf) {
            Some(completion) => completion,
            None => self.next(),
        }
    }

    fn read(&mut self, offset: u64, len: usize) -> Vec<u8> {
        let completion = self.run(OpKind::Read { offset }, IoBuf::zeroed(len));
        completion.result.unwrap();
        completion.buf.to_vec()
    }
}
