// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A server of NBD, what it says, and what is asked of it.

input! {
    /// A server, what it says, and what is asked of it.
    pub struct Input {
        /// What it says of itself.
        pub server: Server,
        /// What is wrong with how it says that. If anything is, nothing is said after it.
        pub flips: Vec<Flip>,
        /// What happens then.
        pub steps: Vec<Step>,
    }
}

input! {
    /// What a server says of itself.
    pub struct Server {
        /// Simple, structured or extended, modulo three.
        pub mode: u8,
        /// Blocks of 512 bytes.
        pub blocks: u16,
        /// What the export can do.
        pub flags: u16,
        /// The smallest block, as a power of two; beyond 16: nothing is said of blocks.
        pub minimum: u8,
        /// The longest payload in units of 512 bytes.
        pub maximum: u8,
    }
}

input! {
    /// A byte of the handshake that is another.
    pub struct Flip {
        /// Which; beyond the end: the handshake ends there, modulo its length.
        pub at: u16,
        /// Which bits.
        pub with: u8,
    }
}

input! {
    /// Something that happens.
    pub enum Step {
        /// A read is submitted.
        Read {
            /// Block.
            at: u16,
            /// Blocks.
            len: u8,
        },
        /// A write.
        Write {
            /// Block.
            at: u16,
            /// Blocks.
            len: u8,
            /// Stable before it completes.
            fua: bool,
        },
        /// A flush.
        Flush,
        /// A discard, or zeroes.
        Erase {
            /// Block.
            at: u16,
            /// Blocks.
            len: u16,
            /// Zeroes.
            zero: bool,
        },
        /// What was submitted is started.
        Start,
        /// What is finished is collected.
        Reap,
        /// An operation is cancelled.
        Cancel {
            /// Which.
            token: u8,
        },
        /// Nothing is held back any more.
        Release,
        /// The queue ends, and another begins.
        Reopen,
        /// The server takes requests.
        Take,
        /// The server says anything.
        Say {
            /// The bytes.
            bytes: Vec<u8>,
        },
        /// The server replies simply.
        Simple {
            /// To which of the requests that it took, counted from the last.
            request: u8,
            /// With this error.
            error: u32,
            /// With so many bytes of data behind it; 255: as many as the request wants.
            data: u8,
        },
        /// The server sends a chunk.
        Chunk {
            /// To which of the requests that it took, counted from the last.
            request: u8,
            /// What it holds: a number of the protocol's.
            kind: u16,
            /// It is the last.
            last: bool,
            /// Its beginning, from the request's.
            skip: i8,
            /// Bytes it covers; 255: as many as the request wants.
            len: u8,
            /// Its length is said to be larger by this.
            more: u32,
        },
        /// The server says nothing more.
        Close,
    }
}
