// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest with a verified load: it knows what each sector must hold, waits for interrupts, and gives up on nothing.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use vdpa_bus::{Callback, VqAddress};
use vhost_vdpa_frontend::GuestQueue;
use virtio_blk_driver::request::{Arena, ArenaConfig, Driver, Request, Token};
use virtio_blk_driver::ring::{RingConfig, SplitLayout};
use virtio_blk_driver::testmem::{self, Space};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::eventfd;

pub const DATA: u32 = 1024;
pub const SIZE: u16 = 64;
/// Places on the disk that each request slot of a queue has to itself.
const PLACES: u64 = 4;

pub type Memory = GuestMemoryMmap<()>;

/// Lets guest threads be stopped between two steps, as vCPUs are.
#[derive(Default)]
pub struct Gate {
    /// Whether it is closed, and how many are inside.
    state: Mutex<(bool, u32)>,
    changed: Condvar,
}

impl Gate {
    fn enter(&self) {
        let mut state = self.state.lock().unwrap();
        while state.0 {
            state = self.changed.wait(state).unwrap();
        }
        state.1 += 1;
    }

    fn leave(&self) {
        self.state.lock().unwrap().1 -= 1;
        self.changed.notify_all();
    }

    /// When it returns, nobody is inside.
    pub fn close(&self) {
        let mut state = self.state.lock().unwrap();
        state.0 = true;
        while state.1 != 0 {
            state = self.changed.wait(state).unwrap();
        }
    }

    pub fn open(&self) {
        self.state.lock().unwrap().0 = false;
        self.changed.notify_all();
    }
}

/// One queue of the guest's driver.
pub struct Queue {
    driver: Driver<Arc<Memory>>,
    parts: Parts,
    gate: Arc<Gate>,
    pub kick: Arc<EventFd>,
    pub irq: Arc<EventFd>,
    index: u16,
    slots: Vec<SlotState>,
    event_idx: bool,
    rng: u64,
}

struct Parts {
    memory: Arc<Memory>,
    layout: SplitLayout,
    ring: RingConfig,
    arena: Arena,
}

impl Parts {
    fn driver(&self) -> Driver<Arc<Memory>> {
        Driver::new(self.memory.clone(), self.layout, self.ring, self.arena).unwrap()
    }
}

struct SlotState {
    flight: Option<(Token, Option<u64>, u64)>,
    /// What was last written to each place.
    content: [u64; PLACES as usize],
}

pub struct Guest {
    pub memory: Arc<Memory>,
    pub queues: Vec<Queue>,
    pub gate: Arc<Gate>,
}

pub fn disk_bytes(queues: u16, depth: u16) -> u64 {
    u64::from(queues) * u64::from(depth) * PLACES * u64::from(DATA)
}

impl Guest {
    /// A guest with `queues` of `depth` requests in flight each.
    pub fn new(queues: u16, depth: u16, event_idx: bool) -> Self {
        let (memory, mut space) = testmem::gapped(8 << 20).unwrap();
        let memory = Arc::new(memory);
        let gate = Arc::new(Gate::default());
        let queues = (0..queues)
            .map(|index| Queue::new(&memory, &mut space, index, depth, event_idx, &gate))
            .collect();
        Self {
            memory,
            queues,
            gate,
        }
    }
}

impl Queue {
    fn new(
        memory: &Arc<Memory>,
        space: &mut Space,
        index: u16,
        depth: u16,
        event_idx: bool,
        gate: &Arc<Gate>,
    ) -> Self {
        let at = space.take(SplitLayout::footprint(SIZE), 4096).unwrap();
        let layout = SplitLayout::contiguous(SIZE, at).unwrap();
        let config = ArenaConfig {
            slots: depth,
            data_len: DATA,
            data_align: 512,
            table_len: 16,
        };
        let arena = Arena::new(space.take(config.footprint(), 4096).unwrap(), config).unwrap();
        let ring = RingConfig {
            event_idx,
            indirect: true,
            start: 0,
        };
        let parts = Parts {
            memory: memory.clone(),
            layout,
            ring,
            arena,
        };
        Self {
            driver: parts.driver(),
            parts,
            gate: gate.clone(),
            kick: eventfd(),
            irq: eventfd(),
            index,
            slots: (0..depth)
                .map(|_| SlotState {
                    flight: None,
                    content: [0; PLACES as usize],
                })
                .collect(),
            event_idx,
            rng: u64::from(index) + 1,
        }
    }

    /// The queue for a transport.
    pub fn setup(&self) -> GuestQueue {
        let state = self.driver.state();
        GuestQueue {
            size: SIZE,
            address: VqAddress {
                desc: state.desc_table,
                driver: state.avail_ring,
                device: state.used_ring,
            },
            kick: self.kick.clone(),
            call: Callback::Trigger(self.irq.clone()),
        }
    }

    /// After a reset of the device, as a driver that is loaded again. What was in flight may or may not have been done.
    pub fn reset(&mut self) {
        self.driver = self.parts.driver();
        for slot in &mut self.slots {
            slot.flight = None;
        }
    }

    /// Submits what there is room for, and kicks.
    pub fn start_some(&mut self) {
        self.submit();
        if self.driver.publish().unwrap() {
            self.kick.write(1).unwrap();
        }
    }

    /// One read, with nothing else in flight: its status.
    pub fn ask_one(&mut self) -> u8 {
        self.ask(&Request::read(0, 512)).0
    }

    /// The device's serial number.
    pub fn serial(&mut self) -> Vec<u8> {
        let (_, token) = self.ask(&Request::get_id());
        let mut id = vec![0; 20];
        self.driver.read_data(token, 0, &mut id).unwrap();
        id
    }

    fn ask(&mut self, request: &Request<'_>) -> (u8, Token) {
        let token = self.driver.submit(request).unwrap();
        if self.driver.publish().unwrap() {
            self.kick.write(1).unwrap();
        }
        loop {
            if let Some(done) = self.driver.poll().unwrap() {
                assert_eq!(done.token, token);
                return (done.status, token);
            }
            let (ring, memory) = self.driver.ring_mut();
            if !ring.enable_interrupts(memory).unwrap() {
                self.wait();
            }
        }
    }

    fn random(&mut self) -> u64 {
        self.rng = self
            .rng
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        self.rng >> 33
    }

    fn pattern(&self, slot: usize, place: u64, number: u64) -> Vec<u8> {
        let mut data = vec![0; DATA as usize];
        if number != 0 {
            for (at, word) in data.chunks_exact_mut(8).enumerate() {
                let word_value = number << 24
                    | u64::from(self.index) << 20
                    | (slot as u64) << 12
                    | place << 8
                    | at as u64 & 0xff;
                word.copy_from_slice(&word_value.to_le_bytes());
            }
        }
        data
    }

    /// Keeps all slots busy until `stop` and then finishes. Panics at anything that is not as it must be; answers how
    /// many requests were answered.
    pub fn run(&mut self, stop: &AtomicBool, total: &AtomicU64) -> u64 {
        let mut answered = 0;
        loop {
            self.gate.enter();
            let ending = stop.load(Ordering::SeqCst);
            if !ending {
                self.submit();
            }
            if self.driver.publish().unwrap() {
                self.kick.write(1).unwrap();
            }
            let finished = ending && self.driver.in_flight() == 0;
            if !finished {
                answered += self.collect(total);
            }
            self.gate.leave();
            if finished {
                return answered;
            }
        }
    }

    fn submit(&mut self) {
        for slot in 0..self.slots.len() {
            if self.slots[slot].flight.is_some() {
                continue;
            }
            let place = self.random() % PLACES;
            let write = self.random().is_multiple_of(2);
            let before = self.slots[slot].content[place as usize];
            let sector = ((u64::from(self.index) * self.slots.len() as u64 + slot as u64) * PLACES
                + place)
                * u64::from(DATA)
                / 512;
            let indirect = self.random().is_multiple_of(2);
            let data = self.pattern(slot, place, before + 1);
            let request = if write {
                Request::write(sector, &data)
            } else {
                Request::read(sector, DATA)
            };
            let token = self.driver.submit(&request.indirect(indirect)).unwrap();
            let number = write.then_some(before + 1);
            self.slots[slot].flight = Some((token, number, place));
        }
    }

    fn collect(&mut self, total: &AtomicU64) -> u64 {
        let mut answered = 0;
        loop {
            while let Some(done) = self.driver.poll().unwrap() {
                assert!(done.is_ok(), "queue {}: {done:?}", self.index);
                let slot = self
                    .slots
                    .iter()
                    .position(|slot| slot.flight.is_some_and(|(token, _, _)| token == done.token))
                    .expect("an answer to a request in flight");
                let (_, number, place) = self.slots[slot].flight.take().unwrap();
                match number {
                    Some(number) => self.slots[slot].content[place as usize] = number,
                    None => {
                        let mut data = vec![0; DATA as usize];
                        self.driver.read_data(done.token, 0, &mut data).unwrap();
                        let number = self.slots[slot].content[place as usize];
                        assert!(
                            data == self.pattern(slot, place, number),
                            "queue {} slot {slot} place {place}: not what was written",
                            self.index
                        );
                    }
                }
                answered += 1;
            }
            total.fetch_add(answered, Ordering::SeqCst);
            if answered != 0 || self.driver.in_flight() == 0 {
                return answered;
            }
            let (ring, memory) = self.driver.ring_mut();
            if ring.enable_interrupts(memory).unwrap() {
                continue;
            }
            // A vCPU that sleeps can be stopped.
            self.gate.leave();
            self.wait();
            self.gate.enter();
            if !self.event_idx {
                let (ring, memory) = self.driver.ring_mut();
                ring.disable_interrupts(memory).unwrap();
            }
        }
    }

    /// Waits for the interrupt. One that does not come is the worst there is.
    fn wait(&self) {
        let mut fd = libc::pollfd {
            fd: self.irq.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one valid entry.
        let ready = unsafe { libc::poll(&mut fd, 1, 30_000) };
        assert_eq!(
            ready, 1,
            "queue {}: no interrupt, requests are stuck",
            self.index
        );
        self.irq.read().unwrap();
    }
}
