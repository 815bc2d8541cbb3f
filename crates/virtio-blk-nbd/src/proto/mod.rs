// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The messages of the NBD protocol, as its specification (`doc/proto.md`) names them.
//!
//! Both sides use these types: each message has a form to be sent and one to be read. All integers on the wire are
//! big endian. What a peer sends is read from slices that the caller has received into memory of its own choice: a
//! header says how long the payload is that follows, and the caller compares that with its limit before it receives
//! it. Nothing here reads from a socket, and nothing is allocated in proportion to a number that a peer sent: lists
//! are as long as the bytes that were received for them.

mod block_size;
mod block_status;
mod chunk;
mod context;
mod errno;
mod error;
mod export;
mod fields;
mod flags;
mod greeting;
mod info;
mod option;
mod reply;
mod request;

pub use block_size::BlockSizes;
pub use block_status::{Allocation, BlockStatus, StatusExtent};
pub use chunk::{Chunk, ChunkError, ChunkKind, OffsetHole, split_offset};
pub use context::{BASE_ALLOCATION, MetaContext, MetaContextQuery, QEMU_DIRTY_BITMAP};
pub use errno::Errno;
pub use error::ProtoError;
pub use export::{EXPORT_NAME_ZEROES, ExportRequest, OldExport};
pub use flags::{ChunkFlags, ClientFlags, CommandFlags, ExportFlags, HandshakeFlags};
pub use greeting::Greeting;
pub use info::{Info, InfoKind};
pub use option::{OptionHeader, OptionKind, OptionReply, OptionReplyKind, ServerExport};
pub use reply::{ReplyHeader, SimpleReply};
pub use request::{Command, Request};

/// The longest string of the protocol in bytes: names of exports and contexts, descriptions, messages.
pub const MAX_STRING: usize = 4096;

/// The longest payload of an option, or of a reply to one, that either side here accepts. The specification gives no
/// limit; this has room for a name and some hundred queries.
pub const MAX_OPTION: usize = 64 << 10;

/// The longest payload of a request or a reply if the server says nothing else: 32 MiB, which every server takes.
pub const MAX_PAYLOAD: u32 = 32 << 20;

/// The port that is reserved for NBD over TCP.
pub const PORT: u16 = 10809;

/// How requests and replies look, as the two sides have agreed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReplyMode {
    /// Simple replies only.
    #[default]
    Simple,
    /// Structured replies: in chunks, with errors in words. Required of a reply to a read, allowed elsewhere.
    Structured,
    /// Extended headers: lengths of 64 bits in requests and replies, and structured replies only.
    Extended,
}

#[cfg(test)]
mod tests;
