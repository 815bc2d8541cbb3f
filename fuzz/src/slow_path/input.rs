// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device, what it does, and what is asked of its disk.

input! {
    /// A device below the slow path.
    pub struct Input {
        /// What the device says of itself.
        pub device: Shape,
        /// Its users poll, and get no interrupts.
        pub polls: bool,
        /// What happens.
        pub steps: Vec<Step>,
    }
}

input! {
    /// What a device says of itself.
    pub struct Shape {
        /// Features of a block device that it does not offer.
        pub without: u32,
        /// It has no EVENT_IDX.
        pub no_event_idx: bool,
        /// It has no INDIRECT_DESC.
        pub no_indirect: bool,
        /// Blocks of 512 bytes.
        pub blocks: u16,
        /// `size_max`; 0: there is none.
        pub size_max: u16,
        /// `seg_max`.
        pub seg_max: u8,
        /// The size of its rings, as a power of two.
        pub ring: u8,
        /// A field of the configuration space that is something else: where, in words.
        pub field: u8,
        /// What it is then. 0: it is as it should be.
        pub value: u32,
        /// The call of the driver's that fails, from the first; 0: none.
        pub failing: u8,
    }
}

input! {
    /// Something that happens.
    pub enum Step {
        /// A read.
        Read {
            /// Block.
            at: u16,
            /// Blocks.
            len: u8,
            /// Where its buffer is.
            place: Place,
        },
        /// A write.
        Write {
            /// Block.
            at: u16,
            /// Blocks.
            len: u8,
            /// Stable before it completes.
            fua: bool,
            /// Where its buffer is.
            place: Place,
        },
        /// A flush.
        Flush,
        /// A discard, zeroes, a secure erase.
        Erase {
            /// Which, modulo three.
            kind: u8,
            /// Block.
            at: u16,
            /// Blocks.
            len: u16,
        },
        /// How the medium wears.
        Lifetime,
        /// What was submitted is started.
        Start,
        /// What is finished is collected.
        Reap,
        /// An operation is cancelled.
        Cancel {
            /// Which.
            token: u8,
        },
        /// The configuration space is looked at.
        Refresh,
        /// Memory becomes known to the device.
        Know {
            /// So many pages of it.
            pages: u8,
        },
        /// The queue ends, and another begins, while nothing is in flight.
        Reopen,
        /// The device carries requests out, as it should.
        Serve {
            /// So many.
            count: u8,
            /// With this status, if it isn't 0.
            status: u8,
        },
        /// It returns one that it was not given, or was.
        Used {
            /// The head.
            head: u16,
            /// Bytes written.
            len: u32,
        },
        /// Its used ring stands somewhere else.
        Jump {
            /// By so many.
            by: i16,
        },
        /// It writes anywhere in the window.
        Scribble {
            /// Where, in words of 8 bytes.
            at: u16,
            /// What.
            value: u64,
        },
        /// Its status is another.
        Status {
            /// The byte.
            byte: u8,
        },
        /// Its configuration space is another.
        Config {
            /// Where, in words.
            at: u8,
            /// What.
            value: u32,
        },
        /// It interrupts its driver.
        Interrupt,
        /// A call of the driver's fails.
        Fail {
            /// After so many others.
            after: u8,
        },
    }
}

input! {
    /// Where a buffer is.
    pub enum Place {
        /// In memory of its own, which the device can't know.
        Elsewhere,
        /// In memory that the device may know, from this byte of its page on.
        Known {
            /// The byte.
            offset: u16,
        },
        /// In two pieces of it.
        Pieces {
            /// Where the first ends, in bytes.
            cut: u16,
        },
    }
}
