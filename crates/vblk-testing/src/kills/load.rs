// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What one queue does.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use fastrand::Rng;
use virtio_blk_driver::request::{Request, Token};

use crate::frontend::{PATIENCE, Queue, Result, readable};

/// Bytes of a block: the unit of requests.
pub const BLOCK: usize = 4096;
/// Sectors of a block.
pub const SECTORS: u32 = (BLOCK / 512) as u32;
/// Requests in flight on each queue.
const DEPTH: usize = 16;

/// What a version of a block holds that was written.
pub fn written(block: u64, version: u64) -> Vec<u8> {
    let stamp = (version << 20 | block).to_le_bytes();
    stamp.iter().copied().cycle().take(BLOCK).collect()
}

/// What version `version` of a block holds; zeroes at first.
fn content(block: u64, version: u64) -> Vec<u8> {
    if version == 0 {
        return vec![0; BLOCK];
    }
    written(block, version)
}

/// The first sector of a block.
pub const fn sector(block: u64) -> u64 {
    block * SECTORS as u64
}

#[derive(Clone, Copy, PartialEq)]
enum Job {
    Read(u64),
    Write(u64),
    Flush,
}

/// One queue's load. At most one request at a time touches a block, so that each has one right content.
pub(super) struct Load {
    pub queue: Queue,
    first: u64,
    versions: Vec<u64>,
    busy: HashMap<Token, Job>,
    /// Requests that were answered.
    pub completed: u64,
    /// Writes among them.
    pub written: u64,
    /// Those that were not answered in their turn.
    pub overtaken: u64,
    order: VecDeque<Token>,
}

impl Load {
    pub(super) fn new(queue: Queue, first: u64, blocks: u64) -> Self {
        Self {
            queue,
            first,
            versions: vec![0; blocks as usize],
            busy: HashMap::new(),
            completed: 0,
            written: 0,
            overtaken: 0,
            order: VecDeque::new(),
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.busy.len()
    }

    fn version(&mut self, block: u64) -> Result<&mut u64> {
        let version = self.versions.get_mut((block - self.first) as usize);
        version.ok_or_else(|| format!("there is no block {block}").into())
    }

    fn is_free(&self, block: u64) -> bool {
        let touches = |job: &Job| matches!(job, Job::Read(b) | Job::Write(b) if *b == block);
        !self.busy.values().any(touches)
    }

    /// Fills the queue.
    pub(super) fn submit(&mut self, rng: &mut Rng) -> Result<()> {
        while self.busy.len() < DEPTH {
            let block = self.first + rng.u64(..self.versions.len() as u64);
            let job = match rng.u64(..10) {
                0 => Job::Flush,
                1..=3 if self.is_free(block) => Job::Read(block),
                _ if self.is_free(block) => Job::Write(block),
                _ => continue,
            };
            let token = match job {
                Job::Flush => self.queue.driver.submit(&Request::flush())?,
                Job::Read(block) => {
                    let read = Request::read(sector(block), BLOCK as u32);
                    self.queue.driver.submit(&read)?
                }
                Job::Write(block) => {
                    let version = self.version(block)?;
                    *version += 1;
                    let data = content(block, *version);
                    self.queue
                        .driver
                        .submit(&Request::write(sector(block), &data))?
                }
            };
            if self.busy.insert(token, job).is_some() {
                return Err(format!("{token:?} is in flight already").into());
            }
            self.order.push_back(token);
        }
        self.queue.publish()
    }

    /// Takes and checks the completions that are there.
    pub(super) fn collect(&mut self) -> Result<()> {
        while let Some(done) = self.queue.driver.poll()? {
            let job = self.busy.remove(&done.token);
            let job = job.ok_or_else(|| format!("{done:?} was answered twice"))?;
            if !done.is_ok() {
                return Err(format!("{done:?}").into());
            }
            if self.order.front() != Some(&done.token) {
                self.overtaken += 1;
            }
            self.order.retain(|token| *token != done.token);
            match job {
                Job::Read(block) => {
                    let mut data = vec![0; BLOCK];
                    self.queue.driver.read_data(done.token, 0, &mut data)?;
                    let version = *self.version(block)?;
                    if data != content(block, version) {
                        return Err(format!("block {block} is not version {version}").into());
                    }
                }
                Job::Write(_) => self.written += 1,
                Job::Flush => {}
            }
            self.completed += 1;
        }
        Ok(())
    }

    /// Waits for what is in flight, then reads everything.
    pub(super) fn finish(&mut self) -> Result<()> {
        let started = Instant::now();
        while !self.busy.is_empty() {
            if started.elapsed() > PATIENCE {
                return Err(format!("{} requests are lost", self.busy.len()).into());
            }
            self.collect()?;
            // Calls are not asked for by a driver that polls: this is a pause.
            readable(&self.queue.err, std::time::Duration::from_millis(1));
        }
        for (block, version) in (self.first..).zip(&self.versions) {
            let data = self.queue.read(sector(block), BLOCK as u32)?;
            if data != content(block, *version) {
                return Err(format!("block {block} is not version {version}").into());
            }
        }
        Ok(())
    }

    /// Looks at the ring when nothing is in flight.
    pub(super) fn audit(&mut self) -> Result<()> {
        let (ring, memory) = self.queue.driver.ring_mut();
        Ok(ring.audit(memory)?)
    }

    /// Looks at an image of the disk.
    pub(super) fn check(&self, image: &[u8]) -> Result<()> {
        for (block, version) in (self.first..).zip(&self.versions) {
            let at = block as usize * BLOCK;
            if image.get(at..at + BLOCK) != Some(content(block, *version).as_slice()) {
                return Err(format!("block {block} of the image is not version {version}").into());
            }
        }
        Ok(())
    }
}
