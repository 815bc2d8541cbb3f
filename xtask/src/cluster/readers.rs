// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Images and snapshots that are only read.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use super::ceph::Ceph;
use super::process::Process;
use super::{LEN, Lab};
use crate::command::{Error, command, run as execute};

/// Where there is data: inside objects (of 4 MiB), and over the end of one.
const DATA: [u64; 3] = [12_345, (8 << 20) - 1000, (21 << 20) + 512];
/// Bytes of data at each.
const PIECE: usize = 100_000;

/// Snapshots, clones and images with `readonly=on` hold what they should and can't be written; readers learn of a new
/// size and keep their image; what can't be opened says why.
///
/// # Errors
/// Something of that is not so.
pub fn readers(lab: &Lab, ceph: &Ceph) -> Result<(), Error> {
    let file = ceph.dir().join("content");
    write_content(&file)?;
    execute(
        ceph.rbd(&["import", "--no-progress"])
            .arg(&file)
            .arg("rbd/read"),
    )?;
    let rbd = |words: &str| execute(&mut ceph.rbd(&words.split(' ').collect::<Vec<_>>()));
    rbd("snap create --no-progress rbd/read@one")?;
    rbd("snap protect rbd/read@one")?;
    rbd("clone rbd/read@one rbd/clone")?;
    for disk in ["read@one", "clone", "read"] {
        let disk = format!("{},readonly=on", ceph.disk(disk));
        let reader = Reader::start(lab, ceph, &disk)?;
        reader.compare(&file)?;
        reader.refuses_writes()?;
    }
    // The snapshot stays what it was.
    rbd("bench --io-type write --io-size 65536 --io-total 16777216 rbd/read")?;
    Reader::start(lab, ceph, &ceph.disk("read@one"))?.compare(&file)?;
    kept(lab, ceph)?;
    refused(lab, ceph)
}

fn write_content(path: &Path) -> Result<(), Error> {
    let piece: Vec<u8> = (0..PIECE).map(|at| (at % 251) as u8 + 1).collect();
    let write = || {
        let file = File::create(path)?;
        file.set_len(LEN)?;
        DATA.iter()
            .try_for_each(|at| file.write_all_at(&piece, *at))
    };
    write().map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}

/// An image that only a reader has open.
fn kept(lab: &Lab, ceph: &Ceph) -> Result<(), Error> {
    let disk = format!("{},readonly=on", ceph.create("kept", LEN)?);
    let mut reader = Reader::start(lab, ceph, &disk)?;
    let size = format!("{}B", 2 * LEN);
    execute(&mut ceph.rbd(&["resize", "rbd/kept", "--no-progress", "--size", &size]))?;
    let told = format!("the image has {} bytes now", 2 * LEN);
    let log = ceph.dir().join("reader.log");
    let said = || std::fs::read_to_string(&log).is_ok_and(|text| text.contains(&told));
    reader.process.until("the image is larger", said)?;
    refuses(
        &mut ceph.rbd(&["rm", "--no-progress", "rbd/kept"]),
        "watchers",
    )?;
    reader.process.stop()
}

/// What can't be opened, with what is said of it.
fn refused(lab: &Lab, ceph: &Ceph) -> Result<(), Error> {
    let conf = ceph.dir().join("ceph.conf");
    for (disk, words) in [
        (ceph.disk("read@two"), "snap ls"),
        (ceph.disk("not-there"), "create rbd/not-there"),
        (
            format!("rbd:rbd/read,conf={},id=nobody", conf.display()),
            "does not believe client.nobody",
        ),
    ] {
        refuses(command(lab.vblk(), ["disk", "info"]).arg(disk), words)?;
    }
    Ok(())
}

/// A command that must fail and say these words.
fn refuses(command: &mut Command, words: &str) -> Result<(), Error> {
    let output = command.stdout(std::process::Stdio::piped()).output();
    let output = output.map_err(|source| Error::Start {
        command: format!("{command:?}"),
        source,
    })?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    if output.status.success() || !said.contains(words) {
        return Err(Error::Other(format!(
            "{command:?}: {}, and not an error with `{words}`:\n{said}",
            output.status
        )));
    }
    Ok(())
}

/// A server of a disk to QEMU's tools.
struct Reader {
    process: Process,
    url: String,
}

impl Reader {
    fn start(lab: &Lab, ceph: &Ceph, disk: &str) -> Result<Self, Error> {
        let socket = ceph.dir().join("reader.sock");
        let mut server = command(lab.vblk(), ["serve", "nbd", "--socket"]);
        server.arg(&socket).args(["--disk", disk]);
        server.env("VBLK_LOG", "info");
        let mut process = Process::start(&mut server, &ceph.dir().join("reader.log"))?;
        let listens = || std::os::unix::net::UnixStream::connect(&socket).is_ok();
        process.until("listens", listens)?;
        let url = format!("nbd+unix:///?socket={}", socket.display());
        Ok(Self { process, url })
    }

    /// Every byte, and that no data is called a hole: what is one is not read.
    fn compare(&self, file: &Path) -> Result<(), Error> {
        let words = ["compare", "-q", "-f", "raw", "-F", "raw", &self.url];
        execute(command("qemu-img", words).arg(file))
    }

    fn refuses_writes(&self) -> Result<(), Error> {
        let words = ["-f", "raw", "-c", "write 0 512", &self.url];
        // QEMU's word for an export that says that it is read-only.
        refuses(&mut command("qemu-io", words), "Permission denied")
    }
}
