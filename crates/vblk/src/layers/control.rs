// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `--control`: a socket that takes a JSON object a line and answers with one.

use std::collections::HashMap;
use std::error::Error;
use std::fs::{self, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::act::{self, Marks};
use super::stats::{Before, Stats};
use super::{Served, Shown};

/// The longest line.
const MAX_LINE: u64 = 64 << 10;
/// Most clients at a time.
const MAX_CLIENTS: usize = 16;

/// What can be asked for.
#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// [`Stats`].
    Stats {
        /// Since the last time on this connection.
        #[serde(default)]
        since: bool,
    },
    /// The layers; with `set`, after these have replaced them.
    Layers {
        /// From the medium upwards.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        set: Option<Vec<String>>,
    },
    /// The names of the disks.
    Disks {},
    /// Looks at the size of the disk again.
    Refresh {},
    /// Grows a raw file.
    Resize {
        /// To this size.
        bytes: u64,
    },
    /// Ends what is in flight, and flushes.
    Drain {
        /// Keep what comes afterwards waiting, for so many seconds.
        #[serde(default)]
        hold: u64,
    },
    /// Ends such a time.
    Resume {},
    /// What is marked in a dirty bitmap.
    Dirty {
        /// Its name.
        bitmap: String,
        /// Clear the marks.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        take: bool,
        /// Write the marks to this file instead.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        save: Option<PathBuf>,
        /// Add the marks of this file.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        load: Option<PathBuf>,
    },
}

/// What was counted the last time on a connection, by disk.
type Seen = HashMap<String, Before>;

fn names(served: &[Served]) -> Vec<&str> {
    served.iter().map(|disk| disk.name.as_str()).collect()
}

/// The disk of this name, or the only one.
fn choose<'a>(served: &'a [Served], name: &Value) -> Result<&'a Served, String> {
    let all = || names(served).join(", ");
    match (name, served) {
        (Value::Null, [one]) => Ok(one),
        (Value::Null, _) => Err(format!("which disk? --disk takes one of {}", all())),
        _ => {
            let found = served.iter().find(|disk| *name == disk.name);
            found.ok_or_else(|| format!("there is no disk {name}, but {}", all()))
        }
    }
}

/// Takes a line: a request, with the disk that it is for.
fn take(all: &[Served], line: &str, seen: &mut Seen) -> Result<Value, Box<dyn Error>> {
    let mut line: Value = serde_json::from_str(line)?;
    let disk = line.as_object_mut().and_then(|line| line.remove("disk"));
    execute(
        all,
        &disk.unwrap_or_default(),
        serde_json::from_value(line)?,
        seen,
    )
}

fn execute(
    all: &[Served],
    disk: &Value,
    request: Request,
    seen: &mut Seen,
) -> Result<Value, Box<dyn Error>> {
    let served = || choose(all, disk);
    match request {
        Request::Stats { since } => {
            let served = served()?;
            let before = seen.get(&served.name).filter(|_| since);
            let (stats, now) = Stats::of(served, before);
            seen.insert(served.name.clone(), now);
            Ok(serde_json::to_value(stats)?)
        }
        Request::Layers { set } => act::layers(served()?, set),
        Request::Disks {} => Ok(json!({"disks": names(all)})),
        Request::Refresh {} => act::refresh(served()?),
        Request::Resize { bytes } => act::resize(served()?, bytes),
        Request::Drain { hold } => act::drain(served()?, hold),
        Request::Resume {} => {
            served()?.stack.resume();
            Ok(json!({"resumed": true}))
        }
        Request::Dirty {
            bitmap,
            take,
            save,
            load,
        } => {
            let what = match (take, &save, &load) {
                (false, None, None) => Marks::Show,
                (true, None, None) => Marks::Take,
                (false, Some(path), None) => Marks::Save(path),
                (false, None, Some(path)) => Marks::Load(path),
                _ => return Err("give one of take, save and load".into()),
            };
            act::dirty(served()?, &bitmap, &what)
        }
    }
}

fn answer(shown: &Shown, line: &str, seen: &mut Seen) -> Value {
    let Some(served) = shown.upgrade() else {
        return json!({"error": "the server is ending"});
    };
    match take(&served, line, seen) {
        Ok(value) => json!({"ok": value}),
        Err(error) => json!({"error": error.to_string()}),
    }
}

fn serve(shown: &Shown, stream: UnixStream) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    let mut seen = Seen::new();
    loop {
        let mut line = String::new();
        (&mut reader).take(MAX_LINE).read_line(&mut line)?;
        if !line.ends_with('\n') {
            return Ok(());
        }
        let mut answer = answer(shown, &line, &mut seen).to_string();
        answer.push('\n');
        writer.write_all(answer.as_bytes())?;
    }
}

/// The control socket, until it is dropped.
pub(super) struct Control {
    path: PathBuf,
}

/// Binds, replacing a socket that nobody listens on.
fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Err(error) = UnixStream::connect(path)
        && error.kind() == io::ErrorKind::ConnectionRefused
        && fs::symlink_metadata(path)?.file_type().is_socket()
    {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    // Who may change the layers may stop the disk.
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

impl Control {
    pub(super) fn start(path: &Path, shown: Shown) -> io::Result<Self> {
        let listener = bind(path).map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("--control {}: {error}", path.display()),
            )
        })?;
        let this = Self {
            path: path.to_owned(),
        };
        let clients = Arc::new(());
        std::thread::Builder::new()
            .name("vblk-control".into())
            .spawn(move || {
                for stream in listener.incoming() {
                    let accepted = stream.and_then(|stream| {
                        // The listener holds one, and each client.
                        if Arc::strong_count(&clients) > MAX_CLIENTS {
                            return Err(io::Error::other("too many clients"));
                        }
                        let (client, shown) = (clients.clone(), shown.clone());
                        std::thread::Builder::new()
                            .name("vblk-client".into())
                            .spawn(move || {
                                let _client = client;
                                serve(&shown, stream)
                            })
                    });
                    if let Err(error) = accepted {
                        log::warn!("control socket: {error}");
                        std::thread::sleep(Duration::from_millis(10));
                    }
                }
            })?;
        Ok(this)
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = fs::remove_file(&self.path);
    }
}

/// Asks a server.
pub(super) struct Client {
    reader: BufReader<UnixStream>,
}

impl Client {
    pub(super) fn connect(path: &Path) -> Result<Self, Box<dyn Error>> {
        let stream = UnixStream::connect(path).map_err(|error| {
            format!(
                "{}: {error}; it must be the --control socket of a running `vblk serve`",
                path.display()
            )
        })?;
        Ok(Self {
            reader: BufReader::new(stream),
        })
    }

    /// `disk`: of which disk, where there are several.
    pub(super) fn ask(
        &mut self,
        disk: Option<&str>,
        request: &Request,
    ) -> Result<Value, Box<dyn Error>> {
        let mut value = serde_json::to_value(request)?;
        if let (Some(disk), Some(value)) = (disk, value.as_object_mut()) {
            value.insert("disk".to_owned(), disk.into());
        }
        let mut line = value.to_string();
        line.push('\n');
        self.reader.get_mut().write_all(line.as_bytes())?;
        line.clear();
        if self.reader.read_line(&mut line)? == 0 {
            return Err("the server has ended".into());
        }
        let mut answer: Value = serde_json::from_str(&line)?;
        match answer.get("error").and_then(Value::as_str) {
            Some(error) => Err(error.into()),
            None => Ok(answer["ok"].take()),
        }
    }
}
