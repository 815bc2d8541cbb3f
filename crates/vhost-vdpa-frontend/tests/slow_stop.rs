// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

//! The slow path whose owner wants its operations back, or takes memory away from them.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::ways::{Way, on_both_ways};
use sim_backend::{BlkSim, SimOptions};
use vhost_vdpa_frontend::{SlowOptions, SlowPath};
use virtio_blk_core::disk::{
    Completion, Disk, DiskError, IoBuf, IoQueue, Op, OpKind, Submit, Token,
};
use virtio_blk_core::memory::HostMemory;
use virtio_blk_core::testdisk::removable_buffer;
use virtio_blk_disks::MemoryDisk;

const BLOCK: u64 = 4096;
/// Requests that the device has room for.
const ROOM: u64 = 4;

/// A device that does nothing until it is told to, and its disk.
struct Stepped {
    medium: Arc<MemoryDisk>,
    sim: Arc<BlkSim>,
    path: SlowPath,
    /// A block that the device knows.
    memory: HostMemory,
}

fn stepped() -> Stepped {
    let medium = Arc::new(MemoryDisk::new(1 << 20).unwrap());
    let sim = BlkSim::new(medium.clone(), SimOptions::strict().stepped());
    let sim = Arc::new(sim.unwrap());
    let options = SlowOptions {
        queue_size: ROOM as u16,
        bounces: ROOM as u16,
        bounce_len: BLOCK as u32,
        ..SlowOptions::default()
    };
    let path = SlowPath::new(sim.clone(), options).unwrap();
    let bytes = vec![0x5555_5555_5555_5555u64; BLOCK as usize / 8];
    let base = bytes.as_ptr().cast_mut().cast();
    // SAFETY: the allocation lives as long as its owner, and is only reached through the device and `IoBuf`.
    let memory = unsafe { HostMemory::new(base, BLOCK as usize, Arc::new(bytes)) };
    path.set_memory(&[(0x10_0000, memory.clone())]).unwrap();
    Stepped {
        medium,
        sim,
        path,
        memory,
    }
}

fn write(token: u64, buf: IoBuf) -> Op {
    Op {
        token: Token(token),
        kind: OpKind::Write {
            offset: token * BLOCK,
            fua: false,
        },
        buf,
    }
}

/// A block that the device knows where `way` is to be of use, else one that is copied.
fn block(stepped: &Stepped, way: Way) -> IoBuf {
    if way == Way::Submitted {
        return IoBuf::from_vec(vec![0x55; BLOCK as usize]);
    }
    let mut buf = IoBuf::new();
    buf.set_keep(stepped.memory.keep().clone());
    // SAFETY: all of the memory that `keep` owns.
    unsafe { buf.push(stepped.memory.as_ptr(), stepped.memory.len()) };
    buf
}

/// Twice as many writes as the device has room for.
fn submit(stepped: &Stepped, queue: &mut dyn IoQueue, way: Way) {
    for token in 0..2 * ROOM {
        let buf = block(stepped, way);
        assert!(matches!(queue.submit(write(token, buf)), Submit::Queued));
    }
    queue.flush_batch().unwrap();
}

/// Lets the device work, and collects until nothing comes any more.
fn finish(stepped: &Stepped, queue: &mut dyn IoQueue) -> Vec<Completion> {
    let mut done = Vec::new();
    loop {
        let worked = stepped.sim.step();
        if queue.reap(&mut done).unwrap() == 0 && !worked {
            return done;
        }
    }
}

/// Which blocks were written.
fn written(medium: &MemoryDisk) -> Vec<u64> {
    let mut queue = medium.open_queue(1).unwrap();
    (0..4 * ROOM)
        .filter(|block| {
            let op = Op {
                token: Token(0),
                kind: OpKind::Read {
                    offset: block * BLOCK,
                },
                buf: IoBuf::zeroed(BLOCK as usize),
            };
            let Submit::Done(done) = queue.submit(op) else {
                panic!("a memory disk is done at once");
            };
            done.buf.to_vec().iter().any(|byte| *byte != 0)
        })
        .collect()
}

#[test]
fn operations_that_wait_are_cancelled_at_once_and_others_end() {
    on_both_ways(|way| {
        let stepped = stepped();
        let mut queue = way.open(&stepped.path, 8);
        submit(&stepped, queue.as_mut(), way);
        (0..2 * ROOM).for_each(|token| queue.cancel(Token(token)));
        queue.cancel(Token(77));
        let mut done = Vec::new();
        queue.reap(&mut done).unwrap();
        let mut tokens: Vec<_> = done.iter().map(|done| done.token.0).collect();
        tokens.sort_unstable();
        assert_eq!(tokens, (ROOM..2 * ROOM).collect::<Vec<_>>());
        let cancelled = |done: &Completion| matches!(done.result, Err(DiskError::Cancelled));
        assert!(done.iter().all(cancelled));
        // The device had the others, and says what became of them.
        let done = finish(&stepped, queue.as_mut());
        assert_eq!(done.len() as u64, ROOM);
        assert!(done.iter().all(|done| done.result.is_ok()));
        assert_eq!(written(&stepped.medium), (0..ROOM).collect::<Vec<_>>());
    });
}

#[test]
fn what_is_left_of_a_cancelled_operation_is_not_given_to_the_device() {
    let stepped = stepped();
    let mut queue = stepped.path.open_queue(8).unwrap();
    // Two bounce buffers' worth.
    let buf = IoBuf::from_vec(vec![0x55; 2 * BLOCK as usize]);
    assert!(matches!(queue.submit(write(0, buf)), Submit::Queued));
    queue.flush_batch().unwrap();
    queue.cancel(Token(0));
    let done = finish(&stepped, queue.as_mut());
    assert_eq!(done.len(), 1);
    assert!(matches!(done[0].result, Err(DiskError::Cancelled)));
    assert_eq!(written(&stepped.medium), [0]);
}

/// The memory of an operation that waits may be another's by now: it is dropped with the queue, not executed.
#[test]
fn a_queue_that_is_dropped_gives_the_device_nothing_new() {
    on_both_ways(|way| {
        let stepped = stepped();
        let mut queue = way.open(&stepped.path, 8);
        submit(&stepped, queue.as_mut(), way);
        std::thread::scope(|scope| {
            let dropped = scope.spawn(move || drop(queue));
            while !dropped.is_finished() {
                stepped.sim.step();
                std::thread::yield_now();
            }
        });
        stepped.sim.run();
        assert_eq!(written(&stepped.medium), (0..ROOM).collect::<Vec<_>>());
        // The shadow queue is as good as before.
        let mut queue = way.open(&stepped.path, 8);
        submit(&stepped, queue.as_mut(), way);
        assert_eq!(finish(&stepped, queue.as_mut()).len() as u64, 2 * ROOM);
    });
}

/// Zeroes are found where memory was taken away from a request: they are not the driver's data.
#[test]
fn data_that_was_taken_away_does_not_reach_the_device() {
    static DATA: [u8; BLOCK as usize] = [0x55; BLOCK as usize];
    let stepped = stepped();
    let there = Arc::new(AtomicBool::new(true));
    let buf = || {
        let asked = there.clone();
        removable_buffer(&DATA, move || asked.load(Ordering::SeqCst))
    };
    let mut queue = stepped.path.open_queue(8).unwrap();
    for token in 0..2 * ROOM {
        assert!(matches!(queue.submit(write(token, buf())), Submit::Queued));
    }
    queue.flush_batch().unwrap();
    // Those that the device has were copied while it was there.
    there.store(false, Ordering::SeqCst);
    let late = queue.submit(write(2 * ROOM, IoBuf::from_vec(vec![1; BLOCK as usize])));
    assert!(matches!(late, Submit::Full(_)));
    let done = finish(&stepped, queue.as_mut());
    assert_eq!(done.len() as u64, 2 * ROOM);
    let gone = |error: &std::io::Error| error.raw_os_error() == Some(libc::EFAULT);
    for done in done {
        match &done.result {
            Ok(()) => assert!(done.token.0 < ROOM),
            Err(DiskError::Io(error)) => assert!(gone(error) && done.token.0 >= ROOM),
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(written(&stepped.medium), (0..ROOM).collect::<Vec<_>>());
    // Also where there is room at once.
    assert!(matches!(queue.submit(write(0, buf())), Submit::Queued));
    let done = finish(&stepped, queue.as_mut());
    assert!(matches!(&done[0].result, Err(DiskError::Io(error)) if gone(error)));
}
