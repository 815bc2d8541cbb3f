// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the fuzzer decides.

input! {
    /// A session, or several.
    pub struct Input {
        /// The disk holds most requests back until it is told to stop.
        pub is_slow: bool,
        /// What the client does.
        pub steps: Vec<Step>,
    }
}

input! {
    /// A word of a message.
    pub enum Word {
        /// A small number.
        Small {
            /// The number.
            value: u8,
        },
        /// A small number in the upper half, and in the lower one.
        Pair {
            /// The upper half.
            high: u8,
            /// The lower half.
            low: u8,
        },
        /// A power of two.
        Power {
            /// Of 2, modulo what makes sense.
            exponent: u8,
        },
        /// An address of the client's in its memory.
        Address {
            /// Which page.
            page: u8,
            /// Bytes from its beginning.
            offset: u16,
        },
        /// Feature bits that are offered, but for one.
        Features {
            /// The number of the bit that is left out.
            but: u8,
        },
        /// Anything.
        Any {
            /// The number.
            value: u64,
        },
    }
}

input! {
    /// What a client does.
    pub enum Step {
        /// Any message with any descriptors.
        Message {
            /// Its number.
            request: u8,
            /// Flags, of which those for version and reply are always right.
            flags: u8,
            /// The payload.
            words: Vec<Word>,
            /// Which descriptors come with it.
            descriptors: Vec<u8>,
        },
        /// Bytes without sense, with descriptors.
        Bytes {
            /// The bytes.
            bytes: Vec<u8>,
            /// Which descriptors come with it.
            descriptors: Vec<u8>,
        },
        /// Negotiates.
        Negotiate {
            /// The number of the bit that is left out.
            but: u8,
        },
        /// Shares all memory, in so many regions.
        Memory {
            /// How many.
            regions: u8,
        },
        /// Adds a region.
        AddRegion {
            /// Which one.
            which: u8,
        },
        /// Removes a region.
        RemoveRegion {
            /// Which one.
            which: u8,
        },
        /// Sets a queue up and starts it.
        Queue {
            /// Of which queue.
            index: u8,
            /// Of 2, modulo what makes sense.
            exponent: u8,
            /// Where it starts.
            base: u8,
        },
        /// Stops a queue.
        GetBase {
            /// Of which queue.
            index: u8,
        },
        /// Enables a queue or disables it.
        Enable {
            /// Of which queue.
            index: u8,
            /// Enabled.
            on: bool,
        },
        /// Gives a queue another kick, call or error descriptor.
        Descriptor {
            /// Of which queue.
            index: u8,
            /// Which kind.
            kind: u8,
            /// Which one.
            which: u8,
        },
        /// Resets the device.
        Reset {},
        /// Gets an in-flight area, and hands it over.
        InFlight {
            /// For so many queues.
            queues: u8,
            /// Of 2, modulo what makes sense.
            exponent: u8,
        },
        /// Changes the in-flight area and hands it over.
        Damage {
            /// Bytes from its beginning.
            offset: u16,
            /// The number.
            value: u64,
        },
        /// Hands a log of dirty pages over, of so many bytes, and switches it on.
        Log {
            /// So many bytes.
            len: u16,
        },
        /// Hands the back-end's channel over.
        Channel {},
        /// Makes a request available, and kicks.
        Request {
            /// Of which queue.
            queue: u8,
            /// Which kind.
            kind: u8,
            /// The first sector.
            sector: u16,
            /// Data descriptors.
            segments: u8,
        },
        /// Writes to memory.
        Poke {
            /// Which word of memory.
            at: u16,
            /// The number.
            value: u64,
        },
        /// Kicks.
        Kick {
            /// Of which queue.
            queue: u8,
        },
        /// Gives memory another length: pages are gone, or come back.
        Shrink {
            /// So many pages.
            pages: u8,
        },
        /// Reads the configuration space.
        Config {
            /// Bytes from its beginning.
            offset: u8,
            /// So many bytes.
            len: u8,
        },
        /// Hangs up, and connects again.
        Reconnect {},
    }
}
