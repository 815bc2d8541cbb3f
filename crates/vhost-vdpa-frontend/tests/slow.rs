// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

//! The slow path as a disk.

mod common;

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::device::{Profile, TestDevice};
use common::flaky::Flaky;
use common::ways::on_both_ways;
use vdpa_bus::VdpaDevice;
use vhost_vdpa_frontend::{CompletionMode, PathError, SlowOptions, SlowPath};
use virtio_blk_core::disk::{
    Completion, Disk, DiskError, DiskEvent, Execute, IoBuf, IoQueue, Op, OpKind, Submit, Token,
    Wait,
};
use virtio_blk_core::memory::HostMemory;
use virtio_blk_core::spec::feature;
use virtio_blk_disks::MemoryDisk;
use virtio_blk_disks::fault::{FaultDisk, FaultPlan, Kind, Rule};

const DISK: u64 = 4 << 20;

fn device(profile: Profile) -> Arc<TestDevice> {
    TestDevice::new(Arc::new(MemoryDisk::new(DISK).unwrap()), profile)
}

fn slow(profile: Profile, options: SlowOptions) -> SlowPath {
    SlowPath::new(device(profile), options).unwrap()
}

/// Waits until everything is back.
fn all(queue: &mut dyn IoQueue, count: usize) -> Vec<Completion> {
    let mut done = Vec::new();
    queue.flush_batch().unwrap();
    while done.len() < count {
        if queue.reap(&mut done).unwrap() != 0 {
            continue;
        }
        if let Wait::Fd(fd) = queue.wait() {
            let mut fd = libc::pollfd {
                fd: fd.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: one valid entry.
            let ready = unsafe { libc::poll(&mut fd, 1, 30_000) };
            assert_eq!(ready, 1, "nothing comes");
        }
    }
    assert_eq!(done.len(), count);
    done
}

fn one(queue: &mut dyn IoQueue, kind: OpKind, buf: IoBuf) -> (Result<(), DiskError>, IoBuf) {
    let token = Token(7);
    match queue.submit(Op { token, kind, buf }) {
        Submit::Done(completion) => (completion.result, completion.buf),
        Submit::Full(_) => panic!("no room in an empty queue"),
        Submit::Queued => {
            let completion = all(queue, 1).pop().unwrap();
            assert_eq!(completion.token, token);
            (completion.result, completion.buf)
        }
    }
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|at| (seed.wrapping_mul(31).wrapping_add(at.wrapping_mul(at) >> 3)) as u8)
        .collect()
}

/// Memory that the device knows, cut into a buffer of pieces.
fn known(path: &SlowPath, len: usize) -> HostMemory {
    let bytes = vec![0u64; len / 8];
    let base = bytes.as_ptr().cast_mut().cast::<u8>();
    // SAFETY: the allocation lives as long as its owner, and is only reached through the device and `IoBuf`.
    let memory = unsafe { HostMemory::new(base, len, Arc::new(bytes)) };
    path.set_memory(&[(0x10_0000, memory.clone())]).unwrap();
    memory
}

/// `len` bytes of the device's memory, from `offset` on, with `data` in it.
fn filled(memory: &HostMemory, offset: usize, data: &[u8]) -> IoBuf {
    let buf = pieces(memory, &[(offset, data.len())]);
    assert_eq!(buf.copy_in(0, data), data.len());
    buf
}

fn pieces(memory: &HostMemory, cuts: &[(usize, usize)]) -> IoBuf {
    let mut buf = IoBuf::new();
    buf.set_keep(memory.keep().clone());
    for &(offset, len) in cuts {
        assert!(offset + len <= memory.len());
        // SAFETY: inside the memory that `keep` owns.
        unsafe { buf.push(memory.as_ptr().wrapping_add(offset), len) };
    }
    buf
}

fn options_of_all_kinds() -> Vec<(Profile, SlowOptions)> {
    let small = SlowOptions {
        queue_size: 8,
        bounces: 1,
        bounce_len: 4096,
        ..SlowOptions::default()
    };
    let mut kinds = Vec::new();
    for features in [
        u64::MAX,
        !feature::RING_INDIRECT_DESC,
        !feature::RING_EVENT_IDX,
    ] {
        for triggers_only in [false, true] {
            for options in [SlowOptions::default(), small.clone()] {
                for completion_mode in [CompletionMode::Event, CompletionMode::Poll] {
                    let profile = Profile {
                        features,
                        triggers_only,
                        single_maps: triggers_only,
                        ..Profile::default()
                    };
                    kinds.push((
                        profile,
                        SlowOptions {
                            completion_mode,
                            ..options.clone()
                        },
                    ));
                }
            }
        }
    }
    kinds
}

#[test]
fn data_comes_back_from_known_and_unknown_memory() {
    on_both_ways(|way| {
        for (profile, options) in options_of_all_kinds() {
            let path = slow(profile.clone(), options.clone());
            let memory = known(&path, 1 << 20);
            let mut queue = way.open(&path, 32);
            let data = pattern(3, 300 * 512);
            let len = data.len() as u64;
            // Unknown memory, larger than a bounce buffer.
            let (result, _) = one(
                queue.as_mut(),
                OpKind::Write {
                    offset: 512,
                    fua: true,
                },
                IoBuf::from_vec(data.clone()),
            );
            result.unwrap();
            assert_eq!(path.copied_bytes(), len);
            // Known memory, in pieces of no alignment whose bounds are no blocks'.
            let cuts = [
                (1, 511),
                (5000, 70_001),
                (100_003, 2),
                (200_000, 300 * 512 - 70_514),
            ];
            let buf = pieces(&memory, &cuts);
            let (result, buf) = one(queue.as_mut(), OpKind::Read { offset: 512 }, buf);
            result.unwrap();
            assert!(buf.to_vec() == data, "{profile:?} {options:?}");
            // Back out of known memory, and into unknown.
            let (result, _) = one(
                queue.as_mut(),
                OpKind::Write {
                    offset: 1 << 20,
                    fua: false,
                },
                buf,
            );
            result.unwrap();
            assert_eq!(path.copied_bytes(), len, "known memory is not copied");
            let (result, buf) = one(
                queue.as_mut(),
                OpKind::Read { offset: 1 << 20 },
                IoBuf::zeroed(300 * 512),
            );
            result.unwrap();
            assert_eq!(path.copied_bytes(), 2 * len);
            assert!(buf.to_vec() == data, "{profile:?} {options:?}");
            // Known memory in one piece.
            let data = pattern(4, 24 << 10);
            let write = OpKind::Write {
                offset: 3 << 20,
                fua: false,
            };
            let buf = filled(&memory, 4097, &data);
            one(queue.as_mut(), write, buf).0.unwrap();
            let read = OpKind::Read { offset: 3 << 20 };
            let buf = pieces(&memory, &[(100_001, 24 << 10)]);
            let (result, buf) = one(queue.as_mut(), read, buf);
            result.unwrap();
            assert!(buf.to_vec() == data, "{profile:?} {options:?}");
            assert_eq!(path.copied_bytes(), 2 * len);
        }
    });
}

#[test]
fn a_buffer_may_be_half_known() {
    let path = slow(Profile::default(), SlowOptions::default());
    let memory = known(&path, 64 << 10);
    let mut queue = path.open_queue(4).unwrap();
    let data = pattern(9, 16 << 10);
    one(
        queue.as_mut(),
        OpKind::Write {
            offset: 0,
            fua: false,
        },
        IoBuf::from_vec(data.clone()),
    )
    .0
    .unwrap();
    let other = Arc::new(vec![0u64; 1024]);
    let mut buf = IoBuf::new();
    buf.set_keep(Arc::new((memory.keep().clone(), other.clone())));
    // SAFETY: both live as long as the pair.
    unsafe {
        buf.push(memory.as_ptr(), 700);
        buf.push(other.as_ptr().cast_mut().cast(), 8 << 10);
        buf.push(memory.as_ptr().wrapping_add(9000), (8 << 10) - 700);
    }
    let (result, buf) = one(queue.as_mut(), OpKind::Read { offset: 0 }, buf);
    result.unwrap();
    assert!(buf.to_vec() == data);
}

/// Which requests need no operation: reads and writes of one segment that the device knows.
#[test]
fn requests_of_one_segment_are_taken_by_their_token() {
    for (profile, options) in options_of_all_kinds() {
        let has_tables = profile.features & feature::RING_INDIRECT_DESC != 0;
        let path = slow(profile, options);
        let memory = known(&path, 64 << 10);
        let mut queue = path.open_queue(4).unwrap();
        let mut offer = |kind: OpKind, buf: &IoBuf, token| {
            let executed = queue.execute(&kind, buf, token);
            let taken = matches!(executed, Execute::Taken);
            assert!(
                taken || matches!(executed, Execute::Declined),
                "{executed:?}"
            );
            if taken {
                let completion = all(queue.as_mut(), 1).pop().unwrap();
                completion.result.unwrap();
                assert_eq!(Some(completion.token), token);
                assert!(completion.buf.is_empty());
            }
            taken
        };
        let (read, token) = (OpKind::Read { offset: 512 }, Some(Token(9)));
        let write = |fua| OpKind::Write { offset: 512, fua };
        let known = pieces(&memory, &[(1, 512)]);
        assert_eq!(offer(read, &known, token), has_tables);
        assert_eq!(offer(write(false), &known, token), has_tables);
        // With a flush behind it, in pieces, or to be copied.
        assert!(!offer(write(true), &known, token));
        assert!(!offer(
            read,
            &pieces(&memory, &[(0, 256), (512, 256)]),
            token
        ));
        assert!(!offer(read, &IoBuf::zeroed(512), token));
        // Of another kind, or to be refused.
        assert!(!offer(OpKind::Flush, &IoBuf::new(), token));
        assert!(!offer(OpKind::Read { offset: 1 }, &known, token));
        assert!(!offer(OpKind::Read { offset: DISK }, &known, token));
        assert!(!offer(read, &pieces(&memory, &[(0, 511)]), token));
        assert!(!offer(read, &IoBuf::new(), token));
        // Only by a token.
        assert!(!offer(read, &known, None));
        // A slot whose table another chain had.
        let bytes = IoBuf::from_vec(pattern(1, 512));
        for round in 0..20 {
            one(queue.as_mut(), write(round % 2 == 0), bytes.part(0, 512))
                .0
                .unwrap();
            let taken = queue.execute(&read, &known, token);
            assert_eq!(matches!(taken, Execute::Taken), has_tables);
            if has_tables {
                all(queue.as_mut(), 1).pop().unwrap().result.unwrap();
                assert_eq!(known.to_vec(), pattern(1, 512));
                known.fill(0, 512, 0);
            }
        }
    }
}

#[test]
fn more_operations_than_the_ring_holds_are_taken_and_end_once() {
    on_both_ways(|way| {
        for (profile, options) in options_of_all_kinds() {
            let path = slow(profile, options);
            let memory = known(&path, 1 << 20);
            let mut queue = way.open(&path, 200);
            for round in 0..2u64 {
                for at in 0..200u64 {
                    let data = pattern(round * 1000 + at, 4096);
                    let op = Op {
                        token: Token(at),
                        kind: OpKind::Write {
                            offset: at * 4096,
                            fua: at % 7 == 0,
                        },
                        // One in four is copied.
                        buf: if at % 4 == 0 {
                            IoBuf::from_vec(data)
                        } else {
                            filled(&memory, at as usize * 4096, &data)
                        },
                    };
                    assert!(matches!(queue.submit(op), Submit::Queued));
                }
                let mut tokens: Vec<u64> = all(queue.as_mut(), 200)
                    .into_iter()
                    .map(|done| {
                        done.result.unwrap();
                        done.token.0
                    })
                    .collect();
                tokens.sort_unstable();
                assert_eq!(tokens, (0..200).collect::<Vec<_>>());
                for at in [0, 99, 199] {
                    let (result, buf) = one(
                        queue.as_mut(),
                        OpKind::Read { offset: at * 4096 },
                        IoBuf::zeroed(4096),
                    );
                    result.unwrap();
                    assert!(buf.to_vec() == pattern(round * 1000 + at, 4096));
                }
            }
        }
    });
}

#[test]
fn every_kind_of_operation_reaches_the_device() {
    let profile = Profile {
        features: !feature::SECURE_ERASE,
        ..Profile::default()
    };
    let path = slow(profile, SlowOptions::default());
    let caps = path.caps();
    assert_eq!(caps.capacity, DISK / 512);
    assert!(caps.discard.is_some() && caps.write_zeroes.is_some() && !caps.read_only);
    assert_eq!(path.serial().unwrap(), b"a serial");
    let mut queue = path.open_queue(4).unwrap();
    let queue = queue.as_mut();
    one(
        queue,
        OpKind::Write {
            offset: 0,
            fua: false,
        },
        IoBuf::from_vec(vec![1; 8192]),
    )
    .0
    .unwrap();
    one(
        queue,
        OpKind::WriteZeroes {
            offset: 512,
            len: 1024,
            unmap: true,
            fua: true,
        },
        IoBuf::new(),
    )
    .0
    .unwrap();
    one(
        queue,
        OpKind::Discard {
            offset: 4096,
            len: 4096,
        },
        IoBuf::new(),
    )
    .0
    .unwrap();
    one(queue, OpKind::Flush, IoBuf::new()).0.unwrap();
    let (result, buf) = one(queue, OpKind::Read { offset: 0 }, IoBuf::zeroed(4096));
    result.unwrap();
    let mut expected = vec![1; 4096];
    expected[512..1536].fill(0);
    assert!(buf.to_vec() == expected);
    // What the device does not offer, and what is out of place.
    let unsupported = one(
        queue,
        OpKind::SecureErase {
            offset: 0,
            len: 512,
        },
        IoBuf::new(),
    )
    .0;
    assert!(
        matches!(unsupported, Err(DiskError::Unsupported)),
        "{unsupported:?}"
    );
    let unsupported = one(queue, OpKind::Lifetime, IoBuf::zeroed(6)).0;
    assert!(
        matches!(unsupported, Err(DiskError::Unsupported)),
        "{unsupported:?}"
    );
    let outside = one(
        queue,
        OpKind::Read { offset: DISK - 512 },
        IoBuf::zeroed(1024),
    )
    .0;
    assert!(matches!(outside, Err(DiskError::OutOfRange)), "{outside:?}");
    let odd = one(queue, OpKind::Read { offset: 1 }, IoBuf::zeroed(512)).0;
    assert!(matches!(odd, Err(DiskError::Misaligned)), "{odd:?}");
    one(queue, OpKind::Read { offset: 0 }, IoBuf::new())
        .0
        .unwrap();
}

#[test]
fn errors_of_the_device_are_the_operations() {
    on_both_ways(|way| {
        let plan = FaultPlan::new(5)
            .rule(Rule::errno(libc::EIO).kind(Kind::Write).bytes(0..4096))
            .rule(Rule::unsupported().kind(Kind::Read).bytes(4096..8192));
        let disk = FaultDisk::new(Arc::new(MemoryDisk::new(DISK).unwrap()), plan);
        let path = SlowPath::new(
            TestDevice::new(Arc::new(disk), Profile::default()),
            SlowOptions::default(),
        )
        .unwrap();
        let memory = known(&path, 4096);
        let mut queue = way.open(&path, 4);
        let failed = one(
            queue.as_mut(),
            OpKind::Write {
                offset: 0,
                fua: false,
            },
            pieces(&memory, &[(0, 512)]),
        )
        .0;
        assert!(
            matches!(&failed, Err(DiskError::Io(error)) if error.raw_os_error() == Some(libc::EIO)),
            "{failed:?}"
        );
        let failed = one(
            queue.as_mut(),
            OpKind::Read { offset: 4096 },
            pieces(&memory, &[(0, 512)]),
        )
        .0;
        assert!(matches!(failed, Err(DiskError::Unsupported)), "{failed:?}");
        one(
            queue.as_mut(),
            OpKind::Write {
                offset: 8192,
                fua: false,
            },
            pieces(&memory, &[(0, 512)]),
        )
        .0
        .unwrap();
    });
}

#[test]
fn queues_are_the_devices_and_are_lent_out() {
    let path = slow(
        Profile::default(),
        SlowOptions {
            queues: 2,
            ..SlowOptions::default()
        },
    );
    assert_eq!(path.caps().max_queues, 2);
    let first = path.open_queue(4).unwrap();
    let mut second = path.open_queue(4).unwrap();
    assert!(path.open_queue(4).is_err());
    drop(first);
    let mut again = path.open_queue(4).unwrap();
    for queue in [again.as_mut(), second.as_mut()] {
        one(queue, OpKind::Read { offset: 0 }, IoBuf::zeroed(512))
            .0
            .unwrap();
    }
}

#[test]
fn dropping_a_queue_waits_for_what_it_has() {
    on_both_ways(|way| {
        let plan =
            FaultPlan::new(1).delay_time(Duration::from_millis(5)..=Duration::from_millis(20));
        let disk = Arc::new(MemoryDisk::new(DISK).unwrap());
        let slow_disk = FaultDisk::new(disk, plan);
        let path = SlowPath::new(
            TestDevice::new(Arc::new(slow_disk), Profile::default()),
            SlowOptions::default(),
        )
        .unwrap();
        let memory = known(&path, 64 << 10);
        for _ in 0..5 {
            let mut queue = way.open(&path, 8);
            for token in 0..8 {
                let buf = pieces(&memory, &[(token as usize * 4096, 4096)]);
                let op = Op {
                    token: Token(token),
                    kind: OpKind::Read { offset: 0 },
                    buf,
                };
                assert!(matches!(queue.submit(op), Submit::Queued));
            }
            // Not even flushed: the drop has to see to that, too.
            drop(queue);
        }
    });
}

#[test]
fn memory_goes_away_only_after_its_last_request() {
    on_both_ways(|way| {
        let plan =
            FaultPlan::new(1).delay_time(Duration::from_millis(30)..=Duration::from_millis(30));
        let disk = FaultDisk::new(Arc::new(MemoryDisk::new(DISK).unwrap()), plan);
        let device = TestDevice::new(Arc::new(disk), Profile::default());
        let path = SlowPath::new(device.clone(), SlowOptions::default()).unwrap();
        let memory = known(&path, 64 << 10);
        assert!(device.is_mapped(0x10_0000));
        let mut queue = way.open(&path, 8);
        let buf = pieces(&memory, &[(0, 4096)]);
        let op = Op {
            token: Token(1),
            kind: OpKind::Read { offset: 0 },
            buf,
        };
        assert!(matches!(queue.submit(op), Submit::Queued));
        queue.flush_batch().unwrap();
        let taken_away = std::thread::spawn({
            let path = path.clone();
            move || path.set_memory(&[]).unwrap()
        });
        std::thread::sleep(Duration::from_millis(5));
        assert!(device.is_mapped(0x10_0000), "a request still uses it");
        all(queue.as_mut(), 1).pop().unwrap().result.unwrap();
        taken_away.join().unwrap();
        assert!(!device.is_mapped(0x10_0000));
        // It still works, by way of a copy.
        one(
            queue.as_mut(),
            OpKind::Read { offset: 0 },
            pieces(&memory, &[(0, 4096)]),
        )
        .0
        .unwrap();
    });
}

#[test]
fn a_resize_is_passed_on() {
    let disk = Arc::new(MemoryDisk::new(DISK).unwrap());
    let path = SlowPath::new(
        TestDevice::new(disk.clone(), Profile::default()),
        SlowOptions::default(),
    )
    .unwrap();
    let seen = Arc::new(AtomicU64::new(0));
    path.listen(Arc::new({
        let seen = seen.clone();
        move |event| {
            if let DiskEvent::Resized { capacity } = event {
                seen.store(capacity, Ordering::SeqCst);
            }
        }
    }));
    disk.resize(2 * DISK / 512).unwrap();
    let mut fd = libc::pollfd {
        fd: path.config_event().as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid entry.
    assert_eq!(unsafe { libc::poll(&mut fd, 1, 10_000) }, 1);
    path.refresh().unwrap();
    assert_eq!(seen.load(Ordering::SeqCst), 2 * DISK / 512);
    assert_eq!(path.caps().capacity, 2 * DISK / 512);
    // SAFETY: as above.
    assert_eq!(unsafe { libc::poll(&mut fd, 1, 0) }, 0);
}

#[test]
fn a_device_that_vanishes_fails_requests_once() {
    on_both_ways(|way| {
        let plan =
            FaultPlan::new(1).delay_time(Duration::from_millis(100)..=Duration::from_millis(100));
        let disk = FaultDisk::new(Arc::new(MemoryDisk::new(DISK).unwrap()), plan);
        let device = TestDevice::new(Arc::new(disk), Profile::default());
        let path = SlowPath::new(device.clone(), SlowOptions::default()).unwrap();
        let memory = known(&path, 4096);
        let (mut a, mut b) = (way.open(&path, 8), way.open(&path, 8));
        device.vanish();
        for queue in [&mut a, &mut b] {
            for token in 0..8 {
                let op = Op {
                    token: Token(token),
                    kind: OpKind::Read { offset: 0 },
                    buf: if token % 2 == 0 {
                        IoBuf::zeroed(512)
                    } else {
                        pieces(&memory, &[(0, 512)])
                    },
                };
                assert!(matches!(queue.submit(op), Submit::Queued));
            }
            queue.flush_batch().unwrap();
        }
        assert!(path.refresh().is_err());
        assert!(path.is_broken());
        for queue in [&mut a, &mut b] {
            for completion in all(queue.as_mut(), 8) {
                assert!(
                    matches!(completion.result, Err(DiskError::Io(error)) if error.raw_os_error() == Some(libc::ENODEV))
                );
            }
            let failed = one(queue.as_mut(), OpKind::Flush, IoBuf::new()).0;
            assert!(failed.is_err());
        }
    });
}

#[test]
fn a_device_that_answers_nothing_is_given_up_in_time() {
    on_both_ways(|way| {
        let plan =
            FaultPlan::new(1).delay_time(Duration::from_millis(400)..=Duration::from_millis(400));
        let disk = FaultDisk::new(Arc::new(MemoryDisk::new(DISK).unwrap()), plan);
        let options = SlowOptions {
            timeout: Some(Duration::from_millis(20)),
            completion_mode: CompletionMode::Poll,
            ..SlowOptions::default()
        };
        let path =
            SlowPath::new(TestDevice::new(Arc::new(disk), Profile::default()), options).unwrap();
        let memory = known(&path, 4096);
        let mut queue = way.open(&path, 8);
        let failed = one(
            queue.as_mut(),
            OpKind::Read { offset: 0 },
            pieces(&memory, &[(0, 512)]),
        )
        .0;
        assert!(failed.is_err() && path.is_broken());
    });
}

#[test]
fn each_step_of_the_start_may_fail() {
    let mut steps = 0;
    loop {
        let device = Flaky::new(device(Profile::default()));
        device.fail(steps, 1);
        let result = SlowPath::new(device.clone(), SlowOptions::default());
        if device.heal() == 0 {
            result.unwrap();
            break;
        }
        assert!(result.is_err(), "step {steps}");
        assert_eq!(
            device.device.mappings(),
            0,
            "step {steps}: everything was unmapped"
        );
        let path = SlowPath::new(device, SlowOptions::default()).unwrap();
        let mut queue = path.open_queue(1).unwrap();
        one(
            queue.as_mut(),
            OpKind::Read { offset: 0 },
            IoBuf::zeroed(512),
        )
        .0
        .unwrap();
        steps += 1;
    }
    assert!(steps > 20, "{steps}");
}

#[test]
fn the_window_lies_where_it_may() {
    let at = |window| {
        let options = SlowOptions {
            window,
            ..SlowOptions::default()
        };
        SlowPath::new(device(Profile::default()), options).map(|path| path.window())
    };
    let (first, last) = at(None).unwrap();
    assert!(first >= 1 << 46 && last > first);
    assert_eq!(at(Some(1 << 30)).unwrap().0, 1 << 30);
    assert!(matches!(at(Some(1)), Err(PathError::Window { .. })));
    assert!(matches!(
        at(Some(u64::MAX - 4095)),
        Err(PathError::Window { .. })
    ));
    let path = slow(
        Profile::default(),
        SlowOptions {
            window: Some(0x10_0000),
            ..SlowOptions::default()
        },
    );
    let bytes = Arc::new(vec![0u8; 4096]);
    // SAFETY: never reached.
    let memory = unsafe { HostMemory::new(bytes.as_ptr().cast_mut(), 4096, bytes) };
    assert!(matches!(
        path.set_memory(&[(0x10_0000, memory)]),
        Err(PathError::Memory(_))
    ));
}

#[test]
fn dropping_the_path_leaves_a_reset_device() {
    let device = device(Profile::default());
    let path = SlowPath::new(device.clone(), SlowOptions::default()).unwrap();
    assert_eq!(device.get_status(), 15);
    let queue = path.open_queue(1).unwrap();
    drop(path);
    assert_eq!(device.get_status(), 15, "a queue is a handle, too");
    drop(queue);
    assert_eq!(device.get_status(), 0);
    assert_eq!(device.mappings(), 0);
}
