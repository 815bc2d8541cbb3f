// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest with a verified load: it knows what each sector must hold, waits for interrupts, and gives up on nothing.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use malformed_queues::testmem::Space;
use vdpa_bus::{Callback, VqAddress};
use vhost_vdpa_frontend::{GuestQueue, Vmm};
use virtio_blk_core::spec::feature;
use virtio_blk_driver::request::{Arena, ArenaConfig, Driver, Request, Token};
use virtio_blk_driver::ring::{RingConfig, SplitLayout};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub const DATA: u32 = 1024;
pub const SIZE: u16 = 128;
/// Places on the disk that each request slot of a queue has to itself.
const PLACES: u64 = 4;

/// Where memory lies that may be plugged in later, and its bytes.
pub const PLUGGED: (u64, usize) = (1 << 33, 1 << 20);
/// Two adjacent regions, which buffers straddle, and one behind a gap.
const REGIONS: [(u64, usize); 4] = [
    (0x1_1000, REGION),
    (0x1_1000 + REGION as u64, REGION),
    (1 << 24, REGION),
    PLUGGED,
];
const REGION: usize = 1 << 20;

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

/// The guest's threads are its vCPUs.
impl Vmm for Gate {
    fn pause_vcpus(&self) -> bool {
        self.close();
        true
    }

    fn resume_vcpus(&self) {
        self.open();
    }
}

pub fn eventfd() -> Arc<EventFd> {
    Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap())
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
    flushes: bool,
    /// It waits for an interrupt not for long, and then kicks again and looks.
    pub kicks_again: bool,
    /// How often in a row it waited in vain.
    in_vain: u32,
    /// Requests may fail.
    pub takes_errors: bool,
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

/// What a slot asked for.
#[derive(Clone, Copy)]
enum Ask {
    Read { place: u64 },
    Write { place: u64, number: u64 },
    Flush,
}

struct SlotState {
    flight: Option<(Token, Ask)>,
    /// What was last written to each place, if that is known.
    content: [Option<u64>; PLACES as usize],
    /// Counts writes.
    number: u64,
}

/// Regions of file-backed memory: devices of the kernel take nothing else.
fn memory() -> Memory {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = Arc::new(File::from(
        rustix::fs::memfd_create("guest", flags).unwrap(),
    ));
    let mut end = 0;
    let ranges = REGIONS.map(|(base, len)| {
        let offset = FileOffset::from_arc(file.clone(), end);
        end += len as u64;
        (GuestAddress(base), len, Some(offset))
    });
    file.set_len(end).unwrap();
    Memory::from_ranges_with_files(ranges).unwrap()
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
    /// A guest with `queues` of `depth` requests in flight each, which uses what there is of `features`. Where it has
    /// several queues, the buffers of the last are in [`PLUGGED`] memory.
    pub fn new(queues: u16, depth: u16, features: u64) -> Self {
        let memory = Arc::new(memory());
        let part = |(base, len): (u64, usize)| (GuestAddress(base), len as u64);
        let [first, second, third, plugged] = REGIONS.map(part);
        let mut space = Space::new(&[(first.0, first.1 + second.1), third]);
        let mut more = Space::new(&[plugged]);
        let gate = Arc::new(Gate::default());
        let queues = (0..queues)
            .map(|index| {
                let at = space.take(SplitLayout::footprint(SIZE), 4096).unwrap();
                let last = index != 0 && index == queues - 1;
                let buffers = if last { &mut more } else { &mut space };
                Queue::new(&memory, at, buffers, index, depth, features, &gate)
            })
            .collect();
        Self {
            memory,
            queues,
            gate,
        }
    }

    /// Memory without that which is plugged in.
    pub fn unplugged(&self) -> Memory {
        let (base, len) = PLUGGED;
        let removed = self.memory.remove_region(GuestAddress(base), len as u64);
        removed.unwrap().0
    }
}

impl Queue {
    fn new(
        memory: &Arc<Memory>,
        at: GuestAddress,
        buffers: &mut Space,
        index: u16,
        depth: u16,
        features: u64,
        gate: &Arc<Gate>,
    ) -> Self {
        let layout = SplitLayout::contiguous(SIZE, at).unwrap();
        let config = ArenaConfig {
            slots: depth,
            data_len: DATA,
            data_align: 512,
            table_len: 16,
        };
        let arena = buffers.take(config.footprint(), 4096).unwrap();
        let parts = Parts {
            memory: memory.clone(),
            layout,
            ring: RingConfig {
                event_idx: features & feature::RING_EVENT_IDX != 0,
                indirect: features & feature::RING_INDIRECT_DESC != 0,
                start: 0,
            },
            arena: Arena::new(arena, config).unwrap(),
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
                    content: [Some(0); PLACES as usize],
                    number: 0,
                })
                .collect(),
            flushes: features & feature::FLUSH != 0,
            kicks_again: false,
            in_vain: 0,
            takes_errors: false,
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
            if let Some((_, Ask::Write { place, .. })) = slot.flight.take() {
                slot.content[place as usize] = None;
            }
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

    /// Keeps all slots busy until `stop` and then finishes. Panics at anything that is not as it must be; returns how
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
            let ask = match self.random() % 32 {
                0 if self.flushes => Ask::Flush,
                odd if odd % 2 == 1 => {
                    self.slots[slot].number += 1;
                    let number = self.slots[slot].number;
                    Ask::Write { place, number }
                }
                _ => Ask::Read { place },
            };
            let sector = ((u64::from(self.index) * self.slots.len() as u64 + slot as u64) * PLACES
                + place)
                * u64::from(DATA)
                / 512;
            let data;
            let request = match ask {
                Ask::Write { number, .. } => {
                    data = self.pattern(slot, place, number);
                    Request::write(sector, &data)
                }
                Ask::Read { .. } => Request::read(sector, DATA),
                Ask::Flush => Request::flush(),
            };
            let indirect = self.parts.ring.indirect && self.random().is_multiple_of(2);
            let token = self.driver.submit(&request.indirect(indirect)).unwrap();
            self.slots[slot].flight = Some((token, ask));
        }
    }

    fn collect(&mut self, total: &AtomicU64) -> u64 {
        let mut answered = 0;
        loop {
            while let Some(done) = self.driver.poll().unwrap() {
                assert!(
                    done.is_ok() || self.takes_errors,
                    "queue {}: {done:?}",
                    self.index
                );
                let slot = self
                    .slots
                    .iter()
                    .position(|slot| slot.flight.is_some_and(|(token, _)| token == done.token))
                    .expect("an answer to a request in flight");
                match self.slots[slot].flight.take().unwrap().1 {
                    Ask::Write { place, number } => {
                        self.slots[slot].content[place as usize] = done.is_ok().then_some(number);
                    }
                    Ask::Read { place } if done.is_ok() => {
                        let mut data = vec![0; DATA as usize];
                        self.driver.read_data(done.token, 0, &mut data).unwrap();
                        let number = self.slots[slot].content[place as usize];
                        assert!(
                            number.is_none_or(|number| data == self.pattern(slot, place, number)),
                            "queue {} slot {slot} place {place}: not what was written",
                            self.index
                        );
                    }
                    Ask::Read { .. } | Ask::Flush => {}
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
            if !self.parts.ring.event_idx {
                let (ring, memory) = self.driver.ring_mut();
                ring.disable_interrupts(memory).unwrap();
            }
        }
    }

    /// Waits for the interrupt. One that does not come is the worst there is, unless interrupts or kicks may get lost:
    /// then there is another kick, and another look.
    fn wait(&mut self) {
        let mut fd = libc::pollfd {
            fd: self.irq.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let pause = if self.kicks_again { 50 } else { 60_000 };
        // SAFETY: one valid entry.
        if unsafe { libc::poll(&mut fd, 1, pause) } == 1 {
            self.irq.read().unwrap();
            self.in_vain = 0;
            return;
        }
        self.in_vain += 1;
        assert!(
            self.kicks_again && self.in_vain < 1200,
            "queue {}: no interrupt, requests are stuck",
            self.index
        );
        self.kick.write(1).unwrap();
    }
}
