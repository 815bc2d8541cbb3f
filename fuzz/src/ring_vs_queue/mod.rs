// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Our ring beside virtio-queue's, on two copies of the same memory.
//!
//! Both must find the same chains, write the same used ring and decide the same about notifications.
//! Where they are known to differ, ours is right and the difference is what is checked:
//!
//! | what the driver does | virtio-queue 0.18 | ours |
//! |---|---|---|
//! | a chain that loops, leaves its table, nests tables, exceeds 4 GiB | ends early | malformed |
//! | a readable descriptor behind a writable one | taken | malformed |
//! | a table that is only partly mapped | taken, if the chain ends before | malformed |
//! | a head that is not there, or in flight | an empty chain; taken | latched |
//! | an available index too far ahead | nothing there | latched |
//! | no interrupts, by flag | ignored | respected |
//! | a descriptor of no bytes | yielded | left out |
//!
//! An indirect descriptor with a successor, which virtio-queue takes, is not generated.

mod compare;
pub(crate) mod seeds;

use malformed_queues::testmem::Space;
use vm_memory::GuestMemory;

use crate::image::{Image, NAIVE_SEED, OnMemory, with_memory};
pub use crate::image::{Kind, Place};
use compare::Pair;

input! {
    /// A queue and what is done with it.
    pub struct Input {
        /// The memory.
        pub memory: Kind,
        /// The size is 2 to this power, modulo 8.
        pub exponent: u8,
        /// The largest size is so many times 2 larger, modulo 4.
        pub more: u8,
        /// The first index.
        pub start: u16,
        /// Event index is negotiated.
        pub event_idx: bool,
        /// What happens.
        pub steps: Vec<Step>,
    }
}

input! {
    /// Something that happens.
    pub enum Step {
        /// The driver makes a chain available.
        Offer {
            /// The chain.
            chain: Chain,
        },
        /// The device takes the next chain.
        Pop,
        /// The device is done with a chain.
        Complete {
            /// Which one.
            pick: u8,
            /// Bytes written.
            len: u32,
        },
        /// The device publishes what it is done with.
        Publish,
        /// The driver sets `used_event`, relative to the used index.
        Event {
            /// By how much.
            ahead: i8,
        },
        /// The driver sets the available ring's flags.
        Flags {
            /// To what.
            flags: u16,
        },
        /// The device asks for kicks.
        Enable,
        /// The device asks for no kicks.
        Disable,
        /// The device is stopped and started again, if nothing is in flight.
        Restart,
        /// The driver makes a head available whatever it is.
        Head {
            /// The head.
            head: u16,
        },
        /// The driver sets the available index.
        Jump {
            /// To what.
            index: u16,
        },
    }
}

input! {
    /// A chain.
    pub struct Chain {
        /// The descriptors from this one on (modulo their number, plus one) are in a table of their own;
        /// 0: none.
        pub table: u8,
        /// What the length of the table is off by, in bytes.
        pub excess: u8,
        /// The descriptors.
        pub descs: Vec<Desc>,
    }
}

input! {
    /// A descriptor.
    pub struct Desc {
        /// Bit 0: the device writes; the others: flags that should not be there, modulo 256.
        pub flags: u8,
        /// Where the buffer is.
        pub addr: Place,
        /// Its length.
        pub len: Len,
        /// Its successor.
        pub link: Link,
    }
}

input! {
    /// The length of a buffer.
    pub enum Len {
        /// A few bytes.
        Short {
            /// How many.
            len: u8,
        },
        /// Any number.
        Raw {
            /// How many.
            len: u32,
        },
    }
}

input! {
    /// How a descriptor continues.
    pub enum Link {
        /// As it should.
        Right,
        /// To this one.
        To {
            /// Its index.
            index: u16,
        },
        /// Not at all.
        End,
    }
}

/// Pages of memory.
const PAGES: usize = 12;
/// Most steps that are taken.
const MAX_STEPS: usize = 256;
/// Where things lie in memory.
const DESC: u64 = 0;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const TABLES: u64 = 0x3000;
/// Bytes for tables.
const TABLES_LEN: u64 = 0x4000;
const DATA: u64 = 0x8000;

/// Does with a queue what the input says.
///
/// # Panics
/// The two differ where they should not.
pub fn run(input: &Input) {
    with_memory(&input.memory, PAGES, First(input));
}

struct First<'a>(&'a Input);

impl OnMemory for First<'_> {
    fn call<M: GuestMemory + Send + Sync + 'static>(self, image: &Image<M>, _: Space) {
        // The other ring asks for ranges that wrap around the address space, of which this memory would die.
        let checked = Kind::Fragmented { seed: NAIVE_SEED };
        let theirs = match &self.0.memory {
            Kind::Naive => &checked,
            other => other,
        };
        with_memory(theirs, PAGES, Second(self.0, image));
    }
}

struct Second<'a, M>(&'a Input, &'a Image<M>);

impl<A: GuestMemory + Send + Sync + 'static> OnMemory for Second<'_, A> {
    fn call<B: GuestMemory + Send + Sync + 'static>(self, theirs: &Image<B>, _: Space) {
        let mut pair = Pair::new(self.0, self.1, theirs);
        for step in self.0.steps.iter().take(MAX_STEPS) {
            if pair.step(step).is_break() {
                return;
            }
            pair.check();
        }
    }
}
