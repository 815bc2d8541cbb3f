// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who is compared, under which loads.

use std::path::Path;

use super::images::Images;
use super::{Anew, Config, Contender};
use crate::load::{Discards, Load, QUEUE_SIZE};
use crate::server::{Config as ServerConfig, Disk, Program};

/// Queues of [`Part::Queues`].
const QUEUES: usize = 4;

/// A part of the comparison on qcow2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Reads and writes where everything is allocated.
    Allocated,
    /// Writes to new clusters of an empty image.
    New,
    /// Writes to new clusters with a backing file, which are copied up; at the largest depth only.
    Copies,
    /// Reads through an empty image with a backing file. Only vblk: it is compared with itself.
    Overlay,
    /// Writes with discards among them, at the largest depth only. Only vblk, as above.
    Discards,
    /// Writes to new clusters on four queues, at the largest depth only. Only vblk, as above.
    Queues,
    /// The first three past the page cache; one kind of client.
    Direct,
}

impl Config {
    /// Whether a part is wanted.
    pub(super) fn wants(&self, part: Part) -> bool {
        self.parts.is_empty() || self.parts.contains(&part)
    }

    fn deepest(&self) -> usize {
        self.depths.iter().copied().max().unwrap_or(1)
    }

    /// Loads for some ways to wait and some depths.
    fn each(
        polls: &[bool],
        depths: &[usize],
        loads: impl Fn(usize, bool) -> Vec<Load>,
    ) -> Vec<Load> {
        (polls.iter())
            .flat_map(|poll| depths.iter().flat_map(|depth| loads(*depth, *poll)))
            .collect()
    }
}

/// A server, by the program's own name for its engine.
struct Who(Program, &'static str);

impl Who {
    fn contender(&self, disk: &'static str, served: Disk, loads: Vec<Load>) -> Contender {
        let Self(program, engine) = self;
        let name = match program {
            Program::Vblk(_) => "vblk",
            Program::QemuStorageDaemon => "qemu-storage-daemon",
        };
        Contender {
            disk,
            name: format!("{name} {engine}").trim_end().to_owned(),
            config: ServerConfig {
                program: program.clone(),
                disk: served,
                queues: loads.iter().map(|load| load.queues).max().unwrap_or(1),
                queue_size: QUEUE_SIZE,
                read_only: false,
            },
            loads,
            anew: None,
        }
    }

    fn qcow2(&self, path: &Path, direct: bool, backing: bool) -> Disk {
        Disk::Qcow2 {
            path: path.to_owned(),
            engine: Some(self.1.to_owned()),
            direct,
            backing,
        }
    }
}

/// Reads and writes.
fn both(depth: usize, poll: bool) -> Vec<Load> {
    vec![Load::reads(depth, poll), Load::writes(depth, poll)]
}

/// Who is compared on a raw image.
pub(super) fn raw(config: &Config, images: &Images) -> Vec<Contender> {
    let vblk = |engine| Who(Program::Vblk(config.vblk.clone()), engine);
    let peer = |engine| Who(Program::QemuStorageDaemon, engine);
    let loads = || Config::each(&config.polls, &config.depths, both);
    let on_file = |who: &Who| {
        let raw = Disk::Raw {
            path: images.disk.clone(),
            engine: Some(who.1.to_owned()),
        };
        who.contender("raw", raw, loads())
    };
    let null = Disk::Null {
        len: config.len,
        zero: false,
    };
    let mut all: Vec<Contender> = [
        vblk("auto"),
        vblk("sync"),
        vblk("io_uring"),
        peer("io_uring"),
        peer("threads"),
    ]
    .iter()
    .map(on_file)
    .collect();
    all.extend([vblk(""), peer("")].map(|who| who.contender("null", null.clone(), loads())));
    all
}

/// Who is compared on qcow2 images.
pub(super) fn qcow2(config: &Config, images: &Images) -> Vec<Contender> {
    let vblk = Who(Program::Vblk(config.vblk.clone()), "auto");
    let peers = ["io_uring", "threads"].map(|engine| Who(Program::QemuStorageDaemon, engine));
    let everybody = || std::iter::once(&vblk).chain(&peers);
    let (polls, depths) = (&config.polls[..], &config.depths[..]);
    let deep = &[config.deepest()][..];
    // The one that sleeps, if there is one.
    let quiet = &[polls.iter().all(|poll| *poll)][..];
    let fresh = |depth, poll| vec![Load::fresh(depth, poll)];
    let mut all = Vec::new();
    let anew = |who: &Who, how: Anew, direct: bool, loads: Vec<Load>| {
        let is_overlay = matches!(how, Anew::Overlay);
        let disk = match (is_overlay, direct) {
            (false, false) => "qcow2",
            (true, false) => "overlay",
            (false, true) => "qcow2, direct",
            (true, true) => "overlay, direct",
        };
        let served = who.qcow2(&images.anew, direct, is_overlay);
        Contender {
            anew: Some(how),
            ..who.contender(disk, served, loads)
        }
    };
    let standing = |who: &Who, loads: Vec<Load>| {
        who.contender("qcow2", who.qcow2(&images.disk, false, false), loads)
    };
    if config.wants(Part::Allocated) {
        all.extend(everybody().map(|who| standing(who, Config::each(polls, depths, both))));
    }
    if config.wants(Part::Overlay) {
        let loads = Config::each(polls, depths, |depth, poll| vec![Load::reads(depth, poll)]);
        all.push(vblk.contender("overlay", vblk.qcow2(&images.overlay, false, true), loads));
    }
    if config.wants(Part::Discards) {
        let loads = Config::each(polls, deep, |depth, poll| {
            [Discards::Parts, Discards::Clusters]
                .map(|discards| Load {
                    discards,
                    ..Load::writes(depth, poll)
                })
                .to_vec()
        });
        all.push(anew(&vblk, Anew::Full, false, loads));
    }
    if config.wants(Part::New) {
        let loads = || Config::each(polls, depths, fresh);
        all.extend(everybody().map(|who| anew(who, Anew::Empty, false, loads())));
    }
    if config.wants(Part::Queues) {
        let loads = Config::each(quiet, deep, |depth, poll| {
            vec![Load {
                queues: QUEUES,
                ..Load::fresh(depth, poll)
            }]
        });
        all.push(anew(&vblk, Anew::Empty, false, loads));
    }
    if config.wants(Part::Copies) {
        let loads = || Config::each(polls, deep, fresh);
        all.extend(everybody().map(|who| anew(who, Anew::Overlay, false, loads())));
    }
    if config.wants(Part::Direct) {
        let direct = |who: &Who, loads| {
            let served = who.qcow2(&images.direct, true, false);
            who.contender("qcow2, direct", served, loads)
        };
        all.extend(everybody().map(|who| direct(who, Config::each(quiet, depths, both))));
        let loads = || Config::each(quiet, depths, fresh);
        all.extend(everybody().map(|who| anew(who, Anew::Empty, true, loads())));
        let loads = || Config::each(quiet, deep, fresh);
        all.extend(everybody().map(|who| anew(who, Anew::Overlay, true, loads())));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(parts: Vec<Part>) -> Config {
        Config {
            vblk: "vblk".into(),
            dir: "/tmp".into(),
            image: super::super::Image::Qcow2,
            len: 1 << 20,
            time: std::time::Duration::from_secs(2),
            rounds: 3,
            depths: vec![1, 32],
            polls: vec![false, true],
            only: Vec::new(),
            parts,
        }
    }

    #[test]
    fn all_parts_take_less_than_ten_minutes() {
        let config = config(Vec::new());
        let all = qcow2(&config, &Images::new(&config.dir));
        let cells: usize = all.iter().map(|one| one.loads.len()).sum();
        let seconds = cells as f64 * 2.5 * config.rounds as f64;
        assert!(seconds < 570.0, "{cells} cells, {seconds} s");
    }

    #[test]
    fn a_load_is_measured_once_for_a_server_and_disk() {
        let config = config(Vec::new());
        let all = qcow2(&config, &Images::new(&config.dir));
        let cells: Vec<String> = (all.iter())
            .flat_map(|one| {
                let who = format!("{} {}", one.disk, one.name);
                (one.loads.iter()).map(move |load| format!("{who} {load:?}"))
            })
            .collect();
        let distinct: std::collections::HashSet<_> = cells.iter().collect();
        assert_eq!(distinct.len(), cells.len());
    }

    #[test]
    fn a_part_comes_alone_if_it_is_asked_for() {
        let config = config(vec![Part::Queues]);
        let all = qcow2(&config, &Images::new(&config.dir));
        let [one] = &all[..] else {
            panic!("{} contenders", all.len());
        };
        assert_eq!((one.config.queues, one.loads.len()), (QUEUES, 1));
    }
}
