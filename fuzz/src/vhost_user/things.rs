// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a client has besides its connection: memory with rings and requests in it, and descriptors.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::MemfdFlags;

use super::{PAGE, PAGES, QUEUES};

pub(super) fn memfd(pages: u64) -> File {
    let file =
        File::from(rustix::fs::memfd_create("vblk-fuzz", MemfdFlags::CLOEXEC).expect("memory"));
    file.set_len(pages * PAGE).expect("memory");
    file
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).expect("descriptors")
}

/// What a client has besides its connection.
pub(super) struct Things {
    pub memory: File,
    /// Of each queue: kick, call, error.
    pub events: Vec<[OwnedFd; 3]>,
    /// Wrong descriptors.
    pub others: Vec<OwnedFd>,
    pub log: File,
    /// The in-flight area, with the message that describes it.
    pub area: Option<(File, [u64; 3])>,
    /// Where each queue's ring has come to, and its size.
    pub rings: [(u16, u16); QUEUES as usize],
}

impl Things {
    pub fn new() -> Self {
        let (reader, writer) = rustix::pipe::pipe().expect("descriptors");
        let (one, other) = UnixStream::pair().expect("descriptors");
        Self {
            memory: memfd(PAGES),
            events: (0..QUEUES).map(|_| [event(), event(), event()]).collect(),
            others: vec![reader, writer, one.into(), other.into(), memfd(1).into()],
            log: memfd(1),
            area: None,
            rings: [(0, 0); QUEUES as usize],
        }
    }

    /// Any descriptor.
    pub fn descriptor(&self, which: u8) -> BorrowedFd<'_> {
        let which = usize::from(which);
        let all = self.others.len() + 2 + 3 * self.events.len();
        match which % all {
            0 => self.memory.as_fd(),
            1 => self.log.as_fd(),
            n if n < 2 + self.others.len() => self.others[n - 2].as_fd(),
            n => {
                let n = n - 2 - self.others.len();
                self.events[n / 3][n % 3].as_fd()
            }
        }
    }

    pub fn poke(&self, at: u64, bytes: &[u8]) {
        // Memory that was made shorter grows again with this.
        if at + bytes.len() as u64 <= PAGES * PAGE {
            self.memory.write_all_at(bytes, at).expect("memory");
        }
    }

    pub fn kick(&self, queue: usize) {
        // A full counter is a kick as well.
        let _ = rustix::io::write(&self.events[queue][0], &1u64.to_ne_bytes());
    }

    /// The pages of a queue: its ring, and its requests.
    pub fn ring(queue: usize) -> u64 {
        2 * queue as u64 * PAGE
    }

    /// Where a queue's request has its header, with the status behind it.
    pub fn slot(queue: usize, number: u16) -> u64 {
        Self::ring(queue) + PAGE + 64 * u64::from(number % 64)
    }

    /// Makes a request available in descriptors of its own, as far as the ring has them.
    pub fn request(&mut self, queue: usize, kind: u32, sector: u64, segments: u16) {
        let (next, size) = self.rings[queue];
        if size == 0 {
            return;
        }
        let (ring, data) = (Self::ring(queue), Self::slot(queue, next));
        let count = 2 + segments % 4;
        let head = next.wrapping_mul(count) % size;
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        self.poke(data, &header);
        for number in 0..count {
            let is_last = number + 1 == count;
            let reads = number == 0 || kind == 1 && !is_last;
            let (at, len) = match number {
                0 => (data, 16u32),
                _ if is_last => (data + 16, 1),
                // In the last region.
                n => ((PAGES - 1) * PAGE + u64::from(n), 512),
            };
            let flags = u16::from(!is_last) | if reads { 0 } else { 2 };
            let index = (head + number) % size;
            let mut bytes = at.to_le_bytes().to_vec();
            bytes.extend(len.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend(((index + 1) % size).to_le_bytes());
            self.poke(ring + 16 * u64::from(index), &bytes);
        }
        let avail = ring + 1024;
        self.poke(avail + 4 + 2 * u64::from(next % size), &head.to_le_bytes());
        self.rings[queue].0 = next.wrapping_add(1);
        self.poke(avail + 2, &next.wrapping_add(1).to_le_bytes());
    }
}
