// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A kernel, and what is asked of it.

input! {
    /// A kernel's replies to one question.
    pub struct Input {
        /// What is asked, modulo what there is.
        pub question: u8,
        /// The family's number is told as it should be; else by the first of the datagrams.
        pub resolved: bool,
        /// What the kernel says, whatever it is asked.
        pub datagrams: Vec<Datagram>,
        /// So often the last datagram comes again.
        pub again: u8,
    }
}

input! {
    /// Several messages in one.
    pub struct Datagram {
        /// The messages.
        pub messages: Vec<Message>,
        /// So many bytes are missing at its end.
        pub cut: u8,
    }
}

input! {
    /// A message.
    pub enum Message {
        /// Of the family.
        Content {
            /// The number of a command.
            command: u8,
            /// Its sequence number, from that of the request on.
            sequence: i8,
            /// What it says.
            attributes: Vec<Attribute>,
        },
        /// Of another family, or of netlink itself.
        Control {
            /// Its type: 1 is nothing, 2 an acknowledgement, 3 an end, 4 a loss.
            kind: u8,
            /// Its flags.
            flags: u16,
            /// Its sequence number, from that of the request on.
            sequence: i8,
            /// The error number, negative.
            code: u32,
            /// How many bytes of the request it repeats.
            echo: u8,
            /// What it says.
            attributes: Vec<Attribute>,
        },
        /// A description of a device that makes sense.
        Device {
            /// The virtio device ID.
            class: u8,
        },
        /// That is all.
        End,
        /// Anything.
        Any {
            /// The bytes.
            bytes: Vec<u8>,
        },
    }
}

input! {
    /// An attribute.
    pub struct Attribute {
        /// Its number.
        pub kind: u8,
        /// Its bytes.
        pub value: Value,
        /// Its length is said to be larger by this.
        pub more: i8,
    }
}

input! {
    /// What is in an attribute.
    pub enum Value {
        /// A byte.
        Byte {
            /// The number.
            value: u8,
        },
        /// Two bytes.
        Short {
            /// The number.
            value: u16,
        },
        /// Four bytes.
        Word {
            /// The number.
            value: u32,
        },
        /// Eight bytes.
        Long {
            /// The number.
            value: u64,
        },
        /// Any bytes.
        Bytes {
            /// The bytes.
            bytes: Vec<u8>,
        },
    }
}
