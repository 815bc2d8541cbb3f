// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Limits against a model: a fluid that runs into buckets.

use proptest::prelude::*;

use super::*;

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
