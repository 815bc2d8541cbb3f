// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

mod fluid;
mod waiting;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use virtio_blk_core::disk::{Completion, IoBuf, Op, OpKind, Submit, Token};

use super::*;
use crate::{MemoryDisk, NullDisk};

/// A time that moves when it is told to.
#[derive(Clone)]
struct Time(Arc<Mutex<Instant>>);

impl Time {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    fn now(&self) -> Instant {
        *self.0.lock().unwrap()
    }

    fn go_to(&self, at: Instant) {
        let mut now = self.0.lock().unwrap();
        *now = at.max(*now);
    }

    fn clock(&self) -> Clock {
        let time = self.clone();
        Arc::new(move || time.now())
    }

    fn group(&self, limits: Limits) -> ThrottleGroup {
        ThrottleGroup::with_clock(limits, self.clock()).unwrap()
    }
}

fn iops(per_second: u64) -> Limits {
    Limits {
        iops: Some(Rate::new(per_second)),
        ..Limits::default()
    }
}

fn null() -> Arc<NullDisk> {
    Arc::new(NullDisk::new(1 << 30).unwrap())
}

fn op(token: u64, kind: OpKind) -> Op {
    Op {
        token: Token(token),
        kind,
        buf: IoBuf::zeroed(512),
    }
}

/// A client that keeps `depth` operations in flight on one queue.
struct Client {
    queue: Box<dyn IoQueue>,
    kind: OpKind,
    len: usize,
    token: u64,
    in_flight: u64,
    depth: u64,
    done: u64,
    /// It goes the short way where it can, as the queue runner does.
    short: bool,
}

impl Client {
    fn new(disk: &ThrottleDisk<NullDisk>, depth: u64, kind: OpKind, len: usize) -> Self {
        Self {
            queue: disk.open_queue(depth as u16).unwrap(),
            kind,
            len,
            token: 0,
            in_flight: 0,
            depth,
            done: 0,
            short: false,
        }
    }

    fn reader(disk: &ThrottleDisk<NullDisk>, depth: u64) -> Self {
        Self::new(disk, depth, OpKind::Read { offset: 0 }, 512)
    }

    /// Submits and reaps until nothing moves at this instant.
    fn work(&mut self) {
        let mut moved = true;
        while std::mem::take(&mut moved) {
            // An unlimited disk would never let go.
            let mut left = 10_000;
            while self.in_flight < self.depth && left > 0 {
                left -= 1;
                if self.short {
                    let buf = IoBuf::zeroed(self.len);
                    if let Some(result) = self.queue.execute(&self.kind, &buf, None).done() {
                        result.unwrap();
                        self.done += 1;
                        continue;
                    }
                }
                self.token += 1;
                let op = Op {
                    token: Token(self.token),
                    kind: self.kind,
                    buf: IoBuf::zeroed(self.len),
                };
                match self.queue.submit(op) {
                    Submit::Done(done) => {
                        done.result.unwrap();
                        self.done += 1;
                    }
                    Submit::Queued => self.in_flight += 1,
                    Submit::Full(_) => panic!("full below its depth"),
                }
            }
            self.queue.flush_batch().unwrap();
            let mut done: Vec<Completion> = Vec::new();
            self.queue.reap(&mut done).unwrap();
            moved = !done.is_empty();
            self.in_flight -= done.len() as u64;
            self.done += done.len() as u64;
        }
    }
}

/// Runs clients for a time, in steps to the next deadline, rounded up to a whole `tick` as an event loop
/// does. Returns what each has done.
fn run(time: &Time, clients: &mut [Client], length: Duration, tick: Duration) -> Vec<u64> {
    let origin = time.now();
    let before: Vec<_> = clients.iter().map(|client| client.done).collect();
    loop {
        for client in clients.iter_mut() {
            client.work();
        }
        let next = clients.iter().filter_map(|c| c.queue.deadline()).min();
        let passed = next.expect("something is held back") - origin;
        let ticks = passed.as_nanos().div_ceil(tick.as_nanos()) as u32;
        if tick * ticks >= length {
            time.go_to(origin + length);
            return clients
                .iter()
                .zip(before)
                .map(|(c, b)| c.done - b)
                .collect();
        }
        time.go_to(origin + tick * ticks);
    }
}

const SECOND: Duration = Duration::from_secs(1);
const EXACT: Duration = Duration::from_nanos(1);
const MILLI: Duration = Duration::from_millis(1);

#[track_caller]
fn assert_near(found: u64, wanted: u64) {
    let off = found.abs_diff(wanted) as f64 / wanted as f64;
    assert!(off <= 0.02, "{found} instead of {wanted}");
}

#[test]
fn a_rate_holds_over_a_second_at_any_depth_and_with_any_timer() {
    for depth in [1, 2, 128] {
        for tick in [EXACT, MILLI, 4 * MILLI] {
            for (rate, short) in [(100, false), (1000, false), (20_000, false), (1000, true)] {
                let time = Time::new();
                let disk = ThrottleDisk::new(null(), time.group(iops(rate)));
                let mut clients = [Client::reader(&disk, depth)];
                clients[0].short = short;
                for _ in 0..3 {
                    let done = run(&time, &mut clients, SECOND, tick);
                    assert_near(done[0], rate);
                }
            }
        }
    }
}

/// A driver that takes its time between an answer and the next operation, and timers that are late, as on a busy
/// machine.
#[test]
fn a_rate_holds_for_a_driver_that_takes_its_time() {
    for (rate, think, tick) in [
        (2000, 60, 1000),
        (10_000, 15, 1000),
        (10_000, 60, 1000),
        (500, 900, 4000),
        (100, 5000, 1000),
    ] {
        let time = Time::new();
        let disk = ThrottleDisk::new(null(), time.group(iops(rate)));
        let mut queue = disk.open_queue(1).unwrap();
        let micros = Duration::from_micros;
        let tick = micros(tick);
        let origin = time.now();
        let mut done = 0;
        while time.now() < origin + SECOND {
            if let Submit::Queued = queue.submit(op(done, OpKind::Read { offset: 0 })) {
                while queue.reap(&mut Vec::new()).unwrap() == 0 {
                    let passed = queue.deadline().unwrap() - origin;
                    let ticks = passed.as_nanos().div_ceil(tick.as_nanos()) as u32;
                    time.go_to(origin + tick * ticks + micros(50));
                }
            }
            done += 1;
            time.go_to(time.now() + micros(think));
        }
        assert_near(done, rate);
    }
}

#[test]
fn bandwidth_counts_bytes_also_of_large_operations() {
    let time = Time::new();
    let limits = Limits {
        bandwidth: Some(Rate::new(64 << 20)),
        ..Limits::default()
    };
    let disk = ThrottleDisk::new(null(), time.group(limits));
    for len in [4096, 1 << 20] {
        for depth in [1, 128] {
            let mut clients = [Client::new(&disk, depth, OpKind::Read { offset: 0 }, len)];
            run(&time, &mut clients, SECOND, MILLI);
            let done = run(&time, &mut clients, SECOND, MILLI);
            assert_near(done[0] * len as u64, 64 << 20);
        }
    }
}

#[test]
fn reads_and_writes_are_limited_apart_and_together() {
    let time = Time::new();
    let limits = Limits {
        read_iops: Some(Rate::new(1000)),
        write_iops: Some(Rate::new(300)),
        ..Limits::default()
    };
    let group = time.group(limits);
    let disk = ThrottleDisk::new(null(), group.clone());
    let write = OpKind::Write {
        offset: 0,
        fua: false,
    };
    let mut clients = [Client::reader(&disk, 4), Client::new(&disk, 4, write, 512)];
    let done = run(&time, &mut clients, SECOND, MILLI);
    assert_near(done[0], 1000);
    assert_near(done[1], 300);
    group
        .set_limits(Limits {
            iops: Some(Rate::new(500)),
            ..limits
        })
        .unwrap();
    let done = run(&time, &mut clients, 2 * SECOND, MILLI);
    assert_near(done[0] + done[1], 1000);
    assert_near(done[0], 500);
}

#[test]
fn a_group_shares_fairly_whatever_the_depths() {
    let time = Time::new();
    let group = time.group(iops(3000));
    let disks = [1, 2, 128].map(|depth| {
        let disk = ThrottleDisk::new(null(), group.clone());
        let client = Client::reader(&disk, depth);
        (disk, client)
    });
    let mut clients = disks.map(|(_, client)| client);
    for short in [false, true] {
        clients[1].short = short;
        let done = run(&time, &mut clients, SECOND, EXACT);
        for done in done {
            assert_near(done, 1000);
        }
    }
}

#[test]
fn a_burst_lasts_as_long_as_said_and_comes_back_after_a_quiet_time() {
    let time = Time::new();
    let limits = Limits {
        iops: Some(Rate::new(100).with_burst(1000, 2 * SECOND)),
        ..Limits::default()
    };
    let disk = ThrottleDisk::new(null(), time.group(limits));
    let mut clients = [Client::reader(&disk, 8)];
    assert_near(run(&time, &mut clients, SECOND, MILLI)[0], 1000);
    assert_near(run(&time, &mut clients, SECOND, MILLI)[0], 1000);
    run(&time, &mut clients, SECOND, MILLI);
    assert_near(run(&time, &mut clients, SECOND, MILLI)[0], 100);
    drop(clients);
    // 1,800 more than the average were taken: it takes 18 seconds to save them.
    time.go_to(time.now() + 20 * SECOND);
    let mut clients = [Client::reader(&disk, 8)];
    assert_near(run(&time, &mut clients, SECOND, MILLI)[0], 1000);
}

#[test]
fn a_quiet_time_without_a_burst_saves_nothing() {
    let time = Time::new();
    let disk = ThrottleDisk::new(null(), time.group(iops(1000)));
    let mut clients = [Client::reader(&disk, 128)];
    run(&time, &mut clients, SECOND, 4 * MILLI);
    drop(clients);
    time.go_to(time.now() + 10 * SECOND);
    let mut clients = [Client::reader(&disk, 128)];
    assert_near(run(&time, &mut clients, SECOND, MILLI)[0], 1000);
}

#[test]
fn limits_change_while_operations_wait() {
    let time = Time::new();
    let group = time.group(iops(1));
    let disk = ThrottleDisk::new(null(), group.clone());
    let mut clients = [Client::reader(&disk, 16)];
    clients[0].work();
    assert_eq!(clients[0].done, 1);
    assert_eq!(disk.stats().waiting, 16);
    // The next turn is a second away, but somebody may change the limits before.
    assert_eq!(clients[0].queue.deadline(), Some(time.now() + RECHECK));
    group.set_limits(iops(1000)).unwrap();
    assert_near(run(&time, &mut clients, SECOND, MILLI)[0], 1000);
    group.set_limits(Limits::default()).unwrap();
    let mut done = Vec::new();
    clients[0].queue.reap(&mut done).unwrap();
    assert_eq!(done.len(), 16);
    assert_eq!(clients[0].queue.deadline(), None);
    assert_eq!(group.limits(), Limits::default());
}

#[test]
fn bad_limits_are_refused_by_name() {
    let burst = |rate, length| Limits {
        write_bandwidth: Some(Rate::new(10).with_burst(rate, length)),
        ..Limits::default()
    };
    let group = ThrottleGroup::new(iops(5)).unwrap();
    for (limits, name) in [
        (iops(0), "iops"),
        (burst(9, SECOND), "write_bandwidth"),
        (burst(20, Duration::ZERO), "write_bandwidth"),
    ] {
        assert_eq!(limits.validate(), Err(LimitError(name)));
        assert!(ThrottleGroup::new(limits).is_err());
        assert_eq!(group.set_limits(limits), Err(LimitError(name)));
    }
    assert_eq!(group.limits(), iops(5));
    assert_eq!(burst(u64::MAX, Duration::MAX).validate(), Ok(()));
}
