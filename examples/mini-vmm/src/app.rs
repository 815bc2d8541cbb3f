// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command line, and the life of a machine from power-on to power-off.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use clap::{Parser, value_parser};
use serde_json::{Value, json};
use virtio_blk_disks::stack::LayerArg;
use vmm_sys_util::terminal::Terminal;

use crate::boot::Linux;
use crate::builtin::Task;
use crate::bus::lock;
use crate::config::{Config, Payload, Transport};
use crate::control;
use crate::disks::OpenDisk;
use crate::error::{Error, Result};
use crate::event::{Command, Event, Way};
use crate::legacy::{self, Console};
use crate::machine::Machine;
use crate::snapshot::{SavedDisk, Snapshot};
use crate::vcpu;

/// A small VMM. Without a kernel it runs a guest of its own that tries its disk out.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    /// Kernel to boot: a bzImage or an ELF file
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial file system for the kernel
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initramfs: Option<PathBuf>,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT", default_value = "console=ttyS0 panic=-1")]
    cmdline: String,
    /// A disk: raw:PATH, memory:SIZE, null:SIZE (options after commas); a vDPA device with
    /// its path: sim:SIZE, vdpa:/dev/vhost-vdpa-N, with ,path=fast, slow or auto; layers last; may be repeated
    #[arg(long, value_name = "DISK", default_value = "sim:64M")]
    disk: Vec<String>,
    /// How disks are attached
    #[arg(long, value_enum)]
    transport: Option<Transport>,
    /// Request queues of each disk: one per vCPU, or as many as in the snapshot, unless told otherwise
    #[arg(long, value_name = "N")]
    queues: Option<u16>,
    /// vCPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u8).range(1..=64))]
    cpus: u8,
    /// Memory in MiB
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = value_parser!(u64).range(32..=1 << 20))]
    memory: u64,
    /// Listen here for `mini-vmm ctl`
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,
    /// Continue from a snapshot; give the same disks, as they were then
    #[arg(long, value_name = "DIRECTORY", conflicts_with_all = ["kernel", "hostile"])]
    restore: Option<PathBuf>,
    /// End when the guest reboots
    #[arg(long)]
    no_reboot: bool,
    /// The built-in guest attacks the VMM, with this seed, instead of using the disk
    #[arg(long, value_name = "SEED", conflicts_with = "kernel")]
    hostile: Option<u64>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Ask something of a running mini-vmm
    Ctl {
        /// Its --control
        #[arg(long, value_name = "SOCKET")]
        control: PathBuf,
        #[command(subcommand)]
        command: Command,
    },
}

/// Runs the program `mini-vmm` with the arguments of this process.
pub fn main() -> ExitCode {
    let args = Args::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let result = match &args.action {
        Some(Action::Ctl { control, command }) => control::ask(control, command).map(|answer| {
            println!("{answer:#}");
            0
        }),
        None => run(&args),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("mini-vmm: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<u8> {
    let mut snapshot = match &args.restore {
        Some(directory) => Some(Snapshot::read(directory)?),
        None => None,
    };
    let config = match &snapshot {
        Some(snapshot) => snapshot.config.clone(),
        None => config(args),
    };
    let mut disks = disks(args, &config.payload, snapshot.as_ref())?;
    vcpu::register_handler()?;
    let (events, receiver) = channel();
    let _terminal = RawTerminal::new();
    let _control = match &args.control {
        Some(path) => Some(control::serve(path, &events)?),
        None => None,
    };
    let mut input = None;
    loop {
        let start = Instant::now();
        // Only the first machine continues from there: after that the guest has rebooted.
        let from = snapshot.take();
        let from = from.as_ref().zip(args.restore.as_deref());
        let console = Box::new(io::stdout());
        let mut machine = Machine::new(&config, &disks, console, &events, from)?;
        match &input {
            None => input = Some(read_terminal(machine.console().clone(), &events)),
            Some(console) => *lock(console) = machine.console().clone(),
        }
        machine.resume();
        log::info!("machine built in {:?}", start.elapsed());
        let event = loop {
            match receiver.recv() {
                Ok(Event::Control(request)) => {
                    let done = execute(&request.command, &mut machine, &mut disks, &events);
                    // The client may be gone.
                    let _ = request.reply.send(done.map_err(|error| error.to_string()));
                }
                other => break other,
            }
        };
        log::info!("the machine ends: {event:?}");
        drop(machine);
        // What the other vCPUs said meanwhile belongs to the past.
        receiver.try_iter().for_each(drop);
        match event {
            Ok(Event::Reset) if !args.no_reboot => {
                log::info!("the guest reboots after {:?}", start.elapsed())
            }
            Ok(Event::PowerOff(status)) => {
                log::info!("off after {:?}", start.elapsed());
                return Ok(status);
            }
            Ok(Event::Failed(error)) => return Err(error),
            Ok(Event::Reset | Event::Control(_) | Event::Line(_)) | Err(_) => return Ok(0),
        }
    }
}

/// Does what was asked through the control socket.
fn execute(
    command: &Command,
    machine: &mut Machine,
    disks: &mut Vec<OpenDisk>,
    events: &Sender<Event>,
) -> Result<Value> {
    match command {
        Command::Stats => return Ok(machine.stats()),
        Command::Pause => machine.pause()?,
        Command::Resume => machine.resume(),
        Command::Snapshot { directory } => machine.snapshot(directory)?,
        Command::Switch { path, disk } => {
            return machine.vdpa(*disk, |vdpa| vdpa.send(*path == Way::Slow));
        }
        Command::Layers { layers, disk } => {
            let layers: std::result::Result<Vec<LayerArg>, _> =
                layers.iter().map(|layer| layer.parse()).collect();
            let layers = layers.map_err(|error| Error::Control(error.to_string()))?;
            return machine.vdpa(*disk, |vdpa| vdpa.set_layers(&layers));
        }
        Command::PowerOff => drop(events.send(Event::PowerOff(0))),
        Command::Resize { disk, mib } => {
            let disk = disks.iter().find(|open| open.number == *disk);
            let disk = disk.ok_or_else(|| Error::Control("no such disk".to_owned()))?;
            let bytes = mib.checked_mul(1 << 20);
            disk.resize(bytes.ok_or_else(|| disk.error(&"too large"))?)?;
        }
        Command::AddDisk { name } => {
            let last = disks.iter().map(|disk| disk.number).max();
            let (number, queues) = (last.map_or(0, |last| last + 1), 1);
            let disk = OpenDisk::open(number, name, queues, Transport::Pci)?;
            machine.add_disk(&disk)?;
            disks.push(disk);
            return Ok(json!({ "disk": number }));
        }
        Command::RemoveDisk { disk } => {
            machine.remove_disk(*disk)?;
            disks.retain(|open| open.number != *disk);
        }
    }
    Ok(Value::Null)
}

fn config(args: &Args) -> Config {
    let payload = match &args.kernel {
        Some(kernel) => Payload::Linux(Linux {
            kernel: kernel.clone(),
            initramfs: args.initramfs.clone(),
            command_line: args.cmdline.clone(),
        }),
        None => Payload::Builtin(args.hostile.map_or(Task::Verify, Task::Attack)),
    };
    Config {
        memory: args.memory << 20,
        cpus: args.cpus,
        payload,
    }
}

/// Opens the disks of the command line, to be where a snapshot had them.
fn disks(args: &Args, payload: &Payload, from: Option<&Snapshot>) -> Result<Vec<OpenDisk>> {
    // The built-in guest drives MMIO.
    let usual = match payload {
        Payload::Linux(_) => Transport::Pci,
        Payload::Builtin(_) => Transport::Mmio,
    };
    let transport = args.transport.unwrap_or(usual);
    let saved: Vec<_> = from.map_or_else(Vec::new, |from| from.disks.iter().collect());
    let mut disks = Vec::new();
    for (index, name) in args.disk.iter().enumerate() {
        let saved = saved.get(index);
        let usual = saved.and_then(|(_, saved)| saved.queues().try_into().ok());
        let queues = args.queues.or(usual).unwrap_or(args.cpus.into());
        let mut disk = OpenDisk::open(index, name, queues, transport)?;
        if let Some((number, saved)) = saved {
            disk.number = **number;
            (disk.transport, disk.slot) = match saved {
                SavedDisk::Pci { slot, .. } => (Transport::Pci, Some(*slot)),
                SavedDisk::Mmio(_) => (Transport::Mmio, None),
            };
        }
        disks.push(disk);
    }
    // A guest that attacks gets a device on PCI too.
    if args.hostile.is_some() {
        disks.push(OpenDisk::open(
            disks.len(),
            "memory:16M",
            2,
            Transport::Pci,
        )?);
    }
    Ok(disks)
}

/// The console of the machine that runs now.
type Current = Arc<Mutex<Arc<Mutex<Console>>>>;

fn read_terminal(console: Arc<Mutex<Console>>, events: &Sender<Event>) -> Current {
    let current = Arc::new(Mutex::new(console));
    let (to, events) = (current.clone(), events.clone());
    std::thread::spawn(move || legacy::read_terminal(&to, &mut io::stdin().lock(), &events));
    current
}

/// The terminal passes everything on to the guest while this exists.
struct RawTerminal(Option<io::Stdin>);

impl RawTerminal {
    fn new() -> Self {
        let stdin = io::stdin();
        let terminal = rustix::termios::isatty(&stdin) && stdin.lock().set_raw_mode().is_ok();
        Self(terminal.then_some(stdin))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(stdin) = &self.0 {
            // There is nothing to be done about it.
            let _ = stdin.lock().set_canon_mode();
        }
    }
}
