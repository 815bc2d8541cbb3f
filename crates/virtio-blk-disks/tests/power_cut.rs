// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a guest is promised survives a power cut at any moment: the cache modes of virtio 1.4, 5.2.6.2, end
//! to end from the ring to a disk with a volatile cache.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::HashMap;
use std::sync::Arc;

use common::{directory, read};
use malformed_queues::testmem;
use virtio_blk_core::device::{Device, DeviceOptions};
use virtio_blk_core::disk::Disk;
use virtio_blk_core::runner::QueueSetup;
use virtio_blk_core::spec::config::WRITEBACK_OFFSET;
use virtio_blk_core::spec::feature;
use virtio_blk_disks::power_cut::{Content, Moment, PowerCutDisk};
use virtio_blk_disks::{Engine, FaultDisk, FaultPlan, MemoryDisk, RawDisk, RawOptions};
use virtio_blk_driver::request::{ArenaConfig, Request, Token};
use virtio_blk_driver::ring::RingConfig;

const SECTORS: u64 = 32;

/// What the driver does about the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cache {
    /// FLUSH is not acknowledged: each write is stable when it completes.
    Through,
    /// `writeback` is 0: the same.
    Switched,
    /// Writes are stable after a flush.
    Back,
}

/// A write of one sector.
struct Write {
    sector: u64,
    value: u8,
    submitted: u64,
    completed: Option<u64>,
}

/// The promise of a value, from a moment of the disk on.
struct Promise {
    from: Moment,
    sector: u64,
    write: usize,
}

enum Asked {
    Write(usize),
    Flush { at: u64 },
}

/// A guest that writes and flushes at random, and what it was promised.
struct Guest {
    writes: Vec<Write>,
    promises: Vec<Promise>,
    clock: u64,
}

impl Guest {
    fn completed(&mut self, asked: &Asked, cache: Cache, disk_now: Moment) {
        self.clock += 1;
        match *asked {
            Asked::Write(write) => {
                self.writes[write].completed = Some(self.clock);
                if cache != Cache::Back {
                    self.promise(write, disk_now);
                }
            }
            Asked::Flush { at } => {
                let covered = |w: &Write| w.completed.is_some_and(|completed| completed < at);
                let covered: Vec<_> = (0..self.writes.len())
                    .filter(|&index| covered(&self.writes[index]))
                    .collect();
                for write in covered {
                    self.promise(write, disk_now);
                }
            }
        }
    }

    fn promise(&mut self, write: usize, from: Moment) {
        let sector = self.writes[write].sector;
        self.promises.push(Promise {
            from,
            sector,
            write,
        });
    }

    /// Whether a sector that was promised to hold `write` may hold `value` instead: of a write that had not
    /// ended when the promised one began.
    fn may_hold(&self, write: usize, value: u8) -> bool {
        let promised = &self.writes[write];
        self.writes.iter().any(|other| {
            other.sector == promised.sector
                && other.value == value
                && other
                    .completed
                    .is_none_or(|ended| ended >= promised.submitted)
        })
    }
}

/// A few hundred requests at depth 8 over a disk that ends them late and out of order, then a cut at each moment.
fn play(cache: Cache, seed: u64) {
    play_on(
        cache,
        seed,
        Arc::new(MemoryDisk::new(SECTORS * 512).unwrap()),
    );
}

/// The same over any disk. Returns the model.
fn play_on(cache: Cache, seed: u64, base: Arc<dyn Disk>) -> (Arc<PowerCutDisk>, Guest) {
    let plan = FaultPlan::new(seed).delay_reaps(0..=3).reorder();
    let late: Arc<dyn Disk> = Arc::new(FaultDisk::new(base, plan));
    let disk = Arc::new(PowerCutDisk::new(late));
    let device = Device::new(disk.clone() as Arc<dyn Disk>, DeviceOptions::default()).unwrap();
    let mut features = device.offered();
    match cache {
        Cache::Through => features &= !(feature::FLUSH | feature::CONFIG_WCE),
        Cache::Switched | Cache::Back => {}
    }
    device.accept(features).unwrap();
    if cache == Cache::Switched {
        device.write_config(WRITEBACK_OFFSET as u64, &[0]).unwrap();
    }

    let (mem, mut space) = testmem::single(384 * 1024).unwrap();
    let mem = Arc::new(mem);
    let config = RingConfig {
        event_idx: true,
        indirect: true,
        start: 0,
    };
    let mut driver = space
        .driver(mem.clone(), 32, config, ArenaConfig::default())
        .unwrap();
    let setup = QueueSetup::new(mem, || {});
    let mut runner = device.start_queue(0, setup, driver.state()).unwrap();

    let mut guest = Guest {
        writes: Vec::new(),
        promises: Vec::new(),
        clock: 0,
    };
    let mut asked: HashMap<Token, Asked> = HashMap::new();
    let mut random = seed;
    for round in 0..120_u64 {
        random = random
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        guest.clock += 1;
        let number = random >> 33;
        if number.is_multiple_of(5) && cache == Cache::Back {
            let token = driver.submit(&Request::flush()).unwrap();
            asked.insert(token, Asked::Flush { at: guest.clock });
        } else {
            let (sector, value) = (number % 6, round as u8 + 1);
            let token = driver
                .submit(&Request::write(sector, &[value; 512]))
                .unwrap();
            asked.insert(token, Asked::Write(guest.writes.len()));
            guest.writes.push(Write {
                sector,
                value,
                submitted: guest.clock,
                completed: None,
            });
        }
        driver.publish().unwrap();
        loop {
            runner.service(64);
            while let Some(done) = driver.poll().unwrap() {
                assert!(done.is_ok());
                let asked = asked.remove(&done.token).unwrap();
                guest.completed(&asked, cache, disk.now());
            }
            if asked.len() < 8 {
                break;
            }
        }
    }
    assert!(guest.promises.len() > 30, "{cache:?}");
    let mut held = 0;
    for moment in 0..=disk.now() {
        let cut = disk.cut(moment);
        for promise in guest.promises.iter().filter(|p| p.from <= moment) {
            let choice = cut.sector(promise.sector).expect("it was written");
            assert!(!choice.original, "{cache:?}, seed {seed}, event {moment}");
            for content in &choice.contents {
                let Content::Data(data) = content else {
                    panic!("only data was written");
                };
                assert!(
                    guest.may_hold(promise.write, data[0]),
                    "{cache:?}, seed {seed}: a cut at event {moment} loses sector {}",
                    promise.sector
                );
                held += 1;
            }
        }
    }
    assert!(held > 500);
    (disk, guest)
}

#[test]
fn without_flush_each_write_is_stable_when_it_completes() {
    (0..4).for_each(|seed| play(Cache::Through, seed));
}

#[test]
fn with_writeback_off_each_write_is_stable_when_it_completes() {
    (0..4).for_each(|seed| play(Cache::Switched, seed));
}

#[test]
fn what_had_completed_is_stable_after_a_flush() {
    (0..4).for_each(|seed| play(Cache::Back, seed));
}

/// States after cuts are put into files, and read back by the engine that will find them.
#[test]
fn a_raw_image_after_a_cut_holds_what_was_promised() {
    let directory = directory();
    for (seed, engine) in (0_u64..).zip([Engine::Sync, Engine::Auto, Engine::IoUring]) {
        if engine == Engine::IoUring && cfg!(not(feature = "io-uring")) {
            continue;
        }
        for cache in [Cache::Through, Cache::Back] {
            let path = directory.path().join("before.img");
            std::fs::write(&path, vec![0; SECTORS as usize * 512]).unwrap();
            let raw = RawDisk::open(&RawOptions::new(&path).engine(engine)).unwrap();
            let (disk, guest) = play_on(cache, seed, Arc::new(raw));
            let mut states = 0;
            for moment in (0..=disk.now()).step_by(23) {
                let cut = disk.cut(moment);
                for number in [0, 1, cut.states() / 2, cut.states() - 1] {
                    let mut image = vec![0; SECTORS as usize * 512];
                    for (sector, content) in cut.state(number) {
                        if let Some(Content::Data(data)) = content {
                            let at = sector as usize * 512;
                            image[at..at + 512].copy_from_slice(&data);
                        }
                    }
                    let path = directory.path().join("after.img");
                    std::fs::write(&path, &image).unwrap();
                    let after = RawDisk::open(&RawOptions::new(&path).engine(engine)).unwrap();
                    let mut queue = after.open_queue(1).unwrap();
                    for promise in guest.promises.iter().filter(|p| p.from <= moment) {
                        let found = read(&mut *queue, promise.sector * 512, 512).unwrap();
                        assert!(found.iter().all(|byte| *byte == found[0]), "torn");
                        assert!(
                            guest.may_hold(promise.write, found[0]),
                            "{engine:?}, {cache:?}: {moment}"
                        );
                    }
                    states += 1;
                }
            }
            assert!(states >= 30);
        }
    }
}
