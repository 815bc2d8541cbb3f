// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The state machine against a kernel of our own that is as nasty as the real one may be.

mod kernel;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use virtio_blk_core::disk::{Alignments, Caps, EraseLimits, IoBuf, Token, ZeroLimits};
use virtio_blk_core::testdisk::removable_buffer;

use super::*;
use crate::raw::host_file::HostFile;
use crate::raw::medium::Abilities;
use crate::raw::options::RawOptions;
use kernel::{Kernel, Mood};

/// Bytes of the file.
const SIZE: usize = 1 << 20;

fn medium(memory: u32, offset: u32, block_device: bool) -> Medium {
    let direct = offset > 1;
    let limits = EraseLimits {
        max_sectors: 1,
        max_segments: 1,
        alignment: 1,
    };
    let caps = Caps {
        align: Alignments {
            guest_block: 512,
            host_offset: offset,
            host_memory: memory,
        },
        discard: Some(limits),
        secure_erase: Some(limits),
        write_zeroes: Some(ZeroLimits {
            max_sectors: 1,
            max_segments: 1,
            may_unmap: true,
        }),
        ..Caps::basic(SIZE as u64 / 512)
    };
    let can = Abilities::new(true, false);
    let file = tempfile::tempfile().unwrap();
    Medium::new(
        HostFile::new(file, &RawOptions::new("test")),
        "test".into(),
        caps,
        true,
        can,
        direct,
        block_device,
    )
}

/// Runs an operation to its end.
fn run(
    kernel: &mut Kernel,
    medium: &Medium,
    kind: OpKind,
    buf: IoBuf,
) -> (Result<(), DiskError>, IoBuf) {
    let mut pool = Pool::new(medium.bounce_align(), 1);
    let op = Op {
        token: Token(0),
        kind,
        buf,
    };
    let mut job = Job::new(op, medium);
    // Enough for any end, so that a job that never ends shows.
    for _ in 0..100_000 {
        let outcome = match job.step(medium, &mut pool) {
            Step::Call(call) => kernel.call(call),
            Step::Done(result) => return (result, job.op.buf),
            Step::Wait => panic!("the chunk is free"),
        };
        job.apply(medium, outcome);
    }
    panic!("the job never ends");
}

/// A buffer of `lens` long pieces, `gap` bytes apart, the first `shift` bytes from an aligned address.
fn scattered(lens: &[usize], gap: usize, shift: usize, fill: impl Fn(usize) -> u8) -> IoBuf {
    let total: usize = lens.iter().map(|len| len + gap).sum();
    let memory = Arc::new(vec![0_u8; total + shift + 4096]);
    let start = memory.as_ptr().align_offset(4096) + shift;
    let base = memory.as_ptr().cast_mut();
    let mut buf = IoBuf::new();
    buf.set_keep(memory);
    let mut at = start;
    for len in lens {
        // SAFETY: inside the vector, which nobody reads or writes but through the buffer.
        unsafe { buf.push(base.add(at), *len) };
        at += len + gap;
    }
    let data: Vec<u8> = (0..buf.len()).map(fill).collect();
    buf.copy_in(0, &data);
    buf
}

fn mood() -> impl Strategy<Value = Mood> {
    prop_oneof![
        3 => Just(Mood::Whole),
        5 => (1..5000_usize).prop_map(Mood::Short),
        1 => Just(Mood::Short(512)),
        1 => Just(Mood::Fail(libc::EINTR)),
        1 => Just(Mood::Fail(libc::EAGAIN)),
        1 => Just(Mood::Fail(libc::ECANCELED)),
    ]
}

fn alignment() -> impl Strategy<Value = (u32, u32)> {
    prop_oneof![
        Just((1, 1)),
        Just((4, 512)),
        Just((512, 512)),
        Just((4096, 512))
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever the kernel leaves undone or interrupts is done in the end: all of it, once.
    #[test]
    fn transfers_complete_in_full(
        moods in proptest::collection::vec(mood(), 0..40),
        lens in proptest::collection::vec(1..9_usize, 1..9),
        (memory, offset) in alignment(),
        shift in prop_oneof![Just(0), Just(1), Just(512)],
        unit in prop_oneof![Just(512_usize), Just(100)],
        sector in 0..100_u64,
        write in any::<bool>(),
        fua in any::<bool>(),
    ) {
        let mut lens: Vec<usize> = lens.iter().map(|len| len * unit).collect();
        // The operation is of whole blocks, its pieces need not be.
        let odd = lens.iter().sum::<usize>() % 512;
        lens.push((512 - odd) % 512);
        // A read or write that ends inside a block makes no progress on direct I/O.
        let moods = moods.into_iter().map(|mood| match mood {
            Mood::Short(bytes) if offset > 1 => Mood::Short(bytes.max(512)),
            mood => mood,
        });
        let mut kernel = Kernel::new(moods, memory as usize, offset as usize);
        let medium = medium(memory, offset, false);
        let mut expected = kernel.file.clone();
        let buf = scattered(&lens, 64, shift, |i| (i * 7) as u8);
        let range = sector as usize * 512..sector as usize * 512 + buf.len();
        let at = sector * 512;
        let kind = if write {
            expected[range.clone()].copy_from_slice(&buf.to_vec());
            OpKind::Write { offset: at, fua }
        } else {
            OpKind::Read { offset: at }
        };
        let (result, buf) = run(&mut kernel, &medium, kind, buf);
        prop_assert!(result.is_ok(), "{:?} {:?}", result, kernel.log);
        prop_assert!(kernel.file == expected);
        if !write {
            prop_assert!(buf.to_vec() == expected[range]);
        }
        if write && fua {
            let last = kernel.log.last().unwrap();
            prop_assert!(last == "sync" || last == "write+dsync", "{:?}", kernel.log);
            let plain = kernel.log.iter().any(|call| call == "write");
            prop_assert!(!plain || last == "sync", "{:?}", kernel.log);
        }
    }

    /// Zeroing works with every combination of what the file can do.
    #[test]
    fn zeroing_falls_back(
        moods in proptest::collection::vec(mood(), 0..20),
        punch in any::<bool>(),
        zero in any::<bool>(),
        unmap in any::<bool>(),
        fua in any::<bool>(),
        (memory, offset) in alignment(),
        sectors in 1..1000_u64,
    ) {
        let unsupported = [libc::EOPNOTSUPP, libc::ENOSYS, libc::EINVAL];
        let punched = unmap && punch;
        let refusals = [unmap && !punch, !zero && !punched];
        let moods = refusals
            .into_iter()
            .enumerate()
            .filter(|(_, refused)| *refused)
            .map(|(i, _)| Mood::Fail(unsupported[i]))
            .chain(moods)
            .map(|mood| match mood {
                Mood::Short(bytes) if offset > 1 => Mood::Short(bytes.max(512)),
                mood => mood,
            });
        let mut kernel = Kernel::new(moods, memory as usize, offset as usize);
        let medium = medium(memory, offset, false);
        let mut expected = kernel.file.clone();
        let len = sectors * 512;
        expected[512..512 + len as usize].fill(0);
        let kind = OpKind::WriteZeroes { offset: 512, len, unmap, fua };
        let (result, _) = run(&mut kernel, &medium, kind, IoBuf::new());
        prop_assert!(result.is_ok(), "{:?} {:?}", result, kernel.log);
        prop_assert!(kernel.file == expected);
        if fua {
            let last = kernel.log.last().unwrap();
            prop_assert!(last == "sync" || last == "write+dsync", "{:?}", kernel.log);
        }
        prop_assert_eq!(medium.can.punch.get(), punch || !unmap);
    }
}

#[test]
fn a_read_at_the_end_of_a_shrunken_file_is_an_error_not_old_data() {
    for (memory, offset, left) in [(1, 1, 0), (1, 1, 700), (512, 512, 700), (512, 512, 0)] {
        let mut kernel = Kernel::new([], memory as usize, offset as usize);
        kernel.file.truncate(1024 + left);
        let medium = medium(memory, offset, false);
        let buf = scattered(&[4096], 0, 0, |_| 1);
        let kind = OpKind::Read { offset: 1024 };
        let (result, _) = run(&mut kernel, &medium, kind, buf);
        assert!(
            matches!(result, Err(DiskError::OutOfRange)),
            "{offset} {left}: {result:?}"
        );
    }
}

#[test]
fn a_write_that_makes_no_progress_is_an_error() {
    let mut kernel = Kernel::new([Mood::Short(0)], 1, 1);
    let kind = OpKind::Write {
        offset: 0,
        fua: false,
    };
    let (result, _) = run(&mut kernel, &medium(1, 1, false), kind, IoBuf::zeroed(512));
    assert!(matches!(result, Err(DiskError::Io(error)) if error.raw_os_error() == Some(libc::EIO)));
}

#[test]
fn errors_come_through() {
    for errno in [libc::EIO, libc::ENOSPC, libc::EBADF, libc::EOPNOTSUPP] {
        let kinds = [
            OpKind::Read { offset: 0 },
            OpKind::Write {
                offset: 0,
                fua: false,
            },
            OpKind::Flush,
        ];
        for kind in kinds {
            let moods = [Mood::Short(100), Mood::Fail(errno)];
            let mut kernel = Kernel::new(moods, 1, 1);
            if matches!(kind, OpKind::Flush) {
                kernel.moods.pop_front();
            }
            let (result, _) = run(&mut kernel, &medium(1, 1, false), kind, IoBuf::zeroed(512));
            assert!(
                matches!(&result, Err(DiskError::Io(error)) if error.raw_os_error() == Some(errno)),
                "{kind:?} {errno}: {result:?}"
            );
        }
    }
}

#[test]
fn trying_again_has_an_end() {
    for errno in [libc::EINTR, libc::EAGAIN, libc::ECANCELED] {
        let moods = vec![Mood::Fail(errno); 10_000];
        let mut kernel = Kernel::new(moods, 1, 1);
        let kind = OpKind::Read { offset: 0 };
        let (result, _) = run(&mut kernel, &medium(1, 1, false), kind, IoBuf::zeroed(512));
        assert!(matches!(result, Err(DiskError::Io(error)) if error.raw_os_error() == Some(errno)));
        assert!(kernel.log.len() < 1000);
    }
}

#[test]
fn without_dsync_a_sync_follows() {
    let mut kernel = Kernel::new([Mood::Fail(libc::EOPNOTSUPP)], 1, 512);
    let medium = medium(1, 512, false);
    let kind = OpKind::Write {
        offset: 0,
        fua: true,
    };
    run(&mut kernel, &medium, kind, IoBuf::zeroed(512))
        .0
        .unwrap();
    assert_eq!(kernel.log, ["write+dsync", "write", "sync"]);
    // It is not tried again.
    run(&mut kernel, &medium, kind, IoBuf::zeroed(512))
        .0
        .unwrap();
    assert_eq!(kernel.log[3..], ["write", "sync"]);
}

/// A write of 512 bytes that is to be stable, and what became of it.
fn fua(medium: &Medium, moods: &[Mood]) -> (Result<(), DiskError>, Vec<String>) {
    let mut kernel = Kernel::new(moods.iter().copied(), 1, medium.host_offset() as usize);
    let kind = OpKind::Write {
        offset: 0,
        fua: true,
    };
    let (result, _) = run(&mut kernel, medium, kind, IoBuf::zeroed(512));
    (result, kernel.log)
}

#[test]
fn through_the_page_cache_a_sync_makes_writes_stable() {
    let (result, log) = fua(&medium(1, 1, false), &[]);
    result.unwrap();
    assert_eq!(log, ["write", "sync"]);
    let (result, log) = fua(&medium(1, 512, false), &[]);
    result.unwrap();
    assert_eq!(log, ["write+dsync"]);
}

#[test]
fn a_stable_write_that_fails_is_lost_if_its_data_could_be_written() {
    let fails = Mood::Fail(libc::EIO);
    let lost = |medium: &Medium| medium.durability.check().is_err();
    // The data: nothing was promised.
    let medium = |offset| super::tests::medium(1, offset, false);
    for (offset, moods) in [(1, [fails; 1].as_slice()), (512, &[fails; 2])] {
        let medium = medium(offset);
        let (result, log) = fua(&medium, moods);
        assert!(matches!(result, Err(DiskError::Io(_))), "{result:?}");
        assert_eq!(log.len(), moods.len());
        assert!(!lost(&medium));
        fua(&medium, &[]).0.unwrap();
    }
    // Not the data.
    for (offset, moods, calls) in [
        (1, [Mood::Whole, fails].as_slice(), ["write", "sync"]),
        (512, &[fails], ["write+dsync", "write"]),
    ] {
        let medium = medium(offset);
        let (result, log) = fua(&medium, moods);
        assert!(matches!(result, Err(DiskError::Io(_))), "{result:?}");
        assert_eq!(log, calls);
        assert!(lost(&medium));
        let (result, _) = fua(&medium, &[]);
        assert!(
            matches!(result, Err(DiskError::FlushLost { errno: libc::EIO })),
            "{result:?}"
        );
    }
    // No space: it is found out which of the two had none.
    let medium = medium(512);
    let (result, log) = fua(&medium, &[Mood::Fail(libc::ENOSPC)]);
    result.unwrap();
    assert_eq!(log, ["write+dsync", "write", "sync"]);
    assert!(!lost(&medium));
}

#[test]
fn a_failed_flush_fails_what_is_on_its_way_to_success() {
    let medium = medium(1, 1, false);
    let mut pool = Pool::new(medium.bounce_align(), 1);
    let op = |kind| Op {
        token: Token(0),
        kind,
        buf: IoBuf::new(),
    };
    let mut first = Job::new(op(OpKind::Flush), &medium);
    let mut second = Job::new(op(OpKind::Flush), &medium);
    for job in [&mut first, &mut second] {
        assert!(matches!(
            job.step(&medium, &mut pool),
            Step::Call(Call::Sync)
        ));
    }
    // The error went to the first, though the data may be the second's.
    first.apply(&medium, -libc::EIO);
    second.apply(&medium, 0);
    assert!(matches!(
        second.result(),
        Some(Err(DiskError::FlushLost { errno: libc::EIO }))
    ));
    // The first is told what happened.
    assert!(matches!(first.result(), Some(Err(DiskError::Io(_)))));
}

#[test]
fn discard_and_secure_erase_depend_on_the_medium() {
    let discard = OpKind::Discard {
        offset: 512,
        len: 512,
    };
    let secure = OpKind::SecureErase {
        offset: 512,
        len: 512,
    };
    for (block_device, kind, call) in [
        (false, discard, "PunchHole"),
        (true, discard, "Discard"),
        (true, secure, "Secure"),
    ] {
        let mut kernel = Kernel::new([], 1, 1);
        let medium = medium(1, 1, block_device);
        run(&mut kernel, &medium, kind, IoBuf::new()).0.unwrap();
        assert_eq!(kernel.log, [call]);
        kernel.moods.push_back(Mood::Fail(libc::EOPNOTSUPP));
        let (result, _) = run(&mut kernel, &medium, kind, IoBuf::new());
        if block_device {
            assert!(matches!(result, Err(DiskError::Unsupported)));
        } else {
            // Only a hint, which is not taken, and not tried again.
            result.unwrap();
            run(&mut kernel, &medium, kind, IoBuf::new()).0.unwrap();
            assert_eq!(kernel.log, [call; 2]);
        }
    }
}

#[test]
fn nothing_to_do_takes_no_call() {
    let mut kernel = Kernel::new([], 1, 1);
    let medium = medium(1, 1, false);
    for kind in [
        OpKind::Read { offset: 0 },
        OpKind::Write {
            offset: 0,
            fua: true,
        },
        OpKind::Discard { offset: 0, len: 0 },
        OpKind::WriteZeroes {
            offset: 0,
            len: 0,
            unmap: true,
            fua: true,
        },
    ] {
        run(&mut kernel, &medium, kind, IoBuf::new()).0.unwrap();
    }
    assert!(kernel.log.is_empty());
}

#[test]
fn many_segments_go_in_several_calls() {
    let mut kernel = Kernel::new([], 1, 1);
    let buf = scattered(&[8; 2560], 1, 0, |i| (i % 251) as u8);
    let expected = buf.to_vec();
    let kind = OpKind::Write {
        offset: 512,
        fua: false,
    };
    let (result, _) = run(&mut kernel, &medium(1, 1, false), kind, buf);
    result.unwrap();
    assert_eq!(kernel.log, ["write"; 3]);
    assert!(kernel.file[512..512 + 20_480] == expected);
}

#[test]
fn a_long_misaligned_transfer_uses_one_chunk_again_and_again() {
    let mut kernel = Kernel::new([], 512, 512);
    let medium = medium(512, 512, false);
    let buf = scattered(&[SIZE], 0, 1, |i| (i / 3) as u8);
    let expected = buf.to_vec();
    let kind = OpKind::Write {
        offset: 0,
        fua: true,
    };
    // `run` has one chunk in its pool.
    let (result, buf) = run(&mut kernel, &medium, kind, buf);
    result.unwrap();
    assert!(kernel.file == expected);
    let calls = ["write", "write", "write", "write", "sync"];
    assert_eq!(kernel.log, calls);
    buf.fill(0, SIZE, 0);
    let (result, buf) = run(&mut kernel, &medium, OpKind::Read { offset: 0 }, buf);
    result.unwrap();
    assert!(buf.to_vec() == expected);
}

/// What is copied on the way is looked at after the copy: the file never gets what stands in place of the data.
#[test]
fn data_that_was_taken_away_is_not_written() {
    static DATA: [u8; 1024] = [7; 1024];
    let medium = medium(512, 512, false);
    let there = Arc::new(AtomicBool::new(true));
    for intact in [false, true] {
        there.store(intact, Ordering::SeqCst);
        let mut kernel = Kernel::new([], 512, 512);
        let before = kernel.file.clone();
        // Not aligned as the medium wants.
        let shift = usize::from(DATA.as_ptr().addr().is_multiple_of(512));
        let asked = there.clone();
        let data = &DATA[shift..shift + 512];
        let buf = removable_buffer(data, move || asked.load(Ordering::SeqCst));
        let kind = OpKind::Write {
            offset: 512,
            fua: false,
        };
        let (result, _) = run(&mut kernel, &medium, kind, buf);
        if intact {
            result.unwrap();
            assert_eq!(kernel.log, ["write"]);
            assert_eq!(kernel.file[512..1024], [7; 512]);
        } else {
            let gone = |error: &std::io::Error| error.raw_os_error() == Some(libc::EFAULT);
            assert!(matches!(&result, Err(DiskError::Io(error)) if gone(error)));
            assert!(kernel.log.is_empty() && kernel.file == before);
        }
    }
}

#[test]
fn a_job_waits_while_the_memory_is_taken() {
    let medium = medium(512, 512, false);
    let mut pool = Pool::new(512, 1);
    let job = || {
        let op = Op {
            token: Token(0),
            kind: OpKind::Read { offset: 0 },
            buf: scattered(&[512], 0, 1, |_| 0),
        };
        Job::new(op, &medium)
    };
    let (mut first, mut second) = (job(), job());
    assert!(matches!(first.step(&medium, &mut pool), Step::Call(_)));
    assert!(matches!(second.step(&medium, &mut pool), Step::Wait));
    first.apply(&medium, 512);
    first.release(&mut pool);
    assert!(matches!(second.step(&medium, &mut pool), Step::Call(_)));
}

#[test]
fn cancelled_jobs_end_at_the_next_occasion_but_keep_a_result_they_have() {
    let medium = medium(1, 1, false);
    let mut pool = Pool::new(512, 1);
    let job = || {
        let op = Op {
            token: Token(0),
            kind: OpKind::Read { offset: 0 },
            buf: IoBuf::zeroed(1024),
        };
        let mut job = Job::new(op, &medium);
        job.cancelled = true;
        job
    };
    let cancelled = |step: Step<'_>| matches!(step, Step::Done(Err(DiskError::Cancelled)));
    for outcome in [-libc::ECANCELED, -libc::EINTR] {
        let mut job = job();
        job.apply(&medium, outcome);
        assert!(cancelled(job.step(&medium, &mut pool)));
    }
    let mut whole = job();
    whole.cancelled = false;
    assert!(matches!(whole.step(&medium, &mut pool), Step::Call(_)));
    whole.cancelled = true;
    whole.apply(&medium, 1024);
    assert!(matches!(whole.result(), Some(Ok(()))));
    let mut half = job();
    half.cancelled = false;
    assert!(matches!(half.step(&medium, &mut pool), Step::Call(_)));
    half.cancelled = true;
    half.apply(&medium, 512);
    assert!(cancelled(half.step(&medium, &mut pool)));
}
