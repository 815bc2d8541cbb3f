// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod cli;
mod disk_file;
mod disk_info;
mod features;
mod groups;
mod layers;
mod output;
mod serve;
mod signals;
mod source;
mod status;
mod vdpa;

use std::error::Error;
use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use cli::{Cli, Command, DiskCommand, ServeCommand};

/// `more`: further disks to serve.
fn run(cli: Cli, more: Vec<ServeCommand>) -> Result<(), Box<dyn Error>> {
    match cli.command {
        Command::Serve(first) => {
            let mut all = vec![first];
            all.extend(more);
            serve::run(&all, cli.json)
        }
        Command::Disk(DiskCommand::Info(args)) => disk_info::run(&args, cli.json),
        Command::Vdpa(command) => vdpa::run(&command, cli.json),
        Command::Ctl(args) => layers::ctl::run(args, cli.json),
        Command::Top(args) => layers::top::run(&args, cli.json),
        Command::Features(args) => features::run(&args, cli.json),
    }
}

/// The error and its causes on one line, each cause once.
fn describe(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    line.replace('\n', " ")
}

/// What is wrong with a command line, on one line: clap says it in paragraphs, the last of which repeat
/// the usage.
fn usage(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let paragraphs = text
        .split("\n\n")
        .filter(|part| !part.starts_with("Usage:") && !part.starts_with("For more information"));
    let lines: Vec<_> = paragraphs
        .map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    let line = lines.join("; ");
    let line = line.strip_prefix("error: ").unwrap_or(&line);
    format!("{line} (see --help)")
}

/// The command line with its first disk, and the further disks; or how to end.
fn parse() -> Result<(Cli, Vec<ServeCommand>), ExitCode> {
    let mut lines = groups::split(std::env::args_os()).into_iter();
    let mut first = parse_one(&lines.next().unwrap_or_default())?;
    let mut more = Vec::new();
    for line in lines {
        let cli = parse_one(&line)?;
        first.json |= cli.json;
        first.verbose = first.verbose.max(cli.verbose);
        if let Command::Serve(command) = cli.command {
            more.push(command);
        }
    }
    Ok((first, more))
}

fn parse_one(line: &[OsString]) -> Result<Cli, ExitCode> {
    Cli::try_parse_from(line).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // A closed output can't be told of it.
            let _ = error.print();
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
        }
        _ => {
            eprintln!("vblk: {}", usage(&error));
            ExitCode::from(2)
        }
    })
}

fn main() -> ExitCode {
    let (cli, more) = match parse() {
        Ok(parsed) => parsed,
        Err(code) => return code,
    };
    let level = match cli.verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    env_logger::Builder::from_env(env_logger::Env::new().filter_or("VBLK_LOG", level))
        .format_timestamp(None)
        .format_target(false)
        .init();
    match run(cli, more) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vblk: {}", describe(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
