// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One queue: the driver's half, the device's, and the notifications between them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use malformed_queues::testmem::Space;
use virtio_blk_core::runner::{QueueRunner, Service, Stop, Stopped};
use virtio_blk_core::spec::feature::{RING_EVENT_IDX, RING_INDIRECT_DESC};
use virtio_blk_driver::request::{
    Arena, ArenaConfig, Done, Driver, DriverError, Framing as Cut, In, Out, Request as Raw, Token,
};
use virtio_blk_driver::ring::{RingConfig, RingError, SplitLayout};
use virtio_blk_driver::wire::{self, S_UNWRITTEN};
use virtio_queue::QueueState;
use vm_memory::{GuestAddress, GuestMemory};

use super::input::{Count, Framing, Kind, Len, Request, Sector};
use super::model::Rules;

/// What data lies in memory that the device has not written.
pub const UNTOUCHED: u8 = 0x5a;

const ARENA: ArenaConfig = ArenaConfig {
    slots: 8,
    data_len: 4096 + 512,
    data_align: 512,
    table_len: 24,
};

/// A request, ready to be submitted.
pub struct Made {
    header: [u8; 16],
    header_len: u8,
    out: Vec<u8>,
    input: u32,
    status: bool,
    framing: Framing,
    indirect: bool,
    lengths: [Vec<u32>; 2],
}

impl Request {
    /// A plain read.
    pub fn read(sector: u8, sectors: u8) -> Self {
        Self {
            kind: Kind::In,
            sector: Sector::Low { sector },
            len: Len::Sectors { count: sectors },
            ranges: Vec::new(),
            cut: 0,
            more_out: 0,
            more_in: 0,
            no_status: false,
            framing: Framing::Separate,
            indirect: false,
        }
    }
}

impl Made {
    /// `number` makes the data different from all other's.
    pub fn new(request: &Request, number: u64, rules: &Rules) -> Self {
        let sector = |sector: &Sector| match *sector {
            Sector::Low { sector } => sector.into(),
            Sector::High { back } => rules.capacity.wrapping_sub_signed(back.into()),
            Sector::Raw { sector } => sector,
        };
        let (kind, usual) = match request.kind {
            Kind::In => (wire::T_IN, rules.block as u32),
            Kind::Out => (wire::T_OUT, rules.block as u32),
            Kind::Flush => (wire::T_FLUSH, 0),
            Kind::GetId => (wire::T_GET_ID, wire::ID_LEN),
            Kind::GetLifetime => (wire::T_GET_LIFETIME, wire::LIFETIME_LEN),
            Kind::Discard => (wire::T_DISCARD, 0),
            Kind::WriteZeroes => (wire::T_WRITE_ZEROES, 0),
            Kind::SecureErase => (wire::T_SECURE_ERASE, 0),
            Kind::Raw { kind } => (kind, 0),
        };
        let len = match request.len {
            Len::Usual => usual,
            Len::Sectors { count } => 512 * u32::from(count % 10),
            Len::Bytes { count } => count.into(),
        };
        let mut out = Vec::new();
        let mut input = request.more_in.into();
        match request.kind {
            Kind::Out => {
                let words = len.div_ceil(8).into();
                out.extend((0..words).flat_map(|i: u64| (number << 16 | i).to_le_bytes()));
                out.truncate(len as usize);
            }
            Kind::In | Kind::GetId | Kind::GetLifetime => input += len,
            _ => out.extend(request.ranges.iter().flat_map(|range| {
                let num_sectors = match range.count {
                    Count::Few { count } => count.into(),
                    Count::Raw { count } => count,
                };
                let range = wire::Range {
                    sector: sector(&range.sector),
                    num_sectors,
                    flags: range.flags.into(),
                };
                range.to_bytes()
            })),
        }
        out.extend((0..request.more_out).map(|i| i.wrapping_mul(7)));
        let lengths = match &request.framing {
            Framing::Cut { readable, writable } => {
                [readable, writable].map(|list| list.iter().map(|l| u32::from(*l)).collect())
            }
            _ => Default::default(),
        };
        Self {
            header: wire::header(kind, number as u32, sector(&request.sector)),
            header_len: 16 - request.cut % 17,
            out,
            input,
            status: !request.no_status,
            framing: request.framing.clone(),
            indirect: request.indirect,
            lengths,
        }
    }

    /// What the device reads, and how much it may write.
    pub fn streams(&self) -> (Vec<u8>, u32) {
        let mut readable = self.header[..usize::from(self.header_len)].to_vec();
        readable.extend_from_slice(&self.out);
        (readable, self.input + u32::from(self.status))
    }
}

/// One queue.
pub struct Queue<M: GuestMemory + Send + Sync + 'static> {
    mem: Arc<M>,
    layout: SplitLayout,
    arena: GuestAddress,
    driver: Driver<Arc<M>>,
    start: u16,
    indirect: bool,
    runner: Option<QueueRunner<Arc<M>>>,
    notified: Arc<AtomicU64>,
    /// Notifications when the driver last asked for one.
    asked_at: u64,
    /// The device waits for a kick.
    waits: bool,
    intake: bool,
    unpublished: bool,
    /// Requests that have data to be read when they are done.
    inputs: std::collections::BTreeMap<Token, (u32, bool)>,
}

impl<M: GuestMemory + Send + Sync + 'static> Queue<M> {
    pub fn new(mem: Arc<M>, space: &mut Space, size: u16, start: u16) -> Self {
        let layout = space.layout(size).unwrap();
        let arena = space.take(ARENA.footprint(), 1).unwrap();
        Self {
            driver: driver(&mem, layout, arena, RingConfig::default()),
            mem,
            layout,
            arena,
            start,
            indirect: false,
            runner: None,
            notified: Arc::default(),
            asked_at: 0,
            waits: false,
            intake: true,
            unpublished: false,
            inputs: Default::default(),
        }
    }

    /// A driver with these features starts anew.
    pub fn reset(&mut self, features: u64) -> QueueState {
        self.indirect = features & RING_INDIRECT_DESC != 0;
        let config = RingConfig {
            event_idx: features & RING_EVENT_IDX != 0,
            indirect: self.indirect,
            start: self.start,
        };
        self.driver = driver(&self.mem, self.layout, self.arena, config);
        self.inputs.clear();
        self.unpublished = false;
        self.intake = true;
        self.asked_at = self.notified.load(Ordering::Relaxed);
        self.driver.state()
    }

    /// What tells the driver of used buffers.
    pub fn notifier(&self) -> impl Fn() + Send + 'static {
        let notified = self.notified.clone();
        move || {
            notified.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn started(&mut self, runner: QueueRunner<Arc<M>>) {
        self.waits = false;
        self.runner = Some(runner);
        let open = self.intake;
        self.runner().set_intake(open);
    }

    pub fn runner(&mut self) -> &mut QueueRunner<Arc<M>> {
        self.runner.as_mut().unwrap()
    }

    pub fn in_flight(&self) -> usize {
        self.runner.as_ref().map_or(0, |runner| runner.in_flight())
    }

    pub fn stop(&mut self, mode: Stop) -> Stopped {
        let stopped = self.runner.take().unwrap().stop(mode);
        self.check();
        stopped
    }

    pub fn intake(&mut self, open: bool) {
        if open != self.intake {
            self.intake = open;
            self.waits = false;
            self.runner().set_intake(open);
        }
    }

    /// `None`: there is no room, or it is no request.
    pub fn submit(&mut self, made: &Made) -> Option<Token> {
        let framing = match &made.framing {
            Framing::Separate => Cut::Separate,
            Framing::Merged => Cut::Merged,
            Framing::Cut { .. } => Cut::Cut {
                readable: &made.lengths[0],
                writable: &made.lengths[1],
            },
            Framing::Random { seed, cuts } => Cut::Random {
                seed: (*seed).into(),
                cuts: (cuts % 6).into(),
            },
        };
        let raw = Raw {
            header: made.header,
            header_len: made.header_len,
            out: Out::Bytes(&made.out),
            input: In::Len(made.input),
            status: made.status,
            framing,
            indirect: made.indirect && self.indirect,
        };
        let token = match self.driver.submit(&raw) {
            Ok(token) => token,
            Err(DriverError::Ring(RingError::Violation(violation))) => panic!("{violation}"),
            Err(_) => return None,
        };
        let data = self.driver.data(token).unwrap();
        let fresh = vec![UNTOUCHED; data.len as usize];
        use virtio_blk_driver::Memory;
        self.mem.write_at(data.addr, &fresh).unwrap();
        self.inputs.insert(token, (made.input, made.status));
        self.unpublished = true;
        Some(token)
    }

    pub fn publish(&mut self) {
        let kick = self.driver.publish().unwrap();
        if std::mem::take(&mut self.unpublished) {
            assert!(kick || !self.waits, "the device waits and wants no kick");
            self.waits = false;
        }
    }

    pub fn service(&mut self, budget: usize) -> Service {
        let answer = self.runner().service(budget);
        // With requests in flight it may be waiting for the disk to have room.
        let idle = answer == Service::Idle && self.in_flight() == 0;
        self.waits = idle && self.intake;
        answer
    }

    /// The next answer, with all bytes the device could write.
    pub fn poll(&mut self) -> Option<(Done, Vec<u8>)> {
        let done = self.driver.poll().unwrap()?;
        let (len, status) = self.inputs.remove(&done.token).unwrap();
        let mut data = vec![0; len as usize];
        self.driver.read_data(done.token, 0, &mut data).unwrap();
        if status {
            data.push(done.status);
        } else {
            assert_eq!(done.status, S_UNWRITTEN);
        }
        Some((done, data))
    }

    pub fn interrupts(&mut self, after: u16) {
        let (ring, mem) = self.driver.ring_mut();
        if after == 0 {
            ring.disable_interrupts(mem).unwrap();
        } else {
            ring.interrupt_after(mem, after).unwrap();
        }
        self.asked_at = self.notified.load(Ordering::Relaxed);
    }

    pub fn check(&mut self) {
        let (ring, mem) = self.driver.ring_mut();
        let due = ring.interrupt_due(mem).unwrap();
        let came = self.notified.load(Ordering::Relaxed) > self.asked_at;
        assert!(came || !due, "an interrupt is missing");
        assert!(self.in_flight() <= usize::from(self.layout.size()));
    }

    /// Checks that the device left alone what is the driver's.
    pub fn audit(&mut self) {
        let (ring, mem) = self.driver.ring_mut();
        ring.audit(mem).unwrap();
    }
}

fn driver<M: GuestMemory>(
    mem: &Arc<M>,
    layout: SplitLayout,
    arena: GuestAddress,
    config: RingConfig,
) -> Driver<Arc<M>> {
    let arena = Arena::new(arena, ARENA).unwrap();
    Driver::new(mem.clone(), layout, config, arena).unwrap()
}
