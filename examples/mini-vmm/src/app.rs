// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command line, and the life of a machine from power-on to power-off.

use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use clap::Parser;
use vmm_sys_util::terminal::Terminal;

use crate::boot::Linux;
use crate::bus::lock;
use crate::disks::OpenDisk;
use crate::error::Result;
use crate::legacy::{self, Console};
use crate::machine::{Config, Event, Machine, Payload, Transport};
use crate::vcpu;

/// A small VMM. Without a kernel it runs a guest of its own that tries its disk out.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Kernel to boot: a bzImage or an ELF file
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial file system for the kernel
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initramfs: Option<PathBuf>,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT", default_value = "console=ttyS0 panic=-1")]
    cmdline: String,
    /// A disk: raw:PATH, memory:SIZE, null:SIZE, each with options after commas; may be repeated
    #[arg(long, value_name = "DISK", default_value = "memory:64M")]
    disk: Vec<String>,
    /// How disks are attached
    #[arg(long, value_enum)]
    transport: Option<Transport>,
    /// Request queues of each disk
    #[arg(long, value_name = "N")]
    queues: Option<u16>,
    /// vCPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u8,
    /// Memory in MiB
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    memory: u64,
    /// End when the guest reboots
    #[arg(long)]
    no_reboot: bool,
    /// The built-in guest attacks the VMM, with this seed, instead of using the disk
    #[arg(long, value_name = "SEED", conflicts_with = "kernel")]
    hostile: Option<u64>,
}

pub fn main() -> ExitCode {
    let args = Args::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    match run(&args) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("mini-vmm: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<u8> {
    let queues = args.queues.unwrap_or(args.cpus.into());
    let names = args.disk.iter().enumerate();
    let mut disks = names
        .map(|(index, name)| OpenDisk::open(name, index, queues))
        .collect::<Result<Vec<_>>>()?;
    let config = config(args, &mut disks)?;
    vcpu::register_handler()?;
    let (events, receiver) = channel();
    let _terminal = RawTerminal::new();
    let mut input = None;
    loop {
        let start = Instant::now();
        let machine = Machine::new(&config, &disks, &events)?;
        match &input {
            None => input = Some(read_terminal(machine.console().clone(), &events)),
            Some(console) => *lock(console) = machine.console().clone(),
        }
        machine.resume();
        log::info!("machine built in {:?}", start.elapsed());
        let event = receiver.recv();
        drop(machine);
        // What the other vCPUs said meanwhile belongs to the past.
        receiver.try_iter().for_each(drop);
        match event {
            Ok(Event::Reset) if !args.no_reboot => log::info!("the guest reboots"),
            Ok(Event::Reset) | Err(_) => return Ok(0),
            Ok(Event::PowerOff(status)) => {
                log::info!("off after {:?}", start.elapsed());
                return Ok(status);
            }
            Ok(Event::Failed(error)) => return Err(error),
        }
    }
}

fn config(args: &Args, disks: &mut Vec<OpenDisk>) -> Result<Config> {
    let payload = match &args.kernel {
        Some(kernel) => Payload::Linux(Linux {
            kernel: kernel.clone(),
            initramfs: args.initramfs.clone(),
            command_line: args.cmdline.clone(),
        }),
        None => Payload::Builtin(args.hostile),
    };
    // The built-in guest drives MMIO. One that attacks gets a device on PCI too.
    let usual = match payload {
        Payload::Linux(_) => Transport::Pci,
        Payload::Builtin(_) => Transport::Mmio,
    };
    let mut transports = vec![args.transport.unwrap_or(usual); disks.len()];
    if args.hostile.is_some() {
        disks.push(OpenDisk::open("memory:16M", disks.len(), 2)?);
        transports.push(Transport::Pci);
    }
    Ok(Config {
        memory: args.memory << 20,
        cpus: args.cpus.max(1),
        transports,
        payload,
    })
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
            let _ = stdin.as_raw_fd();
        }
    }
}
