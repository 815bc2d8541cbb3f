// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `--control`: a socket that takes one JSON object per line and replies with one.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::net::{SendFlags, send};
use serde_json::{Value, json};
use vhost_user_blk::socket::{Listener, SocketOptions};

use super::Shown;
use super::clients::{Clients, Entered};
use super::control::{Seen, take};

/// The longest line.
const MAX_LINE: u64 = 64 << 10;
/// Most clients at a time.
const MAX_CLIENTS: usize = 64;
/// How long a client may be idle before it has to make room for another.
const IDLE: Duration = Duration::from_secs(10);
/// How long a client may take to read an answer.
const PATIENCE: Duration = Duration::from_secs(60);

fn answer(shown: &Shown, line: &str, seen: &mut Seen) -> Value {
    let Some(served) = shown.upgrade() else {
        return json!({"error": "the server is ending"});
    };
    match take(&served, line, seen) {
        Ok(value) => json!({"ok": value}),
        Err(error) => json!({"error": error.to_string()}),
    }
}

fn serve(shown: &Shown, stream: UnixStream, entered: &Entered) -> io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    let mut seen = Seen::new();
    loop {
        let mut line = String::new();
        let read = (&mut reader).take(MAX_LINE).read_line(&mut line)?;
        if !line.ends_with('\n') {
            if read as u64 == MAX_LINE {
                say(&writer, &format!("a line is longer than {MAX_LINE} bytes"));
            }
            return Ok(());
        }
        let Some(answer) = entered.work(|| answer(shown, &line, &mut seen)) else {
            return Ok(());
        };
        writer.write_all(format!("{answer}\n").as_bytes())?;
    }
}

/// Says why a connection is closed, if there is room for it.
fn say(stream: &UnixStream, error: &str) {
    let line = format!("{}\n", json!({"error": error}));
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    // A client that does not listen need not be told.
    let _ = send(stream, line.as_bytes(), flags);
}

fn accept(stream: UnixStream, clients: &Arc<Clients>, shown: &Shown) -> io::Result<()> {
    let other = stream.try_clone()?;
    let entered = clients.enter(move || {
        say(
            &other,
            "the connection was idle, and another client needed its place: connect again",
        );
        // It may have gone by itself.
        let _ = other.shutdown(Shutdown::Both);
    });
    let Some(entered) = entered else {
        say(
            &stream,
            &format!(
                "{MAX_CLIENTS} clients are connected, none of which was idle for {IDLE:?}: try again later"
            ),
        );
        return Ok(());
    };
    let shown = shown.clone();
    let client = thread::Builder::new().name("vblk-client".into());
    client.spawn(move || serve(&shown, stream, &entered))?;
    Ok(())
}

/// The control socket. Dropping it removes its file; clients are served as long as the process lives.
pub(super) struct Control {
    _listener: Listener,
}

impl Control {
    pub(super) fn start(path: &Path, shown: Shown) -> io::Result<Self> {
        // Who may change the layers may stop the disk.
        let options = SocketOptions {
            mode: Some(0o600),
            group: None,
        };
        let listener = Listener::bind(path, &options)
            .map_err(|error| io::Error::other(format!("--control: {error}")))?;
        let incoming = listener.socket().try_clone()?;
        let clients = Clients::new(MAX_CLIENTS, IDLE);
        thread::Builder::new()
            .name("vblk-control".into())
            .spawn(move || {
                let mut is_failing = false;
                for stream in incoming.incoming() {
                    let result = stream.and_then(|stream| accept(stream, &clients, &shown));
                    if let Err(error) = &result {
                        if !is_failing {
                            log::warn!("control socket: no client can be served: {error}");
                        }
                        // Short of descriptors or threads it would fail again at once.
                        thread::sleep(Duration::from_millis(10));
                    }
                    is_failing = result.is_err();
                }
            })?;
        Ok(Self {
            _listener: listener,
        })
    }
}
