// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One run of a machine: its output, its requests to the host, its end.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::emulator::Emulator;
use super::error::{Context, Error, Result};
use super::process::{self, tail};
use super::qemu::{self, FUNCTION, Monitor, Paths};
use super::script::Machine;
use super::server::Server;

const TICK: Duration = Duration::from_millis(20);
/// How long a machine may take to open its sockets.
const PATIENCE: Duration = Duration::from_secs(60);

/// What QEMU 10.0 says when it aborts, now and then, with several emulated CPUs on a busy host, for its own
/// virtio-serial as well as for vhost-user-blk; nothing that a guest or a disk server does leads there.
const QEMU_BUG: &str = "msix_table_mmio_write: Assertion";

/// Without one of these the kernel neither ends nor dies: the machine was reset below it.
const LAST_WORDS: [&str; 5] = ["reboot: ", "sysrq: ", "Kernel panic", "Oops", "BUG: "];

/// In the trace of the kernel's panic, where it ran a nested guest that shut down: QEMU forgot that the guest has nested
/// paging, and the guest's writes went to the kernel's own memory. No process of the machine's could do that.
const NESTED_SHUTDOWN: [&str; 2] = ["Kernel panic", "shutdown_interception+"];

/// With this status (`EX_TEMPFAIL`) a script says that what failed was the emulator, as far as can be told.
const EMULATOR_FAILED: u8 = 75;

/// How a script ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Verdict {
    /// Its status.
    pub status: u8,
    /// The CPU time that QEMU took, as far as it was seen.
    pub cpu: Duration,
}

enum Event {
    /// The guest's command connection; comes first.
    Connected(UnixStream),
    /// A line on it.
    Request(String),
    /// The script's output has ended.
    LogEnded,
}

/// A machine that runs one script.
pub struct Vm<'a> {
    pub(super) launch: Launch<'a>,
    pub(super) child: Child,
    pub(super) monitor: Monitor,
    events: Receiver<Event>,
    /// The guest's command connection.
    pub(super) replies: Option<UnixStream>,
    /// Connections for the script's output that have not ended.
    logs: u32,
    pub(super) server: Option<&'a mut Server>,
    pub(super) console: PathBuf,
    /// Moves to another machine that were tried.
    pub(super) moves: u32,
    boots: u32,
    reboot_announced: bool,
    status: Option<u8>,
}

impl<'a> Vm<'a> {
    /// Starts the machine. What the script prints goes to the file `log`, and if `live` to standard output.
    ///
    /// # Errors
    /// QEMU can't be started or ends at once; its own words are in the error.
    pub fn start(
        machine: &'a Machine,
        emulator: &'a Emulator,
        clock: qemu::Clock<'a>,
        paths: Paths<'a>,
        log: &Path,
        live: bool,
        server: Option<&'a mut Server>,
    ) -> Result<Self> {
        let (sender, events) = channel();
        let listen = |name: &str| {
            let path = paths.sockets.join(name);
            UnixListener::bind(&path).on("listen on", &path)
        };
        let launch = Launch {
            machine,
            emulator,
            clock,
            paths,
            qmp: listen("qmp")?,
            log: listen("log")?,
            host: listen("host")?,
            output: File::create(log).on("create", log)?,
            live,
            sender,
        };
        let (child, monitor) = launch.start(paths)?;
        Ok(Self {
            launch,
            child,
            monitor,
            events,
            replies: None,
            logs: 1,
            server,
            console: paths.console.to_owned(),
            moves: 0,
            boots: 0,
            reboot_announced: false,
            status: None,
        })
    }

    /// Waits for the command connection of a machine that was started beside this one.
    ///
    /// # Errors
    /// The guest asks for something meanwhile, or it does not come.
    pub(super) fn next_connection(&mut self) -> Result<UnixStream> {
        self.logs += 1;
        loop {
            match self.events.recv_timeout(PATIENCE) {
                Ok(Event::Connected(stream)) => return Ok(stream),
                Ok(Event::LogEnded) => self.logs -= 1,
                Ok(Event::Request(_)) | Err(_) => {
                    return Err(Error::Vm {
                        what: "a second machine did not connect".to_owned(),
                    });
                }
            }
        }
    }

    /// Serves the guest until QEMU ends and returns the script's status.
    ///
    /// # Errors
    /// The deadline, a guest that ended without a status, a disk server that died, with the last lines of
    /// the kernel's console; [`Error::Emulator`], after which another try is fair.
    pub fn finish(mut self) -> Result<Verdict> {
        let deadline = Instant::now() + self.launch.machine.timeout;
        let result = self.serve(deadline);
        let _ = self.child.kill();
        let _ = self.child.wait();
        // What the script printed last must be out before the verdict is.
        let end = Instant::now() + Duration::from_secs(2);
        while self.logs > 0 {
            let left = end.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(Event::LogEnded) => self.logs -= 1,
                Ok(_) => {}
                Err(_) => break,
            }
        }
        result.map_err(|error| match error {
            Error::Vm { what } => {
                let console = console(&self.console);
                Error::Vm {
                    what: format!("{what}; the end of its console:\n{}", tail(&console, 40)),
                }
            }
            other => other,
        })
    }

    fn serve(&mut self, deadline: Instant) -> Result<Verdict> {
        let mut cpu = Duration::ZERO;
        loop {
            match self.events.recv_timeout(TICK) {
                Ok(Event::Connected(stream)) => self.replies = Some(stream),
                Ok(Event::Request(line)) => self.answer(&line)?,
                Ok(Event::LogEnded) => self.logs -= 1,
                // The sender is ours.
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            if let Some(server) = &mut self.server {
                server.check()?;
            }
            cpu = cpu_time(&self.child).unwrap_or(cpu);
            if let Some(status) = self.child.try_wait().on("wait for", Path::new("QEMU"))? {
                return match self.status {
                    Some(EMULATOR_FAILED) => Err(Error::Emulator {
                        what: "the script blames it".to_owned(),
                    }),
                    Some(status) => Ok(Verdict { status, cpu }),
                    None => {
                        let console = console(&self.console);
                        Err(early_end(status, &said(&mut self.child), &console))
                    }
                };
            }
            if Instant::now() > deadline {
                return Err(Error::Vm {
                    what: format!("not done after {} s", self.launch.machine.timeout.as_secs()),
                });
            }
        }
    }

    /// Does what one line asks and replies `ok [RESULT]` or `error WHY`.
    fn answer(&mut self, line: &str) -> Result<()> {
        let reply = match self.perform(line) {
            Ok(result) => format!("ok {result}\n"),
            // The script decides whether that is the end.
            Err(error @ (Error::Server { .. } | Error::Script { .. })) => {
                format!("error {}\n", error.to_string().replace('\n', " | "))
            }
            Err(error) => return Err(error),
        };
        if let Some(stream) = &mut self.replies {
            stream
                .write_all(reply.as_bytes())
                .on("answer", Path::new("the guest"))?;
        }
        Ok(())
    }

    fn ask_qemu(&mut self, command: &str, arguments: &str) -> Result<String> {
        let command = format!("{{\"execute\":\"{command}\",\"arguments\":{{{arguments}}}}}");
        self.monitor.execute(&command).map(|_| String::new())
    }

    fn perform(&mut self, line: &str) -> Result<String> {
        let (command, argument) = line.split_once(' ').unwrap_or((line, ""));
        let refuse = |what: &str| {
            Err(Error::Script {
                script: format!("host {line}"),
                what: what.to_owned(),
            })
        };
        match (command, &mut self.server) {
            ("boot", _) => {
                if self.boots > 0 && !self.reboot_announced {
                    return Err(Error::Vm {
                        what: "rebooted unasked".to_owned(),
                    });
                }
                self.boots += 1;
                self.reboot_announced = false;
                self.monitor.allow_reboot(false)?;
                Ok(self.boots.to_string())
            }
            ("reboot", _) => {
                self.reboot_announced = true;
                self.monitor.allow_reboot(true)?;
                Ok(String::new())
            }
            ("exit", _) => match argument.parse() {
                Ok(status) => {
                    self.status = Some(status);
                    Ok(String::new())
                }
                Err(_) => refuse("not a status"),
            },
            ("resize", Some(server)) => match argument.parse::<u64>() {
                Ok(mib) if mib <= 1 << 20 => server.resize(mib << 20).map(|()| String::new()),
                _ => refuse("not a size in MiB"),
            },
            ("allocated", Some(server)) => Ok(server.allocated()?.to_string()),
            ("crash", Some(server)) => server.crash().map(|()| String::new()),
            ("restart", Some(server)) => server.restart().map(|()| String::new()),
            ("migrate", Some(_)) => match argument {
                "" => self.migrate().map(|()| String::new()),
                "dies" => self.migrate_in_vain().map(|()| String::new()),
                _ => refuse("only `dies` is possible"),
            },
            ("resize", None) if self.launch.machine.function.is_some() => {
                match argument.parse::<u64>() {
                    Ok(mib) if mib <= 1 << 20 => {
                        let bytes = mib << 20;
                        let size = format!("\"node-name\":\"{FUNCTION}\",\"size\":{bytes}");
                        self.ask_qemu("block_resize", &size)
                    }
                    _ => refuse("not a size in MiB"),
                }
            }
            ("unplug", _) if self.launch.machine.function.is_some() => {
                self.ask_qemu("device_del", &format!("\"id\":\"{FUNCTION}\""))
            }
            ("unplugged", _) if self.launch.machine.function.is_some() => loop {
                // Of its parts, too.
                if self.monitor.event("DEVICE_DELETED")?["device"] == FUNCTION {
                    return Ok(String::new());
                }
            },
            ("unplug" | "unplugged", _) => refuse("the script's header asks for no function"),
            ("resize" | "allocated" | "crash" | "restart" | "migrate", None) => {
                refuse("the script's header asks for no disk")
            }
            _ => refuse("unknown"),
        }
    }
}

/// What machines are started from: the first, and those that its guest moves to.
pub(super) struct Launch<'a> {
    machine: &'a Machine,
    emulator: &'a Emulator,
    clock: qemu::Clock<'a>,
    pub(super) paths: Paths<'a>,
    qmp: UnixListener,
    log: UnixListener,
    host: UnixListener,
    /// Where the script's output goes.
    output: File,
    /// Whether it is shown on standard output, too.
    live: bool,
    sender: Sender<Event>,
}

impl Launch<'_> {
    /// Starts a machine.
    ///
    /// # Errors
    /// QEMU can't be started or ends at once; its own words are in the error.
    pub(super) fn start(&self, paths: Paths<'_>) -> Result<(Child, Monitor)> {
        let mut command = qemu::command(self.emulator, self.machine, self.clock, &paths);
        let mut child = process::spawn(command.stdin(Stdio::null()).stderr(Stdio::piped()))?;
        let monitor = match connect(&self.qmp, &paths.sockets.join("qmp"), &mut child) {
            Ok(monitor) => monitor,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        };
        let clone = |listener: &UnixListener| listener.try_clone().on("copy", paths.sockets);
        let (log, host) = (clone(&self.log)?, clone(&self.host)?);
        let output = self.output.try_clone().on("copy", paths.sockets)?;
        let live = self.live;
        let (log_sender, sender) = (self.sender.clone(), self.sender.clone());
        thread::spawn(move || {
            // A failure here shows as missing output; the run itself continues.
            let _ = copy_log(&log, output, live);
            let _ = log_sender.send(Event::LogEnded);
        });
        thread::spawn(move || {
            let _ = receive_requests(&host, &sender);
        });
        Ok((child, monitor))
    }
}

fn connect(listener: &UnixListener, path: &Path, child: &mut Child) -> Result<Monitor> {
    listener.set_nonblocking(true).on("set up", path)?;
    let end = Instant::now() + PATIENCE;
    loop {
        match Monitor::accept(listener, path) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => {}
            Ok(monitor) => return Ok(monitor),
            // It has ended, or is about to: its own words are better.
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => {}
        }
        if let Some(status) = child.try_wait().on("wait for", Path::new("QEMU"))? {
            return Err(Error::Vm {
                what: format!("QEMU didn't start ({status}){}", said(child)),
            });
        }
        if Instant::now() > end {
            return Err(Error::Vm {
                what: "QEMU doesn't open its monitor".to_owned(),
            });
        }
        thread::sleep(TICK);
    }
}

/// The error for a QEMU that ended before the script did, with what it said and what is on the kernel's console.
pub fn early_end(status: ExitStatus, said: &str, console: &str) -> Error {
    let what = format!("ended ({status}) before the script did{said}");
    // Seen once, with a guest in the guest.
    let reset = status.success() && !LAST_WORDS.iter().any(|words| console.contains(words));
    let overwritten = NESTED_SHUTDOWN.iter().all(|words| console.contains(words));
    if said.contains(QEMU_BUG) || reset || overwritten {
        Error::Emulator { what }
    } else {
        Error::Vm { what }
    }
}

/// What the kernel wrote on its console; nothing if there is no file yet.
fn console(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// What an ended QEMU wrote to its standard error.
fn said(child: &mut Child) -> String {
    let mut text = String::new();
    if let Some(stderr) = &mut child.stderr {
        let _ = stderr.read_to_string(&mut text);
    }
    match text.trim_end() {
        "" => String::new(),
        text => format!("; QEMU said:\n{}", tail(text, 10)),
    }
}

/// The CPU time that a child took, all its threads together; `None` if it has ended.
fn cpu_time(child: &Child) -> Option<Duration> {
    let text = fs::read_to_string(format!("/proc/{}/stat", child.id())).ok()?;
    // proc_pid_stat(5): fields 14 and 15; field 2, in parentheses, may have spaces. In hundredths of a second.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut field = || fields.next()?.parse::<u64>().ok();
    let ticks = field()? + field()?;
    (ticks > 0).then(|| Duration::from_millis(ticks * 10))
}

fn copy_log(listener: &UnixListener, mut file: File, live: bool) -> io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        if live {
            let mut out = io::stdout().lock();
            out.write_all(&buffer[..length])?;
            out.flush()?;
        }
        file.write_all(&buffer[..length])?;
    }
}

fn receive_requests(listener: &UnixListener, events: &Sender<Event>) -> io::Result<()> {
    let (stream, _) = listener.accept()?;
    // A send fails only after the receiver is gone, and then the connection is about to end too.
    let _ = events.send(Event::Connected(stream.try_clone()?));
    for line in BufReader::new(stream).lines() {
        let _ = events.send(Event::Request(line?));
    }
    Ok(())
}
