// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the raw disk's engines promise, against a model of power cuts underneath: the process serves a disk whose past
//! is known as a VDUSE device, and opens the block device that the kernel makes of it as a raw disk. So the model sees
//! which writes and flushes the engines really make, with the page cache between. The lab's `raw-power-cut` runs it.
//!
//!     raw-power-cut NAME NODE OPERATIONS
//!
//! Sectors are independent after a cut, so that looking at each content that each sector may have is looking at every
//! state.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vduse_backend::{Linux, Server, ServerOptions};
use virtio_blk_core::device::{Device, DeviceOptions};
use virtio_blk_core::disk::{Completion, Disk, IoBuf, IoQueue, Op, OpKind, Submit, Token};
use virtio_blk_core::spec::feature::ACCESS_PLATFORM;
use virtio_blk_disks::power_cut::{Content, Moment, PowerCutDisk};
use virtio_blk_disks::{Engine, FaultDisk, FaultPlan, MemoryDisk, RawDisk, RawOptions};

/// Bytes of the disk, and the part that is written: few sectors, so that they are written again and again.
const BYTES: u64 = 4 << 20;
const SECTORS: u64 = 64;
const DEPTH: usize = 8;

type Model = PowerCutDisk<FaultDisk<MemoryDisk>>;

/// A write of some sectors with a stamp of its own.
struct Write {
    first: u64,
    count: u64,
    submitted: u64,
    completed: Option<u64>,
    fua: bool,
    promised: bool,
}

enum Asked {
    Write(usize),
    Flush(u64),
}

/// What was promised: that from a moment of the model on a write is stable.
struct Promise {
    from: Moment,
    write: usize,
}

/// One engine at work, and what it promised.
struct Run<'a> {
    model: &'a Model,
    queue: Box<dyn IoQueue>,
    /// Stamps of earlier runs.
    base: u32,
    writes: Vec<Write>,
    promises: Vec<Promise>,
    asked: HashMap<Token, Asked>,
    clock: u64,
    next: u64,
}

impl Run<'_> {
    fn stamp(&self, write: usize) -> u32 {
        self.base + write as u32 + 1
    }

    fn completed(&mut self, completion: Completion) {
        completion.result.unwrap();
        self.clock += 1;
        let from = self.model.now();
        match self.asked.remove(&completion.token).unwrap() {
            Asked::Write(write) => {
                self.writes[write].completed = Some(self.clock);
                if self.writes[write].fua {
                    self.promise(write, from);
                }
            }
            Asked::Flush(at) => {
                for write in 0..self.writes.len() {
                    if (self.writes[write].completed).is_some_and(|completed| completed < at) {
                        self.promise(write, from);
                    }
                }
            }
        }
    }

    fn promise(&mut self, write: usize, from: Moment) {
        if !std::mem::replace(&mut self.writes[write].promised, true) {
            self.promises.push(Promise { from, write });
        }
    }

    fn submit(&mut self, kind: OpKind, buf: IoBuf, asked: Asked) {
        self.next += 1;
        let token = Token(self.next);
        self.asked.insert(token, asked);
        let mut op = Op { token, kind, buf };
        loop {
            match self.queue.submit(op) {
                Submit::Queued => break,
                Submit::Done(completion) => return self.completed(completion),
                Submit::Full(back) => op = back,
            }
            self.reap();
        }
    }

    fn reap(&mut self) {
        self.queue.flush_batch().unwrap();
        let mut done = Vec::new();
        self.queue.reap(&mut done).unwrap();
        if done.is_empty() {
            std::thread::sleep(Duration::from_micros(200));
        }
        for completion in done {
            self.completed(completion);
        }
    }

    fn play(&mut self, operations: u64, seed: u64) {
        let mut random = seed;
        let mut next = |below: u64| {
            random = random
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (random >> 33) % below
        };
        for _ in 0..operations {
            self.clock += 1;
            if next(6) == 0 {
                let flush = Asked::Flush(self.clock);
                self.submit(OpKind::Flush, IoBuf::new(), flush);
            } else {
                let (first, count, fua) = (next(SECTORS - 8), 1 + next(8), next(5) == 0);
                let write = self.writes.len();
                self.writes.push(Write {
                    first,
                    count,
                    submitted: self.clock,
                    completed: None,
                    fua,
                    promised: false,
                });
                let stamp = self.stamp(write).to_le_bytes();
                let data = stamp.repeat((count * 128) as usize);
                let kind = OpKind::Write {
                    offset: first * 512,
                    fua,
                };
                self.submit(kind, IoBuf::from_vec(data), Asked::Write(write));
            }
            while self.asked.len() >= DEPTH {
                self.reap();
            }
        }
        while !self.asked.is_empty() {
            self.reap();
        }
    }

    /// Whether a sector that was promised to hold `write` may hold what has `stamp`: a write that had not ended
    /// when the promised one began.
    fn may_hold(&self, write: usize, sector: u64, stamp: u32) -> bool {
        let Some(other) = stamp.checked_sub(self.base + 1).map(|other| other as usize) else {
            return false;
        };
        let promised = &self.writes[write];
        self.writes.get(other).is_some_and(|other| {
            (other.first..other.first + other.count).contains(&sector)
                && other
                    .completed
                    .is_none_or(|ended| ended >= promised.submitted)
        })
    }

    /// Cuts the power at each moment. Returns how many contents were looked at.
    fn check(&self, since: Moment, what: &str) -> u64 {
        let mut looked = 0;
        for moment in since..=self.model.now() {
            let cut = self.model.cut(moment);
            for promise in self.promises.iter().filter(|p| p.from <= moment) {
                let write = &self.writes[promise.write];
                for sector in write.first..write.first + write.count {
                    let choice = cut.sector(sector).unwrap_or_else(|| {
                        panic!("{what}: sector {sector} was promised, and never written")
                    });
                    assert!(
                        !choice.original,
                        "{what}: a cut at {moment} loses sector {sector}"
                    );
                    for content in &choice.contents {
                        let stamp = match content {
                            Content::Data(data) => {
                                u32::from_le_bytes(data[..4].try_into().unwrap())
                            }
                            _ => 0,
                        };
                        assert!(
                            self.may_hold(promise.write, sector, stamp),
                            "{what}: a cut at event {moment} leaves stamp {stamp} in sector {sector}, where {} was promised",
                            self.stamp(promise.write)
                        );
                        looked += 1;
                    }
                }
            }
        }
        looked
    }
}

fn vdpa(args: &[&str]) {
    let status = Command::new("vdpa").arg("dev").args(args).status().unwrap();
    assert!(status.success(), "vdpa dev {args:?}");
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [name, node, operations] = args.as_slice() else {
        panic!("NAME NODE OPERATIONS");
    };
    let plan = FaultPlan::new(1).delay_reaps(0..=3).reorder();
    let late = FaultDisk::new(Arc::new(MemoryDisk::new(BYTES).unwrap()), plan);
    let model = Arc::new(PowerCutDisk::new(Arc::new(late)));
    let options = DeviceOptions {
        config_wce: false,
        transport_features: ACCESS_PLATFORM,
        ..DeviceOptions::default()
    };
    let device = Device::new(model.clone() as Arc<dyn Disk>, options).unwrap();
    let server = Server::new(Arc::new(Linux), device, ServerOptions::new(name)).unwrap();
    let handle = server.handle();
    let serving = std::thread::spawn(move || server.run().unwrap());
    vdpa(&["add", "name", name, "mgmtdev", "vduse"]);
    let until = Instant::now() + Duration::from_secs(30);
    while !Path::new(node).exists() {
        assert!(Instant::now() < until, "no {node}");
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut base = 0;
    for engine in [Engine::Sync, Engine::Auto, Engine::IoUring] {
        for direct in [false, true] {
            let options = RawOptions::new(node).engine(engine).direct(direct);
            let disk = RawDisk::open(&options).unwrap();
            let what = format!("{engine:?}, direct {direct}");
            let since = model.now();
            let mut run = Run {
                model: &model,
                queue: disk.open_queue(DEPTH as u16).unwrap(),
                base,
                writes: Vec::new(),
                promises: Vec::new(),
                asked: HashMap::new(),
                clock: 0,
                next: 0,
            };
            run.play(operations.parse().unwrap(), u64::from(base) + 1);
            let looked = run.check(since, &what);
            println!(
                "{what}: {} writes, {} promises, {looked} contents after {} cuts",
                run.writes.len(),
                run.promises.len(),
                model.now() - since
            );
            assert!(looked > 100, "nothing was promised");
            base += run.writes.len() as u32;
        }
    }
    vdpa(&["del", name]);
    handle.stop();
    serving.join().unwrap();
}
