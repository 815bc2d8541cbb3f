// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vblk top`.

use std::error::Error;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::client::{Client, ClientError};
use super::control::Request;
use super::table;
use super::terminal::{Terminal, Wake};
use crate::output;
use crate::report::describe;

/// How long a server may take for an answer: others are shown with it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Shown after the help of `vblk top`.
pub const HELP: &str = "\
Examples:
  vblk top /run/disk0.ctl /run/disk1.ctl
  vblk top --json --interval 10 --count 6 /run/disk0.ctl

`q` or Ctrl-C ends it. A server that ends or restarts meanwhile is shown as
such, and asked again. With --json each disk is a line, the object that
`vblk ctl --json SOCKET stats` has; a server that does not answer is a line
with `socket` and `error`.";

/// Options of `top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// The --control sockets of running servers.
    #[arg(value_name = "SOCKET", required = true)]
    sockets: Vec<PathBuf>,
    /// Seconds between two looks.
    #[arg(long, value_name = "S", default_value_t = 1.0, value_parser = interval)]
    interval: f64,
    /// End after so many tables [default: continue until interrupted].
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

fn interval(text: &str) -> Result<f64, String> {
    let parsed = text.parse().ok().filter(|s| (0.01..=3600.0).contains(s));
    parsed.ok_or_else(|| "give seconds from 0.01 to 3600".to_owned())
}

/// What is shown of a disk comes since the last time.
const SINCE: Request = Request::Stats { since: true };

/// A server that is looked at.
struct Watched {
    socket: PathBuf,
    /// `None`: it must be connected to first.
    client: Option<Client>,
}

impl Watched {
    /// Connects. What the disks did before is not shown.
    fn connect(socket: PathBuf) -> Result<Self, ClientError> {
        let mut client = Client::connect(&socket, PATIENCE)?;
        for disk in client.disks().to_vec() {
            client.ask(Some(&disk), &SINCE)?;
        }
        Ok(Self {
            socket,
            client: Some(client),
        })
    }

    /// What each disk did since the last time; nothing just after a server came back.
    fn look(&mut self) -> Result<Vec<Value>, ClientError> {
        let Some(client) = &mut self.client else {
            *self = Self::connect(self.socket.clone())?;
            return Ok(Vec::new());
        };
        let disks = client.disks().to_vec();
        let answers: Result<Vec<_>, _> = disks
            .iter()
            .map(|disk| client.ask(Some(disk), &SINCE))
            .collect();
        if answers.is_err() {
            self.client = None;
        }
        answers
    }

    /// The lines about it.
    fn show(&mut self, json: bool) -> Result<String, serde_json::Error> {
        let socket = self.socket.display().to_string();
        Ok(match self.look() {
            Err(error) if json => {
                let error = describe(&error);
                format!("{}\n", json!({"socket": socket, "error": error}))
            }
            Err(error) => format!("{}; trying again\n", describe(&error)),
            Ok(disks) if json => disks.iter().map(|disk| format!("{disk}\n")).collect(),
            Ok(disks) if disks.is_empty() => format!("{socket}: the server is back\n"),
            Ok(disks) => {
                let tables: Result<Vec<_>, _> = disks
                    .into_iter()
                    .map(|disk| serde_json::from_value(disk).map(|stats| table::of(&stats)))
                    .collect();
                tables?.concat()
            }
        })
    }
}

/// Shows the table until interrupted.
pub fn run(args: &TopArgs, json: bool) -> Result<(), Box<dyn Error>> {
    let watched: Result<Vec<_>, _> = args
        .sockets
        .iter()
        .map(|socket| Watched::connect(socket.clone()))
        .collect();
    let mut watched = watched?;
    let mut terminal = Terminal::new()?;
    let clears = std::io::stdout().is_terminal() && !json;
    let mut shown = 0;
    while args.count.is_none_or(|count| shown < count) {
        if terminal.wait(Duration::from_secs_f64(args.interval))? == Wake::Quit {
            break;
        }
        let mut screen = String::new();
        if clears {
            screen.push_str("\x1b[H\x1b[2J");
        }
        for server in &mut watched {
            screen.push_str(&server.show(json)?);
        }
        if clears && terminal.has_keys() {
            screen.push_str("q ends\n");
        }
        output::write(&screen)?;
        shown += 1;
    }
    Ok(())
}
