// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The header of the next message, looked at before the `vhost` crate takes the message.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;

use rustix::net::{RecvAncillaryBuffer, RecvFlags, ReturnFlags};
use vhost::vhost_user::message::FrontendReq;

/// Bytes of a header: u32 request, u32 flags, u32 payload size.
pub(crate) const LEN: usize = 12;

/// Most descriptors that a message may have, as the `vhost` crate receives them.
const MAX_DESCRIPTORS: usize = vhost::vhost_user::message::MAX_ATTACHED_FD_ENTRIES;

const FLAG_NEED_REPLY: u32 = 1 << 3;
/// All bits of the flags but those that say what is done about an answer: the protocol's version, and bits that are 0.
const VERSION_MASK: u32 = !0xC;
/// The only version there is.
const VERSION: u32 = 0x1;

/// A message header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    request: u32,
    flags: u32,
    pub(crate) size: u32,
    /// Descriptors that came with it got lost: it has more than a message may have, or this process can have
    /// no more of them.
    is_cut_off: bool,
}

impl Header {
    /// Waits for the next message; it stays in the socket. `None` at the end of the connection, and for
    /// a header that arrives in pieces, which reading the message will show.
    ///
    /// # Errors
    /// The connection is broken.
    pub(crate) fn peek(client: &UnixStream) -> io::Result<Option<Self>> {
        let mut bytes = [0; LEN];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        // Copies of the descriptors, closed when it is dropped.
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let parts = &mut [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::PEEK | RecvFlags::CMSG_CLOEXEC;
        let message = rustix::net::recvmsg(client, parts, &mut control, flags)?;
        drop(control);
        let (got, is_cut_off) = (message.bytes, message.flags.contains(ReturnFlags::CTRUNC));
        let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
        Ok((got == LEN).then_some(Self {
            request: u32::from_ne_bytes([a, b, c, d]),
            flags: u32::from_ne_bytes([e, f, g, h]),
            size: u32::from_ne_bytes([i, j, k, l]),
            is_cut_off,
        }))
    }

    /// Whether this can be the header of a message at all. What speaks another protocol shows it here.
    pub(crate) fn is_of_this_protocol(&self) -> bool {
        self.flags & VERSION_MASK == VERSION
    }

    /// Whether descriptors that came with the message are lost.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.is_cut_off
    }

    fn code(&self) -> Option<FrontendReq> {
        FrontendReq::try_from(self.request).ok()
    }

    /// Whether the client hands over its end of the back-end's channel.
    pub(crate) fn is_backend_channel(&self) -> bool {
        self.code() == Some(FrontendReq::SET_BACKEND_REQ_FD)
    }

    /// Whether the client asked for an acknowledgement; it counts only if those were negotiated.
    pub(crate) fn needs_reply(&self) -> bool {
        self.flags & FLAG_NEED_REPLY != 0
    }

    /// Whether a session can continue after this request failed; `acks`: it can be told.
    pub(crate) fn may_fail(&self, acks: bool) -> bool {
        match self.code() {
            // A guest's write without effect, as on any other transport.
            Some(FrontendReq::SET_CONFIG) => true,
            // The client waits for an answer that has no form for failure.
            Some(
                FrontendReq::GET_VRING_BASE
                | FrontendReq::GET_INFLIGHT_FD
                | FrontendReq::SET_LOG_BASE,
            ) => false,
            _ => acks,
        }
    }
}

impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code() {
            Some(code) => write!(f, "{code:?}"),
            None => write!(f, "request {}", self.request),
        }
    }
}
