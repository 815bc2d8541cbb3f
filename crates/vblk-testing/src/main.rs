// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command line of the crate: see `cargo xtask verify` and `cargo xtask bench`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use vblk_testing::server::{Config as ServerConfig, Disk, Program, Server};
use vblk_testing::{Error, pattern, verify};

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
}

#[derive(Debug, Args)]
struct Verify {
    /// A running server whose disk holds only zeroes. Its content is lost. Without it, one is started.
    #[arg(long, conflicts_with_all = ["server", "vblk", "disk", "engine", "dir"])]
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
    /// How a started server does I/O on a raw image, by its own name for it.
    #[arg(long)]
    engine: Option<String>,
    /// Where to put the image [default: the directory for temporary files].
    #[arg(long)]
    dir: Option<PathBuf>,
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
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("vblk-testing: {e}");
            ExitCode::FAILURE
        }
    }
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
        let json = serde_json::to_string(&report)
            .map_err(|e| Error::Config(format!("the report as JSON: {e}")))?;
        println!("{json}");
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
    let disk = match args.disk {
        DiskKind::Raw => {
            pattern::create_file(&image, LEN)?;
            config.initial = pattern::Stamp::FILE;
            Disk::Raw {
                path: image.clone(),
                engine: args.engine.clone(),
            }
        }
        DiskKind::Memory => Disk::Memory(LEN),
    };
    let server = Server::start(&ServerConfig {
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
    if let DiskKind::Raw = args.disk {
        model.check_file(&image)?;
    }
    Ok(report)
}
