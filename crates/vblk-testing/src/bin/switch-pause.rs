// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! For how long nobody serves a guest while it is moved between the paths of a vDPA device.
//!
//! A guest keeps requests of 4 KiB in flight on a memory disk behind the simulator, and is moved there and back; both
//! directions are reported apart. Before that it stays on each path for a while, to see what CPU time the VMM takes there:
//! that of all threads that are not the guest's, not the device's, and not the one that looks.

use std::error::Error;
use std::fmt;
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use clap::Parser;
use malformed_queues::testmem;
use serde::Serialize;
use sim_backend::{BlkSim, SimOptions};
use vdpa_bus::{Callback, VqAddress};
use vhost_vdpa_frontend::{
    DataPath, GuestQueue, PathSwitch, SwitchOptions, SwitchParts, ThreadExecutor,
};
use virtio_blk_disks::MemoryDisk;
use virtio_blk_driver::request::{Arena, ArenaConfig, Driver, In, Request};
use virtio_blk_driver::ring::{RingConfig, SplitLayout};
use virtio_blk_driver::wire;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// What the guest's threads are called.
const GUEST: &str = "guest";
const DATA: u32 = 4096;
const PLACES: u64 = 1024;
const QUEUE_SIZE: u16 = 64;

/// The pause that a guest sees when it is moved.
#[derive(Clone, Copy, Debug, Parser)]
struct Cli {
    /// Queues.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    queues: u16,
    /// Requests in flight, on all queues together.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=512))]
    in_flight: u16,
    /// Moves in each direction.
    #[arg(long, default_value_t = 1000)]
    moves: usize,
    /// Requests on each path, for the VMM's CPU time.
    #[arg(long, default_value_t = 20_000)]
    requests: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What was seen.
#[derive(Serialize)]
struct SwitchReport {
    queues: u16,
    in_flight: u16,
    moves: usize,
    to_slow: Pauses,
    to_fast: Pauses,
    fast: Vmm,
    slow: Vmm,
    answered: u64,
}

/// How long nobody served the guest, in microseconds.
#[derive(Serialize)]
struct Pauses {
    p50: f64,
    p99: f64,
    max: f64,
}

impl Pauses {
    fn of(mut all: Vec<Duration>) -> Self {
        all.sort_unstable();
        let at = |per_mille: usize| {
            let index = (all.len() * per_mille / 1000).min(all.len().saturating_sub(1));
            all.get(index).copied().unwrap_or_default().as_secs_f64() * 1e6
        };
        Self {
            p50: at(500),
            p99: at(990),
            max: at(1000),
        }
    }
}

impl fmt::Display for Pauses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p50, p99, max } = self;
        write!(f, "p50 {p50:.0} µs, p99 {p99:.0} µs, max {max:.0} µs")
    }
}

/// The VMM's work on a path.
#[derive(Serialize)]
struct Vmm {
    threads: usize,
    /// CPU time for each request, in nanoseconds.
    per_request: f64,
}

impl fmt::Display for Vmm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            threads,
            per_request,
        } = self;
        write!(
            f,
            "{per_request:.0} ns of CPU for each request, {threads} threads"
        )
    }
}

/// The VMM's threads, and the nanoseconds of CPU time that they have had.
fn vmm_threads() -> Result<(usize, u64), Fail> {
    // SAFETY: no arguments.
    let own = unsafe { libc::gettid() }.to_string();
    let (mut threads, mut time) = (0, 0);
    for task in std::fs::read_dir("/proc/self/task")? {
        let path = task?.path();
        let name = std::fs::read_to_string(path.join("comm"))?;
        if path.ends_with(&own) || ["vdpa-sim", GUEST].contains(&name.trim()) {
            continue;
        }
        let stat = std::fs::read_to_string(path.join("schedstat"))?;
        let ran = stat.split(' ').next().unwrap_or_default();
        threads += 1;
        time += ran.parse::<u64>()?;
    }
    Ok((threads, time))
}

/// The VMM's work while the guest stays where it is.
fn stay(cli: Cli, answered: &AtomicU64) -> Result<Vmm, Fail> {
    let (threads, before) = vmm_threads()?;
    let start = answered.load(Ordering::Relaxed);
    while answered.load(Ordering::Relaxed) < start + cli.requests {
        std::thread::sleep(Duration::from_millis(1));
    }
    let count = answered.load(Ordering::Relaxed) - start;
    let (_, after) = vmm_threads()?;
    Ok(Vmm {
        threads,
        per_request: (after - before) as f64 / count as f64,
    })
}

type Fail = Box<dyn Error + Send + Sync>;

/// One queue of the guest.
struct Queue {
    driver: Driver<Arc<GuestMemoryMmap<()>>>,
    kick: Arc<EventFd>,
    irq: Arc<EventFd>,
    depth: u16,
    next: u64,
}

impl Queue {
    fn run(&mut self, stop: &AtomicBool, answered: &AtomicU64) -> Result<(), Fail> {
        let mut free = self.depth;
        loop {
            let ending = stop.load(Ordering::Relaxed);
            while free != 0 && !ending {
                self.next = (self.next + 7) % PLACES;
                let sector = self.next * u64::from(DATA) / 512;
                let read = Request::new(wire::T_IN, sector).with_input(In::Len(DATA));
                self.driver.submit(&read.indirect(true))?;
                free -= 1;
            }
            if self.driver.publish()? {
                self.kick.write(1)?;
            }
            if self.driver.in_flight() == 0 && ending {
                return Ok(());
            }
            let before = free;
            while let Some(done) = self.driver.poll()? {
                if !done.is_ok() {
                    return Err(format!("the device answered {done:?}").into());
                }
                free += 1;
            }
            answered.fetch_add((free - before).into(), Ordering::Relaxed);
            let (ring, memory) = self.driver.ring_mut();
            if free == before && !ring.enable_interrupts(memory)? {
                self.wait()?;
            }
        }
    }

    fn wait(&self) -> Result<(), Fail> {
        let mut fd = libc::pollfd {
            fd: self.irq.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one valid entry.
        if unsafe { libc::poll(&mut fd, 1, 10_000) } != 1 {
            return Err("requests are stuck".into());
        }
        self.irq.read()?;
        Ok(())
    }
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("switch-pause: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<(), Fail> {
    let (memory, mut space) = testmem::single(32 << 20)?;
    let memory = Arc::new(memory);
    let depth = (cli.in_flight / cli.queues).max(1);
    let mut queues = Vec::new();
    for _ in 0..cli.queues {
        let base = space.take(SplitLayout::footprint(QUEUE_SIZE), 4096)?;
        let layout = SplitLayout::contiguous(QUEUE_SIZE, base)?;
        let arena = ArenaConfig {
            slots: depth,
            data_len: DATA,
            data_align: DATA,
            ..ArenaConfig::default()
        };
        let arena = Arena::new(space.take(arena.footprint(), 4096)?, arena)?;
        let ring = RingConfig {
            event_idx: true,
            indirect: true,
            start: 0,
        };
        queues.push(Queue {
            driver: Driver::new(memory.clone(), layout, ring, arena)?,
            kick: Arc::new(EventFd::new(EFD_NONBLOCK)?),
            irq: Arc::new(EventFd::new(EFD_NONBLOCK)?),
            depth,
            next: 0,
        });
    }
    let disk = Arc::new(MemoryDisk::new(PLACES * u64::from(DATA))?);
    let device = Arc::new(BlkSim::new(disk, SimOptions::strict_queues(cli.queues))?);
    let parts = SwitchParts {
        device,
        memory,
        executor: Box::new(ThreadExecutor::new(Duration::ZERO)),
        vmm: Arc::new(()),
        layers: None,
    };
    let switch = PathSwitch::new(parts, SwitchOptions::default())?;
    switch.set_status(1)?;
    switch.set_status(3)?;
    switch.set_features(switch.offered())?;
    switch.set_status(11)?;
    for (index, queue) in (0..).zip(&queues) {
        let state = queue.driver.state();
        let address = VqAddress {
            desc: state.desc_table,
            driver: state.avail_ring,
            device: state.used_ring,
        };
        let call = Callback::Trigger(queue.irq.clone());
        let kick = queue.kick.clone();
        let size = QUEUE_SIZE;
        let queue = GuestQueue {
            size,
            address,
            kick,
            call,
        };
        switch.set_queue(index, queue)?;
    }
    switch.set_status(15)?;

    let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    // A thread that has passed it has its name.
    let named = Barrier::new(queues.len() + 1);
    let moved = std::thread::scope(|scope| {
        let guests: Vec<_> = queues
            .iter_mut()
            .map(|queue| {
                let thread = std::thread::Builder::new().name(GUEST.into());
                thread.spawn_scoped(scope, || {
                    named.wait();
                    queue.run(&stop, &answered)
                })
            })
            .collect::<Result<_, _>>()?;
        named.wait();
        let moved = measure(cli, &switch, &answered);
        stop.store(true, Ordering::Relaxed);
        for guest in guests {
            guest.join().map_err(|_| "a guest thread panicked")??;
        }
        moved
    })?;
    if cli.json {
        println!("{}", serde_json::to_string(&moved)?);
    } else {
        let SwitchReport {
            to_slow,
            to_fast,
            fast,
            slow,
            ..
        } = &moved;
        println!("fast to slow: {to_slow}\nslow to fast: {to_fast}");
        println!("the VMM on the fast path: {fast}\nthe VMM on the slow path: {slow}");
        println!("{} requests answered", moved.answered);
    }
    Ok(())
}

/// The pauses, and the VMM's work.
fn measure<M>(cli: Cli, switch: &PathSwitch<M>, answered: &AtomicU64) -> Result<SwitchReport, Fail>
where
    M: virtio_blk_core::memory::DeviceMemory + Clone,
{
    let fast = stay(cli, answered)?;
    switch.switch_to(DataPath::Slow)?;
    let slow = stay(cli, answered)?;
    switch.switch_to(DataPath::Fast)?;
    let mut pauses = [Vec::new(), Vec::new()];
    for _ in 0..cli.moves {
        for (path, pauses) in [DataPath::Slow, DataPath::Fast]
            .into_iter()
            .zip(&mut pauses)
        {
            // Under full load, not on the heels of the last move.
            let goal = answered.load(Ordering::Relaxed) + 4 * u64::from(cli.in_flight);
            while answered.load(Ordering::Relaxed) < goal {
                std::thread::yield_now();
            }
            if let Some(report) = switch.switch_to(path)? {
                pauses.push(report.phases.pause());
            }
        }
    }
    let [to_slow, to_fast] = pauses.map(Pauses::of);
    Ok(SwitchReport {
        queues: cli.queues,
        in_flight: cli.in_flight,
        moves: cli.moves,
        to_slow,
        to_fast,
        fast,
        slow,
        answered: answered.load(Ordering::Relaxed),
    })
}
