// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The built-in guest for other programs: on a vDPA device, which they can move between its paths.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use vdpa_bus::VdpaDevice;
use vhost_vdpa_frontend::PathSwitch;

use crate::builtin::Task;
use crate::bus::lock;
use crate::config::{Config, Payload};
use crate::disks::OpenDisk;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::machine::Machine;
use crate::memory::Memory;
use crate::vcpu;

/// A virtual machine of 32 MiB with one vCPU and the built-in guest, which writes, flushes, reads back and compares the
/// first 8 MiB of a vDPA device, with other data in each pass, until it is told to finish.
///
/// Dropping this ends it.
pub struct BuiltinGuest {
    machine: Machine,
    paths: Arc<PathSwitch<Memory>>,
    events: Receiver<Event>,
}

/// What a guest does.
#[derive(Debug)]
pub enum GuestEvent {
    /// It printed this line. The first is `guest: up`.
    Line(String),
    /// It ended itself with this status: 0 if it found all that it had written.
    Ended(u8),
    /// It can't continue: it is not the guest that failed, but KVM or this VMM.
    Failed(Error),
}

impl BuiltinGuest {
    /// Starts it, with its disk on the fast path.
    ///
    /// # Errors
    /// [`Error::NoKvm`] where `/dev/kvm` can't be opened. [`Error::Kvm`] where KVM refuses what a machine is made of.
    /// Also where neither is returned KVM may be unable to run a guest: until [`GuestEvent::Line`] comes, none runs.
    pub fn start(device: Arc<dyn VdpaDevice>) -> Result<Self> {
        vcpu::register_handler()?;
        let config = Config {
            memory: 32 << 20,
            cpus: 1,
            payload: Payload::Builtin(Task::Repeat),
        };
        let (sender, events) = channel();
        let console = Box::new(Lines {
            line: Vec::new(),
            events: sender.clone(),
        });
        let mut machine = Machine::new(&config, &[OpenDisk::over(device)], console, &sender, None)?;
        let paths = machine.vdpa(0, |disk| Ok(disk.switch.clone()))?;
        machine.resume();
        Ok(Self {
            machine,
            paths,
            events,
        })
    }

    /// The paths of its disk, which is on the slow one while there is an interception (`SwitchPolicy::Auto`).
    pub fn paths(&self) -> &PathSwitch<Memory> {
        &self.paths
    }

    /// What it does next; `None` if it does nothing for `patience`.
    pub fn next_event(&self, patience: Duration) -> Option<GuestEvent> {
        Some(match self.events.recv_timeout(patience) {
            Ok(Event::Line(line)) => GuestEvent::Line(line),
            Ok(Event::PowerOff(status)) => GuestEvent::Ended(status),
            Ok(Event::Failed(error)) => GuestEvent::Failed(error),
            Err(RecvTimeoutError::Timeout) => return None,
            other => GuestEvent::Failed(Error::Control(format!("the guest is gone: {other:?}"))),
        })
    }

    /// Has it end after the pass that it is in.
    pub fn finish(&self) {
        lock(self.machine.console()).input(b"q");
    }
}

/// A console whose lines are events.
struct Lines {
    line: Vec<u8>,
    events: Sender<Event>,
}

/// A longer line comes in parts.
const LINE_MAX: usize = 4096;

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            if *byte != b'\n' {
                self.line.push(*byte);
            }
            if *byte == b'\n' || self.line.len() == LINE_MAX {
                let line = String::from_utf8_lossy(&self.line).into_owned();
                self.line.clear();
                // The machine's owner may be gone before it.
                let _ = self.events.send(Event::Line(line));
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
