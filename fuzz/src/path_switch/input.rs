// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device, its guest and its VMM.

input! {
    /// A guest that is moved about.
    pub struct Input {
        /// The device.
        pub device: Shape,
        /// The guest's path follows who needs to see requests.
        pub auto: bool,
        /// A guest that can't be moved is stopped.
        pub enforce: bool,
        /// What happens.
        pub steps: Vec<Step>,
    }
}

input! {
    /// What a device can do.
    pub struct Shape {
        /// It is as the kernel's simulator.
        pub compat: bool,
        /// It has SUSPEND.
        pub suspend: bool,
        /// It has RESUME.
        pub resume: bool,
        /// It starts rings in their middle.
        pub midway: bool,
        /// It takes single mappings.
        pub single_maps: bool,
        /// It has EVENT_IDX.
        pub event_idx: bool,
        /// Of a thousand SUSPENDs so many leave requests in flight, times four.
        pub undrained: u8,
        /// The VMM pauses vCPUs.
        pub pauses: bool,
    }
}

input! {
    /// Something that happens.
    pub enum Step {
        /// The guest loads its driver.
        Load {
            /// The last of its queues has its rings where no memory is.
            nowhere: bool,
        },
        /// It writes the status byte.
        Status {
            /// The byte.
            byte: u8,
        },
        /// It reads and writes the configuration space.
        Config {
            /// Where.
            at: u8,
            /// What.
            value: u8,
        },
        /// It makes a request, and kicks.
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
        /// It says that it made so many more requests available.
        Jump {
            /// On which queue.
            index: u8,
            /// How many.
            by: u16,
        },
        /// It writes anywhere in its memory.
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
        /// The VMM moves it.
        Switch {
            /// To the slow path.
            slow: bool,
        },
        /// Somebody needs to see requests.
        Intercept,
        /// Nobody does any more.
        Release,
        /// The guest is paused.
        Pause,
        /// It runs again.
        Resume,
        /// What failed is tried again.
        Retry,
        /// The guest's memory is looked at again.
        Memory,
        /// Calls of the device's fail.
        Fail {
            /// After so many others.
            after: u8,
            /// So many.
            count: u8,
        },
        /// The device is well again.
        Heal,
        /// It has requests in flight for ever, or so it says.
        Stuck,
        /// It takes DRIVER_OK and does not start.
        Deaf,
    }
}
