// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Arbitrary bytes where a device expects a queue.
//!
//! The input says what lies in guest memory (descriptors, tables, headers, indices), where the device
//! is told that the ring is, what happens then, and what a second thread keeps rewriting meanwhile.
//! Either a bare [`SplitRing`](virtio_blk_core::ring::SplitRing) works on it or a whole device. Whatever
//! the input is:
//! - nothing panics, hangs or touches memory that is not there;
//! - memory changes only where a writable descriptor pointed, and in the used ring;
//! - the device has at most as many chains as the queue has descriptors;
//! - a broken ring stays broken, with the same error, and touches nothing any more;
//! - every chain taken from a sound queue is returned or named when the queue stops.

mod bare;
mod queue;
mod reach;
pub(crate) mod seeds;

use std::sync::atomic::{AtomicBool, Ordering};

use malformed_queues::testmem::Space;
use virtio_blk_driver::wire::{Descriptor, header};
use virtio_queue::QueueState;
use vm_memory::{GuestAddress, GuestMemory, Permissions};

use crate::image::{Image, OnMemory, with_memory};
pub use crate::image::{Kind, Place};

input! {
    /// A queue in memory and what is done with it.
    pub struct Input {
        /// The memory.
        pub memory: Kind,
        /// What the device is told.
        pub queue: Queue,
        /// What may be done with pages, behind an IOMMU.
        pub protect: Vec<Protect>,
        /// What lies in memory.
        pub content: Vec<Put>,
        /// What a second thread writes, over and over, while the steps are taken.
        pub race: Vec<Put>,
        /// Who works on the queue.
        pub device: Device,
        /// What happens.
        pub steps: Vec<Step>,
    }
}

input! {
    /// Where the queue is said to be.
    pub struct Queue {
        /// Descriptors.
        pub size: Size,
        /// Descriptor table.
        pub desc: Place,
        /// Available ring.
        pub avail: Place,
        /// Used ring.
        pub used: Place,
        /// The next available entry.
        pub next_avail: u16,
        /// Chains an earlier owner left in flight, by the indices.
        pub taken: u8,
        /// Heads of such chains.
        pub replay: Vec<u16>,
        /// Bits 0 and 1: event index and indirect descriptors are negotiated; 2: not ready.
        pub flags: u8,
    }
}

input! {
    /// A queue size.
    pub enum Size {
        /// A power of two up to 256.
        Power {
            /// The exponent, modulo 9.
            exponent: u8,
        },
        /// Anything.
        Raw {
            /// The size.
            size: u16,
        },
    }
}

input! {
    /// What may be done with a page.
    pub struct Protect {
        /// Which page.
        pub page: u8,
        /// Bits 0 and 1: reading, writing.
        pub access: u8,
    }
}

input! {
    /// Something that lies in memory.
    pub enum Put {
        /// A descriptor.
        Descriptor {
            /// 0: in the descriptor table; else in one of four tables elsewhere.
            table: u8,
            /// Its place in the table.
            index: u8,
            /// What it says.
            desc: Desc,
        },
        /// A request's header.
        Header {
            /// Which one.
            index: u8,
            /// The request's type.
            kind: u8,
            /// Its sector.
            sector: u16,
        },
        /// An entry of the available ring.
        Entry {
            /// Which one.
            slot: u8,
            /// What it says.
            head: u16,
        },
        /// The available index.
        Index {
            /// What it says.
            index: u16,
        },
        /// Flags of the available ring.
        Flags {
            /// What they say.
            flags: u16,
        },
        /// `used_event`.
        Event {
            /// What it says.
            index: u16,
        },
    }
}

input! {
    /// A descriptor.
    pub struct Desc {
        /// Its address.
        pub addr: Addr,
        /// Its length.
        pub len: Len,
        /// Its flags.
        pub flags: u8,
        /// Its successor.
        pub next: Next,
    }
}

input! {
    /// The address in a descriptor.
    pub enum Addr {
        /// A buffer for data.
        Data {
            /// Which one; each has 256 bytes.
            index: u8,
        },
        /// A request's header.
        Header {
            /// Which one.
            index: u8,
        },
        /// One of the four tables.
        Table {
            /// Which one.
            table: u8,
        },
        /// Anywhere.
        Other {
            /// The place.
            place: Place,
        },
    }
}

input! {
    /// The length in a descriptor.
    pub enum Len {
        /// So many times 16 bytes: headers, tables.
        Sixteens {
            /// How many.
            count: u8,
        },
        /// Bytes.
        Bytes {
            /// How many.
            count: u8,
        },
        /// A sector.
        Sector,
        /// Anything.
        Raw {
            /// Bytes.
            len: u32,
        },
    }
}

input! {
    /// The link in a descriptor.
    pub enum Next {
        /// To the next place in the table.
        Following,
        /// To another one.
        To {
            /// Which.
            index: u8,
        },
        /// To one that is probably not there.
        Raw {
            /// Which.
            index: u16,
        },
    }
}

input! {
    /// Who works on the queue.
    pub enum Device {
        /// A bare ring; each [`Step::Work`] calls one of its methods.
        Ring,
        /// A device with a disk that works in the call.
        Inline,
        /// A device with a disk that takes its time, refuses and reorders.
        Deferred {
            /// What it decides follows from it.
            seed: u8,
        },
    }
}

input! {
    /// Something that happens.
    pub enum Step {
        /// The device works.
        Work {
            /// How many requests to take, or which method of the ring to call.
            what: u8,
            /// An argument of that method.
            argument: u32,
        },
        /// The driver makes a chain available.
        Offer {
            /// Its head.
            head: u8,
        },
        /// The driver writes to memory.
        Write {
            /// What.
            what: Put,
        },
        /// The IOMMU changes, and the device is told.
        Protect {
            /// How.
            how: Protect,
        },
        /// The device looks at memory anew.
        Remap,
        /// The device opens (1) or closes (0) its intake.
        Intake {
            /// Bit 0.
            open: u8,
        },
        /// The device stops: 0 drained, else with requests in flight. Nothing happens afterwards.
        Stop {
            /// Bit 0.
            hand_over: u8,
        },
    }
}

/// Pages of memory.
const PAGES: usize = 16;
/// Places in memory, in bytes.
const DESC: u64 = 0;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const TABLES: u64 = 0x3000;
const TABLE: u64 = 0x400;
const HEADERS: u64 = 0x4000;
const DATA: u64 = 0x5000;
/// The largest queue the device serves.
const MAX_SIZE: u16 = 256;
/// Most times the second thread goes through what it writes.
const ROUNDS: usize = 64;
/// Most steps that are taken.
const MAX_STEPS: usize = 64;

/// Does with a queue what the input says.
///
/// # Panics
/// The device broke a rule.
pub fn run(input: &Input) {
    with_memory(&input.memory, PAGES, Run(input));
}

struct Run<'a>(&'a Input);

impl OnMemory for Run<'_> {
    fn call<M: GuestMemory + Send + Sync + 'static>(self, image: &Image<M>, _: Space) {
        let field = Field::new(self.0, image);
        for put in &self.0.content {
            field.put(put);
        }
        for protect in &self.0.protect {
            field.protect(protect);
        }
        let reach = reach::Reach::new(self.0, &field);
        let before = image.snapshot();
        match self.0.device {
            Device::Ring => bare::run(self.0, &field, &before),
            Device::Inline => queue::run(self.0, &field, None),
            Device::Deferred { seed } => queue::run(self.0, &field, Some(seed)),
        }
        reach.check(&before, &image.snapshot());
    }
}

/// Memory with a queue in it.
struct Field<'a, M> {
    image: &'a Image<M>,
    state: QueueState,
    event_idx: bool,
    indirect: bool,
}

impl<'a, M: GuestMemory> Field<'a, M> {
    fn new(input: &Input, image: &'a Image<M>) -> Self {
        let queue = &input.queue;
        let size = match queue.size {
            Size::Power { exponent } => 1 << (exponent % 9),
            Size::Raw { size } => size,
        };
        let state = QueueState {
            max_size: MAX_SIZE,
            next_avail: queue.next_avail,
            next_used: queue.next_avail.wrapping_sub(queue.taken.into()),
            event_idx_enabled: queue.flags & 1 != 0,
            size,
            ready: queue.flags & 4 == 0,
            desc_table: image.place(&queue.desc, DESC),
            avail_ring: image.place(&queue.avail, AVAIL),
            used_ring: image.place(&queue.used, USED),
        };
        let field = Self {
            image,
            state,
            event_idx: queue.flags & 1 != 0,
            indirect: queue.flags & 2 != 0,
        };
        field.put(&Put::Index {
            index: state.next_avail,
        });
        field
    }

    /// The features the driver acknowledged.
    fn features(&self) -> u64 {
        use virtio_blk_core::spec::feature::{RING_EVENT_IDX, RING_INDIRECT_DESC};
        let bit = |on: bool, bit: u64| if on { bit } else { 0 };
        bit(self.event_idx, RING_EVENT_IDX) | bit(self.indirect, RING_INDIRECT_DESC)
    }

    /// The place of entry `slot` of the available ring.
    fn entry(&self, slot: u16) -> u64 {
        let slot = slot.checked_rem(self.state.size).unwrap_or(0);
        self.avail(4 + 2 * u64::from(slot))
    }

    fn avail(&self, offset: u64) -> u64 {
        self.state.avail_ring.wrapping_add(offset)
    }

    /// Where a descriptor lies, and what it is.
    fn descriptor(&self, table: u8, index: u8, desc: &Desc) -> (u64, Descriptor) {
        let index = u64::from(index);
        let at = match table % 5 {
            0 => self.state.desc_table.wrapping_add(16 * index),
            table => self.table(table - 1) + 16 * (index % (TABLE / 16)),
        };
        let addr = match &desc.addr {
            Addr::Data { index } => self.image.addr(DATA + 0x100 * u64::from(index % 176)),
            Addr::Header { index } => self.header(*index),
            Addr::Table { table } => self.table(*table),
            Addr::Other { place } => self.image.place(place, DATA),
        };
        let len = match desc.len {
            Len::Sixteens { count } => 16 * u32::from(count),
            Len::Bytes { count } => count.into(),
            Len::Sector => 512,
            Len::Raw { len } => len,
        };
        let next = match desc.next {
            Next::Following => index as u16 + 1,
            Next::To { index } => index.into(),
            Next::Raw { index } => index,
        };
        let desc = Descriptor {
            addr: GuestAddress(addr),
            len,
            flags: desc.flags.into(),
            next,
        };
        (at, desc)
    }

    fn table(&self, table: u8) -> u64 {
        self.image.addr(TABLES + TABLE * u64::from(table % 4))
    }

    fn header(&self, index: u8) -> u64 {
        self.image.addr(HEADERS + 16 * u64::from(index))
    }

    /// Where something lies in memory, and how many bytes it has.
    fn range(&self, put: &Put) -> (u64, u64) {
        match put {
            Put::Descriptor { table, index, desc } => (self.descriptor(*table, *index, desc).0, 16),
            Put::Header { index, .. } => (self.header(*index), 16),
            Put::Entry { slot, .. } => (self.entry((*slot).into()), 2),
            Put::Index { .. } => (self.avail(2), 2),
            Put::Flags { .. } => (self.avail(0), 2),
            Put::Event { .. } => (self.avail(4 + 2 * u64::from(self.state.size)), 2),
        }
    }

    fn put(&self, put: &Put) {
        let (at, _) = self.range(put);
        match put {
            Put::Descriptor { table, index, desc } => {
                let (_, desc) = self.descriptor(*table, *index, desc);
                self.image.store_halves(at, desc.to_bytes());
            }
            Put::Header { kind, sector, .. } => {
                let bytes = header((*kind).into(), 0, (*sector).into());
                self.image.store_halves(at, bytes);
            }
            Put::Entry { head: value, .. }
            | Put::Index { index: value }
            | Put::Flags { flags: value }
            | Put::Event { index: value } => self.image.store_u16(at, *value),
        }
    }

    /// Returns whether anything changed.
    fn protect(&self, protect: &Protect) -> bool {
        let permissions = match protect.access & 3 {
            0 => Permissions::No,
            1 => Permissions::Read,
            2 => Permissions::Write,
            _ => Permissions::ReadWrite,
        };
        self.image.protect(protect.page, permissions)
    }

    /// Calls `work` while a second thread rewrites memory.
    fn race(&self, input: &Input, work: impl FnOnce())
    where
        M: Send + Sync,
    {
        if input.race.is_empty() {
            return work();
        }
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let racer = scope.spawn(|| {
                for _ in 0..ROUNDS {
                    // There and back, so that the device makes progress in between.
                    for put in input.race.iter().chain(&input.content) {
                        self.put(put);
                    }
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
            // Also if the work panics, the thread ends by itself.
            work();
            stop.store(true, Ordering::Relaxed);
            // The end of the scope alone does not wait until all of the thread's memory is free, which
            // looks like a leak.
            racer.join().unwrap();
        });
    }
}
