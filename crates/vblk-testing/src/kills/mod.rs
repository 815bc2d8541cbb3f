// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! kill -9 of a server under load, again and again. The client keeps the in-flight area, its memory and its rings, and
//! continues with the next server: every request is answered exactly once (the driver notices a second answer), and
//! every byte is what the last completed write made it.

mod load;

use std::path::Path;
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde::Serialize;

use crate::frontend::{Client, Guest, InFlight, PATIENCE, Result};
use crate::server::{self, Server};

use load::Load;
pub use load::{BLOCK, SECTORS, sector, written};

/// What to do.
#[derive(Clone, Debug)]
pub struct Config {
    /// The server, whose disk holds zeroes.
    pub server: server::Config,
    /// Blocks that each queue has to itself.
    pub blocks: u64,
    /// How often the server is killed.
    pub kills: u64,
    /// For how long each server works at most, once each queue has written something.
    pub life: Duration,
    /// Another one gives other requests.
    pub seed: u64,
}

/// What happened.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Requests that were answered, each once.
    pub requests: u64,
    /// Of those, as many as were not answered in their turn.
    pub overtaken: u64,
    /// Queues that had something in flight when the server was killed, over all kills.
    pub interrupted: u64,
    /// Milliseconds from each kill until every queue had written something with the next server.
    pub pauses: Vec<u64>,
}

/// What each queue wrote last.
pub struct Contents(Vec<Load>);

impl Contents {
    /// Compares an image of the whole disk.
    ///
    /// # Errors
    /// It can't be read, or the block that is wrong.
    pub fn check_file(&self, path: &Path) -> Result<()> {
        let image = std::fs::read(path)?;
        self.0.iter().try_for_each(|load| load.check(&image))
    }
}

/// A connection to a server that may not listen yet: the socket of a killed one is still there.
///
/// # Errors
/// It does not for a minute.
pub fn connect(server: &Server) -> Result<Client> {
    let started = Instant::now();
    loop {
        match Client::connect(&server.socket()) {
            Err(error) if started.elapsed() > PATIENCE => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
            connected => return connected,
        }
    }
}

fn attach(server: &Server, guest: &Guest, area: &InFlight, loads: &[Load]) -> Result<Client> {
    let mut client = connect(server)?;
    client.set_in_flight(area)?;
    client.set_memory(guest)?;
    for (index, load) in loads.iter().enumerate() {
        // What the server finds in the area and the ring counts, not the base.
        client.start(index, &load.queue, 0)?;
    }
    Ok(client)
}

/// Runs.
///
/// # Errors
/// What was wrong.
pub fn run(config: &Config) -> Result<(Report, Contents)> {
    let mut server = Server::start(&config.server)?;
    let (queues, queue_size) = (config.server.queues, config.server.queue_size);
    let mut rng = Rng::with_seed(config.seed);
    let mut guest = Guest::new(&[(0, 4 << 20)])?;
    let mut loads = Vec::new();
    for index in 0..queues {
        // Near the end of the index space, which wraps during the run.
        let queue = guest.queue(queue_size, BLOCK as u32, 0u16.wrapping_sub(2000))?;
        loads.push(Load::new(
            queue,
            index as u64 * config.blocks,
            config.blocks,
        ));
    }
    let area = Client::connect(&server.socket())?.get_in_flight(queues as u16, queue_size)?;
    let mut client = attach(&server, &guest, &area, &loads)?;
    let mut report = Report::default();
    let mut killed = None;
    for _ in 0..config.kills {
        // Each server gets something done, then dies at any moment.
        work(&mut loads, &mut rng, &mut killed, &mut report)?;
        let until = Instant::now() + config.life.mul_f64(rng.f64());
        while Instant::now() < until {
            for load in &mut loads {
                load.submit(&mut rng)?;
                load.collect()?;
            }
        }
        // What it dies over.
        for load in &mut loads {
            load.submit(&mut rng)?;
        }
        killed = Some(Instant::now());
        server.crash(&config.server)?;
        report.interrupted += loads.iter().filter(|load| load.in_flight() != 0).count() as u64;
        drop(client);
        client = attach(&server, &guest, &area, &loads)?;
    }
    work(&mut loads, &mut rng, &mut killed, &mut report)?;
    for (index, load) in loads.iter_mut().enumerate() {
        load.finish()?;
        client.stop(index)?;
        load.audit()?;
    }
    drop(client);
    server.stop()?;
    report.requests = loads.iter().map(|load| load.completed).sum();
    report.overtaken = loads.iter().map(|load| load.overtaken).sum();
    Ok((report, Contents(loads)))
}

/// Works until each queue has written something, and notes how long that took since the kill.
fn work(
    loads: &mut [Load],
    rng: &mut Rng,
    killed: &mut Option<Instant>,
    report: &mut Report,
) -> Result<()> {
    let before: Vec<u64> = loads.iter().map(|load| load.written).collect();
    let started = Instant::now();
    while loads
        .iter()
        .zip(&before)
        .any(|(load, before)| load.written <= *before)
    {
        if started.elapsed() > PATIENCE {
            return Err(format!("no progress for {PATIENCE:?}").into());
        }
        for load in &mut *loads {
            load.submit(rng)?;
            load.collect()?;
        }
    }
    if let Some(killed) = killed.take() {
        report.pauses.push(killed.elapsed().as_millis() as u64);
    }
    Ok(())
}
