// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The work on one queue.

use blkio::ReqFlags;
use fastrand::Rng;

use super::Report;
use super::plan::{Kind, MAX_LEN, Plan, Space};
use crate::client::{Completion, Queue};
use crate::model::{Effect, Model, ReadTicket, WriteTicket};
use crate::pattern;
use crate::{Error, SECTOR};

/// Bytes behind each buffer that the device must leave alone.
pub(super) const GUARD: usize = 64;

/// Depth at which everything is read back.
pub(super) const READ_DEPTH: usize = 8;

/// What a read's buffer holds before the device fills it.
const POISON: u8 = 0xa5;

/// A request in flight.
struct Flight {
    plan: Plan,
    ticket: Ticket,
    /// Kept where the driver finds it until the request is done.
    iovecs: Vec<libc::iovec>,
}

enum Ticket {
    Read(ReadTicket),
    Write(WriteTicket),
    None,
}

/// A queue and what it has in flight.
pub(super) struct Worker<'a> {
    queue: Queue,
    model: &'a Model,
    space: Space,
    rng: Rng,
    slots: Vec<Option<Flight>>,
    in_flight: usize,
    /// A place for completions, reused.
    done: Vec<Completion>,
    report: Report,
}

// SAFETY: the iovecs in `slots` are plain addresses in the queue's memory, which is `Send`.
unsafe impl Send for Worker<'_> {}

impl<'a> Worker<'a> {
    pub(super) fn new(queue: Queue, model: &'a Model, space: Space, seed: u64) -> Self {
        Self {
            queue,
            model,
            space,
            rng: Rng::with_seed(seed),
            slots: Vec::new(),
            in_flight: 0,
            done: Vec::new(),
            report: Report::default(),
        }
    }

    pub(super) fn report(&self) -> &Report {
        &self.report
    }

    /// The edges of the disk, one request at a time.
    pub(super) fn edges(&mut self) -> Result<(), Error> {
        for plan in self.space.edges() {
            self.keep(1, |_| plan)?;
            self.drain()?;
        }
        Ok(())
    }

    /// Reads all that the model covers.
    pub(super) fn read_all(&mut self) -> Result<(), Error> {
        let whole = self.space.whole();
        let mut at = whole.start;
        while at < whole.end {
            let sectors = (whole.end - at).min((MAX_LEN / SECTOR) as u64);
            let plan = Plan {
                kind: Kind::Read,
                sector: at,
                sectors,
                segments: 1,
                fits: true,
            };
            self.keep(READ_DEPTH, |_| plan)?;
            at += sectors;
        }
        self.drain()
    }

    /// `ops` random requests, in turns at depths 1, 2, 4 and so on up to `max_depth`.
    pub(super) fn random(&mut self, ops: u64, max_depth: usize) -> Result<(), Error> {
        let depths: Vec<usize> = std::iter::successors(Some(1), |depth| Some(depth * 2))
            .take_while(|depth| *depth < max_depth)
            .chain([max_depth])
            .collect();
        // Three rounds, so that queues meet each other at different depths.
        let turns = 3 * depths.len() as u64;
        for (turn, depth) in (0..turns).zip(depths.iter().cycle()) {
            // Evenly, whatever the remainder.
            let share = ops * (turn + 1) / turns - ops * turn / turns;
            for _ in 0..share {
                self.keep(*depth, |worker| worker.space.draw(&mut worker.rng))?;
            }
            self.drain()?;
        }
        Ok(())
    }

    /// Waits until fewer than `depth` requests are in flight, then submits what `next` says.
    fn keep(&mut self, depth: usize, next: impl FnOnce(&mut Self) -> Plan) -> Result<(), Error> {
        while self.in_flight >= depth {
            self.reap()?;
        }
        let free = self.slots.iter().position(Option::is_none);
        let slot = free.unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        let plan = next(self);
        self.submit(slot, plan);
        Ok(())
    }

    fn drain(&mut self) -> Result<(), Error> {
        while self.in_flight > 0 {
            self.reap()?;
        }
        Ok(())
    }

    fn submit(&mut self, slot: usize, plan: Plan) {
        let len = plan.sectors as usize * SECTOR;
        let memory = self.queue.memory();
        let base = slot * (MAX_LEN + GUARD);
        let effect = match plan.kind {
            Kind::Read => {
                // SAFETY: this slot is not in flight, and only this worker uses the memory.
                unsafe { memory.bytes(base, len + GUARD) }.fill(POISON);
                None
            }
            Kind::Write { .. } => {
                let stamp = self.model.stamp();
                // SAFETY: as above.
                let data = unsafe { memory.bytes(base, len) };
                pattern::fill(data, plan.sector, stamp);
                Some(Effect::Data(stamp))
            }
            Kind::WriteZeroes { .. } => Some(Effect::Zero),
            Kind::Discard => Some(Effect::Discard),
            Kind::Flush => None,
        };
        let ticket = match effect {
            _ if !plan.fits => Ticket::None,
            Some(effect) => Ticket::Write(self.model.begin_write(plan.range(), effect)),
            None if plan.kind == Kind::Read => Ticket::Read(self.model.begin_read(plan.range())),
            None => Ticket::None,
        };
        let iovecs = self.split(base, len, plan.segments);
        let start = plan.sector * SECTOR as u64;
        let bytes = plan.sectors * SECTOR as u64;
        let count = iovecs.len() as u32;
        let driver = self.queue.driver();
        let fua = |fua| {
            if fua {
                ReqFlags::FUA
            } else {
                ReqFlags::empty()
            }
        };
        match plan.kind {
            Kind::Read if count > 1 => {
                driver.readv(start, iovecs.as_ptr(), count, slot, ReqFlags::empty());
            }
            Kind::Read => {
                driver.read(start, memory.at(base, len), len, slot, ReqFlags::empty());
            }
            Kind::Write { fua: f } if count > 1 => {
                driver.writev(start, iovecs.as_ptr(), count, slot, fua(f));
            }
            Kind::Write { fua: f } => {
                driver.write(start, memory.at(base, len), len, slot, fua(f));
            }
            Kind::Discard => driver.discard(start, bytes, slot, ReqFlags::empty()),
            Kind::WriteZeroes { unmap, fua: f } => {
                let unmap = if unmap {
                    ReqFlags::empty()
                } else {
                    ReqFlags::NO_UNMAP
                };
                driver.write_zeroes(start, bytes, slot, unmap | fua(f));
            }
            Kind::Flush => driver.flush(slot, ReqFlags::empty()),
        }
        self.slots[slot] = Some(Flight {
            plan,
            ticket,
            iovecs,
        });
        self.in_flight += 1;
        self.report.deepest = self.report.deepest.max(self.in_flight);
    }

    /// Cuts a buffer into `segments` pieces of any length, or fewer. Empty for one piece.
    fn split(&mut self, base: usize, len: usize, segments: usize) -> Vec<libc::iovec> {
        if segments < 2 {
            return Vec::new();
        }
        let mut cuts: Vec<usize> = (1..segments).map(|_| self.rng.usize(1..len)).collect();
        cuts.extend([0, len]);
        cuts.sort_unstable();
        cuts.dedup();
        let memory = self.queue.memory();
        cuts.windows(2)
            .map(|cut| libc::iovec {
                iov_base: memory.at(base + cut[0], cut[1] - cut[0]).cast(),
                iov_len: cut[1] - cut[0],
            })
            .collect()
    }

    /// Waits for completions and checks them.
    fn reap(&mut self) -> Result<(), Error> {
        let mut done = std::mem::take(&mut self.done);
        done.clear();
        let result = self.queue.wait(self.in_flight, &mut done);
        for completion in &done {
            self.check(*completion)?;
        }
        self.done = done;
        result
    }

    fn check(&mut self, Completion { slot, ret }: Completion) -> Result<(), Error> {
        let Some(flight) = self.slots.get_mut(slot).and_then(Option::take) else {
            return Err(Error::Spurious {
                queue: self.queue.index(),
                slot,
            });
        };
        self.in_flight -= 1;
        let Flight {
            plan,
            ticket,
            iovecs,
        } = flight;
        let expected = if plan.fits { 0 } else { -libc::EIO };
        if ret != expected {
            return Err(Error::Status {
                what: plan.describe(),
                got: ret,
                expected,
            });
        }
        self.report.vectored += u64::from(iovecs.len() > 1);
        let len = plan.sectors as usize * SECTOR;
        let base = slot * (MAX_LEN + GUARD);
        if plan.kind == Kind::Read {
            // SAFETY: the request is done: neither the driver nor the device uses this slot now.
            let bytes = unsafe { self.queue.memory().bytes(base, len + GUARD) };
            let (data, guard) = bytes.split_at(len);
            if guard.iter().any(|b| *b != POISON) {
                return Err(Error::Overrun {
                    what: plan.describe(),
                });
            }
            if let Ticket::Read(ticket) = ticket {
                let freedom = self.model.end_read(ticket, data)?;
                self.report.ambiguous_sectors += freedom.ambiguous;
                self.report.mixed_sectors += freedom.mixed;
                self.report.bytes_verified += len as u64;
            }
        } else if let Ticket::Write(ticket) = ticket {
            self.model.end_write(ticket);
        }
        self.count(&plan);
        Ok(())
    }

    fn count(&mut self, plan: &Plan) {
        let report = &mut self.report;
        let counter = match plan.kind {
            _ if !plan.fits => &mut report.refused,
            Kind::Read => &mut report.reads,
            Kind::Write { fua: true } | Kind::WriteZeroes { fua: true, .. } => &mut report.fua,
            Kind::Write { .. } => &mut report.writes,
            Kind::Discard => &mut report.discards,
            Kind::WriteZeroes { unmap: true, .. } => &mut report.zeroes_unmap,
            Kind::WriteZeroes { .. } => &mut report.zeroes_keep,
            Kind::Flush => &mut report.flushes,
        };
        *counter += 1;
        if plan.fits && matches!(plan.kind, Kind::Write { .. }) {
            report.bytes_written += plan.sectors * SECTOR as u64;
        }
    }
}
