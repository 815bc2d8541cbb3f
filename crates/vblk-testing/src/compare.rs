// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Servers side by side: the same loads from the same client, in rounds that alternate between them.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::load::{self, Load, Measured, QUEUE_SIZE};
use crate::server::{Config as ServerConfig, Disk, Program, Server};
use crate::{Error, pattern};

/// A format of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Image {
    /// The bytes, beside a null disk.
    Raw,
    /// qcow2: all allocated, and writes that allocate in an empty one.
    Qcow2,
}

/// What to compare.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the vblk program is.
    pub vblk: PathBuf,
    /// Where to put the image of `len` bytes that is served.
    pub dir: PathBuf,
    /// The format of the image.
    pub image: Image,
    /// Bytes of the image, and of the null disk.
    pub len: u64,
    /// Length of each measurement.
    pub time: Duration,
    /// Measurements of each server and load; the median counts.
    pub rounds: usize,
    /// The depths.
    pub depths: Vec<usize>,
    /// The ways the client waits: `true` for polling.
    pub polls: Vec<bool>,
    /// Only servers whose name contains one of these; all if there is none.
    pub only: Vec<String>,
}

/// One server under one load.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What is served: `raw` or `null`.
    pub disk: &'static str,
    /// The program and its way to do I/O.
    pub server: String,
    /// The load.
    #[serde(flatten)]
    pub load: Load,
    /// The medians.
    #[serde(flatten)]
    pub median: Measured,
    /// The I/Os per second of each round.
    pub rounds: Vec<f64>,
}

/// A server that takes part.
struct Contender {
    disk: &'static str,
    name: String,
    config: ServerConfig,
}

fn contenders(config: &Config, image: &Path) -> Vec<Contender> {
    let contender = |program: &Program, disk: &Disk| {
        let name = match program {
            Program::Vblk(_) => "vblk",
            Program::QemuStorageDaemon => "qemu-storage-daemon",
        };
        let (disk_name, engine) = match disk {
            Disk::Raw { engine, .. } => ("raw", engine.as_deref().unwrap_or_default()),
            Disk::Memory(_) => ("memory", ""),
            Disk::Named(_) => ("named", ""),
            Disk::Qcow2 { engine, .. } => ("qcow2", engine.as_deref().unwrap_or_default()),
            Disk::Null { .. } => ("null", ""),
        };
        Contender {
            disk: disk_name,
            name: format!("{name} {engine}").trim_end().to_owned(),
            config: ServerConfig {
                program: program.clone(),
                disk: disk.clone(),
                queues: 1,
                queue_size: QUEUE_SIZE,
                read_only: false,
            },
        }
    };
    let (vblk, peer) = (
        Program::Vblk(config.vblk.clone()),
        Program::QemuStorageDaemon,
    );
    let raw = |engine: &str| Disk::Raw {
        path: image.to_owned(),
        engine: Some(engine.to_owned()),
    };
    let qcow2 = |engine: &str| Disk::Qcow2 {
        path: image.to_owned(),
        engine: Some(engine.to_owned()),
    };
    let null = Disk::Null {
        len: config.len,
        zero: false,
    };
    let mut all = match config.image {
        Image::Qcow2 => vec![
            contender(&vblk, &qcow2("auto")),
            contender(&vblk, &qcow2("sync")),
            contender(&peer, &qcow2("io_uring")),
            contender(&peer, &qcow2("threads")),
        ],
        Image::Raw => vec![
            contender(&vblk, &raw("auto")),
            contender(&vblk, &raw("sync")),
            contender(&vblk, &raw("io_uring")),
            contender(&peer, &raw("io_uring")),
            contender(&peer, &raw("threads")),
            contender(&vblk, &null),
            contender(&peer, &null),
        ],
    };
    all.retain(|one| {
        let name = format!("{} {}", one.disk, one.name);
        config.only.is_empty() || config.only.iter().any(|part| name.contains(part))
    });
    all
}

/// Measures. Every server is started anew in each round, and takes all loads then. `tell` is called with what
/// continues.
///
/// # Errors
/// A server or the client fails.
pub fn run(config: &Config, mut tell: impl FnMut(&str)) -> Result<Vec<Row>, Error> {
    let dir = tempfile::tempdir_in(&config.dir).map_err(Error::io("the image"))?;
    let image = dir.path().join("disk");
    // Written just now, it is in the page cache.
    pattern::create_file(&image, config.len)?;
    if config.image == Image::Qcow2 {
        convert(&image)?;
    }
    let mut loads = Vec::new();
    for &poll in &config.polls {
        for &depth in &config.depths {
            let load = |write, fresh| Load {
                write,
                depth,
                poll,
                fresh,
            };
            loads.extend([load(false, false), load(true, false)]);
            if config.image == Image::Qcow2 {
                loads.push(load(true, true));
            }
        }
    }
    let contenders = contenders(config, &image);
    let mut seen: Vec<(usize, Load, Vec<Measured>)> = Vec::new();
    for &load in &loads {
        seen.extend((0..contenders.len()).map(|index| (index, load, Vec::new())));
    }
    for round in 1..=config.rounds {
        for (index, contender) in contenders.iter().enumerate() {
            tell(&format!(
                "round {round} of {}: {} on {}",
                config.rounds, contender.name, contender.disk
            ));
            let mine = || |entry: &&mut (usize, Load, _)| entry.0 == index;
            let server = Server::start(&contender.config)?;
            for (_, load, measured) in seen.iter_mut().filter(mine()).filter(|e| !e.1.fresh) {
                let (socket, pid) = (server.socket(), server.pid());
                measured.push(load::run(&socket, pid, *load, config.time)?);
            }
            server.stop()?;
            for (_, load, measured) in seen.iter_mut().filter(mine()).filter(|e| e.1.fresh) {
                let empty = dir.path().join("empty");
                qemu_img(["create", "-f", "qcow2"], &empty, Some(EMPTY))?;
                let mut contender = contender.config.clone();
                if let Disk::Qcow2 { path, .. } = &mut contender.disk {
                    path.clone_from(&empty);
                }
                let server = Server::start(&contender)?;
                let (socket, pid) = (server.socket(), server.pid());
                measured.push(load::run(&socket, pid, *load, config.time)?);
                server.stop()?;
                std::fs::remove_file(&empty).map_err(Error::io("the image"))?;
            }
        }
    }
    Ok(seen
        .into_iter()
        .map(|(index, load, measured)| {
            let median = |of: fn(&Measured) -> f64| median(measured.iter().map(of).collect());
            Row {
                disk: contenders[index].disk,
                server: contenders[index].name.clone(),
                load,
                median: Measured {
                    iops: median(|m| m.iops),
                    server_ns: median(|m| m.server_ns),
                    client_ns: median(|m| m.client_ns),
                    others: median(|m| m.others),
                },
                rounds: measured.iter().map(|m| m.iops).collect(),
            }
        })
        .collect())
}

/// Size of an image that is filled.
const EMPTY: &str = "64G";

/// Runs `qemu-img` on a file.
fn qemu_img<const N: usize>(args: [&str; N], path: &Path, last: Option<&str>) -> Result<(), Error> {
    let mut command = std::process::Command::new("qemu-img");
    command.args(args).arg("-q").arg(path).args(last);
    let status = command.status().map_err(Error::io("qemu-img"))?;
    if status.success() {
        Ok(())
    } else {
        Err(Error::Server(format!("{command:?} ended with {status}")))
    }
}

/// Makes a raw image a qcow2 image with all its clusters allocated, in the page cache in single pages, as the raw one.
fn convert(image: &Path) -> Result<(), Error> {
    let made = image.with_extension("qcow2");
    let name = made.to_string_lossy().into_owned();
    qemu_img(["convert", "-f", "raw", "-O", "qcow2"], image, Some(&name))?;
    let failed = || Error::io("the image");
    let content = std::fs::read(&made).map_err(failed())?;
    std::fs::remove_file(&made).map_err(failed())?;
    let mut file = std::fs::File::create(image).map_err(failed())?;
    for page in content.chunks(4096) {
        file.write_all(page).map_err(failed())?;
    }
    Ok(())
}

/// The middle one, or the mean of the two in the middle; 0 of none.
fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    let middle = of.len() / 2;
    match of.get(middle) {
        None => 0.0,
        Some(&upper) if of.len() % 2 == 1 => upper,
        Some(&upper) => (of[middle - 1] + upper) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![]), 0.0);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
