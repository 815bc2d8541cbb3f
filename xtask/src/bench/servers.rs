// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! vblk beside `qemu-storage-daemon`, measured by `vblk-testing compare`.

use std::fmt::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::command::{Error, command, need_program, output, target_dir};

/// The format of the image that is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Image {
    /// The bytes.
    #[default]
    Raw,
    /// qcow2.
    Qcow2,
}

impl Image {
    /// As `vblk-testing` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    /// The section of the document.
    pub const fn section(self) -> &'static str {
        match self {
            Self::Raw => "servers",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// One server under one load, as `vblk-testing compare` prints it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Row {
    disk: String,
    server: String,
    write: bool,
    depth: usize,
    poll: bool,
    /// Each write goes where nothing was before.
    #[serde(default)]
    fresh: bool,
    iops: f64,
    /// CPU time per I/O in nanoseconds.
    server_ns: f64,
    client_ns: f64,
    /// CPUs that others kept busy.
    others: f64,
    /// IOPS of each round.
    rounds: Vec<f64>,
}

/// What the server of ours must reach, at depth 32 on a raw file: times the peer's IOPS, and part of
/// its CPU time per I/O.
const FASTER: f64 = 3.0;
const CHEAPER: f64 = 1.0 / 3.0;
/// The same for a qcow2 image whose clusters are allocated.
const QCOW2_FASTER: f64 = 2.0;

/// Who is compared with the others.
const OURS: &str = "vblk";
const PEER: &str = "qemu-storage-daemon";

/// Others' work from which on figures are doubtful, in CPUs.
const DISTURBED: f64 = 0.2;

/// Runs the comparison.
///
/// # Errors
/// The peer is missing and can't be installed, or something fails.
pub fn measure(
    image: Image,
    seconds: f64,
    rounds: u32,
    dir: Option<&Path>,
) -> Result<Vec<Row>, Error> {
    need_program(PEER, "qemu-utils")?;
    let programs = target_dir().join("release");
    let mut command = command(programs.join("vblk-testing"), ["compare", "--vblk"]);
    command
        .arg(programs.join("vblk"))
        .arg(format!("--image={}", image.name()))
        .arg(format!("--seconds={seconds}"))
        .arg(format!("--rounds={rounds}"));
    if let Some(dir) = dir {
        command.arg("--dir").arg(dir);
    }
    let lines = output(&mut command)?;
    lines
        .lines()
        .map(|line| {
            serde_json::from_str(line).map_err(|source| Error::Format {
                what: "what vblk-testing printed".into(),
                source,
            })
        })
        .collect()
}

impl Row {
    fn same_load(&self, other: &Self) -> bool {
        (&self.disk, self.write, self.depth, self.poll, self.fresh)
            == (
                &other.disk,
                other.write,
                other.depth,
                other.poll,
                other.fresh,
            )
    }

    fn is_peer(&self) -> bool {
        self.server.starts_with(PEER)
    }

    /// How this compares with the peer's best under the same load: times its IOPS, part of its CPU time.
    fn against_peer(&self, rows: &[Self]) -> Option<(f64, f64)> {
        let peers = || {
            rows.iter()
                .filter(|row| row.is_peer() && row.same_load(self))
        };
        let fastest = peers().map(|row| row.iops).reduce(f64::max)?;
        let cheapest = peers().map(|row| row.server_ns).reduce(f64::min)?;
        Some((self.iops / fastest, self.server_ns / cheapest))
    }
}

/// The tables: one per way in which the client waits.
pub fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "Medians; 4 KiB, random, one queue; CPU time of all threads of the server. Ratios: to the better \
         of the peer's two engines (targets at depth 32: on a raw file at least {FASTER:.1} and at most \
         {CHEAPER:.2}, on allocated clusters of qcow2 at least {QCOW2_FASTER:.1}).\n"
    );
    let most = rows.iter().map(|row| row.others).fold(0.0, f64::max);
    if most > DISTURBED {
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "\n**The machine was not quiet: something else kept up to {most:.1} CPUs busy.**"
        );
    }
    for poll in [false, true] {
        if !rows.iter().any(|row| row.poll == poll) {
            continue;
        }
        let how = if poll {
            "looks for completions all the time"
        } else {
            "sleeps until the server signals"
        };
        let _ = write!(
            text,
            "\nThe client {how}:\n\n| disk | load | server | IOPS | µs CPU per I/O | client's µs | \
             IOPS ratio | CPU ratio |\n|---|---|---|--:|--:|--:|--:|--:|\n"
        );
        for row in rows.iter().filter(|row| row.poll == poll) {
            let _ = write!(
                text,
                "| {} | {}, depth {} | {} | {:.0} | {:.2} | {:.2} |",
                row.disk,
                match (row.write, row.fresh) {
                    (false, _) => "read",
                    (true, false) => "write",
                    (true, true) => "write to a new cluster",
                },
                row.depth,
                row.server,
                row.iops,
                row.server_ns / 1e3,
                row.client_ns / 1e3,
            );
            match row.against_peer(rows) {
                Some((faster, cheaper)) if row.server.starts_with(OURS) => {
                    let _ = writeln!(text, " {faster:.1} | {cheaper:.2} |");
                }
                _ => text.push_str(" | |\n"),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(server: &str, iops: f64, server_ns: f64) -> Row {
        Row {
            disk: "raw".into(),
            server: server.into(),
            write: false,
            depth: 32,
            poll: false,
            fresh: false,
            iops,
            server_ns,
            client_ns: 1.0,
            others: 0.0,
            rounds: vec![iops],
        }
    }

    #[test]
    fn ours_is_compared_with_the_better_of_the_peers() {
        let rows = [
            row("vblk auto", 600.0, 100.0),
            row("qemu-storage-daemon io_uring", 200.0, 500.0),
            row("qemu-storage-daemon threads", 100.0, 400.0),
            Row {
                depth: 1,
                ..row("qemu-storage-daemon threads", 900.0, 1.0)
            },
        ];
        assert_eq!(rows[0].against_peer(&rows), Some((3.0, 0.25)));
        let table = table(&rows);
        assert!(table.contains("| 3.0 | 0.25 |"), "{table}");
        assert!(!table.contains("not quiet"));
    }

    #[test]
    fn a_busy_machine_is_named() {
        let mut busy = row("vblk auto", 1.0, 1.0);
        busy.others = 0.9;
        assert!(table(&[busy]).contains("kept up to 0.9 CPUs busy"));
    }
}
