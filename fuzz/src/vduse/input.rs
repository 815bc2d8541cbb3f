// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A kernel, a driver and servers.

input! {
    /// Servers of one device, with a driver and a kernel that do anything.
    pub struct Input {
        /// The kernel knows messages for single queues and SUSPEND.
        pub newest: bool,
        /// The disk completes when it is told to.
        pub holds: bool,
        /// What happens.
        pub steps: Vec<Step>,
    }
}

input! {
    /// Something that happens.
    pub enum Step {
        /// The driver resets the device and negotiates, all but one feature.
        Negotiate {
            /// Which is left out; beyond 63: none.
            but: u8,
        },
        /// It sets a queue up in order.
        Queue {
            /// Which.
            index: u8,
            /// Where it starts.
            start: u16,
        },
        /// It sets a queue up in any way.
        AnyQueue {
            /// Which.
            index: u8,
            /// Its size, as a power of two; beyond 15: 3.
            exponent: u8,
            /// The pages of its three parts, of those that the device knows and of others.
            pages: u32,
            /// Bytes that they begin behind the pages' beginning.
            offset: u16,
            /// It is enabled.
            ready: bool,
        },
        /// It sets DRIVER_OK.
        DriverOk,
        /// A message about the status.
        Status {
            /// The byte.
            byte: u8,
        },
        /// Where does a queue stand?
        GetState {
            /// Which.
            index: u8,
        },
        /// A queue is enabled or disabled.
        Ready {
            /// Which.
            index: u8,
            /// Enabled.
            ready: bool,
        },
        /// SUSPEND.
        Suspend,
        /// A group goes to an address space.
        Group {
            /// The group.
            group: u8,
            /// The address space.
            asid: u8,
        },
        /// A message of an unknown kind.
        Unknown {
            /// The kind.
            kind: u32,
        },
        /// The address space is another.
        Regions {
            /// Which parts are mapped: a bit for each.
            parts: u8,
            /// The server is told.
            told: bool,
        },
        /// Each look-up finds this, whatever is asked for.
        Wild {
            /// First page; 255: the last one of all.
            first: u8,
            /// Pages.
            pages: u8,
            /// It is virtio-vdpa's.
            domain: bool,
        },
        /// The driver makes a request, and kicks.
        Request {
            /// On which queue.
            index: u8,
            /// What: a number of the specification's.
            kind: u8,
            /// Where.
            sector: u8,
        },
        /// It takes completions.
        Poll,
        /// It writes anywhere.
        Poke {
            /// Where, in words of 8 bytes.
            at: u16,
            /// What.
            value: u64,
        },
        /// It kicks.
        Kick {
            /// Which queue.
            index: u8,
        },
        /// Its memory is cut short, or whole again.
        Shrink {
            /// Pages that are left; 255: all.
            pages: u8,
        },
        /// The disk completes some of what it holds.
        Release {
            /// So many.
            count: u8,
        },
        /// The disk has another size.
        Resize {
            /// Sectors.
            sectors: u8,
        },
        /// A call of the server's fails.
        Fail {
            /// After so many others.
            after: u8,
            /// How, modulo what there is.
            how: u8,
        },
        /// The server ends, and another comes.
        Restart {
            /// It is killed.
            killed: bool,
            /// The device's record is damaged meanwhile.
            damage: Vec<Damage>,
        },
        /// The device is taken off the bus, and put onto it again.
        Rebind,
    }
}

input! {
    /// A change of a record.
    pub struct Damage {
        /// Where.
        pub at: u16,
        /// Which bits.
        pub with: u8,
    }
}
