// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
// They panic where nothing can be written. Results go through `output`, all else through `report`.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod cli;
mod descriptors;
mod disk_file;
mod disk_info;
mod disk_tools;
mod features;
mod groups;
mod journal;
mod layers;
mod output;
mod progress;
mod report;
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
use disk_tools::check::NothingToCheck;
use output::OutputError;
use report::{Kind, describe};

/// `more`: further disks to serve. Returns the exit status.
fn run(cli: Cli, more: Vec<ServeCommand>) -> Result<u8, Box<dyn Error>> {
    let done = match cli.command {
        Command::Serve(first) => {
            descriptors::raise_limit();
            let mut all = vec![first];
            all.extend(more);
            serve::run(&all, cli.json)
        }
        Command::Disk(DiskCommand::Info(args)) => disk_info::run(&args, cli.json),
        Command::Disk(DiskCommand::Create(args)) => disk_tools::create::run(&args, cli.json),
        Command::Disk(DiskCommand::Check(args)) => {
            return disk_tools::check::run(&args, cli.json);
        }
        Command::Disk(DiskCommand::Map(args)) => disk_tools::map::run(&args, cli.json),
        Command::Vdpa(command) => vdpa::run(&command, cli.json),
        Command::Ctl(args) => layers::ctl::run(args, cli.json),
        Command::Top(args) => layers::top::run(&args, cli.json),
        Command::Features(args) => features::run(&args, cli.json),
    };
    done.map(|()| 0)
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
            // As it could not be understood, this is all that is known of it.
            let json = line.iter().any(|word| word == "--json");
            report::fail(Kind::Usage, &usage(&error), None, json);
            ExitCode::from(Kind::Usage.status())
        }
    })
}

fn main() -> ExitCode {
    let (cli, more) = match parse() {
        Ok(parsed) => parsed,
        Err(code) => return code,
    };
    let json = cli.json;
    report::start_log(cli.verbose, json);
    if matches!(cli.command, Command::Serve(_))
        && let Err(error) = report::detach()
    {
        log::warn!("what is logged is waited for, as there is no thread for it: {error}");
    }
    let error = match run(cli, more) {
        Ok(status) => {
            report::flush();
            return ExitCode::from(status);
        }
        Err(error) => error,
    };
    if error
        .downcast_ref::<OutputError>()
        .is_some_and(OutputError::is_closed)
    {
        output::end_as_others_do();
    }
    let kind = match error.is::<NothingToCheck>() {
        true => Kind::Unsupported,
        false => Kind::Failed,
    };
    report::fail(
        kind,
        &describe(error.as_ref()),
        report::errno(error.as_ref()),
        json,
    );
    ExitCode::from(kind.status())
}
