// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sets of flags. Unknown ones are kept: what they mean for a message is for its reader to decide.

macro_rules! flags {
    ($(#[$doc:meta])* $name:ident: $int:ty { $($(#[$flag_doc:meta])* $flag:ident = $bit:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name(pub $int);

        impl $name {
            /// None.
            pub const NONE: Self = Self(0);
            $($(#[$flag_doc])* pub const $flag: Self = Self(1 << $bit);)*

            /// Whether all of `other` are set.
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// These, and `other` if `yes`.
            #[must_use]
            pub const fn with(self, other: Self, yes: bool) -> Self {
                if yes { Self(self.0 | other.0) } else { self }
            }

            /// These without `other`.
            #[must_use]
            pub const fn without(self, other: Self) -> Self {
                Self(self.0 & !other.0)
            }
        }

        impl std::ops::BitOr for $name {
            type Output = Self;

            fn bitor(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }
        }
    };
}

flags! {
    /// What a server says of the handshake (`NBD_FLAG_*` of the greeting).
    HandshakeFlags: u16 {
        /// Unknown options have a reply.
        FIXED_NEWSTYLE = 0,
        /// The server can leave out the zeroes after an export.
        NO_ZEROES = 1,
    }
}

flags! {
    /// What a client says of the handshake (`NBD_FLAG_C_*`).
    ClientFlags: u32 {
        /// The client expects replies to all options.
        FIXED_NEWSTYLE = 0,
        /// The server shall leave out the zeroes after an export.
        NO_ZEROES = 1,
    }
}

flags! {
    /// What an export can do (the transmission flags, `NBD_FLAG_*`).
    ExportFlags: u16 {
        /// The field holds flags. Always set.
        HAS_FLAGS = 0,
        /// Nothing may change the export.
        READ_ONLY = 1,
        /// FLUSH is there.
        SEND_FLUSH = 2,
        /// FUA is honoured.
        SEND_FUA = 3,
        /// The medium turns.
        ROTATIONAL = 4,
        /// TRIM is there.
        SEND_TRIM = 5,
        /// WRITE_ZEROES is there, and NO_HOLE with it.
        SEND_WRITE_ZEROES = 6,
        /// DF is honoured.
        SEND_DF = 7,
        /// Several connections see one content, and a flush on one covers what completed on all.
        CAN_MULTI_CONN = 8,
        /// RESIZE, which is not in the specification.
        SEND_RESIZE = 9,
        /// CACHE is there.
        SEND_CACHE = 10,
        /// FAST_ZERO is honoured.
        SEND_FAST_ZERO = 11,
        /// A request for the block status may have a payload (extended headers).
        BLOCK_STATUS_PAYLOAD = 12,
    }
}

flags! {
    /// How a request is to be executed (`NBD_CMD_FLAG_*`).
    CommandFlags: u16 {
        /// Stable before the reply.
        FUA = 0,
        /// WRITE_ZEROES must not make a hole.
        NO_HOLE = 1,
        /// The data of a read comes in one piece, or the read fails.
        DF = 2,
        /// One extent of block status is enough.
        REQ_ONE = 3,
        /// WRITE_ZEROES fails at once if it is no faster than a write.
        FAST_ZERO = 4,
        /// The length is that of a payload. With extended headers, set in each WRITE.
        PAYLOAD_LEN = 5,
    }
}

flags! {
    /// Of a chunk of a structured reply (`NBD_REPLY_FLAG_*`).
    ChunkFlags: u16 {
        /// It is the last.
        DONE = 0,
    }
}
