// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Servers that end with this program.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::command::Error;

/// How long a server may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server. Dropping it kills it.
pub struct Process {
    child: Child,
    name: String,
    /// What it writes.
    log: PathBuf,
}

impl Process {
    /// Starts a server, whose output goes to a file beside what it keeps.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self, Error> {
        let name = command.get_program().to_string_lossy().into_owned();
        let output = File::options().create(true).append(true).open(log);
        let output = output.and_then(|file| Ok((file.try_clone()?, file)));
        let (out, err) = output.map_err(|source| Error::File {
            path: log.to_owned(),
            source,
        })?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .map_err(|source| Error::Start {
                command: name.clone(),
                source,
            })?;
        Ok(Self {
            child,
            name,
            log: log.to_owned(),
        })
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&mut self, signal: i32) -> Result<(), Error> {
        self.runs()?;
        // SAFETY: a signal to our own child, which was not waited for.
        unsafe { libc::kill(self.child.id().cast_signed(), signal) };
        Ok(())
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// It does not; with the end of what it wrote.
    pub fn runs(&mut self) -> Result<(), Error> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.failed(&format!("ended with {status}"))),
            Err(error) => Err(self.failed(&format!("can't be looked at: {error}"))),
        }
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// It failed, or has not after so long.
    pub fn wait(&mut self, patience: Duration) -> Result<(), Error> {
        let since = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(None) if since.elapsed() < patience => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(None) => return Err(self.failed(&format!("runs after {patience:?}"))),
                _ => return self.runs(),
            }
        }
    }

    /// Asks it to end, and waits.
    ///
    /// # Errors
    /// As for [`Process::wait`].
    pub fn stop(&mut self) -> Result<(), Error> {
        self.signal(libc::SIGTERM)?;
        self.wait(PATIENCE)
    }

    /// Waits until `is` is true.
    ///
    /// # Errors
    /// It ended, or it is not after a minute.
    pub fn until(&mut self, what: &str, mut is: impl FnMut() -> bool) -> Result<(), Error> {
        let since = Instant::now();
        while !is() {
            self.runs()?;
            if since.elapsed() > PATIENCE {
                return Err(self.failed(&format!("{what}: not after {PATIENCE:?}")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// What it wrote.
    pub fn said(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    fn failed(&self, how: &str) -> Error {
        let said = self.said();
        let from = said.lines().count().saturating_sub(20);
        let last: Vec<&str> = said.lines().skip(from).collect();
        Error::Other(format!("{} {how}\n{}", self.name, last.join("\n")))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing is left to do about a failure: it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
