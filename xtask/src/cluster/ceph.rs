// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A Ceph cluster of one monitor and one OSD on loopback, without systemd and without a manager, with cephx.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::process::Process;
use crate::command::{Error, command, output, run as execute};

/// Where the OSD keeps its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// In memory; it is kept in a file while the OSD does not run, if it was asked to end.
    Memory,
    /// In a file, as a real one.
    Blue,
}

impl Store {
    /// Ceph's word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memstore",
            Self::Blue => "bluestore",
        }
    }
}

/// The user that `vblk` is: what it may do is what the docs say that it needs.
const USER: &str = "client.vm";
/// What each party may do.
const KEYS: &[(&str, &[&str])] = &[
    ("mon.", &["mon", "allow *"]),
    ("client.admin", &["mon", "allow *", "osd", "allow *"]),
    ("osd.0", &["mon", "allow profile osd", "osd", "allow *"]),
    (USER, &["mon", "profile rbd", "osd", "profile rbd"]),
];

/// A cluster that runs. Dropping it kills it.
pub struct Ceph {
    dir: PathBuf,
    pub store: Store,
    osd: Process,
    monitor: Process,
}

impl Ceph {
    /// Makes a cluster in a directory, which holds nothing yet, and starts it.
    ///
    /// # Errors
    /// A step fails.
    pub fn start(dir: &Path, store: Store) -> Result<Self, Error> {
        for part in ["mon", "osd", "state"] {
            let path = dir.join(part);
            fs::create_dir_all(&path).map_err(|source| Error::File { path, source })?;
        }
        let (cluster, osd) = (uuid()?, uuid()?);
        let monitor = format!("v2:127.0.0.1:{}", free_port()?);
        configure(dir, store, &cluster, &monitor)?;
        make_keys(dir)?;
        let map = dir.join("monmap");
        execute(
            quiet("monmaptool", dir)
                .args(["--create", "--fsid", &cluster, "--addv", "a"])
                .arg(format!("[{monitor}]"))
                .arg(&map),
        )?;
        execute(
            daemon("ceph-mon", "a", dir)
                .args(["--mkfs", "--monmap"])
                .arg(&map)
                .arg("--keyring")
                .arg(dir.join("mon.keyring")),
        )?;
        let mut monitor = start(dir, "ceph-mon", "a")?;
        execute(ceph(dir).args(["--connect-timeout", "60", "osd", "new", &osd, "0"]))?;
        execute(
            daemon("ceph-osd", "0", dir)
                .args(["--mkfs", "--no-mon-config", "--osd-uuid", &osd])
                .stderr(
                    fs::File::create(dir.join("mkfs.log")).map_err(|source| Error::File {
                        path: dir.join("mkfs.log"),
                        source,
                    })?,
                ),
        )?;
        let osd = start(dir, "ceph-osd", "0")?;
        monitor.runs()?;
        let mut cluster = Self {
            dir: dir.to_owned(),
            store,
            osd,
            monitor,
        };
        cluster.until_up()?;
        let pool = ["osd", "pool", "create", "rbd", "8", "8", "replicated"];
        execute(ceph(dir).args(pool))?;
        execute(&mut cluster.rbd(&["pool", "init", "rbd"]))?;
        execute(&mut cluster.rbd(&["namespace", "create", "rbd/space"]))?;
        Ok(cluster)
    }

    fn until_up(&mut self) -> Result<(), Error> {
        let dir = self.dir.clone();
        self.osd.until("the OSD is up", || {
            let status = output(ceph(&dir).args(["osd", "stat"]).stdout(Stdio::piped()));
            status.is_ok_and(|status| status.contains("1 up"))
        })
    }

    /// The command `rbd`, as the cluster's administrator.
    pub fn rbd(&self, args: &[&str]) -> Command {
        let mut rbd = quiet("rbd", &self.dir);
        rbd.arg("--conf").arg(self.dir.join("ceph.conf")).args(args);
        rbd
    }

    /// Makes an image of zeroes. Returns the DISK that it is.
    ///
    /// # Errors
    /// The cluster's.
    pub fn create(&self, name: &str, bytes: u64) -> Result<String, Error> {
        let size = format!("{bytes}B");
        execute(&mut self.rbd(&["create", &format!("rbd/{name}"), "--size", &size]))?;
        Ok(self.disk(name))
    }

    /// The DISK of an image, for the user that may do no more than it needs.
    pub fn disk(&self, name: &str) -> String {
        let dir = self.dir.display();
        format!("rbd:rbd/{name},conf={dir}/ceph.conf,id=vm,state={dir}/state")
    }

    /// The OSD does nothing any more, or continues.
    ///
    /// # Errors
    /// It has ended.
    pub fn freeze_osd(&mut self, frozen: bool) -> Result<(), Error> {
        self.osd
            .signal(if frozen { libc::SIGSTOP } else { libc::SIGCONT })
    }

    /// Ends the OSD and starts it again: without a word where its data outlives that.
    ///
    /// # Errors
    /// It does not start.
    pub fn restart_osd(&mut self) -> Result<(), Error> {
        match self.store {
            Store::Memory => self.osd.stop()?,
            Store::Blue => {
                self.osd.signal(libc::SIGKILL)?;
                // Its status says so.
                let _ = self.osd.wait(std::time::Duration::from_secs(60));
            }
        }
        self.osd = start(&self.dir, "ceph-osd", "0")?;
        self.until_up()
    }

    /// Kills the monitor and starts it again.
    ///
    /// # Errors
    /// It does not start.
    pub fn restart_monitor(&mut self) -> Result<(), Error> {
        self.monitor.signal(libc::SIGKILL)?;
        let _ = self.monitor.wait(std::time::Duration::from_secs(60));
        self.monitor = start(&self.dir, "ceph-mon", "a")?;
        self.until_up()
    }

    /// A directory for whatever belongs to it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Ends it.
    ///
    /// # Errors
    /// One of its parts had ended already.
    pub fn stop(mut self) -> Result<(), Error> {
        self.osd.runs()?;
        self.monitor.runs()
    }
}

fn configure(dir: &Path, store: Store, cluster: &str, monitor: &str) -> Result<(), Error> {
    let (path, store) = (dir.join("ceph.conf"), store.name());
    let dir = dir.display();
    let text = format!(
        "[global]\n\
         fsid = {cluster}\n\
         mon host = [{monitor}]\n\
         ms bind msgr1 = false\n\
         public addr = 127.0.0.1\n\
         cluster addr = 127.0.0.1\n\
         run dir = {dir}\n\
         crash dir = {dir}\n\
         admin socket =\n\
         pid file =\n\
         log file = {dir}/$name.log\n\
         keyring = {dir}/$name.keyring\n\
         mon data = {dir}/mon\n\
         mon data avail crit = 1\n\
         mon allow pool size one = true\n\
         osd data = {dir}/osd\n\
         osd objectstore = {store}\n\
         osd fast shutdown = false\n\
         osd memory target = 939524096\n\
         osd pool default size = 1\n\
         osd pool default min size = 1\n\
         osd pool default pg autoscale mode = off\n\
         osd crush chooseleaf type = 0\n\
         bluestore block size = 8589934592\n\
         memstore device bytes = 4294967296\n"
    );
    fs::write(&path, text).map_err(|source| Error::File { path, source })
}

/// Makes a key for each party, and a ring of all for the monitor.
fn make_keys(dir: &Path) -> Result<(), Error> {
    let ring = dir.join("mon.keyring");
    execute(
        quiet("ceph-authtool", dir)
            .arg("--create-keyring")
            .arg(&ring),
    )?;
    for (name, caps) in KEYS {
        let own = dir.join(format!("{name}.keyring"));
        let mut make = quiet("ceph-authtool", dir);
        make.arg("--create-keyring")
            .arg(&own)
            .args(["--gen-key", "--name", name]);
        for cap in caps.chunks(2) {
            make.arg("--cap").args(cap);
        }
        execute(&mut make)?;
        execute(
            quiet("ceph-authtool", dir)
                .arg(&ring)
                .arg("--import-keyring")
                .arg(&own),
        )?;
    }
    Ok(())
}

/// A command that says only what is wrong.
fn quiet(program: &str, dir: &Path) -> Command {
    let mut command = command(program, [""; 0]);
    command.env("CEPH_CONF", dir.join("ceph.conf"));
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(dir.join("commands.log"));
    if let Ok(log) = log {
        command.stdout(log);
    }
    command
}

fn ceph(dir: &Path) -> Command {
    let mut ceph = quiet("ceph", dir);
    ceph.arg("--conf").arg(dir.join("ceph.conf"));
    if let Ok(log) = fs::File::options()
        .create(true)
        .append(true)
        .open(dir.join("ceph.log"))
    {
        // It tells of its progress there.
        ceph.stderr(log);
    }
    ceph
}

fn daemon(program: &str, id: &str, dir: &Path) -> Command {
    let mut daemon = quiet(program, dir);
    daemon
        .arg("--conf")
        .arg(dir.join("ceph.conf"))
        .args(["-i", id]);
    daemon
}

fn start(dir: &Path, program: &str, id: &str) -> Result<Process, Error> {
    let log = dir.join(format!("{program}.out"));
    Process::start(daemon(program, id, dir).arg("-f"), &log)
}

fn uuid() -> Result<String, Error> {
    let path = PathBuf::from("/proc/sys/kernel/random/uuid");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(source) => Err(Error::File { path, source }),
    }
}

/// A port of loopback that is free now, and hardly taken until it is bound again.
fn free_port() -> Result<u16, Error> {
    let bound = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    match bound {
        Ok(address) => Ok(address.port()),
        Err(error) => Err(Error::Other(format!("no port is free: {error}"))),
    }
}
