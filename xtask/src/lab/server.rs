// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The disk server on the host that a guest's vhost-user disk leads to.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::error::{Context, Error, Result};
use super::process;
use super::script::Disk;

/// The serial number each server is told to report.
pub const SERIAL: &str = "lab-disk-0001";
/// How long a server may take to listen, and to end when asked to.
const PATIENCE: Duration = Duration::from_secs(20);

/// Which program serves the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// This project's `vblk`, at this path.
    Vblk(PathBuf),
    /// qemu-storage-daemon, as a peer. It can't take over requests in flight, nor has it serial numbers.
    Qsd,
    /// Any command, with `{disk}`, `{socket}`, `{queues}` and `{serial}` replaced.
    Custom(String),
}

impl Kind {
    /// The name that scripts see.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Vblk(_) => "vblk",
            Self::Qsd => "qsd",
            Self::Custom(_) => "custom",
        }
    }

    fn command(&self, image: &Path, socket: &Path, disk: &Disk) -> Command {
        let queues = disk.queues;
        let (image, socket) = (image.display(), socket.display());
        match self {
            Self::Vblk(program) => {
                let mut command = Command::new(program);
                command
                    .args(["serve", "vhost-user", "--serial", SERIAL])
                    .arg(format!(
                        "--disk=raw:{image}{}",
                        if disk.migrates { ",lock=handover" } else { "" }
                    ))
                    .arg(format!("--socket={socket}"))
                    .arg(format!("--queues={queues}"));
                command
            }
            Self::Qsd => {
                let mut command = Command::new("qemu-storage-daemon");
                command
                    .args(["--chardev", "stdio,id=qmp", "--monitor", "qmp"])
                    .arg("--blockdev")
                    .arg(format!("raw,node-name=disk,discard=unmap,file.driver=file,file.discard=unmap,file.filename={image}"))
                    .arg("--export")
                    .arg(format!("vhost-user-blk,id=lab,node-name=disk,writable=on,addr.type=unix,addr.path={socket},num-queues={queues}"));
                command
            }
            Self::Custom(template) => {
                let mut words = template.split_whitespace().map(|word| {
                    word.replace("{disk}", &image.to_string())
                        .replace("{socket}", &socket.to_string())
                        .replace("{queues}", &queues.to_string())
                        .replace("{serial}", SERIAL)
                });
                let mut command = Command::new(words.next().unwrap_or_default());
                command.args(words);
                command
            }
        }
    }
}

/// A running server with its image.
pub struct Server {
    kind: Kind,
    image: PathBuf,
    socket: PathBuf,
    log: PathBuf,
    disk: Disk,
    child: Child,
}

impl Server {
    /// Starts a server and waits until it listens.
    ///
    /// # Errors
    /// It can't be started, ends, or doesn't listen in time.
    pub fn start(kind: Kind, image: &Path, socket: &Path, disk: &Disk, log: &Path) -> Result<Self> {
        File::create(log).on("create", log)?;
        let child = launch(&kind, image, socket, disk, log)?;
        let mut server = Self {
            kind,
            image: image.to_owned(),
            socket: socket.to_owned(),
            log: log.to_owned(),
            disk: disk.clone(),
            child,
        };
        server.wait_until_listening(None)?;
        Ok(server)
    }

    /// Starts another server of the same image, beside this one, that listens on `socket`.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn beside(&self, socket: &Path, log: &Path) -> Result<Self> {
        Self::start(self.kind.clone(), &self.image, socket, &self.disk, log)
    }

    /// Ends the server without warning (SIGKILL) and starts it again on the same image and socket.
    ///
    /// # Errors
    /// As [`Server::start`]; also if it had ended before.
    pub fn crash(&mut self) -> Result<()> {
        self.check()?;
        let old = self.socket_inode();
        self.child.kill().on("kill the server of", &self.image)?;
        self.child
            .wait()
            .on("wait for the server of", &self.image)?;
        self.relaunch(old)
    }

    /// Ends the server in an orderly way (SIGTERM) and starts it again.
    ///
    /// # Errors
    /// As [`Server::start`] and [`Server::stop`].
    pub fn restart(&mut self) -> Result<()> {
        let old = self.socket_inode();
        self.end()?;
        self.relaunch(old)
    }

    /// Ends the server in an orderly way.
    ///
    /// # Errors
    /// It had ended before, doesn't end in time, or its status is not 0.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    /// Makes the image `bytes` long; the server notices (qemu-storage-daemon must be told).
    ///
    /// # Errors
    /// The file system's.
    pub fn resize(&mut self, bytes: u64) -> Result<()> {
        let image = OpenOptions::new().write(true).open(&self.image);
        image
            .and_then(|file| file.set_len(bytes))
            .on("resize", &self.image)?;
        if self.kind == Kind::Qsd
            && let Some(monitor) = &mut self.child.stdin
        {
            writeln!(
                monitor,
                "{{\"execute\":\"qmp_capabilities\"}}\n{{\"execute\":\"block_resize\",\"arguments\":{{\"node-name\":\"disk\",\"size\":{bytes}}}}}"
            )
            .on("resize by monitor", &self.image)?;
        }
        Ok(())
    }

    /// The bytes that the image takes on the host's file system.
    ///
    /// # Errors
    /// The file system's.
    pub fn allocated(&self) -> Result<u64> {
        let metadata = fs::metadata(&self.image).on("examine", &self.image)?;
        Ok(metadata.blocks() * 512)
    }

    /// Fails if the server has ended.
    ///
    /// # Errors
    /// [`Error::Server`].
    pub fn check(&mut self) -> Result<()> {
        match self
            .child
            .try_wait()
            .on("wait for the server of", &self.image)?
        {
            None => Ok(()),
            Some(status) => Err(Error::Server {
                what: format!("ended by itself ({status}); {}", self.log_tail()),
            }),
        }
    }

    fn relaunch(&mut self, old_socket: Option<u64>) -> Result<()> {
        self.child = launch(&self.kind, &self.image, &self.socket, &self.disk, &self.log)?;
        self.wait_until_listening(old_socket)
    }

    fn wait_until_listening(&mut self, old_socket: Option<u64>) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        // A killed server leaves its socket file behind; the new one makes another.
        while self
            .socket_inode()
            .is_none_or(|inode| Some(inode) == old_socket)
        {
            self.check()?;
            if Instant::now() > end {
                return Err(Error::Server {
                    what: format!("doesn't listen; {}", self.log_tail()),
                });
            }
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// What tells one socket file from the next at the same path. The inode number alone may be reused.
    fn socket_inode(&self) -> Option<u64> {
        let metadata = fs::symlink_metadata(&self.socket).ok()?;
        let changed = metadata
            .ctime()
            .wrapping_mul(1_000_000_000)
            .wrapping_add(metadata.ctime_nsec());
        Some(metadata.ino() ^ changed.unsigned_abs())
    }

    fn end(&mut self) -> Result<()> {
        self.check()?;
        process::terminate(&self.child);
        let end = Instant::now() + PATIENCE;
        loop {
            match self
                .child
                .try_wait()
                .on("wait for the server of", &self.image)?
            {
                Some(status) if status.success() => return Ok(()),
                Some(status) => {
                    return Err(Error::Server {
                        what: format!("ended with {status} at SIGTERM; {}", self.log_tail()),
                    });
                }
                None if Instant::now() > end => {
                    return Err(Error::Server {
                        what: format!("still runs after SIGTERM; {}", self.log_tail()),
                    });
                }
                None => sleep(Duration::from_millis(5)),
            }
        }
    }

    fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        match text.trim_end() {
            "" => "it said nothing".to_owned(),
            text => format!("it said:\n{}", process::tail(text, 15)),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // After `stop` both fail and nothing is left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn launch(kind: &Kind, image: &Path, socket: &Path, disk: &Disk, log: &Path) -> Result<Child> {
    let log_file = OpenOptions::new().append(true).open(log).on("open", log)?;
    let output = log_file.try_clone().on("open", log)?;
    let mut command = kind.command(image, socket, disk);
    command
        .stdin(Stdio::piped())
        .stdout(output)
        .stderr(log_file);
    process::spawn(&mut command)
}
