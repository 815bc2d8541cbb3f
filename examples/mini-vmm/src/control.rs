// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The control socket: one JSON object per line in, one out. And its client, `mini-vmm ctl`.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, sync_channel};
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{Error, OnFile, Result};
use crate::event::{Command, Event, Reply, Request};

/// The longest line that is read; a client that sends more is dropped.
const LINE_MAX: u64 = 64 << 10;

/// How long a client may be silent.
const PATIENCE: Duration = Duration::from_secs(10);

/// The socket's file; removed with this.
pub struct Server(PathBuf);

impl Drop for Server {
    fn drop(&mut self) {
        // Somebody else may have removed it.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Listens at `path` and passes requests on as events, one connection after the other.
pub fn serve(path: &Path, events: &Sender<Event>) -> Result<Server> {
    let listener = UnixListener::bind(path).on("listen on", path)?;
    let events = events.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // The client went away, which is its own affair.
            let _ = converse(&stream, &events);
        }
    });
    Ok(Server(path.to_owned()))
}

fn converse(stream: &UnixStream, events: &Sender<Event>) -> std::io::Result<()> {
    // Others wait meanwhile.
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if (&mut reader).take(LINE_MAX).read_line(&mut line)? == 0 || !line.ends_with('\n') {
            return Ok(());
        }
        let answer = match answer(&line, events) {
            Ok(value) => json!({ "ok": value }),
            Err(why) => json!({ "error": why }),
        };
        writeln!(&mut &*stream, "{answer}")?;
    }
}

fn answer(line: &str, events: &Sender<Event>) -> Reply {
    let command = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let (reply, answer) = sync_channel(1);
    let request = Request { command, reply };
    let gone = |_| "the machine is going away".to_owned();
    events
        .send(Event::Control(request))
        .map_err(|_| gone(std::sync::mpsc::RecvError))?;
    answer.recv().map_err(gone)?
}

/// Sends one command and returns the answer.
pub fn ask(path: &Path, command: &Command) -> Result<Value> {
    let fail = |error: &dyn std::fmt::Display| Error::Control(error.to_string());
    let stream = UnixStream::connect(path).on("connect to", path)?;
    let line = serde_json::to_string(command).map_err(|error| fail(&error))?;
    writeln!(&mut &stream, "{line}").on("write to", path)?;
    let mut answer = String::new();
    BufReader::new(&stream)
        .read_line(&mut answer)
        .on("read from", path)?;
    let mut answer: Value = serde_json::from_str(&answer).map_err(|error| fail(&error))?;
    match answer.get("error").and_then(Value::as_str) {
        Some(why) => Err(fail(&why)),
        None => Ok(answer["ok"].take()),
    }
}
