// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Starting a server to look at.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::Error;

/// How long a server may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Which program serves.
#[derive(Clone, Debug)]
pub enum Program {
    /// `vblk` at this path.
    Vblk(PathBuf),
    /// `qemu-storage-daemon` from the search path: the peer.
    QemuStorageDaemon,
}

/// What it serves.
#[derive(Clone, Debug)]
pub enum Disk {
    /// A raw image.
    Raw {
        /// The file.
        path: PathBuf,
        /// The program's own name for the way it does I/O; its default if there is none.
        engine: Option<String>,
    },
    /// A qcow2 image.
    Qcow2 {
        /// The file.
        path: PathBuf,
        /// As of a raw image.
        engine: Option<String>,
        /// Past the page cache.
        direct: bool,
        /// On the backing file that it names.
        backing: bool,
    },
    /// The default export of an NBD server on this unix socket.
    Nbd(PathBuf),
    /// A DISK with layers, as `vblk` writes it. Only `vblk` has it.
    Named(String),
    /// Memory of that many bytes. Only `vblk` has it.
    Memory(u64),
    /// Nothing: writes are forgotten.
    Null {
        /// Bytes.
        len: u64,
        /// Reads give zeroes. Without it they leave the guest's memory as it is.
        zero: bool,
    },
}

/// What to start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which program.
    pub program: Program,
    /// What it serves.
    pub disk: Disk,
    /// Queues.
    pub queues: usize,
    /// Most entries of a queue. The peer takes any number.
    pub queue_size: u16,
    /// Whether the disk is read-only.
    pub read_only: bool,
}

/// A running server. Dropping it kills the process.
pub struct Server {
    child: Child,
    /// Holds the socket.
    dir: tempfile::TempDir,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("pid", &self.child.id())
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Starts a server and waits until its socket is there.
    ///
    /// # Errors
    /// It can't be started, ends at once, or has no socket after a minute.
    pub fn start(config: &Config) -> Result<Self, Error> {
        Self::spawn(|socket| command(config, socket))
    }

    /// Starts what `command` makes for a socket, and waits until that is there.
    ///
    /// # Errors
    /// As for [`Server::start`].
    pub(crate) fn spawn(
        command: impl FnOnce(&Path) -> Result<Command, Error>,
    ) -> Result<Self, Error> {
        let dir = tempfile::tempdir().map_err(Error::io("temporary directory"))?;
        let socket = dir.path().join("socket");
        let mut command = command(&socket)?;
        let child = command
            .stdin(Stdio::null())
            .spawn()
            .map_err(Error::io(format!("{command:?}")))?;
        let mut server = Self { child, dir };
        let started = Instant::now();
        while !socket.exists() {
            if let Some(status) = server.poll()? {
                return Err(Error::Server(format!(
                    "{command:?} ended with {status} before it listened"
                )));
            }
            if started.elapsed() > PATIENCE {
                return Err(Error::Server(format!(
                    "{command:?} does not listen after {PATIENCE:?}"
                )));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(server)
    }

    /// Kills it without a word, as a crash would, and starts it again on the same socket.
    ///
    /// # Errors
    /// It can't be started.
    pub fn crash(&mut self, config: &Config) -> Result<(), Error> {
        self.child.kill().map_err(Error::io("kill"))?;
        // Until it is gone the kernel may still work for it.
        self.child.wait().map_err(Error::io("wait"))?;
        let mut command = command(config, &self.socket())?;
        self.child = command
            .stdin(Stdio::null())
            .spawn()
            .map_err(Error::io(format!("{command:?}")))?;
        Ok(())
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end with SIGTERM, and waits.
    ///
    /// # Errors
    /// It ends with another status than 0, or not within a minute.
    pub fn stop(mut self) -> Result<(), Error> {
        // SAFETY: a signal to our own child, which has not been waited for.
        unsafe { libc::kill(self.child.id().cast_signed(), libc::SIGTERM) };
        let started = Instant::now();
        loop {
            match self.poll()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => {
                    return Err(Error::Server(format!("ended with {status} on SIGTERM")));
                }
                None if started.elapsed() > PATIENCE => {
                    return Err(Error::Server(format!(
                        "still there {PATIENCE:?} after SIGTERM"
                    )));
                }
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    fn poll(&mut self) -> Result<Option<ExitStatus>, Error> {
        self.child.try_wait().map_err(Error::io("server"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing is left to do about a failure: it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

fn command(config: &Config, socket: &Path) -> Result<Command, Error> {
    match &config.program {
        Program::Vblk(program) => Ok(vblk(program, config, socket)),
        Program::QemuStorageDaemon => qemu_storage_daemon(config, socket),
    }
}

fn vblk(program: &Path, config: &Config, socket: &Path) -> Command {
    let mut disk = OsString::new();
    match &config.disk {
        Disk::Raw { path, engine } => {
            disk.push("raw:");
            disk.push(path);
            if let Some(engine) = engine {
                disk.push(",engine=");
                disk.push(engine);
            }
        }
        Disk::Qcow2 {
            path,
            engine,
            direct,
            backing,
        } => {
            disk.push("qcow2:");
            disk.push(path);
            if let Some(engine) = engine {
                disk.push(",engine=");
                disk.push(engine);
            }
            if *direct {
                disk.push(",direct=on");
            }
            if *backing {
                disk.push(",backing=allow");
            }
        }
        Disk::Nbd(socket) => {
            disk.push("nbd:unix:");
            disk.push(socket);
        }
        Disk::Named(name) => disk.push(name),
        Disk::Memory(len) => disk.push(format!("memory:{len}")),
        Disk::Null { len, zero } => disk.push(format!("null:{len},zero={}", on_off(*zero))),
    }
    let mut command = Command::new(program);
    command
        .args(["serve", "vhost-user", "--disk"])
        .arg(disk)
        .arg("--socket")
        .arg(socket)
        .args(["--queues", &config.queues.to_string()])
        .args(["--queue-size", &config.queue_size.to_string()]);
    if config.read_only {
        command.arg("--read-only");
    }
    command
}

fn qemu_storage_daemon(config: &Config, socket: &Path) -> Result<Command, Error> {
    let mut blockdev = OsString::from("node-name=disk,");
    match &config.disk {
        Disk::Raw { path, engine } => {
            blockdev.push("driver=file,discard=unmap,filename=");
            blockdev.push(path);
            if let Some(engine) = engine {
                blockdev.push(",aio=");
                blockdev.push(engine);
            }
        }
        Disk::Qcow2 {
            path,
            engine,
            direct,
            // The peer opens it without being asked.
            backing: _,
        } => {
            if *direct {
                blockdev.push("cache.direct=on,file.cache.direct=on,");
            }
            blockdev.push("driver=qcow2,discard=unmap,file.driver=file,file.discard=unmap,");
            blockdev.push("file.filename=");
            blockdev.push(path);
            if let Some(engine) = engine {
                blockdev.push(",file.aio=");
                blockdev.push(engine);
            }
        }
        Disk::Nbd(socket) => {
            blockdev.push("driver=nbd,server.type=unix,server.path=");
            blockdev.push(socket);
        }
        Disk::Memory(_) | Disk::Named(_) => {
            return Err(Error::Config(
                "qemu-storage-daemon has no such disk; use a raw file, for example on a tmpfs"
                    .into(),
            ));
        }
        Disk::Null { len, zero } => {
            let zero = on_off(*zero);
            blockdev.push(format!("driver=null-co,size={len},read-zeroes={zero}"));
        }
    }
    let writable = on_off(!config.read_only);
    let mut export = OsString::from(format!(
        "type=vhost-user-blk,id=export,node-name=disk,writable={writable},num-queues={},\
         addr.type=unix,addr.path=",
        config.queues
    ));
    export.push(socket);
    let mut command = Command::new("qemu-storage-daemon");
    command
        .arg("--blockdev")
        .arg(blockdev)
        .arg("--export")
        .arg(export);
    Ok(command)
}
