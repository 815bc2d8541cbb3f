// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The full bring-up, then random requests of all types on several queues, each answer compared with a model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::HashMap;

use fastrand::Rng;

use common::Rig;
use sim_backend::SimOptions;
use vdpa_bus::VdpaDevice;
use virtio_blk_driver::request::{Done, Framing, Request, Token};
use virtio_blk_driver::wire;

/// Sectors of a region, in which one request is in flight at a time.
const REGION: u64 = 16;
const REGIONS: u64 = 8;
const SECTOR: usize = 512;

/// What a request is expected to do.
enum Expect {
    Data { first: usize, count: usize },
    Ok,
}

struct Flying {
    region: usize,
    expect: Expect,
}

/// One queue with regions of its own.
struct Queue {
    vq: u16,
    compat: bool,
    /// By region and sector; `None` after a discard, whose outcome nobody knows.
    model: Vec<Vec<Option<u8>>>,
    flying: HashMap<Token, Flying>,
    busy: Vec<bool>,
}

impl Queue {
    fn new(vq: u16, compat: bool) -> Self {
        let regions = REGIONS as usize;
        Self {
            vq,
            compat,
            model: vec![vec![Some(0); REGION as usize]; regions],
            flying: HashMap::new(),
            busy: vec![false; regions],
        }
    }

    fn submit(&mut self, rig: &mut Rig, rng: &mut Rng, indirect: bool) {
        let region = rng.u64(..REGIONS) as usize;
        if self.busy[region] {
            return;
        }
        let first = rng.u64(..REGION) as usize;
        let count = 1 + rng.u64(..REGION - first as u64) as usize;
        let sector = (u64::from(self.vq) * REGIONS + region as u64) * REGION + first as u64;
        let range = |flags| {
            [wire::Range {
                sector,
                num_sectors: count as u32,
                flags,
            }]
        };
        let value = 1 + rng.u64(..255) as u8;
        let data = vec![value; count * SECTOR];
        let (unmap, plain) = (range(wire::RANGE_F_UNMAP), range(0));
        let kind = rng.u64(..if self.compat { 7 } else { 8 });
        let (request, becomes, expect) = match kind {
            0 | 1 => (Request::write(sector, &data), Some(Some(value)), Expect::Ok),
            2 | 3 => {
                let request = Request::read(sector, (count * SECTOR) as u32);
                (request, None, Expect::Data { first, count })
            }
            4 => (Request::write_zeroes(&unmap), Some(Some(0)), Expect::Ok),
            5 if self.compat => (Request::discard(&plain), None, Expect::Ok),
            5 => (Request::discard(&plain), Some(None), Expect::Ok),
            6 if rng.u64(..2) == 0 => (Request::flush(), None, Expect::Ok),
            6 => (Request::get_id(), None, Expect::Ok),
            _ => (Request::secure_erase(&plain), Some(None), Expect::Ok),
        };
        let framing = match rng.u64(..3) {
            0 => Framing::Separate,
            1 => Framing::Merged,
            _ => Framing::Random {
                seed: rng.u64(..1 << 40),
                cuts: 4,
            },
        };
        let indirect = indirect && rng.u64(..2) == 0;
        let request = request.framed(framing).indirect(indirect);
        // There may be no room now.
        let Ok(token) = rig.queue(self.vq).submit(&request) else {
            return;
        };
        if let Some(becomes) = becomes {
            self.model[region][first..first + count].fill(becomes);
        }
        self.busy[region] = true;
        self.flying.insert(token, Flying { region, expect });
    }

    fn check(&mut self, rig: &mut Rig, done: Done) {
        let flying = self.flying.remove(&done.token).expect("one of ours");
        assert!(done.is_ok(), "{done:?}");
        self.busy[flying.region] = false;
        if let Expect::Data { first, count } = flying.expect {
            let data = rig.data(self.vq, done.token, (count * SECTOR) as u32);
            let model = &self.model[flying.region][first..first + count];
            for (sector, expected) in data.chunks(SECTOR).zip(model) {
                if let Some(expected) = expected {
                    assert!(sector.iter().all(|byte| byte == expected));
                }
            }
        }
    }
}

fn random_io(options: SimOptions, queues: u16, compat: bool, seed: u64) {
    const REQUESTS: u64 = 6000;
    let mut rig = Rig::new(options, queues);
    let mut rng = Rng::with_seed(seed);
    let indirect = rig.driver.features() & 1 << 28 != 0;
    let mut all: Vec<_> = (0..queues).map(|vq| Queue::new(vq, compat)).collect();
    let mut answers = 0;
    while answers < REQUESTS {
        for queue in &mut all {
            for _ in 0..rng.u64(..8) {
                queue.submit(&mut rig, &mut rng, indirect);
            }
            rig.driver.publish(queue.vq).unwrap();
            rig.turn();
            while let Some(done) = rig.queue(queue.vq).poll().unwrap() {
                queue.check(&mut rig, done);
                answers += 1;
            }
        }
    }
    for queue in &mut all {
        while !queue.flying.is_empty() {
            let done = rig.answer(queue.vq);
            queue.check(&mut rig, done);
            answers += 1;
        }
    }
    let taken: u64 = {
        rig.sim.suspend().unwrap();
        (0..queues).map(|vq| u64::from(rig.state(vq))).sum()
    };
    assert_eq!(taken, answers, "each was taken once");
}

#[test]
fn strict_stepped() {
    random_io(SimOptions::strict_queues(4).stepped(), 4, false, 1);
}

#[test]
fn strict_with_a_worker() {
    random_io(SimOptions::strict_queues(4), 4, false, 2);
}

#[test]
fn compat_stepped() {
    random_io(SimOptions::compat().stepped(), 1, true, 3);
}

#[test]
fn compat_with_a_worker() {
    random_io(SimOptions::compat(), 1, true, 4);
}
