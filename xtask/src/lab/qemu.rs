// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The emulator's command line, and its control connection.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::emulator::Emulator;
use super::error::{Context, Error, Result};
use super::script::Machine;

/// The files and sockets of one machine.
#[derive(Clone, Copy)]
pub struct Paths<'a> {
    /// The kernel image.
    pub kernel: &'a Path,
    /// The initramfs.
    pub initramfs: &'a Path,
    /// Where the kernel's console goes.
    pub console: &'a Path,
    /// The directory of the sockets on which we listen: `log`, `host`, `qmp`.
    pub sockets: &'a Path,
    /// The socket of the disk's server.
    pub disk: &'a Path,
    /// The image of the PCI function's disk.
    pub function: &'a Path,
    /// The socket on which it waits for a guest that moves in, instead of booting one.
    pub incoming: Option<&'a Path>,
}

/// The name of the PCI function, and of its disk.
pub const FUNCTION: &str = "function";

/// What drives the guest's clock.
#[derive(Clone, Copy, Debug)]
pub enum Clock<'a> {
    /// The host's, under this accelerator.
    Host(&'a str),
    /// The instructions that the guest executes, a nanosecond each; a guest that waits skips the time.
    Instructions,
}

/// The command line of the machine.
pub fn command(
    emulator: &Emulator,
    machine: &Machine,
    clock: Clock<'_>,
    paths: &Paths<'_>,
) -> Command {
    let mut append =
        "console=ttyS0 quiet panic=-1 reboot=t tsc=reliable no_timer_check mitigations=off"
            .to_owned();
    if machine.disk.as_ref().is_some_and(|disk| disk.root) {
        append.push_str(" lab.root=/dev/vda1");
    }
    if machine.function.is_some() {
        append.push_str(" intel_iommu=on");
    }
    let memory = format!("{}M", machine.memory);
    let socket = |name: &str| paths.sockets.join(name).display().to_string();
    let accelerator = match clock {
        Clock::Host(accelerator) => accelerator,
        // Instructions of CPUs that run at the same time have no order.
        Clock::Instructions => "tcg,thread=single",
    };
    let board = match machine.function {
        // As interrupts are remapped.
        Some(_) => "q35,memory-backend=mem,kernel-irqchip=split",
        None => "q35,memory-backend=mem",
    };
    let mut command = emulator.command();
    if machine.function.is_some() {
        // In front of the devices that it is for.
        command.args(["-device", "intel-iommu,intremap=on,device-iotlb=on"]);
    }
    if let Clock::Instructions = clock {
        command.args(["-icount", "shift=0,sleep=off"]);
    }
    command
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args(["-accel", accelerator])
        .args([
            "-cpu",
            if accelerator.starts_with("tcg") {
                "max,+svm,-erms,-fsrm"
            } else {
                "host"
            },
        ])
        .args(["-smp", &machine.cpus.to_string(), "-m", &memory])
        // vhost-user maps the guest's memory, so it must be shared and have a file descriptor.
        .args([
            "-object",
            &format!("memory-backend-memfd,id=mem,size={memory},share=on"),
        ])
        .args(["-M", board])
        .arg("-kernel")
        .arg(paths.kernel)
        .arg("-initrd")
        .arg(paths.initramfs)
        .args(["-append", &append])
        .args(["-serial", &format!("file:{}", paths.console.display())])
        .args(["-chardev", &format!("socket,id=qmp,path={}", socket("qmp"))])
        .args(["-mon", "chardev=qmp,mode=control"])
        // Without MSI-X, where QEMU has a bug (QEMU_BUG in vm.rs).
        .args(["-device", "virtio-serial-pci,vectors=0"]);
    for port in ["log", "host"] {
        command
            .args([
                "-chardev",
                &format!("socket,id={port},path={}", socket(port)),
            ])
            .args([
                "-device",
                &format!("virtserialport,chardev={port},name=lab.{port}"),
            ]);
    }
    if let Some(disk) = &machine.disk {
        command
            .args([
                "-chardev",
                &format!(
                    "socket,id=disk,path={},reconnect-ms=100",
                    paths.disk.display()
                ),
            ])
            .args([
                "-device",
                &format!("vhost-user-blk-pci,chardev=disk,num-queues={}", disk.queues),
            ]);
    }
    if machine.function.is_some() {
        let image = paths.function.display();
        command
            .args([
                "-blockdev",
                &format!("raw,node-name={FUNCTION},file.driver=file,file.filename={image}"),
            ])
            // Behind a port it can be unplugged.
            .args(["-device", "pcie-root-port,id=root1,chassis=1"])
            .args([
                "-device",
                &format!(
                    "virtio-blk-pci,id={FUNCTION},bus=root1,drive={FUNCTION},serial=function,num-queues=2,\
                     disable-legacy=on,iommu_platform=on,ats=on,page-per-vq=on"
                ),
            ]);
    }
    if let Some(socket) = paths.incoming {
        command.args(["-incoming", &format!("unix:{}", socket.display())]);
    }
    command
}

/// How long QEMU may take to answer, and a guest to move.
const PATIENCE: Duration = Duration::from_secs(60);

/// QEMU's control connection.
pub struct Monitor {
    stream: BufReader<UnixStream>,
    /// Messages that came before an answer.
    events: VecDeque<Value>,
}

impl Monitor {
    /// Takes QEMU's call on `listener` and greets it.
    ///
    /// # Errors
    /// QEMU doesn't speak its protocol within ten seconds.
    pub fn accept(listener: &UnixListener, path: &Path) -> Result<Self> {
        let (stream, _) = listener.accept().on("accept on", path)?;
        stream.set_nonblocking(false).on("set up", path)?;
        stream.set_read_timeout(Some(PATIENCE)).on("set up", path)?;
        let mut monitor = Self {
            stream: BufReader::new(stream),
            events: VecDeque::new(),
        };
        monitor.execute("{\"execute\":\"qmp_capabilities\"}")?;
        Ok(monitor)
    }

    /// Decides what a reboot of the guest is: an expected one resets the machine, any other (a kernel
    /// panic) ends QEMU.
    ///
    /// # Errors
    /// QEMU refuses or is gone.
    pub fn allow_reboot(&mut self, allow: bool) -> Result<()> {
        let action = if allow { "reset" } else { "shutdown" };
        self.execute(&format!(
            "{{\"execute\":\"set-action\",\"arguments\":{{\"reboot\":\"{action}\"}}}}"
        ))?;
        Ok(())
    }

    /// Executes a command and returns what it returns.
    ///
    /// # Errors
    /// QEMU refuses or is gone.
    pub fn execute(&mut self, command: &str) -> Result<Value> {
        let failed = |what: String| Error::Vm {
            what: format!("QEMU's monitor, asked {command}: {what}"),
        };
        writeln!(self.stream.get_mut(), "{command}").map_err(|e| failed(e.to_string()))?;
        loop {
            let mut message = self.message().map_err(&failed)?;
            // The greeting and events come in between.
            if let Some(value) = message.get_mut("return") {
                return Ok(value.take());
            }
            if message.get("error").is_some() {
                return Err(failed(message.to_string()));
            }
            self.events.push_back(message);
        }
    }

    /// Waits for the next event of this name, and returns its data. Earlier ones of other names are dropped.
    ///
    /// # Errors
    /// It does not come within [`PATIENCE`], or QEMU is gone.
    pub fn event(&mut self, name: &str) -> Result<Value> {
        loop {
            let mut message = match self.events.pop_front() {
                Some(message) => message,
                None => self.message().map_err(|what| Error::Vm {
                    what: format!("QEMU's monitor, waiting for {name}: {what}"),
                })?,
            };
            if message["event"] == name {
                return Ok(message["data"].take());
            }
        }
    }

    fn message(&mut self) -> std::result::Result<Value, String> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => Err("it is gone".to_owned()),
            Ok(_) => serde_json::from_str(&line).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }
}
