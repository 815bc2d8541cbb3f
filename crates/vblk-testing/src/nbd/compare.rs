// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Clients and servers of network block devices side by side, in rounds that alternate between them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::Kind;
use crate::compare::median;
use crate::load::{self, Load, QUEUE_SIZE};
use crate::server::{Config as ServerConfig, Disk, Program, Server};
use crate::{Error, cpu, pattern};

/// Bytes of the image.
const LEN: u64 = 256 << 20;

/// I/Os in flight.
const DEPTHS: [usize; 2] = [1, 32];

/// Who takes part in the comparison of servers.
const SERVERS: [Kind; 4] = [Kind::Vblk, Kind::QemuNbd, Kind::Qsd, Kind::Nbdkit];

/// Whose exports the clients serve.
const UPSTREAMS: [Kind; 2] = [Kind::Nbdkit, Kind::Vblk];

/// What to compare.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the vblk program is.
    pub vblk: PathBuf,
    /// Where to put the image.
    pub dir: PathBuf,
    /// Length of each measurement.
    pub time: Duration,
    /// Measurements of each; the median counts.
    pub rounds: usize,
    /// Only what has one of these in its words: `client nbdkit vblk`, `fio vblk`, `nbdcopy qemu-nbd`. All if there is none.
    pub only: Vec<String>,
}

/// Who was measured, and under what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Case {
    /// `client`: an export served over vhost-user. `fio`, `nbdcopy`: a server under this program.
    pub table: &'static str,
    /// The program that was measured.
    pub program: String,
    /// Of a client: its server.
    pub upstream: Option<&'static str>,
    /// Writes instead of reads.
    pub write: bool,
    /// I/Os in flight; of `nbdcopy`, as many as it likes.
    pub depth: usize,
}

/// A case, with the medians of its rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Who and what.
    #[serde(flatten)]
    pub case: Case,
    /// I/Os of 4 KiB per second; of `nbdcopy`, MiB per second.
    pub rate: f64,
    /// CPU time of the program in nanoseconds, for each I/O or MiB.
    pub cpu_ns: f64,
    /// CPUs kept busy by what does not belong to it.
    pub others: f64,
    /// The rates of each round.
    pub rounds: Vec<f64>,
}

#[derive(Clone, Copy)]
struct Seen {
    rate: f64,
    cpu_ns: f64,
    others: f64,
}

/// Measures. Every program is started anew in each round. `tell` is called with what continues.
///
/// # Errors
/// A program fails.
pub fn run(config: &Config, mut tell: impl FnMut(&str)) -> Result<Vec<Row>, Error> {
    let dir = tempfile::tempdir_in(&config.dir).map_err(Error::io("the image"))?;
    let image = dir.path().join("disk");
    // Written just now, it is in the page cache.
    pattern::create_file(&image, LEN)?;
    let mut all: Vec<(Case, Vec<Seen>)> = Vec::new();
    for round in 1..=config.rounds {
        let mut add = |case: Case, seen: Seen| match all.iter_mut().find(|(of, _)| *of == case) {
            Some((_, list)) => list.push(seen),
            None => all.push((case, vec![seen])),
        };
        let mut wanted = |words: &str| {
            let is = config.only.is_empty() || config.only.iter().any(|only| words.contains(only));
            if is {
                tell(&format!("round {round} of {}: {words}", config.rounds));
            }
            is
        };
        for upstream in UPSTREAMS {
            for program in [
                Program::Vblk(config.vblk.clone()),
                Program::QemuStorageDaemon,
            ] {
                let name = match program {
                    Program::Vblk(_) => "vblk",
                    Program::QemuStorageDaemon => "qemu-storage-daemon",
                };
                if wanted(&format!("client {} {name}", upstream.name())) {
                    client(config, &image, upstream, program, name, &mut add)?;
                }
            }
        }
        for kind in SERVERS {
            if wanted(&format!("fio {}", kind.name())) {
                under_fio(config, &image, kind, &mut add)?;
            }
            if wanted(&format!("nbdcopy {}", kind.name())) {
                let server = kind.serve(&config.vblk, &image)?;
                let case = Case {
                    table: "nbdcopy",
                    program: kind.name().to_owned(),
                    upstream: None,
                    write: false,
                    depth: 0,
                };
                add(case, under_nbdcopy(&server, config.time)?);
            }
        }
    }
    let rows = all.into_iter().map(|(case, seen)| {
        let median = |of: fn(&Seen) -> f64| median(seen.iter().map(of).collect());
        Row {
            case,
            rate: median(|seen| seen.rate),
            cpu_ns: median(|seen| seen.cpu_ns),
            others: median(|seen| seen.others),
            rounds: seen.iter().map(|seen| seen.rate).collect(),
        }
    });
    Ok(rows.collect())
}

/// A client of `upstream`, which serves its export over vhost-user, under the loads of the other comparisons.
fn client(
    config: &Config,
    image: &Path,
    upstream: Kind,
    program: Program,
    name: &str,
    add: &mut impl FnMut(Case, Seen),
) -> Result<(), Error> {
    let nbd = upstream.serve(&config.vblk, image)?;
    let server = Server::start(&ServerConfig {
        program,
        disk: Disk::Nbd(nbd.socket()),
        queues: 1,
        queue_size: QUEUE_SIZE,
        read_only: false,
    })?;
    for depth in DEPTHS {
        for load in [Load::reads(depth, false), Load::writes(depth, false)] {
            let (before, since) = (cpu::of_process(nbd.pid())?, Instant::now());
            let measured = load::run(&server.socket(), server.pid(), load, config.time)?;
            let upstreams = (cpu::of_process(nbd.pid())? - before).as_secs_f64();
            let case = Case {
                table: "client",
                program: name.to_owned(),
                upstream: Some(upstream.name()),
                write: load.write,
                depth,
            };
            let others = measured.others - upstreams / since.elapsed().as_secs_f64();
            add(
                case,
                Seen {
                    rate: measured.iops,
                    cpu_ns: measured.server_ns,
                    others: others.max(0.0),
                },
            );
        }
    }
    server.stop()
}

/// Clocks around a program that puts a load on a server.
struct Clocks {
    wall: Instant,
    server: Duration,
    children: Duration,
    all: Duration,
}

impl Clocks {
    fn read(server: &Server) -> Result<Self, Error> {
        Ok(Self {
            wall: Instant::now(),
            server: cpu::of_process(server.pid())?,
            children: cpu::of_children()?,
            all: cpu::of_machine()?,
        })
    }

    /// What was seen since, in so many I/Os or MiB.
    fn seen(self, server: &Server, done: f64) -> Result<Seen, Error> {
        let now = Self::read(server)?;
        let wall = (now.wall - self.wall).as_secs_f64();
        let served = now.server.saturating_sub(self.server);
        let ours = served + now.children.saturating_sub(self.children);
        let others = now.all.saturating_sub(self.all).saturating_sub(ours);
        Ok(Seen {
            rate: done / wall,
            cpu_ns: served.as_nanos() as f64 / done.max(1.0),
            others: others.as_secs_f64() / wall,
        })
    }
}

fn uri(server: &Server) -> String {
    format!("nbd+unix:///?socket={}", server.socket().display())
}

/// A server under fio's engine for NBD: one connection.
fn under_fio(
    config: &Config,
    image: &Path,
    kind: Kind,
    add: &mut impl FnMut(Case, Seen),
) -> Result<(), Error> {
    let server = kind.serve(&config.vblk, image)?;
    for depth in DEPTHS {
        for write in [false, true] {
            let mut fio = Command::new("fio");
            fio.args(["--name=nbd", "--ioengine=nbd", "--bs=4k", "--randrepeat=1"])
                .args(["--time_based", "--output-format=json", "--norandommap"])
                .arg(format!("--uri={}", uri(&server)))
                .arg(format!("--rw=rand{}", if write { "write" } else { "read" }))
                .arg(format!("--iodepth={depth}"))
                .arg(format!("--runtime={}ms", config.time.as_millis()));
            let clocks = Clocks::read(&server)?;
            let output = output_of(&mut fio)?;
            let direction = if write { "write" } else { "read" };
            // It says on what it waits in front of the report.
            let report = output.find('{').and_then(|at| output.get(at..));
            let report: serde_json::Value = serde_json::from_str(report.unwrap_or_default())
                .map_err(|error| Error::Config(format!("fio's report: {error}: {output}")))?;
            let job = &report["jobs"][0][direction];
            let (Some(ios), Some(iops)) = (job["total_ios"].as_f64(), job["iops"].as_f64()) else {
                return Err(Error::Config(format!("fio's report has no I/Os: {output}")));
            };
            let case = Case {
                table: "fio",
                program: kind.name().to_owned(),
                upstream: None,
                write,
                depth,
            };
            // Of its own run time: it takes its time to start.
            let seen = Seen {
                rate: iops,
                ..clocks.seen(&server, ios)?
            };
            add(case, seen);
        }
    }
    Ok(())
}

/// A server whose export is copied to nowhere, again and again.
fn under_nbdcopy(server: &Server, time: Duration) -> Result<Seen, Error> {
    let clocks = Clocks::read(server)?;
    let since = Instant::now();
    let mut copied = 0.0;
    while since.elapsed() < time {
        output_of(Command::new("nbdcopy").arg(uri(server)).arg("null:"))?;
        copied += (LEN >> 20) as f64;
    }
    clocks.seen(server, copied)
}

fn output_of(command: &mut Command) -> Result<String, Error> {
    let output = (command.stdin(Stdio::null()).stderr(Stdio::inherit()))
        .output()
        .map_err(Error::io(format!("{command:?}")))?;
    if !output.status.success() {
        let text = format!("{command:?} ended with {}", output.status);
        return Err(Error::Config(text));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
