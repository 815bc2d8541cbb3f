// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An image, what is damaged in it, and what is done with it.

use virtio_blk_qcow2::{CreateOptions, Preallocation};

/// Bytes of the guest's disk.
pub(super) const GUEST: u64 = 256 << 10;

input! {
    /// An image, and what is done with it.
    pub struct Input {
        /// How the image was made.
        pub made: Made,
        /// What is damaged.
        pub patches: Vec<Patch>,
        /// What is done.
        pub steps: Vec<Step>,
    }
}

input! {
    /// How an image was made.
    pub struct Made {
        /// 512, 4096, 16,384 or 65,536 bytes, modulo four.
        pub cluster: u8,
        /// With subclusters, if clusters are large enough.
        pub extended: bool,
        /// 1 to 64 bits, modulo seven.
        pub refcounts: u8,
        /// Every cluster has its place.
        pub preallocated: bool,
        /// Some clusters are in use.
        pub used: bool,
        /// With a persistent dirty bitmap.
        pub bitmap: bool,
    }
}

input! {
    /// Eight bytes of the image, replaced.
    pub struct Patch {
        /// Which: the n-th eight bytes.
        pub place: u16,
        /// By what.
        pub value: Value,
    }
}

input! {
    /// What to put there.
    pub enum Value {
        /// Any number.
        Any {
            /// The number.
            value: u64,
        },
        /// The place of a cluster, with the flags of an entry that may be written.
        Cluster {
            /// Its number.
            number: u8,
        },
        /// The place of a cluster without flags.
        Bare {
            /// Its number.
            number: u8,
        },
        /// A compressed cluster there.
        Compressed {
            /// Its number.
            number: u8,
            /// How many, from 0 on; of requests, one more.
            sectors: u8,
        },
    }
}

input! {
    /// Something that is done.
    pub enum Step {
        /// Read.
        Read {
            /// The first one, modulo the size.
            sector: u16,
            /// How many, from 0 on; of requests, one more.
            sectors: u8,
        },
        /// Write.
        Write {
            /// The first one, modulo the size.
            sector: u16,
            /// How many, from 0 on; of requests, one more.
            sectors: u8,
            /// The content.
            value: u8,
            /// Stable by itself.
            fua: bool,
        },
        /// Discard.
        Discard {
            /// The first one, modulo the size.
            sector: u16,
            /// How many, from 0 on; of requests, one more.
            sectors: u8,
        },
        /// Write zeroes.
        Zeroes {
            /// The first one, modulo the size.
            sector: u16,
            /// How many, from 0 on; of requests, one more.
            sectors: u8,
            /// Space may be given back.
            unmap: bool,
        },
        /// Flush.
        Flush,
        /// Close the image and open it again.
        Reopen,
        /// Make the image larger while it is in use.
        Grow {
            /// By so many sectors.
            sectors: u16,
        },
        /// Ask what is where.
        Map {
            /// The first one, modulo the size.
            sector: u16,
            /// How many extents.
            most: u8,
        },
        /// Close the image, check it, and open it again.
        Check {
            /// Repair nothing, leaks, or all counts, modulo three.
            repair: u8,
        },
    }
}

impl Made {
    /// Bytes of a cluster.
    pub(super) fn cluster(&self) -> u64 {
        match self.cluster % 4 {
            0 => 512,
            1 => 4 << 10,
            2 => 16 << 10,
            _ => 64 << 10,
        }
    }

    /// How the image is made.
    pub(super) fn options(&self) -> CreateOptions {
        let preallocation = match self.preallocated {
            true => Preallocation::Metadata,
            false => Preallocation::Off,
        };
        CreateOptions::new(GUEST)
            .cluster(self.cluster())
            .subclusters(self.extended && self.cluster() >= 16 << 10)
            .refcount_bits(1 << (self.refcounts % 7))
            .preallocation(preallocation)
    }
}
