// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtual CPU and its thread.

use std::cell::Cell;
use std::os::raw::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_bindings::kvm_run;
use kvm_ioctls::{VcpuExit, VcpuFd};
use vhost_vdpa_frontend::Vmm;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::bus::{Bus, lock};
use crate::cpu::{self, CpuState};
use crate::error::{Context, Error, Result};
use crate::event::Event;

/// What a vCPU's thread can be told.
enum Command {
    /// Leave the guest and wait for more commands; acknowledged.
    Pause(Sender<()>),
    Resume,
    /// Only while paused.
    Save(Sender<Result<CpuState>>),
}

/// A vCPU's thread. Dropping this ends it.
pub struct Vcpu {
    /// `None` only while it is dropped.
    commands: Option<Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

/// The buses of a machine.
#[derive(Clone, Default)]
pub struct Buses {
    pub ports: Arc<Bus>,
    pub memory: Arc<Bus>,
}

thread_local! {
    /// This thread's share with KVM, for the signal handler.
    static RUN: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
}

/// Makes the present or the next KVM_RUN of this thread return.
extern "C" fn leave_guest(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    let run = RUN.get();
    if !run.is_null() {
        // SAFETY: set by this thread to its vCPU's mapping, cleared before that goes. The kernel reads the
        // byte at the start of KVM_RUN.
        unsafe { (&raw mut (*run).immediate_exit).write_volatile(1) };
    }
}

/// Prepares the process for [`Vcpu`]s.
pub fn register_handler() -> Result<()> {
    register_signal_handler(SIGRTMIN(), leave_guest)
        .map_err(|error| Error::Control(format!("no signal for the vCPUs: {error}")))
}

impl Vcpu {
    /// Starts the thread; it waits for [`Vcpu::resume`].
    pub fn spawn(fd: VcpuFd, index: u8, buses: Buses, events: Sender<Event>) -> Result<Self> {
        let (commands, receiver) = channel();
        let runner = Runner {
            fd,
            index,
            buses,
            events,
        };
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{index}"))
            .spawn(move || runner.work(&receiver))
            .context("no thread for a vCPU")?;
        Ok(Self {
            commands: Some(commands),
            thread: Some(thread),
        })
    }

    fn tell(&self, command: Command) {
        // A thread that is gone has said why in an event.
        if let Some(commands) = &self.commands {
            let _ = commands.send(command);
        }
        self.kick();
    }

    fn kick(&self) {
        if let Some(thread) = &self.thread {
            let _ = thread.kill(SIGRTMIN());
        }
    }

    /// Lets the guest run.
    pub fn resume(&self) {
        self.tell(Command::Resume);
    }

    /// Asks it out of the guest; `recv` on the answer waits until it is.
    pub fn pause(&self) -> Receiver<()> {
        let (sender, receiver) = channel();
        self.tell(Command::Pause(sender));
        receiver
    }

    /// The state of a paused vCPU.
    pub fn save(&self) -> Result<CpuState> {
        let (sender, receiver) = channel();
        self.tell(Command::Save(sender));
        receiver
            .recv()
            .map_err(|_| Error::Snapshot("a vCPU has ended".to_owned()))?
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.commands = None;
        self.kick();
        if let Some(thread) = self.thread.take() {
            // It panicked: a bug, already reported.
            let _ = thread.join();
        }
    }
}

/// The vCPUs of a machine. A switch of paths may stop them for a moment.
#[derive(Default)]
pub struct Vcpus {
    list: Mutex<Vec<Vcpu>>,
    /// The machine is paused, or not switched on yet.
    held: AtomicBool,
}

/// How long a vCPU may take to leave the guest for a switch. It doesn't where it waits for the switch itself.
const PATIENCE: Duration = Duration::from_secs(2);

impl Vcpus {
    /// Takes over vCPUs that don't run yet.
    pub fn set(&self, list: Vec<Vcpu>) {
        self.held.store(true, Ordering::Release);
        *lock(&self.list) = list;
    }

    /// Stops all of them until [`Vcpus::resume`].
    pub fn pause(&self) {
        self.held.store(true, Ordering::Release);
        let answers: Vec<_> = lock(&self.list).iter().map(Vcpu::pause).collect();
        for answer in answers {
            // A vCPU that ended is as still as one that waits.
            let _ = answer.recv();
        }
    }

    /// Lets the guest run.
    pub fn resume(&self) {
        self.held.store(false, Ordering::Release);
        lock(&self.list).iter().for_each(Vcpu::resume);
    }

    /// The states of paused vCPUs.
    pub fn save(&self) -> Result<Vec<CpuState>> {
        lock(&self.list).iter().map(Vcpu::save).collect()
    }

    /// Ends them.
    pub fn end(&self) {
        let list = std::mem::take(&mut *lock(&self.list));
        drop(list);
    }
}

impl Vmm for Vcpus {
    fn pause_vcpus(&self) -> bool {
        let answers: Vec<_> = lock(&self.list).iter().map(Vcpu::pause).collect();
        let deadline = Instant::now() + PATIENCE;
        let still = answers.iter().all(|answer| {
            let left = deadline.saturating_duration_since(Instant::now());
            answer.recv_timeout(left) != Err(RecvTimeoutError::Timeout)
        });
        if !still {
            self.resume_vcpus();
        }
        still
    }

    fn resume_vcpus(&self) {
        if !self.held.load(Ordering::Acquire) {
            lock(&self.list).iter().for_each(Vcpu::resume);
        }
    }
}

struct Runner {
    fd: VcpuFd,
    index: u8,
    buses: Buses,
    events: Sender<Event>,
}

impl Runner {
    fn work(mut self, commands: &Receiver<Command>) {
        RUN.set(self.fd.get_kvm_run());
        if let Err(error) = self.run(commands) {
            // The machine is going away if nobody listens.
            let _ = self.events.send(Event::Failed(error));
        }
        RUN.set(ptr::null_mut());
    }

    /// Runs the guest whenever it may, until the commands end.
    fn run(&mut self, commands: &Receiver<Command>) -> Result<()> {
        let mut running = false;
        loop {
            let command = if running {
                match commands.try_recv() {
                    Ok(command) => Some(command),
                    Err(TryRecvError::Empty) => None,
                    Err(TryRecvError::Disconnected) => return Ok(()),
                }
            } else {
                match commands.recv() {
                    Ok(command) => Some(command),
                    Err(_) => return Ok(()),
                }
            };
            match command {
                Some(Command::Resume) => running = true,
                Some(Command::Pause(answer)) => {
                    if running {
                        self.finish_access()?;
                        // So that the guest's watchdogs know why time passed. A guest without KVM's clock
                        // can't be told.
                        let _ = self.fd.kvmclock_ctrl();
                    }
                    running = false;
                    let _ = answer.send(());
                }
                Some(Command::Save(answer)) => {
                    let _ = answer.send(cpu::save(&self.fd));
                }
                None => running = self.enter()?,
            }
        }
    }

    /// Lets KVM take over the result of the last access, without running the guest.
    fn finish_access(&mut self) -> Result<()> {
        self.fd.set_kvm_immediate_exit(1);
        let left = self.enter();
        self.fd.set_kvm_immediate_exit(0);
        left.map(drop)
    }

    /// Runs the guest until something is to be done, and does it. Returns whether to continue.
    fn enter(&mut self) -> Result<bool> {
        let index = self.index;
        let failed = |why: String| Err(Error::Vcpu { index, why });
        match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => self.buses.ports.read(port.into(), data),
            Ok(VcpuExit::IoOut(port, data)) => self.buses.ports.write(port.into(), data),
            Ok(VcpuExit::MmioRead(address, data)) => self.buses.memory.read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => self.buses.memory.write(address, data),
            Ok(VcpuExit::Shutdown) => {
                // The last resort of a guest that wants to reboot.
                log::warn!("a triple fault on vCPU {index} resets the machine");
                let _ = self.events.send(Event::Reset);
                return Ok(false);
            }
            Ok(VcpuExit::Hlt) => return failed("halted without interrupts".to_owned()),
            Ok(VcpuExit::InternalError) => {
                let rip = self.fd.get_regs().map_or(0, |regs| regs.rip);
                return failed(format!("KVM can't emulate an instruction at {rip:#x}"));
            }
            Ok(exit) => return failed(format!("{exit:?}")),
            Err(error) if error.errno() == libc::EINTR => self.fd.set_kvm_immediate_exit(0),
            Err(error) if error.errno() == libc::EAGAIN => {}
            Err(source) => {
                return Err(Error::Kvm {
                    what: "a vCPU can't run",
                    source,
                });
            }
        }
        Ok(true)
    }
}
