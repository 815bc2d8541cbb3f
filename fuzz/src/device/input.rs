// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What happens to a device.

pub use crate::image::Kind as Memory;

input! {
    /// A device and what happens to it.
    pub struct Input {
        /// Guest memory.
        pub memory: Memory,
        /// The device.
        pub setup: Setup,
        /// What happens.
        pub steps: Vec<Step>,
    }
}

input! {
    /// A device.
    pub struct Setup {
        /// Capacity in sectors, rounded to blocks.
        pub sectors: u8,
        /// The block is 512 bytes times 2 to this power, modulo 4.
        pub block: u8,
        /// Queues less one, modulo 2.
        pub queues: u8,
        /// Queues have 4 descriptors times 2 to this power, modulo 4.
        pub exponent: u8,
        /// Where rings start.
        pub start: u16,
        /// Bit 0: the disk is read-only; 1: the device is; 2: no CONFIG_WCE; 3: wear is reported;
        /// 4: the disk has no short way.
        pub flags: u8,
        /// Features not to offer.
        pub masked: u64,
        /// Features the driver leaves out at first.
        pub declined: u64,
        /// What the disk does wrong.
        pub faults: Faults,
    }
}

input! {
    /// What the disk does wrong.
    pub struct Faults {
        /// Nothing at all, and everything in the call.
        pub none: bool,
        /// Its decisions follow from it.
        pub seed: u8,
        /// Most calls by which a completion is late, modulo 6.
        pub delay: u8,
        /// Completions come out of order.
        pub reorder: bool,
        /// So many of a thousand submissions find no room.
        pub full: u8,
        /// Operations that fail.
        pub rules: Vec<Fault>,
        /// Each queue breaks after so many operations; 0: never.
        pub break_after: u8,
    }
}

input! {
    /// Operations that fail.
    pub struct Fault {
        /// Answered as unsupported instead of as an error.
        pub unsupported: bool,
        /// Of this kind; beyond the kinds there are: all.
        pub kind: u8,
        /// So many of 256.
        pub rate: u8,
        /// After they had an effect.
        pub after_effect: bool,
    }
}

input! {
    /// Something that happens.
    pub enum Step {
        /// The driver makes a request, not visible yet.
        Submit {
            /// On this queue.
            queue: u8,
            /// What it asks.
            request: Request,
        },
        /// Requests become visible.
        Publish {
            /// On this queue.
            queue: u8,
        },
        /// The device works.
        Service {
            /// On this queue.
            queue: u8,
            /// Most requests to take.
            budget: u8,
        },
        /// The driver takes all completions.
        Poll {
            /// On this queue.
            queue: u8,
        },
        /// All of that on all queues, until nothing is left to do.
        Settle,
        /// The driver asks for an interrupt after so many completions; 0: for none.
        Interrupts {
            /// On this queue.
            queue: u8,
            /// How many.
            after: u8,
        },
        /// A read of the configuration space.
        ReadConfig {
            /// First byte.
            offset: u64,
            /// Bytes.
            width: u8,
        },
        /// A write to the configuration space.
        WriteConfig {
            /// First byte.
            offset: u64,
            /// The bytes.
            bytes: Vec<u8>,
        },
        /// Write-back or write-through, as a driver sets it.
        CacheMode {
            /// The value of `writeback`.
            mode: u8,
        },
        /// The disk has another capacity, in sectors.
        Resize {
            /// The capacity, rounded to blocks.
            sectors: u8,
        },
        /// Reset and negotiation.
        Negotiate {
            /// Features to leave out.
            declined: u64,
            /// Features to add.
            extra: u64,
            /// Queues stop with requests in flight.
            hand_over: bool,
        },
        /// A queue stops and continues.
        Restart {
            /// Which queue.
            queue: u8,
            /// With requests in flight.
            hand_over: bool,
        },
        /// The state moves to a new device, unless it is refused.
        Move {
            /// With requests in flight.
            hand_over: bool,
            /// What is changed on the way.
            changes: Vec<Change>,
        },
        /// Faults start or end.
        Arm {
            /// Whether they start.
            on: bool,
        },
        /// A queue looks at memory anew.
        Remap {
            /// Which queue.
            queue: u8,
        },
        /// A queue's intake opens or closes.
        Intake {
            /// Which queue.
            queue: u8,
            /// Whether it opens.
            open: bool,
        },
    }
}

input! {
    /// A request.
    pub struct Request {
        /// Its type.
        pub kind: Kind,
        /// Its sector.
        pub sector: Sector,
        /// The length of the data.
        pub len: Len,
        /// Ranges, for types that have some.
        pub ranges: Vec<Range>,
        /// Bytes that are missing from the header, modulo 17.
        pub cut: u8,
        /// More bytes to read for the device, behind the data.
        pub more_out: u8,
        /// More bytes to write for the device, behind the data.
        pub more_in: u8,
        /// There is no byte for the status.
        pub no_status: bool,
        /// How it is cut into descriptors.
        pub framing: Framing,
        /// In an indirect table, where that is negotiated.
        pub indirect: bool,
    }
}

input! {
    /// A request's type.
    pub enum Kind {
        /// Read.
        In,
        /// Write.
        Out,
        /// Flush.
        Flush,
        /// Serial number.
        GetId,
        /// Wear.
        GetLifetime,
        /// Discard.
        Discard,
        /// Write zeroes.
        WriteZeroes,
        /// Secure erase.
        SecureErase,
        /// Anything.
        Raw {
            /// The type.
            kind: u32,
        },
    }
}

input! {
    /// A sector.
    pub enum Sector {
        /// Near the start.
        Low {
            /// The sector.
            sector: u8,
        },
        /// Near the end.
        High {
            /// Sectors before the end; may be behind it.
            back: i8,
        },
        /// Anything.
        Raw {
            /// The sector.
            sector: u64,
        },
    }
}

input! {
    /// A length of data.
    pub enum Len {
        /// One block; the length of a serial number; that of the wear.
        Usual,
        /// Sectors.
        Sectors {
            /// How many, modulo 10.
            count: u8,
        },
        /// Bytes.
        Bytes {
            /// How many.
            count: u16,
        },
    }
}

input! {
    /// A range to erase.
    pub struct Range {
        /// First sector.
        pub sector: Sector,
        /// Sectors.
        pub count: Count,
        /// Flags.
        pub flags: u8,
    }
}

input! {
    /// A number of sectors.
    pub enum Count {
        /// A few.
        Few {
            /// How many.
            count: u8,
        },
        /// Any number.
        Raw {
            /// How many.
            count: u32,
        },
    }
}

input! {
    /// How a request is cut into descriptors.
    pub enum Framing {
        /// One for each part.
        Separate,
        /// As few as possible.
        Merged,
        /// By lengths.
        Cut {
            /// Of what the device reads.
            readable: Vec<u16>,
            /// Of what it writes.
            writable: Vec<u16>,
        },
        /// At random.
        Random {
            /// Where follows from it.
            seed: u16,
            /// How often, modulo 6.
            cuts: u8,
        },
    }
}

input! {
    /// A change to saved state.
    pub enum Change {
        /// Another version.
        Version {
            /// The version.
            version: u16,
        },
        /// Some features are inverted.
        Features {
            /// Which.
            bits: u64,
        },
        /// The cache mode is inverted.
        Writeback,
        /// Another capacity.
        Capacity {
            /// In sectors.
            capacity: u64,
        },
        /// Another block size.
        BlockSize {
            /// In bytes.
            size: u32,
        },
        /// A field of a queue.
        Field {
            /// Which queue.
            queue: u8,
            /// Which field.
            field: u8,
            /// Its value, or what it is off by.
            value: u64,
        },
        /// Other heads in flight.
        InFlight {
            /// Which queue.
            queue: u8,
            /// The heads.
            heads: Vec<u16>,
        },
        /// One more queue.
        Another,
    }
}
