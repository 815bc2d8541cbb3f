// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Servers side by side: the same loads from the same client, in rounds that alternate between them.

mod images;
mod parts;

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::load::{self, Load, Measured};
use crate::server::{Config as ServerConfig, Server};
use crate::{Error, pattern};
use images::Images;
pub use parts::Part;

/// A format of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Image {
    /// The bytes, beside a null disk.
    Raw,
    /// qcow2: see [`Part`].
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
    /// Only these parts of the comparison on qcow2; all if there is none.
    pub parts: Vec<Part>,
}

/// One server under one load.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What is served: `raw`, `null`, `qcow2`, or `overlay`, an image on a backing file; `direct` past the page cache.
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

/// An image that each load of a contender finds as it was.
#[derive(Clone, Copy, Debug)]
enum Anew {
    /// Nothing is allocated.
    Empty,
    /// Everything is, as in the first image.
    Full,
    /// Nothing is allocated; it has a backing file that is.
    Overlay,
}

/// A server that takes part.
struct Contender {
    disk: &'static str,
    name: String,
    config: ServerConfig,
    loads: Vec<Load>,
    /// Each load gets an image that is made for it. `None`: one server takes them all.
    anew: Option<Anew>,
}

/// Measures. Every server is started anew in each round, and takes all loads then. `tell` is called with what
/// continues.
///
/// # Errors
/// A server or the client fails.
pub fn run(config: &Config, mut tell: impl FnMut(&str)) -> Result<Vec<Row>, Error> {
    let dir = tempfile::tempdir_in(&config.dir).map_err(Error::io("the image"))?;
    let images = Images::new(dir.path());
    let mut contenders = match config.image {
        Image::Raw => {
            // Written just now, it is in the page cache.
            pattern::create_file(&images.disk, config.len)?;
            parts::raw(config, &images)
        }
        Image::Qcow2 => {
            images.make(config)?;
            parts::qcow2(config, &images)
        }
    };
    contenders.retain(|one| {
        let name = format!("{} {}", one.disk, one.name);
        config.only.is_empty() || config.only.iter().any(|part| name.contains(part))
    });
    let mut seen: Vec<(usize, Load, Vec<Measured>)> = Vec::new();
    for (index, contender) in contenders.iter().enumerate() {
        seen.extend((contender.loads.iter()).map(|load| (index, *load, Vec::new())));
    }
    for round in 1..=config.rounds {
        for (index, contender) in contenders.iter().enumerate() {
            tell(&format!(
                "round {round} of {}: {} on {}",
                config.rounds, contender.name, contender.disk
            ));
            let mut standing = match contender.anew {
                None => Some(Server::start(&contender.config)?),
                Some(_) => None,
            };
            for (_, load, measured) in seen.iter_mut().filter(|entry| entry.0 == index) {
                if let Some(server) = &standing {
                    measured.push(load::run(
                        &server.socket(),
                        server.pid(),
                        *load,
                        config.time,
                    )?);
                } else if let Some(anew) = contender.anew {
                    images.make_anew(anew)?;
                    let server = Server::start(&contender.config)?;
                    measured.push(load::run(
                        &server.socket(),
                        server.pid(),
                        *load,
                        config.time,
                    )?);
                    server.stop()?;
                    images.remove_anew()?;
                }
            }
            standing.take().map_or(Ok(()), Server::stop)?;
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

/// The middle one, or the mean of the two in the middle; 0 of none.
pub(crate) fn median(mut of: Vec<f64>) -> f64 {
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
