// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `--control`: a socket that takes a JSON object a line and answers with one.

use std::fs::{self, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::Shown;
use super::control::{Seen, take};

/// The longest line.
const MAX_LINE: u64 = 64 << 10;
/// Most clients at a time.
const MAX_CLIENTS: usize = 16;

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
