// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask bench`: what a request costs, and vblk beside `qemu-storage-daemon`.

mod callgrind;
mod cost;
mod document;
mod layers;
mod machine;
mod nbd;
mod paths;
mod servers;
mod vdpa;

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use crate::command::{Error, command, run as execute, target_dir};

/// Options of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Args {
    /// Only count the instructions of a request (needs valgrind)
    #[arg(long, conflicts_with = "servers")]
    cost: bool,
    /// Only compare the servers (needs qemu-storage-daemon)
    #[arg(long)]
    servers: bool,
    /// The format of the image that the servers serve
    #[arg(long, value_enum, default_value_t)]
    image: servers::Image,
    /// Only these parts of the comparison on qcow2, of those that `vblk-testing compare --help` tells [default: all]
    #[arg(long, value_delimiter = ',', conflicts_with = "write")]
    parts: Vec<String>,
    /// Only measure the vDPA layer and the I/O TLB (needs valgrind)
    #[arg(long, conflicts_with_all = ["cost", "servers"])]
    vdpa: bool,
    /// Only measure the paths of a vDPA device, and moves between them (needs valgrind)
    #[arg(long, conflicts_with_all = ["cost", "servers", "vdpa"])]
    paths: bool,
    /// Only compare clients and servers of network block devices (needs nbdkit, qemu-nbd, qemu-storage-daemon, nbdcopy, fio)
    #[arg(long, conflicts_with_all = ["cost", "servers", "vdpa", "paths"])]
    nbd: bool,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
    /// Write the tables into docs/performance.md
    #[arg(long)]
    write: bool,
    /// Seconds of each measurement of the comparison
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Measurements of each server and load; the median counts
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Where to put the comparison's image: a directory of the file system to measure
    /// [default: the directory for temporary files]
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Everything that was measured.
#[derive(Serialize)]
struct Report {
    machine: machine::Machine,
    #[serde(skip_serializing_if = "Option::is_none")]
    instructions: Option<Vec<cost::Row>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    layers: Option<Vec<layers::Row>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    servers: Option<Vec<servers::Row>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vdpa: Option<vdpa::Report>,
    #[serde(skip_serializing_if = "Option::is_none")]
    paths: Option<paths::Report>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nbd: Option<Vec<nbd::Row>>,
}

/// Measures, prints, and writes it down if asked to.
///
/// # Errors
/// A program is missing and can't be installed, or fails.
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    let mut build = command("cargo", ["build", "--release", "-p", "vblk-testing"]);
    // One program is enough for the layer, and two for the paths.
    build.args(match args {
        Args { vdpa: true, .. } => &["--bin", "vdpa-cost"][..],
        Args { paths: true, .. } => &["--bin", "path-cost", "--bin", "switch-pause"],
        _ => &["-p", "vblk"],
    });
    execute(&mut build)?;
    let all = !(args.cost || args.servers || args.vdpa || args.paths || args.nbd);
    let wants = |part: bool| all || part;
    let report = Report {
        instructions: wants(args.cost).then(cost::measure).transpose()?,
        layers: wants(args.cost).then(layers::measure).transpose()?,
        servers: wants(args.servers)
            .then(|| servers::measure(args))
            .transpose()?,
        vdpa: wants(args.vdpa).then(vdpa::measure).transpose()?,
        paths: wants(args.paths).then(paths::measure).transpose()?,
        nbd: wants(args.nbd)
            .then(|| nbd::measure(args.seconds, args.rounds, args.dir.as_deref()))
            .transpose()?,
        machine: machine::Machine::look()?,
    };
    let mut sections = Vec::new();
    if let Some(rows) = &report.instructions {
        sections.push(("instructions", cost::table(rows)));
    }
    if let Some(rows) = &report.layers {
        sections.push(("layers", layers::table(rows)));
    }
    if let Some(rows) = &report.servers {
        sections.push((args.image.section(), servers::table(rows)));
    }
    if let Some(report) = &report.vdpa {
        sections.push(("vdpa", vdpa::tables(report)));
    }
    if let Some(report) = &report.paths {
        sections.push(("paths", paths::tables(report)));
    }
    if let Some(rows) = &report.nbd {
        sections.push(("nbd", nbd::tables(rows)));
    }
    if args.json {
        let json = serde_json::to_string_pretty(&report).map_err(|source| Error::Format {
            what: "the report".into(),
            source,
        })?;
        println!("{json}");
    } else {
        println!("{}", report.machine);
        for (_, table) in &sections {
            println!("\n{table}");
        }
    }
    if args.write {
        let mut line = String::from("cargo xtask bench");
        if args.cost {
            line += " --cost";
        }
        if args.servers {
            line += " --servers";
            if args.image != servers::Image::default() {
                line += &format!(" --image {}", args.image.name());
            }
        }
        if args.vdpa {
            line += " --vdpa";
        }
        if args.paths {
            line += " --paths";
        }
        if args.nbd {
            line += " --nbd";
        }
        if !args.cost && !args.paths {
            line += &format!(" --seconds {} --rounds {}", args.seconds, args.rounds);
            if let Some(dir) = &args.dir {
                line += &format!(" --dir {}", dir.display());
            }
        }
        let heading = format!("`{line} --write`, {}", report.machine);
        let sections: Vec<_> = sections
            .into_iter()
            .map(|(name, table)| (name, format!("{heading}\n\n{table}")))
            .collect();
        document::update(&sections)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What one of the benchmark programs prints.
fn said(program: &str, args: &[String]) -> Result<String, Error> {
    let path = target_dir().join("release").join(program);
    let path = path.display().to_string();
    let output = command(&path, args.iter().map(String::as_str))
        .output()
        .map_err(|source| Error::Start {
            command: path,
            source,
        })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Err(Error::Other(format!("{program}: {why}")))
}
