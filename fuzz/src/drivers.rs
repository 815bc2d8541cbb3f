// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest's drivers, one for each queue of a device, and what they expect of it.
//!
//! As long as nothing hostile happened, each request completes once, with the status that follows from it, and a read returns
//! what was written.

use std::collections::HashMap;
use std::sync::Arc;

use malformed_queues::testmem::Space;
use virtio_blk_driver::request::{ArenaConfig, Driver, Request, Token};
use virtio_blk_driver::ring::RingConfig;
use virtio_queue::QueueState;
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// The memory of a guest.
pub type Memory = GuestMemoryMmap<()>;

/// Descriptors of a queue.
pub const QUEUE_SIZE: u16 = 16;
/// Bytes of memory that a queue needs: 8 pages.
pub const PART: u64 = 8 * 4096;

const ARENA: ArenaConfig = ArenaConfig {
    slots: 4,
    data_len: 1024,
    data_align: 512,
    table_len: 8,
};

/// A request in flight: what it asked for.
struct Flight {
    kind: u8,
    sector: u64,
    fill: u8,
    /// A write of the sector was in flight with it: which came first is open.
    contested: bool,
}

/// The drivers.
pub struct Drivers {
    memory: Arc<Memory>,
    /// Of the device.
    sectors: u64,
    /// By index.
    queues: Vec<Option<Driver<Arc<Memory>>>>,
    flights: HashMap<(usize, Token), Flight>,
    /// What each sector holds, where it was written; `None`: that is not known.
    content: HashMap<u64, Option<u8>>,
    fill: u8,
}

impl Drivers {
    /// Drivers for so many queues of a device with so many sectors.
    pub fn new(memory: Arc<Memory>, queues: usize, sectors: u64) -> Self {
        Self {
            memory,
            sectors,
            queues: (0..queues).map(|_| None).collect(),
            flights: HashMap::new(),
            content: HashMap::new(),
            fill: 0,
        }
    }

    /// Queues.
    pub fn len(&self) -> usize {
        self.queues.len()
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// Begins a queue anew, in [`PART`] bytes of memory from `at` on.
    pub fn set_up(
        &mut self,
        index: usize,
        at: GuestAddress,
        start: u16,
        (event_idx, indirect): (bool, bool),
    ) -> QueueState {
        self.forget(index);
        let config = RingConfig {
            event_idx,
            indirect,
            start,
        };
        let mut space = Space::new(&[(at, PART)]);
        let driver = space.driver(self.memory.clone(), QUEUE_SIZE, config, ARENA);
        let driver = driver.expect("memory for a queue");
        let state = driver.state();
        self.queues[index] = Some(driver);
        state
    }

    /// Forgets a queue: the device is reset.
    pub fn forget(&mut self, index: usize) {
        self.queues[index] = None;
        let content = &mut self.content;
        self.flights.retain(|(queue, _), flight| {
            if *queue == index && flight.kind == 1 {
                content.insert(flight.sector, None);
            }
            *queue != index
        });
    }

    /// Forgets all queues.
    pub fn forget_all(&mut self) {
        (0..self.len()).for_each(|index| self.forget(index));
    }

    /// Forgets what the medium holds.
    pub fn forget_content(&mut self) {
        self.content.clear();
    }

    /// Makes a request available. Returns whether the device wants a kick.
    pub fn request(&mut self, index: usize, kind: u8, sector: u64, behaves: bool) -> bool {
        let Some(driver) = &mut self.queues[index] else {
            return false;
        };
        self.fill = self.fill.wrapping_add(1);
        let data = [self.fill; 512];
        let request = match kind {
            0 => Request::read(sector, 512),
            1 => Request::write(sector, &data),
            4 => Request::flush(),
            8 => Request::get_id(),
            other => Request::new(other.into(), sector),
        };
        // There may be no room.
        let Ok(token) = driver.submit(&request) else {
            return false;
        };
        let mut flight = Flight {
            kind,
            sector,
            fill: self.fill,
            contested: false,
        };
        for other in self.flights.values_mut() {
            if other.sector == sector && (kind == 1 || other.kind == 1) {
                (flight.contested, other.contested) = (true, true);
            }
        }
        if kind == 1 {
            self.content.insert(sector, None);
        }
        self.flights.insert((index, token), flight);
        driver.publish().unwrap_or_else(|error| {
            assert!(!behaves, "{error}");
            false
        })
    }

    /// Takes what is completed.
    pub fn poll(&mut self, behaves: bool) {
        for index in 0..self.len() {
            while let Some(driver) = &mut self.queues[index] {
                let done = match driver.poll() {
                    Ok(Some(done)) => done,
                    Ok(None) => break,
                    Err(error) => {
                        assert!(!behaves, "queue {index}: {error}");
                        self.forget(index);
                        break;
                    }
                };
                let mut data = [0; 512];
                let read = driver.read_data(done.token, 0, &mut data);
                let flight = self.flights.remove(&(index, done.token));
                let Some(flight) = flight else {
                    assert!(!behaves, "completed twice, or never submitted");
                    continue;
                };
                if behaves {
                    let data = read.is_ok().then_some(data);
                    self.check(&flight, done.is_ok(), data);
                }
            }
        }
    }

    fn check(&mut self, flight: &Flight, ok: bool, data: Option<[u8; 512]>) {
        let fits = flight.sector < self.sectors;
        let served = match flight.kind {
            0 | 1 => fits,
            4 | 8 => true,
            _ => false,
        };
        assert_eq!(ok, served, "a request of kind {}", flight.kind);
        if flight.contested || !fits {
            return;
        }
        match flight.kind {
            1 => {
                self.content.insert(flight.sector, Some(flight.fill));
            }
            0 => {
                let data = data.expect("a read has data");
                if let Some(Some(fill)) = self.content.get(&flight.sector) {
                    assert_eq!(data, [*fill; 512], "not what was written");
                }
            }
            _ => {}
        }
    }
}
