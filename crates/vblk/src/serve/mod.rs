// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vblk serve`: one disk or several, each on a thread of its own. What happens to one does not end the others.

mod attach;
mod report;
mod vduse;
mod vhost_user;

use std::error::Error;
use std::io;
use std::num::NonZero;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use vhost_vdpa_frontend::SlowPath;
use virtio_blk_core::device::Device;
use virtio_blk_core::disk::Disk;
use virtio_blk_disks::stack::{Groups, Stack};

use crate::cli::{ServeArgs, ServeCommand};
use crate::describe;
use crate::layers::{self, LayerArgs, Served, Windows};
use crate::signals;
use crate::status::{StatusLine, Totals};

/// How often the disks' sizes are looked at and the status line drawn.
const TICK: Duration = Duration::from_secs(1);

/// Why a disk is not served, or not any longer.
type Failure = Box<dyn Error + Send + Sync>;

/// A disk that can be served.
struct Ready {
    served: Served,
    /// Says that drivers can come.
    announce: Box<dyn FnOnce() -> Result<(), Box<dyn Error>>>,
    /// Whether a driver uses the device.
    connected: Box<dyn Fn() -> bool + Send>,
    /// Makes `run` return; does not wait for that.
    stop: Box<dyn Fn() + Send>,
    run: Box<dyn FnOnce() -> Result<(), Failure> + Send>,
}

/// What all disks of a process share.
struct Common {
    json: bool,
    /// Options about layers: those of all disks together.
    layers: LayerArgs,
    groups: Groups,
}

impl Common {
    /// Opens a disk; if it is a vDPA device, this comes along.
    fn open(&self, serve: &ServeArgs) -> Result<(Arc<Stack>, Option<SlowPath>), Box<dyn Error>> {
        layers::open(&serve.disk, serve.read_only, &self.layers, &self.groups)
    }
}

/// One queue per CPU, as far as disk and transport have them.
fn usual_queues(disk: &dyn Disk, most: u16) -> u16 {
    let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
    u16::try_from(cpus)
        .unwrap_or(u16::MAX)
        .min(disk.caps().max_queues)
        .min(most)
}

/// Serves until a signal, or until nothing is left to serve.
///
/// # Errors
/// That of the only disk, or that some of them failed: each failure is reported when it happens.
pub fn run(commands: &[ServeCommand], json: bool) -> Result<(), Box<dyn Error>> {
    let common = Common {
        json,
        layers: LayerArgs::of_all(commands.iter().map(|command| &command.disk().layers))?,
        groups: Groups::default(),
    };
    let mut ready = Vec::new();
    for command in commands {
        let prepared = match command {
            ServeCommand::VhostUser(args) => vhost_user::prepare(args, &common),
            ServeCommand::Vduse(args) => vduse::prepare(args, &common),
        };
        match prepared {
            Ok(one) => ready.push(one),
            Err(error) if commands.len() == 1 => return Err(error),
            Err(error) => report(&command.disk().disk.to_string(), error.as_ref()),
        }
    }
    if ready.is_empty() {
        return Err("none of the disks can be served".into());
    }
    let served: Vec<Served> = ready.iter().map(|one| one.served.clone()).collect();
    let (mut announcements, mut stops) = (Vec::new(), Vec::new());
    let (mut connected, mut runs) = (Vec::new(), Vec::new());
    for one in ready {
        announcements.push(one.announce);
        stops.push(one.stop);
        connected.push(one.connected);
        runs.push((one.served.name, one.run));
    }
    // The thread outlives the disks, which have things to write when they are dropped.
    let disks: Vec<_> = served
        .iter()
        .map(|one| Arc::downgrade(one.device.disk()))
        .collect();
    signals::handle(
        move || stops.iter().for_each(|stop| stop()),
        move || {
            let disks = disks.iter().filter_map(Weak::upgrade);
            disks.for_each(|disk| refresh(disk.as_ref()));
        },
    )?;
    // Who reads that drivers can come may ask the control socket at once.
    let windows = Windows::open(&common.layers, served.clone(), json)?;
    for announce in announcements {
        announce()?;
    }
    let devices = served.into_iter().map(|one| one.device).collect();
    let ticker = Ticker::start(devices, json, move || connected.iter().any(|is| is()))?;
    let result = run_all(runs, commands.len());
    drop(ticker);
    drop(windows);
    result
}

fn report(name: &str, error: &dyn Error) {
    log::error!("{name}: {}", describe(error));
}

/// What serves a disk, by the disk's name.
type Run = (String, Box<dyn FnOnce() -> Result<(), Failure> + Send>);

/// Runs all, of `wanted` disks, to their ends.
fn run_all(runs: Vec<Run>, wanted: usize) -> Result<(), Box<dyn Error>> {
    let mut failed = wanted - runs.len();
    let mut last = None;
    let mut threads = Vec::new();
    for (name, run) in runs {
        let thread = std::thread::Builder::new().name("vblk-server".into());
        threads.push((
            name.clone(),
            thread.spawn(move || {
                let result = run();
                if let Err(error) = &result
                    && wanted > 1
                {
                    report(&name, error.as_ref());
                }
                result
            })?,
        ));
    }
    for (name, thread) in threads {
        match thread.join() {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => last = Some(error),
            Err(_) => last = Some(format!("{name}: its thread panicked").into()),
        }
        failed += 1;
    }
    match last {
        Some(error) if wanted == 1 => Err(error),
        _ if failed != 0 => Err(format!("{failed} of {wanted} disks failed").into()),
        _ => Ok(()),
    }
}

/// The thread that looks at the disks' sizes and draws the status line, until it is dropped.
struct Ticker {
    ended: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    /// `is_connected`: whether a driver uses a device.
    fn start(
        devices: Vec<Arc<Device>>,
        json: bool,
        is_connected: impl Fn() -> bool + Send + 'static,
    ) -> io::Result<Self> {
        let (ended, wait) = channel();
        let line = if json { None } else { StatusLine::new() };
        let thread = std::thread::Builder::new()
            .name("vblk-ticker".into())
            .spawn(move || tick(&wait, &devices, is_connected, line))?;
        Ok(Self {
            ended: Some(ended),
            thread: Some(thread),
        })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.ended = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn tick(
    ended: &Receiver<()>,
    devices: &[Arc<Device>],
    is_connected: impl Fn() -> bool,
    mut line: Option<StatusLine>,
) {
    while ended.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
        for device in devices {
            refresh(device.disk().as_ref());
        }
        if let Some(line) = &mut line {
            let all = devices.iter().map(|device| Totals::of(device));
            line.draw(is_connected(), all.sum());
        }
    }
}

fn refresh(disk: &dyn Disk) {
    if let Err(error) = disk.refresh() {
        log::warn!("the disk's size can't be read: {error}");
    }
}
