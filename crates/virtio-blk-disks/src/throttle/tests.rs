// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::Mutex;
use std::time::{Duration, Instant};

use proptest::prelude::*;
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
fn without_a_limit_no_lock_is_taken_and_nothing_waits() {
    let time = Time::new();
    let group = time.group(iops(1));
    let disk = ThrottleDisk::new(null(), group.clone());
    let mut queue = disk.open_queue(4).unwrap();
    let read = OpKind::Read { offset: 0 };
    let buf = IoBuf::zeroed(512);
    assert!(matches!(
        queue.execute(&read, &buf, None).done(),
        Some(Ok(()))
    ));
    assert!(
        queue.execute(&read, &buf, None).done().is_none(),
        "not its turn"
    );
    assert!(matches!(queue.submit(op(1, read)), Submit::Queued));
    group.set_limits(Limits::default()).unwrap();
    // What waits goes first.
    assert!(queue.execute(&read, &buf, None).done().is_none());
    assert_eq!(queue.reap(&mut Vec::new()).unwrap(), 1);
    std::thread::scope(|scope| {
        // A lock that is held by somebody else would be waited for.
        group.hold_lock(|| {
            let work = scope.spawn(|| {
                let buf = IoBuf::zeroed(512);
                assert!(matches!(
                    queue.execute(&read, &buf, None).done(),
                    Some(Ok(()))
                ));
                assert!(matches!(queue.submit(op(2, read)), Submit::Done(_)));
            });
            work.join().unwrap();
        });
    });
    group.set_limits(iops(1)).unwrap();
    assert!(matches!(
        queue.execute(&read, &buf, None).done(),
        Some(Ok(()))
    ));
    assert!(
        queue.execute(&read, &buf, None).done().is_none(),
        "limits hold again"
    );
}

#[test]
fn what_the_disk_does_not_execute_keeps_its_turn() {
    let time = Time::new();
    let late = crate::FaultPlan::new(1).delay_reaps(0..=0);
    let below = Arc::new(crate::FaultDisk::new(null(), late));
    let disk = ThrottleDisk::new(below, time.group(iops(1)));
    let mut queue = disk.open_queue(4).unwrap();
    let read = OpKind::Read { offset: 0 };
    assert!(
        queue
            .execute(&read, &IoBuf::zeroed(512), None)
            .done()
            .is_none()
    );
    assert!(matches!(queue.submit(op(1, read)), Submit::Queued));
    assert_eq!(disk.stats().waiting, 0, "it was not held back");
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

fn op(token: u64, kind: OpKind) -> Op {
    Op {
        token: Token(token),
        kind,
        buf: IoBuf::zeroed(512),
    }
}

#[test]
fn what_waits_is_cancelled_once_and_gives_its_turn_back() {
    let time = Time::new();
    let disk = ThrottleDisk::new(null(), time.group(iops(10)));
    let mut queue = disk.open_queue(4).unwrap();
    let read = OpKind::Read { offset: 0 };
    assert!(matches!(queue.submit(op(0, read)), Submit::Done(_)));
    for token in 1..=4 {
        assert!(matches!(queue.submit(op(token, read)), Submit::Queued));
    }
    assert!(matches!(queue.submit(op(5, read)), Submit::Full(_)));
    let next = queue.deadline();
    for token in [1, 3, 3, 77] {
        queue.cancel(Token(token));
    }
    assert!(
        queue.deadline().unwrap() <= time.now(),
        "there is something to reap"
    );
    let mut done = Vec::new();
    assert_eq!(queue.reap(&mut done).unwrap(), 2);
    for (completion, token) in done.drain(..).zip([1, 3]) {
        assert_eq!(completion.token, Token(token));
        assert!(matches!(completion.result, Err(DiskError::Cancelled)));
    }
    // The second takes the place of the first.
    assert_eq!(queue.deadline(), next);
    time.go_to(next.unwrap());
    assert_eq!(queue.reap(&mut done).unwrap(), 1);
    assert_eq!(done[0].token, Token(2));
    assert_eq!(
        disk.stats(),
        ThrottleStats {
            waiting: 1,
            released: 1,
            time: SECOND / 10
        }
    );
    drop(queue);
    assert_eq!(disk.stats().waiting, 0);
    // The dropped one's turn is free, too.
    let mut queue = disk.open_queue(4).unwrap();
    assert!(matches!(queue.submit(op(9, read)), Submit::Queued));
    assert_eq!(queue.deadline(), Some(time.now() + SECOND / 10));
}

#[test]
fn flushes_and_the_unlimited_kind_pass() {
    let time = Time::new();
    let limits = Limits {
        write_iops: Some(Rate::new(1)),
        read_bandwidth: Some(Rate::new(1 << 20)),
        ..Limits::default()
    };
    let disk = ThrottleDisk::new(
        Arc::new(MemoryDisk::new(1 << 20).unwrap()),
        time.group(limits),
    );
    let mut queue = disk.open_queue(8).unwrap();
    let write = OpKind::WriteZeroes {
        offset: 0,
        len: 4096,
        unmap: true,
        fua: false,
    };
    let bare = |token, kind| Op {
        buf: IoBuf::new(),
        ..op(token, kind)
    };
    assert!(matches!(queue.submit(bare(0, write)), Submit::Done(_)));
    assert!(matches!(queue.submit(bare(1, write)), Submit::Queued));
    assert!(matches!(
        queue.submit(bare(2, OpKind::Flush)),
        Submit::Done(_)
    ));
    drop(queue);
    let mut queue = disk.open_queue(8).unwrap();
    let discard = OpKind::Discard {
        offset: 0,
        len: 4096,
    };
    assert!(matches!(queue.submit(bare(3, discard)), Submit::Queued));
    assert_eq!(disk.caps(), disk.inner().caps());
}

/// One limit as a bucket that leaks all the time: another way to say what a rate with bursts is.
struct Fluid {
    per_second: f64,
    room: f64,
    level: f64,
    /// The limit of the rate of bursts, which has no room of its own.
    peak: Option<Box<Fluid>>,
}

impl Fluid {
    fn new(rate: &Rate) -> Self {
        let plain = |per_second: u64| Self {
            per_second: per_second as f64,
            room: 0.0,
            level: 0.0,
            peak: None,
        };
        let mut this = plain(rate.per_second);
        if let Some(burst) = rate.burst {
            let extra = (burst.per_second - rate.per_second) as f64;
            this.room = extra * burst.length.as_secs_f64();
            this.peak = Some(Box::new(plain(burst.per_second)));
        }
        this
    }

    fn leak(&mut self, seconds: f64) {
        self.level = (self.level - seconds * self.per_second).max(0.0);
        self.peak.iter_mut().for_each(|peak| peak.leak(seconds));
    }

    /// Seconds until there is room.
    fn wait(&self) -> f64 {
        let own = ((self.level - self.room) / self.per_second).max(0.0);
        self.peak.as_ref().map_or(own, |peak| own.max(peak.wait()))
    }

    fn fill(&mut self, units: f64) {
        self.level += units;
        self.peak.iter_mut().for_each(|peak| peak.fill(units));
    }
}

fn any_rate(units: std::ops::Range<u64>) -> impl Strategy<Value = Option<Rate>> {
    let burst = (1_u64..8, 1_u64..3000);
    proptest::option::of((units, proptest::option::of(burst)).prop_map(
        |(rate, burst)| match burst {
            None => Rate::new(rate),
            Some((times, millis)) => {
                Rate::new(rate).with_burst(rate * times, Duration::from_millis(millis))
            }
        },
    ))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Operations that come at random times and go in order, under any limits, start when buckets that leak have
    /// room for them.
    #[test]
    fn each_operation_starts_when_a_model_says(
        iops in any_rate(10..5000),
        write_iops in any_rate(10..5000),
        bandwidth in any_rate(100_000..50_000_000),
        ops in proptest::collection::vec((0_u64..3_000_000, any::<bool>(), 1_usize..64), 1..120),
    ) {
        let limits = Limits { iops, write_iops, bandwidth, ..Limits::default() };
        let time = Time::new();
        let origin = time.now();
        let disk = ThrottleDisk::new(null(), time.group(limits));
        let mut queue = disk.open_queue(256).unwrap();
        let mut fluids = [&iops, &write_iops, &bandwidth].map(|rate| rate.as_ref().map(Fluid::new));
        let (mut arrival, mut at, mut said) = (0.0_f64, 0.0_f64, Vec::new());
        let mut found = vec![f64::NAN; ops.len()];
        let mut done = Vec::new();
        let seconds = |time: &Time| (time.now() - origin).as_secs_f64();
        let mut reap = |queue: &mut Box<dyn IoQueue>, found: &mut Vec<f64>| {
            queue.reap(&mut done).unwrap();
            for completion in done.drain(..) {
                found[completion.token.0 as usize] = seconds(&time);
            }
        };
        for (index, &(gap, write, sectors)) in ops.iter().enumerate() {
            let len = sectors * 512;
            arrival += gap as f64 / 1e9;
            // The model: in order, each when all buckets have room.
            let start = arrival.max(at);
            fluids.iter_mut().flatten().for_each(|fluid| fluid.leak(start - at));
            let units = [1.0, if write { 1.0 } else { 0.0 }, len as f64];
            let drawn = || (0..3).filter(|limit| units[*limit] != 0.0);
            let wait = drawn().filter_map(|limit| Some(fluids[limit].as_ref()?.wait())).fold(0.0, f64::max);
            fluids.iter_mut().flatten().for_each(|fluid| fluid.leak(wait));
            for limit in drawn() {
                if let Some(fluid) = &mut fluids[limit] {
                    fluid.fill(units[limit]);
                }
            }
            at = start + wait;
            said.push(at);
            // The layer: served at each deadline before the arrival, and then.
            let now = origin + Duration::from_secs_f64(arrival);
            while let Some(deadline) = queue.deadline().filter(|deadline| *deadline < now) {
                time.go_to(deadline);
                reap(&mut queue, &mut found);
            }
            time.go_to(now);
            let kind = match write {
                true => OpKind::Write { offset: 0, fua: false },
                false => OpKind::Read { offset: 0 },
            };
            let op = Op { token: Token(index as u64), kind, buf: IoBuf::zeroed(len) };
            match queue.submit(op) {
                Submit::Done(_) => found[index] = seconds(&time),
                Submit::Queued => {}
                Submit::Full(_) => panic!("full below its depth"),
            }
        }
        while let Some(deadline) = queue.deadline() {
            time.go_to(deadline);
            reap(&mut queue, &mut found);
        }
        for (index, (found, said)) in found.iter().zip(&said).enumerate() {
            prop_assert!((found - said).abs() < 1e-5, "operation {index}: at {found}, the model says {said}");
        }
    }
}
