// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The other end of a control socket.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde_json::Value;

use super::control::Request;

/// How long what listens on a socket may take to show that it is a control socket.
const GREETING: Duration = Duration::from_secs(5);
/// The longest answer that is read: the ranges of a large dirty bitmap are long.
const MAX_ANSWER: u64 = 1 << 30;

/// Why a server did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("{}: {source}; give the --control socket of a running `vblk serve`", .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is a file of another kind.
    #[error("{} is not a socket: give the --control socket of a running `vblk serve`", .path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// It is some other socket.
    #[error(
        "{} is no control socket ({what}): give the path that `vblk serve` has as --control, not as --socket",
        .path.display()
    )]
    NotControl {
        /// The socket.
        path: PathBuf,
        /// What it did instead of replying.
        what: &'static str,
    },
    /// The connection ended.
    #[error("{}: the server has ended", .path.display())]
    Ended {
        /// The socket.
        path: PathBuf,
    },
    /// The connection failed.
    #[error("{}: {source}", .path.display())]
    Lost {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It took too long.
    #[error("{}: the server did not answer within {patience:?}; it may still do what it was asked for", .path.display())]
    Late {
        /// The socket.
        path: PathBuf,
        /// How long it had.
        patience: Duration,
    },
    /// The reply makes no sense.
    #[error("{}: the server's answer can't be understood", .path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The server says why.
    #[error("{0}")]
    Refused(String),
}

/// Connects without waiting: a server that takes no connections any more, as one that was stopped, has no room for more
/// at some time.
fn connect_now(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) => {}
        Err(Errno::AGAIN) => {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "its server takes no more connections",
            ));
        }
        Err(error) => return Err(error.into()),
    }
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Asks a server.
pub(super) struct Client {
    path: PathBuf,
    reader: BufReader<UnixStream>,
    patience: Duration,
    disks: Vec<String>,
}

impl Client {
    /// Connects, and makes sure that it is a control socket that listens. The server may take `patience` for a reply.
    pub(super) fn connect(path: &Path, patience: Duration) -> Result<Self, ClientError> {
        let stream = connect_now(path).map_err(|source| {
            let path = path.to_owned();
            // The system says only that nobody listens.
            match fs::metadata(&path) {
                Ok(meta) if !meta.file_type().is_socket() => ClientError::NotASocket { path },
                _ => ClientError::Connect { path, source },
            }
        })?;
        let mut this = Self {
            path: path.to_owned(),
            reader: BufReader::new(stream),
            patience: GREETING,
            disks: Vec::new(),
        };
        let other = |what| ClientError::NotControl {
            path: path.to_owned(),
            what,
        };
        let answer = this
            .ask(None, &Request::Disks {})
            .map_err(|error| match error {
                ClientError::Ended { .. } | ClientError::Lost { .. } => {
                    other("it closed the connection")
                }
                ClientError::Late { .. } => other("it said nothing"),
                ClientError::Answer { .. } => other("it said something else"),
                error => error,
            })?;
        this.disks = serde_json::from_value(answer["disks"].clone())
            .map_err(|_| other("it said something else"))?;
        this.patience = patience;
        Ok(this)
    }

    /// The names of the server's disks.
    pub(super) fn disks(&self) -> &[String] {
        &self.disks
    }

    /// `disk`: of which disk, where there are several.
    pub(super) fn ask(
        &mut self,
        disk: Option<&str>,
        request: &Request,
    ) -> Result<Value, ClientError> {
        let wrong = |path: &Path, source| ClientError::Answer {
            path: path.to_owned(),
            source,
        };
        let mut value = serde_json::to_value(request).map_err(|error| wrong(&self.path, error))?;
        if let (Some(disk), Some(value)) = (disk, value.as_object_mut()) {
            value.insert("disk".to_owned(), disk.into());
        }
        let line = self
            .exchange(&format!("{value}\n"))
            .map_err(|source| match source.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::Late {
                    path: self.path.clone(),
                    patience: self.patience,
                },
                io::ErrorKind::UnexpectedEof => ClientError::Ended {
                    path: self.path.clone(),
                },
                _ => ClientError::Lost {
                    path: self.path.clone(),
                    source,
                },
            })?;
        let mut answer: Value =
            serde_json::from_str(&line).map_err(|error| wrong(&self.path, error))?;
        match answer.get("error").and_then(Value::as_str) {
            Some(error) => Err(ClientError::Refused(error.to_owned())),
            None => Ok(answer["ok"].take()),
        }
    }

    /// Sends a line and reads one.
    fn exchange(&mut self, line: &str) -> io::Result<String> {
        let stream = self.reader.get_mut();
        stream.set_read_timeout(Some(self.patience))?;
        stream.set_write_timeout(Some(self.patience))?;
        let sent = stream.write_all(line.as_bytes());
        // A server that has no room says so and closes, perhaps before it was asked.
        let mut answer = String::new();
        let read = (&mut self.reader).take(MAX_ANSWER).read_line(&mut answer);
        match (read, sent) {
            (Ok(_), _) if answer.ends_with('\n') => Ok(answer),
            (_, Err(error)) | (Err(error), _) => Err(error),
            (Ok(_), Ok(())) => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}
