// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a request costs beside its work: no allocation, and no question to the disk what it can do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{Client, Serving, pattern, request};
use virtio_blk_core::disk::{Caps, Disk, DiskError, IoQueue};
use virtio_blk_disks::MemoryDisk;
use virtio_blk_nbd::proto::*;

/// Counts allocations of all threads but those of tests.
struct Counting;

static COUNT: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static IS_TEST: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !IS_TEST.try_with(Cell::get).unwrap_or(true) {
            COUNT.fetch_add(1, Ordering::SeqCst);
        }
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, base: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(base, layout) };
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Counts questions.
struct Asked {
    disk: MemoryDisk,
    count: AtomicU64,
}

impl Disk for Asked {
    fn caps(&self) -> Caps {
        self.count.fetch_add(1, Ordering::SeqCst);
        self.disk.caps()
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        self.disk.open_queue(depth)
    }
}

/// Requests of each kind, several at a time.
fn round(client: &mut Client, data: &[u8]) {
    const DEPTH: u64 = 16;
    for command in [
        Command::WRITE,
        Command::READ,
        Command::WRITE_ZEROES,
        Command::FLUSH,
    ] {
        for cookie in 0..DEPTH {
            let (offset, length) = match command {
                Command::FLUSH => (0, 0),
                _ => (cookie * 4096, 4096),
            };
            let flags = CommandFlags::NONE.with(
                CommandFlags::PAYLOAD_LEN,
                command == Command::WRITE && client.mode == ReplyMode::Extended,
            );
            let request = Request {
                cookie,
                flags,
                ..request(command, offset, length)
            };
            let payload = if command == Command::WRITE { data } else { &[] };
            client.send(&request, payload);
        }
        let read = match (command, client.mode) {
            (Command::READ, ReplyMode::Simple) => 4096,
            _ => 0,
        };
        for _ in 0..DEPTH {
            let (_, reply) = client.reply(read);
            assert!(matches!(reply, common::Reply::Done(_)), "{reply:?}");
        }
    }
}

#[test]
fn a_request_allocates_nothing_and_does_not_ask_what_the_disk_can_do() {
    IS_TEST.set(true);
    let disk = Arc::new(Asked {
        disk: MemoryDisk::new(1 << 20).unwrap(),
        count: AtomicU64::new(0),
    });
    let serving = Serving::new(disk.clone());
    for mode in [
        ReplyMode::Simple,
        ReplyMode::Structured,
        ReplyMode::Extended,
    ] {
        let mut client = serving.client(mode);
        let data = pattern(7, 4096);
        for _ in 0..20 {
            round(&mut client, &data);
        }
        let before = (
            COUNT.load(Ordering::SeqCst),
            disk.count.load(Ordering::SeqCst),
        );
        for _ in 0..50 {
            round(&mut client, &data);
        }
        let allocations = COUNT.load(Ordering::SeqCst) - before.0;
        // 3200 requests: a list may still grow, as it depends on how they come together.
        assert!(allocations < 32, "{mode:?}: {allocations} allocations");
        assert_eq!(disk.count.load(Ordering::SeqCst), before.1, "{mode:?}");
    }
}
