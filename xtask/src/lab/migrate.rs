// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Moves of a running guest to another QEMU with another server of the same image.

use std::path::PathBuf;
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::error::{Error, Result};
use super::qemu::{Monitor, Paths};
use super::server::Server;
use super::vm::Vm;

/// Bytes a second: no limit that matters, and one that leaves time to die.
const FAST: u64 = 4 << 30;
const SLOW: u64 = 16 << 20;
/// Bytes that the other side has received when it dies.
const MIDWAY: u64 = 24 << 20;
/// Milliseconds for which the guest may stand still.
const DOWNTIME: u64 = 2000;
const PATIENCE: Duration = Duration::from_secs(60);

/// A machine that waits for a guest, and its server. Killed when it is dropped.
struct Target {
    server: Server,
    child: Child,
    monitor: Monitor,
    console: PathBuf,
    incoming: PathBuf,
}

impl Vm<'_> {
    /// Moves the guest. What it left ends in an orderly way.
    ///
    /// # Errors
    /// The guest does not arrive, or a server misbehaves.
    pub(super) fn migrate(&mut self) -> Result<()> {
        let mut target = self.target()?;
        let moved = self.move_to(&mut target);
        if let Err(error) = moved {
            kill(&mut target.child);
            return Err(error);
        }
        kill(&mut self.child);
        self.child = target.child;
        self.monitor = target.monitor;
        self.console = target.console;
        match &mut self.server {
            Some(server) => std::mem::replace(&mut **server, target.server).stop(),
            None => Ok(()),
        }
    }

    fn move_to(&mut self, target: &mut Target) -> Result<()> {
        let replies = self.next_connection()?;
        self.begin_migration(target, FAST)?;
        self.expect_migration("completed")?;
        target.monitor.event("RESUME")?;
        self.replies = Some(replies);
        Ok(())
    }

    /// Begins to move the guest, kills the machine and the server that it should go to, and sees that it stays.
    ///
    /// # Errors
    /// The guest does not stay, or nothing was on its way before the kill.
    pub(super) fn migrate_in_vain(&mut self) -> Result<()> {
        let mut target = self.target()?;
        let tried = self.lose(&mut target);
        kill(&mut target.child);
        tried?;
        drop(target);
        self.expect_migration("failed")?;
        let status = self.monitor.execute(r#"{"execute":"query-status"}"#)?;
        if status["running"] == true {
            return Ok(());
        }
        Err(Error::Vm {
            what: format!("after a migration that failed: {status}"),
        })
    }

    /// Gets the guest under way, up to the middle.
    fn lose(&mut self, target: &mut Target) -> Result<()> {
        drop(self.next_connection()?);
        self.begin_migration(target, SLOW)?;
        let end = Instant::now() + PATIENCE;
        loop {
            // There is no event for this.
            let state = self.monitor.execute(r#"{"execute":"query-migrate"}"#)?;
            if state["ram"]["transferred"].as_u64() >= Some(MIDWAY) && state["status"] == "active" {
                return Ok(());
            }
            if Instant::now() > end || state["status"] == "completed" {
                return Err(Error::Vm {
                    what: format!("a migration that was to be stopped midway: {state}"),
                });
            }
            sleep(Duration::from_millis(10));
        }
    }

    /// Starts a machine and a server that wait for the guest.
    fn target(&mut self) -> Result<Target> {
        self.moves += 1;
        let moves = self.moves;
        let socket = |name: &str| self.launch.paths.sockets.join(format!("{name}-{moves}"));
        let console = (self.launch.paths.console).with_extension(format!("{moves}.log"));
        let (disk, incoming) = (socket("disk"), socket("incoming"));
        let Some(server) = &self.server else {
            return Err(Error::Vm {
                what: "a move without a disk".to_owned(),
            });
        };
        let server = server.beside(
            &disk,
            &console.with_file_name(format!("server.{moves}.log")),
        )?;
        let (child, monitor) = self.launch.start(Paths {
            console: &console,
            disk: &disk,
            incoming: Some(&incoming),
            ..self.launch.paths
        })?;
        Ok(Target {
            server,
            child,
            monitor,
            console,
            incoming,
        })
    }

    fn begin_migration(&mut self, target: &Target, bandwidth: u64) -> Result<()> {
        let monitor = &mut self.monitor;
        monitor.execute(
            r#"{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"events","state":true}]}}"#,
        )?;
        monitor.execute(&format!(
            r#"{{"execute":"migrate-set-parameters","arguments":{{"max-bandwidth":{bandwidth},"downtime-limit":{DOWNTIME}}}}}"#
        ))?;
        monitor.execute(&format!(
            r#"{{"execute":"migrate","arguments":{{"uri":"unix:{}"}}}}"#,
            target.incoming.display()
        ))?;
        Ok(())
    }

    /// Waits for the end of a migration.
    fn expect_migration(&mut self, wanted: &str) -> Result<()> {
        loop {
            let status = self.monitor.event("MIGRATION")?["status"].take();
            match status.as_str() {
                Some(status) if status == wanted => return Ok(()),
                Some(status @ ("completed" | "failed" | "cancelled")) => {
                    let state = self.monitor.execute(r#"{"execute":"query-migrate"}"#)?;
                    return Err(Error::Vm {
                        what: format!("a migration {status}: {state}"),
                    });
                }
                _ => {}
            }
        }
    }
}

fn kill(child: &mut Child) {
    // It may have ended.
    let _ = child.kill();
    let _ = child.wait();
}
