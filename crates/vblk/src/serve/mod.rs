// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vblk serve`: one disk or several, each on a thread of its own. What happens to one does not end the others.

mod attach;
mod deadline;
mod listening;
mod nbd;
mod stopping;
#[cfg(test)]
mod tests;
mod vduse;
mod vhost_user;

use std::collections::HashSet;
use std::error::Error;
use std::io;
use std::num::NonZero;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use vduse_backend::Linux;
use vduse_backend::kernel::Kernel;
use vhost_vdpa_frontend::SlowPath;
use virtio_blk_core::disk::Disk;
use virtio_blk_disks::stack::{Groups, Stack};

use crate::cli::{ServeArgs, ServeCommand};
use crate::descriptors::Budget;
use crate::layers::{self, AdminServers, ExportedDisk, LayerArgs};
use crate::report::describe;
use crate::signals;
use crate::status::StatusLine;
use deadline::Unended;
use stopping::{Stop, Stopping};

/// How often the disks' sizes are looked at and the status line drawn.
const TICK: Duration = Duration::from_secs(1);

/// Why a disk is not served, or not any longer.
type Failure = Box<dyn Error + Send + Sync>;

/// A disk that can be served.
struct Ready {
    served: ExportedDisk,
    /// Says that drivers can come.
    announce: Box<dyn FnOnce()>,
    /// Whether a driver uses the device.
    connected: Box<dyn Fn() -> bool + Send>,
    /// Makes `run` return; does not wait for that.
    stop: Stop,
    run: Box<dyn FnOnce() -> Result<(), Failure> + Send>,
}

/// Longer than anybody waits.
const LONG: Duration = Duration::from_secs(3600);

/// What all disks of a process share.
struct Common {
    /// What makes VDUSE devices.
    kernel: Arc<dyn Kernel>,
    json: bool,
    /// Options about layers: those of all disks together.
    layers: LayerArgs,
    groups: Groups,
    descriptors: Budget,
    /// Sockets with several exports.
    nbd: nbd::Servers,
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
/// That of the only disk, or that some of them failed: each failure is reported when it happens. What was made by then
/// (sockets, VDUSE devices) is gone again.
pub fn run(commands: &[ServeCommand], json: bool) -> Result<(), Box<dyn Error>> {
    run_on(Arc::new(Linux), commands, json)
}

fn run_on(
    kernel: Arc<dyn Kernel>,
    commands: &[ServeCommand],
    json: bool,
) -> Result<(), Box<dyn Error>> {
    let common = Common {
        kernel,
        json,
        layers: LayerArgs::of_all(commands.iter().map(|command| &command.disk().layers))?,
        groups: Groups::default(),
        descriptors: Budget::new(),
        nbd: nbd::Servers::default(),
    };
    find_double(commands, &common.layers)?;
    let unended = Unended::new(commands.iter().map(ServeCommand::name));
    let patience = commands.iter().map(patience).max().unwrap_or_default();
    let limit = common.layers.stop_timeout() + patience;
    let stopping = Stopping::default();
    let (late, begun) = (unended.clone(), stopping.clone());
    let (asks, asked) = channel();
    let refresh = asks.clone();
    // Before there is anything that a signal would leave behind.
    signals::handle(
        move || {
            late.end_after(limit);
            begun.begin();
        },
        move || {
            // Towards the end nobody looks any more.
            let _ = refresh.send(Tick::Refresh);
        },
    )?;
    let ready = prepare_all(commands, &common, &unended)?;
    let served: Vec<ExportedDisk> = ready.iter().map(|one| one.served.clone()).collect();
    let (mut announcements, mut stops) = (Vec::new(), Vec::new());
    let (mut connected, mut runs) = (Vec::new(), Vec::new());
    for one in ready {
        announcements.push(one.announce);
        let export = one.served.nbd.clone();
        stops.push(Box::new(move || {
            export.begin_end();
            (one.stop)();
        }) as Stop);
        connected.push(one.connected);
        runs.push((one.served.name, one.run));
    }
    // Who reads that drivers can come may ask the control socket at once.
    let windows = AdminServers::open(&common.layers, served.clone(), json)?;
    if !stopping.arm(stops) {
        return Ok(());
    }
    for announce in announcements {
        announce();
    }
    let watched = served.clone();
    let journals: Vec<_> = served.iter().map(|one| one.journal.clone()).collect();
    let is_connected = move || connected.iter().any(|is| is());
    let ticker = Ticker::start(watched, json, is_connected, (asks, asked))?;
    let result = run_all(runs, commands.len());
    served.iter().for_each(|one| one.nbd.end());
    drop(ticker);
    journals.iter().for_each(|journal| journal.tell(true));
    drop(windows);
    for one in served {
        let name = one.name.clone();
        // A format writes its last now.
        drop(one);
        unended.ended(&name);
    }
    result
}

/// How long it takes at most until a stop asks the disk to end.
fn patience(command: &ServeCommand) -> Duration {
    match command {
        ServeCommand::Vduse(args) if args.attach.is_some() => attach::DETACH,
        ServeCommand::Vduse(_) | ServeCommand::VhostUser(_) | ServeCommand::Nbd(_) => {
            Duration::ZERO
        }
    }
}

/// Opens the disks, and sockets and devices for them. One that fails is none of `unended`.
///
/// # Errors
/// That of the only disk, or that all of them failed.
fn prepare_all(
    commands: &[ServeCommand],
    common: &Common,
    unended: &Unended,
) -> Result<Vec<Ready>, Box<dyn Error>> {
    let mut ready = Vec::new();
    let mut opened: Vec<&ServeArgs> = Vec::new();
    for command in commands {
        let prepared = match command {
            ServeCommand::VhostUser(args) => vhost_user::prepare(args, common),
            ServeCommand::Vduse(args) => vduse::prepare(args, common),
            ServeCommand::Nbd(args) => nbd::prepare(args, common),
        };
        let prepared = prepared.map_err(|error| explain(error, command.disk(), &opened));
        match prepared {
            Ok(one) => {
                opened.push(command.disk());
                ready.push(one);
            }
            Err(error) if commands.len() == 1 => return Err(error),
            Err(error) => {
                complain(&command.disk().disk.to_string(), error.as_ref());
                unended.ended(&command.name());
            }
        }
    }
    if ready.is_empty() {
        return Err("none of the disks can be served".into());
    }
    Ok(ready)
}

/// Finds what two disks have, or a disk and `--control`, and only one can.
fn find_double(commands: &[ServeCommand], layers: &LayerArgs) -> Result<(), String> {
    let places = commands.iter().map(|command| match command {
        ServeCommand::VhostUser(args) => format!("--socket {}", args.socket),
        ServeCommand::Vduse(args) => format!("--name {}", args.name),
        ServeCommand::Nbd(args) if args.export.is_empty() => {
            format!("an --export without a name on {}", args.place())
        }
        // Also on two sockets: by it `ctl`, `top` and metrics know the disk.
        ServeCommand::Nbd(args) => format!("--export {}", args.export),
    });
    let mut seen = HashSet::new();
    for place in places {
        if let Some(control) = &layers.control
            && place == format!("--socket {}", control.display())
        {
            return Err(format!(
                "{place} is also the --control socket: give each its own path"
            ));
        }
        if let Some(place) = seen.replace(place) {
            return Err(format!("{place} is there for two disks: give each its own"));
        }
    }
    Ok(())
}

/// Device and number of the file that a disk is on.
fn file_of(disk: &ServeArgs) -> Option<(u64, u64)> {
    let meta = std::fs::metadata(disk.disk.disk.file()?).ok()?;
    Some((meta.dev(), meta.ino()))
}

/// A disk that could not be opened because this process has it already, `opened`, says so.
fn explain(error: Box<dyn Error>, disk: &ServeArgs, opened: &[&ServeArgs]) -> Box<dyn Error> {
    let file = file_of(disk);
    let other = opened
        .iter()
        .find(|other| file.is_some() && file_of(other) == file);
    match other {
        Some(other) if describe(error.as_ref()).contains(" is locked") => format!(
            "{} is the same file as {}, which this process serves already: serve an image once, or read-only each time",
            disk.disk.disk, other.disk.disk
        )
        .into(),
        _ => error,
    }
}

fn complain(name: &str, error: &dyn Error) {
    log::error!("{name}: {}", describe(error));
}

/// What serves a disk, by the disk's name.
type Run = (String, Box<dyn FnOnce() -> Result<(), Failure> + Send>);

/// Runs all, of `wanted` disks, to their ends.
fn run_all(runs: Vec<Run>, wanted: usize) -> Result<(), Box<dyn Error>> {
    let mut failed = wanted - runs.len();
    let mut last = None;
    let mut threads = Vec::new();
    let told = move |name: &str, result: Result<(), Failure>| {
        if let Err(error) = &result
            && wanted > 1
        {
            complain(name, error.as_ref());
        }
        result
    };
    for (name, run) in runs {
        let thread = std::thread::Builder::new().name("vblk-server".into());
        let of = name.clone();
        match thread.spawn(move || told(&of, run())) {
            Ok(thread) => threads.push((name, thread)),
            // The others are served all the same.
            Err(error) => {
                failed += 1;
                last = told(&name, Err(error.into())).err();
            }
        }
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

/// What the ticker is asked for.
enum Tick {
    /// Look at the disks now.
    Refresh,
    End,
}

/// The thread that looks at the disks' sizes, tells of their errors, and draws the status line, until it is dropped.
struct Ticker {
    asks: Sender<Tick>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    /// `is_connected`: whether a driver uses a device. `asked`, of whom `asks` is the other end, is listened to.
    fn start(
        watched: Vec<ExportedDisk>,
        json: bool,
        is_connected: impl Fn() -> bool + Send + 'static,
        (asks, asked): (Sender<Tick>, Receiver<Tick>),
    ) -> io::Result<Self> {
        let line = if json { None } else { StatusLine::new() };
        let thread = std::thread::Builder::new()
            .name("vblk-ticker".into())
            .spawn(move || tick(&asked, &watched, is_connected, line))?;
        Ok(Self {
            asks,
            thread: Some(thread),
        })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        // It has ended, if it does not listen.
        let _ = self.asks.send(Tick::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn tick(
    asked: &Receiver<Tick>,
    watched: &[ExportedDisk],
    is_connected: impl Fn() -> bool,
    mut line: Option<StatusLine>,
) {
    loop {
        let asked = asked.recv_timeout(TICK);
        if !matches!(asked, Ok(Tick::Refresh) | Err(RecvTimeoutError::Timeout)) {
            return;
        }
        for one in watched {
            one.journal.tell(false);
            if let Err(error) = one.disk.refresh() {
                one.journal.note_size(&error);
            }
        }
        if let (Some(line), Err(_)) = (&mut line, asked) {
            let all = watched.iter().map(|one| (one.totals)());
            line.draw(is_connected(), all.sum());
        }
    }
}
