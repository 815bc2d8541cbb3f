// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! vblk beside `qemu-storage-daemon`, measured by `vblk-testing compare`.

use std::fmt::Write;

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

/// Discards among the I/Os of a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Discards {
    None,
    /// One in a hundred frees nothing.
    Parts,
    /// One in a hundred frees a cluster.
    Clusters,
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
    fresh: bool,
    discards: Discards,
    queues: usize,
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
/// The same for qcow2 images.
const QCOW2_TARGETS: &str = "Targets: allocated clusters at least 3.0 times at depth 32 and 2.0 times at depth 1; new clusters \
                             1.5 and 1.2 times; copies, and all past the page cache, 1.0 times; in the last column reads \
                             through an overlay 0.8, discards that free nothing 0.9, those of clusters 0.75, four queues 1.1.";

/// Who is compared with the others.
const OURS: &str = "vblk";
const PEER: &str = "qemu-storage-daemon";

/// Disks with a backing file are called so.
const OVERLAY: &str = "overlay";

/// Others' work from which on figures are doubtful, in CPUs.
pub(super) const DISTURBED: f64 = 0.2;

/// Runs the comparison.
///
/// # Errors
/// The peer is missing and can't be installed, or something fails.
pub fn measure(args: &super::Args) -> Result<Vec<Row>, Error> {
    need_program(PEER, "qemu-utils")?;
    let programs = target_dir().join("release");
    let mut command = command(programs.join("vblk-testing"), ["compare", "--vblk"]);
    command
        .arg(programs.join("vblk"))
        .arg(format!("--image={}", args.image.name()))
        .arg(format!("--seconds={}", args.seconds))
        .arg(format!("--rounds={}", args.rounds));
    if !args.parts.is_empty() {
        command.arg(format!("--parts={}", args.parts.join(",")));
    }
    if let Some(dir) = &args.dir {
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
        self.same_plain_load(other)
            && (&self.disk, self.discards, self.queues)
                == (&other.disk, other.discards, other.queues)
    }

    /// The same but for the disk, discards and the number of queues.
    fn same_plain_load(&self, other: &Self) -> bool {
        (self.write, self.depth, self.poll, self.fresh)
            == (other.write, other.depth, other.poll, other.fresh)
    }

    /// Without discards, on one queue, of an image without a backing file.
    fn is_plain(&self) -> bool {
        self.discards == Discards::None && self.queues == 1 && !self.disk.starts_with(OVERLAY)
    }

    /// How this compares with the same server's plain load: times its IOPS. Copies are something else.
    fn against_plain(&self, rows: &[Self]) -> Option<f64> {
        let is_copied = self.fresh && self.disk.starts_with(OVERLAY);
        if self.is_plain() || is_copied {
            return None;
        }
        let disk = self.disk.replace(OVERLAY, Image::Qcow2.name());
        let is_base = |row: &&Self| {
            row.is_plain()
                && row.same_plain_load(self)
                && (&row.server, &row.disk) == (&self.server, &disk)
        };
        Some(self.iops / rows.iter().find(is_base)?.iops)
    }

    /// The load in words.
    fn load(&self) -> String {
        let what = match (self.write, self.fresh, self.disk.starts_with(OVERLAY)) {
            (false, ..) => "read",
            (true, false, _) => "write",
            (true, true, false) => "write to a new cluster",
            (true, true, true) => "write that copies a cluster up",
        };
        let discards = match self.discards {
            Discards::None => "",
            Discards::Parts => ", 1 in 100 a discard that frees nothing",
            Discards::Clusters => ", 1 in 100 a discard of a cluster",
        };
        let queues = match self.queues {
            1 => String::new(),
            count => format!(", {count} queues"),
        };
        format!("{what}{discards}{queues}, depth {}", self.depth)
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
    let is_qcow2 = rows
        .iter()
        .any(|row| row.disk != Image::Raw.name() && row.disk != "null");
    let mut text = "Medians; 4 KiB, random, one queue unless said otherwise; CPU time of all threads of the server. \
                    Ratios: to the better of the peer's two engines"
        .to_owned();
    // Writing to a String does not fail.
    let _ = match is_qcow2 {
        false => writeln!(
            text,
            " (targets on a raw file at depth 32: at least {FASTER:.1} and at most {CHEAPER:.2})."
        ),
        true => writeln!(
            text,
            ", and in the last column to the same load of the same server without a backing file, without discards, on one \
             queue.\n\n{QCOW2_TARGETS}"
        ),
    };
    let most = rows.iter().map(|row| row.others).fold(0.0, f64::max);
    if most > DISTURBED {
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
        let (title, line) = if is_qcow2 {
            (" plain ratio |", "--:|")
        } else {
            ("", "")
        };
        let _ = write!(
            text,
            "\nThe client {how}:\n\n| disk | load | server | IOPS | µs CPU per I/O | client's µs | \
             IOPS ratio | CPU ratio |{title}\n|---|---|---|--:|--:|--:|--:|--:|{line}\n"
        );
        for row in rows.iter().filter(|row| row.poll == poll) {
            let _ = write!(
                text,
                "| {} | {} | {} | {:.0} | {:.2} | {:.2} |",
                row.disk,
                row.load(),
                row.server,
                row.iops,
                row.server_ns / 1e3,
                row.client_ns / 1e3,
            );
            let _ = match row.against_peer(rows) {
                Some((faster, cheaper)) if row.server.starts_with(OURS) => {
                    write!(text, " {faster:.2} | {cheaper:.2} |")
                }
                _ => write!(text, " | |"),
            };
            let _ = match row.against_plain(rows) {
                Some(ratio) if is_qcow2 => writeln!(text, " {ratio:.2} |"),
                _ if is_qcow2 => writeln!(text, " |"),
                _ => writeln!(text),
            };
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
            discards: Discards::None,
            queues: 1,
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
        assert!(table.contains("| 3.00 | 0.25 |"), "{table}");
        assert!(!table.contains("not quiet"));
    }

    #[test]
    fn ours_is_compared_with_itself_without_backing_discards_and_queues() {
        let qcow2 = |disk: &str, iops| Row {
            disk: disk.into(),
            ..row("vblk auto", iops, 1.0)
        };
        let rows = [
            qcow2("qcow2", 100.0),
            qcow2("overlay", 90.0),
            Row {
                discards: Discards::Clusters,
                ..qcow2("qcow2", 80.0)
            },
            Row {
                queues: 4,
                ..qcow2("qcow2", 120.0)
            },
            Row {
                write: true,
                fresh: true,
                ..qcow2("overlay", 10.0)
            },
        ];
        let ratios: Vec<_> = rows.iter().map(|row| row.against_plain(&rows)).collect();
        assert_eq!(ratios, [None, Some(0.9), Some(0.8), Some(1.2), None]);
        let table = table(&rows);
        assert!(
            table.contains("1 in 100 a discard of a cluster, depth 32"),
            "{table}"
        );
        assert!(
            table.contains("write that copies a cluster up, depth 32"),
            "{table}"
        );
        assert!(table.contains("read, 4 queues, depth 32"), "{table}");
    }

    #[test]
    fn a_busy_machine_is_named() {
        let mut busy = row("vblk auto", 1.0, 1.0);
        busy.others = 0.9;
        assert!(table(&[busy]).contains("kept up to 0.9 CPUs busy"));
    }
}
