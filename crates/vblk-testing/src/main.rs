// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command line of the crate: see `cargo xtask verify` and `cargo xtask bench`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use vblk_testing::client_disk::{self, ClientDisk};
use vblk_testing::server::{self, Config as ServerConfig, Disk, Program};
use vblk_testing::{Error, compare, kills, nbd, pattern, throttle, verify};
use vduse_backend::{Linux, Server, ServerOptions};
use virtio_blk_core::device::{Device, DeviceOptions};
use virtio_blk_core::spec::feature::ACCESS_PLATFORM;

/// Looks at a vhost-user-blk server from the outside.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Random requests, every byte compared with a model.
    Verify(Verify),
    /// I/Os per second and CPU time of vblk and qemu-storage-daemon, in one run.
    Compare(Compare),
    /// Clients and servers of network block devices, in one run (needs nbdkit, qemu-nbd, qemu-storage-daemon, fio, nbdcopy).
    CompareNbd(CompareNbd),
    /// How exactly limits are kept; fails if one is off by more than 2 percent. Wants a quiet machine.
    Throttle(Throttle),
    /// Kills vblk with -9 under load, again and again, and looks whether anything was lost or done twice.
    Kills(Kills),
    /// A VDUSE device of what a vhost-user server serves, until it is killed.
    Vduse(Vduse),
}

#[derive(Debug, Args)]
struct Kills {
    /// Where the vblk program is.
    #[arg(long, default_value = "vblk")]
    vblk: PathBuf,
    /// The DISK, as vblk writes it. It holds zeroes; its content is lost.
    #[arg(long)]
    disk: String,
    /// How often.
    #[arg(long, default_value_t = 20)]
    kills: u64,
    /// For how many seconds a server works at most, once it has written something.
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    life: f64,
    /// Fails if nothing was written for more seconds than this after a kill.
    #[arg(long, default_value_t = 60.0, value_parser = seconds)]
    pause: f64,
    /// Another one gives other requests.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, Args)]
struct Vduse {
    /// The server's socket.
    #[arg(long)]
    socket: PathBuf,
    /// The device's name.
    #[arg(long)]
    name: String,
    /// Queues.
    #[arg(long, default_value_t = 1)]
    queues: u16,
}

#[derive(Debug, Args)]
struct Throttle {
    /// Where the vblk program is.
    #[arg(long, default_value = "vblk")]
    vblk: PathBuf,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    seconds: f64,
    /// Measurements of each limit and depth.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// I/Os in flight.
    #[arg(long, default_values_t = [1, 128], value_delimiter = ',')]
    depths: Vec<usize>,
    /// How the client waits for completions.
    #[arg(long, value_enum, default_value_t = Wait::Sleep)]
    client: Wait,
}

#[derive(Debug, Args)]
struct Compare {
    /// The format of the image.
    #[arg(long, value_enum, default_value_t = compare::Image::Raw)]
    image: compare::Image,
    /// Where the vblk program is.
    #[arg(long, default_value = "vblk")]
    vblk: PathBuf,
    /// Where to put the image [default: the directory for temporary files].
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// Measurements of each server and load.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// I/Os in flight.
    #[arg(long, default_values_t = [1, 32], value_delimiter = ',')]
    depths: Vec<usize>,
    /// How the client waits for completions.
    #[arg(long, value_enum, default_values_t = [Wait::Sleep, Wait::Poll], value_delimiter = ',')]
    client: Vec<Wait>,
    /// Only servers whose disk and name, for example "raw vblk sync", contain this. Can be repeated.
    #[arg(long)]
    only: Vec<String>,
    /// Only these parts of the comparison on qcow2.
    #[arg(long, value_enum, value_delimiter = ',')]
    parts: Vec<compare::Part>,
}

#[derive(Debug, Args)]
struct CompareNbd {
    /// Where the vblk program is.
    #[arg(long, default_value = "vblk")]
    vblk: PathBuf,
    /// Where to put the image [default: the directory for temporary files].
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// Measurements of each.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only what has this in its words: "client nbdkit vblk", "fio vblk", "nbdcopy qemu-nbd". Can be repeated.
    #[arg(long)]
    only: Vec<String>,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.01..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("give seconds, 0.01 to 3600".into()),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Wait {
    /// It sleeps until the server signals, as a guest does.
    Sleep,
    /// It looks all the time.
    Poll,
}

#[derive(Debug, Args)]
struct Verify {
    /// The socket of a running server whose disk holds only zeroes, or a /dev/vhost-vdpa-N with such a disk. Its
    /// content is lost. Without it, a server is started.
    #[arg(long, conflicts_with_all = ["server", "vblk", "disk", "name", "engine", "dir"])]
    socket: Option<PathBuf>,
    /// The server to start.
    #[arg(long, value_enum, default_value_t = ServerKind::Vblk)]
    server: ServerKind,
    /// Where the vblk program is.
    #[arg(long, default_value = "vblk")]
    vblk: PathBuf,
    /// What a started server serves.
    #[arg(long, value_enum, default_value_t = DiskKind::Raw)]
    disk: DiskKind,
    /// What a started vblk serves instead, as it writes it: a DISK of zeroes, whose content is lost.
    #[arg(long, conflicts_with_all = ["server", "disk", "engine", "dir"])]
    name: Option<String>,
    /// How a started server does I/O on a raw image, by its own name for it.
    #[arg(long)]
    engine: Option<String>,
    /// Where to put the image [default: the directory for temporary files].
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The raw image lies with this server of network block devices.
    #[arg(long, value_enum, conflicts_with_all = ["socket", "name", "engine"])]
    nbd: Option<nbd::Kind>,
    /// Requests.
    #[arg(long, default_value_t = 2_000_000)]
    ops: u64,
    /// Queues, a thread for each.
    #[arg(long, default_value_t = 4)]
    queues: usize,
    /// Entries of each queue.
    #[arg(long, default_value_t = 512)]
    queue_size: u16,
    /// The depth goes through 1, 2, 4 and so on up to this.
    #[arg(long, default_value_t = 128)]
    max_depth: usize,
    /// Another one gives other requests.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ServerKind {
    Vblk,
    /// qemu-storage-daemon.
    Qsd,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DiskKind {
    Raw,
    Memory,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Verify(args) => verify(&args),
        Command::Compare(args) => compare(args),
        Command::CompareNbd(args) => compare_nbd(args),
        Command::Throttle(args) => throttle(args),
        Command::Kills(args) => kills(args),
        Command::Vduse(args) => vduse(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("vblk-testing: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Prints a line of JSON for each server and load.
fn compare(args: Compare) -> Result<(), Error> {
    let config = compare::Config {
        vblk: args.vblk,
        dir: args.dir.unwrap_or_else(std::env::temp_dir),
        image: args.image,
        len: 256 << 20,
        time: Duration::from_secs_f64(args.seconds),
        rounds: args.rounds,
        depths: args.depths,
        polls: args.client.iter().map(|&w| w == Wait::Poll).collect(),
        only: args.only,
        parts: args.parts,
    };
    for row in compare::run(&config, |step| eprintln!("{step}"))? {
        println!("{}", json(&row)?);
    }
    Ok(())
}

/// Prints a line of JSON for each program and load.
fn compare_nbd(args: CompareNbd) -> Result<(), Error> {
    let config = nbd::compare::Config {
        vblk: args.vblk,
        dir: args.dir.unwrap_or_else(std::env::temp_dir),
        time: Duration::from_secs_f64(args.seconds),
        rounds: args.rounds,
        only: args.only,
    };
    for row in nbd::compare::run(&config, |step| eprintln!("{step}"))? {
        println!("{}", json(&row)?);
    }
    Ok(())
}

/// Prints a line of JSON for each limit and depth.
fn throttle(args: Throttle) -> Result<(), Error> {
    const MOST: f64 = 2.0;
    let time = Duration::from_secs_f64(args.seconds);
    let poll = args.client == Wait::Poll;
    let rows = throttle::run(args.vblk, &args.depths, time, args.rounds, poll)?;
    for row in &rows {
        println!("{}", json(row)?);
    }
    match rows.iter().find(|row| row.off > MOST) {
        None => Ok(()),
        Some(row) => Err(Error::Config(format!(
            "{} at depth {} is off by {:.1} percent",
            row.limit, row.depth, row.off
        ))),
    }
}

fn kills(args: Kills) -> Result<(), Error> {
    let config = kills::Config {
        server: ServerConfig {
            program: Program::Vblk(args.vblk),
            disk: Disk::Named(args.disk),
            queues: 4,
            queue_size: 64,
            read_only: false,
        },
        blocks: 96,
        kills: args.kills,
        life: Duration::from_secs_f64(args.life),
        seed: args.seed,
    };
    let (report, _) = kills::run(&config).map_err(|error| Error::Config(error.to_string()))?;
    println!("{}", json(&report)?);
    match report.pauses.iter().max() {
        Some(longest) if *longest as f64 > args.pause * 1000.0 => Err(Error::Config(format!(
            "nothing was written for {longest} ms after a kill"
        ))),
        _ => Ok(()),
    }
}

fn vduse(args: &Vduse) -> Result<(), Error> {
    let failed = |error: &dyn std::error::Error| Error::Config(format!("{}: {error}", args.name));
    let disk = ClientDisk::connect(&args.socket, args.queues)?;
    let options = DeviceOptions {
        queues: args.queues,
        queue_size: client_disk::DEPTH,
        config_wce: false,
        transport_features: ACCESS_PLATFORM,
        ..DeviceOptions::default()
    };
    let device = Device::new(Arc::new(disk), options).map_err(|error| failed(&error))?;
    let options = ServerOptions::new(args.name.as_str());
    let server = Server::new(Arc::new(Linux), device, options).map_err(|error| failed(&error))?;
    server.run().map(drop).map_err(|error| failed(&error))
}

fn json(value: &impl serde::Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|e| Error::Config(format!("the report as JSON: {e}")))
}

fn verify(args: &Verify) -> Result<(), Error> {
    let mut config = verify::Config {
        queues: args.queues,
        queue_size: args.queue_size,
        max_depth: args.max_depth,
        seed: args.seed,
        ..verify::Config::new("", args.ops)
    };
    let report = if let Some(socket) = &args.socket {
        config.socket.clone_from(socket);
        verify::run(&config)?.0
    } else {
        verify_started(args, config)?
    };
    if args.json {
        println!("{}", json(&report)?);
    } else {
        println!("{report}");
    }
    Ok(())
}

/// Starts a server, runs, ends it, and looks at the image if there is one.
fn verify_started(args: &Verify, mut config: verify::Config) -> Result<verify::Report, Error> {
    const LEN: u64 = 64 << 20;
    let io = |source| Error::Io {
        what: "the image".into(),
        source,
    };
    let dir = args
        .dir
        .as_ref()
        .map_or_else(tempfile::tempdir, tempfile::tempdir_in)
        .map_err(io)?;
    let image = dir.path().join("disk.raw");
    let mut upstream = None;
    let raw = args.name.is_none() && matches!(args.disk, DiskKind::Raw);
    let disk = match (&args.name, args.disk, args.nbd) {
        (Some(name), ..) => Disk::Named(name.clone()),
        (None, DiskKind::Raw, Some(kind)) => {
            pattern::create_file(&image, LEN)?;
            config.initial = pattern::Stamp::FILE;
            let nbd = upstream.insert(kind.serve(&args.vblk, &image)?);
            Disk::Nbd(nbd.socket())
        }
        (None, DiskKind::Raw, None) => {
            pattern::create_file(&image, LEN)?;
            config.initial = pattern::Stamp::FILE;
            Disk::Raw {
                path: image.clone(),
                engine: args.engine.clone(),
            }
        }
        (None, DiskKind::Memory, _) => Disk::Memory(LEN),
    };
    let server = server::Server::start(&ServerConfig {
        program: match args.server {
            ServerKind::Vblk => Program::Vblk(args.vblk.clone()),
            ServerKind::Qsd => Program::QemuStorageDaemon,
        },
        disk,
        queues: args.queues,
        queue_size: args.queue_size,
        read_only: false,
    })?;
    config.socket = server.socket();
    let (report, model) = verify::run(&config)?;
    server.stop()?;
    drop(upstream);
    if raw {
        model.check_file(&image)?;
    }
    Ok(report)
}
