// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! kill -9 of `vblk` before and after each system call of a session: the next server executes what was left, once, and
//! each block holds what was written last. With `VBLK_LONG_TESTS` at each of them, otherwise at some.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "common/trace.rs"]
mod trace;

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Server, vblk};
use vblk_testing::frontend::{Client, Guest, InFlight, Queue, readable};
use virtio_blk_driver::request::{Request, Token};

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Bytes of a block, and sectors.
const BLOCK: usize = 4096;
const SECTORS: u64 = 8;
const BLOCKS: u64 = 4;
const QUEUE_SIZE: u16 = 64;

/// What version `version` of a block holds.
fn content(block: u64, version: u64) -> Vec<u8> {
    if version == 0 {
        return vec![0; BLOCK];
    }
    let word = (version << 8 | block | 0x5A00_0000).to_le_bytes();
    word.iter().copied().cycle().take(BLOCK).collect()
}

/// A guest that outlives its servers.
struct Survivor {
    guest: Guest,
    queue: Queue,
    area: InFlight,
    /// The last version of each block that was asked for.
    versions: [u64; BLOCKS as usize],
    /// Reads, with the block.
    busy: HashMap<Token, Option<u64>>,
}

impl Survivor {
    fn new(server: &Server) -> Self {
        let mut guest = Guest::new(&[(0, 4 << 20)]).unwrap();
        let queue = guest.queue(QUEUE_SIZE, BLOCK as u32, 0).unwrap();
        let area = server.connect().get_in_flight(1, QUEUE_SIZE).unwrap();
        Self {
            guest,
            queue,
            area,
            versions: [0; BLOCKS as usize],
            busy: HashMap::new(),
        }
    }

    fn attach(&self, socket: &Path) -> Outcome<Client> {
        let mut client = Client::over(UnixStream::connect(socket)?)?;
        client.set_in_flight(&self.area)?;
        client.set_memory(&self.guest)?;
        client.start(0, &self.queue, 0)?;
        Ok(client)
    }

    fn write(&mut self, block: u64) {
        let version = &mut self.versions[block as usize];
        *version += 1;
        let data = content(block, *version);
        let request = Request::write(block * SECTORS, &data);
        let token = self.queue.driver.submit(&request).unwrap();
        self.busy.insert(token, None);
    }

    fn read(&mut self, block: u64) {
        let request = Request::read(block * SECTORS, BLOCK as u32);
        let token = self.queue.driver.submit(&request).unwrap();
        self.busy.insert(token, Some(block));
    }

    /// Gives the device what was asked for, and waits for all completions; none come if the server is dead.
    fn finish(&mut self, dead: &AtomicBool) -> Outcome<()> {
        self.queue.publish()?;
        while !self.busy.is_empty() {
            while let Some(done) = self.queue.driver.poll()? {
                let read = self.busy.remove(&done.token).expect("answered once");
                assert!(done.is_ok(), "{done:?}");
                if let Some(block) = read {
                    let mut data = vec![0; BLOCK];
                    self.queue.driver.read_data(done.token, 0, &mut data)?;
                    let version = self.versions[block as usize];
                    assert!(data == content(block, version), "{block}: {version}");
                }
            }
            let (ring, memory) = self.queue.driver.ring_mut();
            if ring.enable_interrupts(memory)? || self.busy.is_empty() {
                continue;
            }
            if !readable(&self.queue.call, Duration::from_millis(5)) && dead.load(Ordering::SeqCst)
            {
                return Err("dead".into());
            }
            let _ = self.queue.call.read();
        }
        Ok(())
    }

    /// All that is done with the first server.
    fn session(&mut self, socket: &Path, dead: &AtomicBool) -> Outcome<()> {
        let mut client = self.attach(socket)?;
        (0..BLOCKS).for_each(|block| self.write(block));
        self.finish(dead)?;
        // Completions come out of order here: a read is quicker.
        self.write(0);
        self.read(1);
        self.write(2);
        let flush = self.queue.driver.submit(&Request::flush())?;
        self.busy.insert(flush, None);
        self.finish(dead)?;
        self.write(3);
        self.finish(dead)?;
        client.stop(0)?;
        Ok(())
    }

    /// Continues with the next server, and looks at everything.
    fn go_on(&mut self, server: &Server) {
        let alive = AtomicBool::new(false);
        let mut client = self.attach(&server.socket()).unwrap();
        self.finish(&alive).unwrap();
        (0..BLOCKS).for_each(|block| self.read(block));
        self.finish(&alive).unwrap();
        client.stop(0).unwrap();
        let (ring, memory) = self.queue.driver.ring_mut();
        ring.audit(memory).unwrap();
    }
}

/// Kills the server of a new image at stop `at`, and continues with another. Returns the number of stops until then; fewer
/// if it came to its end.
fn round(kind: &str, options: &str, at: u64) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    let size = BLOCKS * BLOCK as u64;
    let made = vblk(&[
        "disk",
        "create",
        &format!("{kind}:{},size={size}", path.display()),
    ]);
    assert!(made.status.success(), "{made:?}");
    let disk = format!("{kind}:{}{options}", path.display());
    let args = ["--queues", "1", "--queue-size", "64", "--disk", &disk];
    let server = Server::start(&args);
    let mut survivor = Survivor::new(&server);
    let process = server.child.id().try_into().unwrap();
    trace::seize(process);
    let (dead, socket) = (AtomicBool::new(false), server.socket());
    let stops = std::thread::scope(|scope| {
        let guest = scope.spawn(|| {
            let done = survivor.session(&socket, &dead);
            if done.is_ok() {
                // SAFETY: plain kill(2) of a child that is not waited for before this thread has ended.
                assert_eq!(unsafe { libc::kill(process, libc::SIGTERM) }, 0);
            }
            done
        });
        let stops = trace::run(process, at);
        dead.store(true, Ordering::SeqCst);
        let done = guest.join().unwrap();
        assert!(done.is_ok() || stops >= at, "stop {at}: {done:?}");
        stops
    });
    drop(server);
    let server = Server::start(&args);
    survivor.go_on(&server);
    server.signal(libc::SIGTERM);
    let (status, said) = server.end();
    assert!(status.success(), "stop {at}: {said}");
    if kind == "raw" {
        let image = std::fs::read(&path).unwrap();
        for (block, version) in (0..).zip(survivor.versions) {
            let at = block as usize * BLOCK;
            assert!(image[at..at + BLOCK] == content(block, version), "{block}");
        }
    } else {
        // Sound, or with clusters that belong to nobody.
        let checked = vblk(&["disk", "check", &format!("{kind}:{}", path.display())]);
        let code = checked.status.code();
        assert!(matches!(code, Some(0 | 3)), "stop {at}: {checked:?}");
    }
    stops
}

/// Every so many stops without `VBLK_LONG_TESTS`: a prime, as calls come in patterns.
const STRIDE: usize = 23;

fn killed_everywhere(kind: &str, options: &str) {
    let long = std::env::var_os("VBLK_LONG_TESTS").is_some();
    let mut rounds = 0;
    for at in (1..).step_by(if long { 1 } else { STRIDE }) {
        rounds += 1;
        let stops = round(kind, options, at);
        if stops < at {
            println!("{kind}{options}: {stops} stops, {rounds} rounds");
            // From the first message to the end.
            assert!(stops > 100, "{stops}");
            return;
        }
    }
}

#[test]
fn raw() {
    killed_everywhere("raw", ",lock=handover");
}

#[test]
fn raw_without_io_uring() {
    killed_everywhere("raw", ",engine=sync");
}

#[test]
fn qcow2() {
    killed_everywhere("qcow2", "");
}
