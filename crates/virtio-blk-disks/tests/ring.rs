// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an asynchronous queue promises: nothing lost, nothing twice, nothing touched after its end.
#![cfg(feature = "io-uring")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use common::{Layout, directory, image, is_readable, read, run, wait, write};
use virtio_blk_core::disk::{
    Completion, Disk, DiskError, IoBuf, IoQueue, Op, OpKind, Submit, Token,
};
use virtio_blk_disks::raw::OpenError;
use virtio_blk_disks::{Engine, RawDisk, RawOptions};

const MIB: usize = 1 << 20;

/// The disk on a file, past the page cache if the host can do that: then I/O really is in flight.
fn open(path: &Path) -> RawDisk {
    let options = RawOptions::new(path).engine(Engine::IoUring);
    match RawDisk::open(&options.clone().direct(true)) {
        Err(OpenError::NoDirect { .. }) => RawDisk::open(&options).unwrap(),
        result => result.unwrap(),
    }
}

fn read_op(number: u64, offset: u64, len: usize) -> Op {
    Op {
        token: Token(number),
        kind: OpKind::Read { offset },
        buf: Layout {
            shift: 0,
            piece: 1 << 30,
        }
        .buffer(&vec![0xEE; len]),
    }
}

/// Submits an operation that must be taken but not be finished.
fn queue_up(queue: &mut dyn IoQueue, op: Op) {
    match queue.submit(op) {
        Submit::Queued => {}
        other => panic!("{other:?}"),
    }
}

/// Reaps until `count` operations completed, each once.
fn drain(queue: &mut dyn IoQueue, count: usize) -> Vec<Completion> {
    let mut done = Vec::new();
    queue.flush_batch().unwrap();
    while done.len() < count {
        if queue.reap(&mut done).unwrap() == 0 {
            wait(queue);
        }
    }
    assert_eq!(done.len(), count);
    let tokens: HashSet<u64> = done.iter().map(|completion| completion.token.0).collect();
    assert_eq!(tokens.len(), count);
    done
}

#[test]
fn readable_means_that_reap_has_something_and_nothing_is_missed() {
    let directory = directory();
    let disk = open(&image(directory.path(), MIB));
    let mut queue = disk.open_queue(8).unwrap();
    assert!(!is_readable(&*queue));
    for round in 0..200_u64 {
        let count = round % 8 + 1;
        for number in 0..count {
            queue_up(&mut *queue, read_op(number, number * 4096, 4096));
        }
        queue.flush_batch().unwrap();
        let mut done = Vec::new();
        while done.len() < count as usize {
            wait(&*queue);
            // No system call in between: what made it readable must come out.
            assert!(queue.reap(&mut done).unwrap() > 0);
        }
        assert!(!is_readable(&*queue));
    }
}

#[test]
fn a_full_queue_hands_the_operation_back_and_has_room_after_a_reap() {
    let directory = directory();
    let disk = open(&image(directory.path(), MIB));
    for depth in [1_u16, 3, 8] {
        let mut queue = disk.open_queue(depth).unwrap();
        for _ in 0..3 {
            for number in 0..depth.into() {
                queue_up(&mut *queue, read_op(number, 0, 4096));
            }
            match queue.submit(read_op(99, 4096, 4096)) {
                Submit::Full(op) => assert_eq!((op.token, op.buf.len()), (Token(99), 4096)),
                other => panic!("{other:?}"),
            }
            drain(&mut *queue, depth.into());
        }
    }
}

#[test]
fn dropping_a_queue_waits_for_the_kernel() {
    let directory = directory();
    let disk = open(&image(directory.path(), 4 * MIB));
    let mut ours = Vec::new();
    for round in 0..50_u64 {
        let memory = Arc::new(vec![0_u8; 64 * 4096 + 4096]);
        let start = memory.as_ptr().align_offset(4096);
        let mut queue = disk.open_queue(64).unwrap();
        for number in 0..64_u64 {
            let mut buf = IoBuf::new();
            buf.set_keep(memory.clone());
            let at = start + number as usize * 4096;
            // SAFETY: inside the vector, which is only written through the buffers.
            unsafe { buf.push(memory.as_ptr().cast_mut().add(at), 4096) };
            let op = Op {
                token: Token(number),
                kind: OpKind::Read {
                    offset: number * 65_536 % (4 * MIB as u64),
                },
                buf,
            };
            queue_up(&mut *queue, op);
        }
        // Also with some that the kernel was never told of.
        if round % 2 == 0 {
            queue.flush_batch().unwrap();
        }
        drop(queue);
        // Ours again: whatever appears in it from now on came too late.
        let mut memory = Arc::try_unwrap(memory).unwrap();
        memory.fill(0x55);
        ours.push(memory);
    }
    // Time for latecomers: as long as the rounds above took, and one more round of I/O.
    let mut queue = disk.open_queue(1).unwrap();
    read(&mut *queue, 0, 4 * MIB).unwrap();
    assert!(ours.iter().flatten().all(|byte| *byte == 0x55));
}

#[test]
fn a_queue_goes_from_thread_to_thread_with_operations_in_flight() {
    let directory = directory();
    let disk = open(&image(directory.path(), MIB));
    for round in 0..30_u64 {
        let mut queue = disk.open_queue(32).unwrap();
        // The submitting thread ends while its operations are in flight.
        let mut queue = std::thread::spawn(move || {
            for number in 0..32 {
                queue_up(&mut *queue, read_op(number, number * 4096, 4096));
            }
            queue.flush_batch().unwrap();
            queue
        })
        .join()
        .unwrap();
        if round % 3 == 0 {
            std::thread::spawn(move || drop(queue)).join().unwrap();
            continue;
        }
        let queue = std::thread::spawn(move || {
            for completion in drain(&mut *queue, 32) {
                completion.result.unwrap();
                let sector = completion.token.0 * 8;
                assert_eq!(completion.buf.to_vec()[0], sector as u8 | 1);
            }
            queue
        });
        let mut queue = queue.join().unwrap();
        assert_eq!(read(&mut *queue, 0, 512).unwrap(), [1; 512]);
    }
}

#[test]
fn more_misaligned_operations_than_bounce_memory_all_complete() {
    let directory = directory();
    let path = image(directory.path(), 8 * MIB);
    let content = std::fs::read(&path).unwrap();
    let disk = open(&path);
    let mut queue = disk.open_queue(64).unwrap();
    for cancel in [false, true] {
        for number in 0..64_u64 {
            let op = Op {
                token: Token(number),
                kind: OpKind::Read {
                    offset: number % 8 * 65_536,
                },
                // Several chunks each.
                buf: Layout {
                    shift: 1,
                    piece: 100_000,
                }
                .buffer(&vec![0xEE; 7 * MIB + 4096]),
            };
            queue_up(&mut *queue, op);
        }
        if cancel {
            queue.flush_batch().unwrap();
            for number in (0..64).step_by(3) {
                queue.cancel(Token(number));
            }
            queue.cancel(Token(1000));
        }
        for completion in drain(&mut *queue, 64) {
            match completion.result {
                Ok(()) => {
                    let offset = (completion.token.0 % 8 * 65_536) as usize;
                    let data = completion.buf.to_vec();
                    assert!(data[..] == content[offset..offset + data.len()]);
                }
                Err(DiskError::Cancelled) => assert!(cancel && completion.token.0 % 3 == 0),
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(queue.reap(&mut Vec::new()).unwrap(), 0);
    }
}

#[test]
fn cancelled_operations_complete_once_and_the_queue_goes_on() {
    let directory = directory();
    let disk = open(&image(directory.path(), MIB));
    let mut queue = disk.open_queue(32).unwrap();
    for round in 0..100_u64 {
        for number in 0..32 {
            queue_up(&mut *queue, read_op(number, number * 4096, 4096));
        }
        if round % 2 == 0 {
            queue.flush_batch().unwrap();
        }
        for number in 0..32 {
            queue.cancel(Token(number));
        }
        for completion in drain(&mut *queue, 32) {
            match completion.result {
                Ok(()) => assert!(completion.buf.to_vec().iter().all(|byte| *byte != 0xEE)),
                Err(DiskError::Cancelled) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
    write(&mut *queue, 0, vec![9; 4096]).unwrap();
    assert_eq!(read(&mut *queue, 0, 4096).unwrap(), [9; 4096]);
}

#[test]
fn a_deep_queue_takes_what_it_promised() {
    let directory = directory();
    let disk = open(&image(directory.path(), MIB));
    let mut queue = disk.open_queue(u16::MAX).unwrap();
    for number in 0..u64::from(u16::MAX) {
        let op = Op {
            token: Token(number),
            kind: OpKind::Flush,
            buf: IoBuf::new(),
        };
        queue_up(&mut *queue, op);
        if number % 4096 == 0 {
            queue.flush_batch().unwrap();
        }
    }
    for number in 0..8 {
        queue.cancel(Token(number * 8000));
    }
    for completion in drain(&mut *queue, u16::MAX.into()) {
        assert!(matches!(
            completion.result,
            Ok(()) | Err(DiskError::Cancelled)
        ));
    }
}

#[test]
fn what_the_page_cache_has_is_read_inside_execute() {
    let directory = directory();
    let path = image(directory.path(), MIB);
    let disk = RawDisk::open(&RawOptions::new(&path)).unwrap();
    if disk.engine() != Engine::Auto {
        return; // The file lives in memory, or the host has no io_uring.
    }
    let mut queue = disk.open_queue(8).unwrap();
    write(&mut *queue, 0, vec![1; MIB]).unwrap();
    match queue.execute_or_submit(read_op(1, 0, 4096)) {
        Submit::Done(completion) => assert_eq!(completion.buf.to_vec(), [1; 4096]),
        other => panic!("{other:?}"),
    }
    // There alone.
    queue_up(&mut *queue, read_op(1, 0, 4096));
    drain(&mut *queue, 1);
    // What makes data stable has to wait, and must not do so in the owner's thread.
    let flush = Op {
        token: Token(2),
        kind: OpKind::Flush,
        buf: IoBuf::new(),
    };
    queue_up(&mut *queue, flush);
    drain(&mut *queue, 1);
    let fua = OpKind::Write {
        offset: 0,
        fua: true,
    };
    run(&mut *queue, fua, IoBuf::zeroed(4096)).result.unwrap();
}

/// Makes `io_uring_setup` fail with `EPERM` in the calling thread.
fn forbid_io_uring() {
    let statement = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let mut filter = [
        // The number of the system call.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            0,
            1,
            libc::SYS_io_uring_setup as u32,
        ),
        statement(
            libc::BPF_RET | libc::BPF_K,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
        ),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: both calls concern this thread only; the program is valid while they run.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        assert_eq!(
            libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program),
            0
        );
    }
}

#[test]
fn where_io_uring_is_forbidden_auto_does_without_and_io_uring_says_why() {
    let directory = directory();
    let path = image(directory.path(), MIB);
    let options = RawOptions::new(&path);
    let ready = RawDisk::open(&options.clone().lock(false)).unwrap();
    let direct = options.clone().lock(false).direct(true);
    let direct = RawDisk::open(&direct).ok();
    let named = options.clone().lock(false).engine(Engine::IoUring);
    let named = RawDisk::open(&named).unwrap();
    for disk in [Some(&ready), direct.as_ref(), Some(&named)]
        .into_iter()
        .flatten()
    {
        assert_eq!(disk.engine_note(), None);
    }
    std::thread::spawn(move || {
        forbid_io_uring();
        let disk = RawDisk::open(&options).unwrap();
        assert_eq!(disk.engine(), Engine::Sync);
        let note = disk.engine_note().unwrap();
        assert!(note.contains("seccomp"), "{note}");
        let mut queue = disk.open_queue(1).unwrap();
        write(&mut *queue, 0, vec![4; 512]).unwrap();
        drop((queue, disk));

        let error = RawDisk::open(&options.engine(Engine::IoUring)).unwrap_err();
        let message = error.to_string();
        for part in ["io_uring_disabled", "seccomp", "engine=sync", "disk.img"] {
            assert!(message.contains(part), "{message}");
        }
        // Forbidden only after the disk was opened.
        for disk in [Some(ready), direct].into_iter().flatten() {
            let mut queue = disk.open_queue(1).unwrap();
            assert_eq!(read(&mut *queue, 0, 4096).unwrap()[..512], [4; 512]);
            assert!(disk.engine_note().is_some());
        }
        assert!(matches!(named.open_queue(1), Err(DiskError::Io(_))));
    })
    .join()
    .unwrap();
}
