// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The other end of a control socket.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use super::control::Request;

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
