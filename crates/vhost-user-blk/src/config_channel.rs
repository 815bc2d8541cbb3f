// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Telling the client that the configuration space changed (vhost-user:
//! `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG`).
//!
//! The `vhost` crate takes the descriptor of the back-end's channel (`SET_BACKEND_REQ_FD`) and keeps it,
//! but can't send this message on it. So this one request is looked at before the crate sees it, and
//! handled here.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::net::{RecvFlags, SendFlags};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Bytes of a message header: u32 request, u32 flags, u32 payload size.
const HEADER: usize = 12;
const SET_BACKEND_REQ_FD: u32 = 21;
const CONFIG_CHANGE_MSG: u32 = 2;
const FLAG_VERSION: u32 = 1;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;

fn header(request: u32, flags: u32, size: u32) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    for (to, from) in bytes.chunks_exact_mut(4).zip([request, flags, size]) {
        to.copy_from_slice(&from.to_ne_bytes());
    }
    bytes
}

/// The channel to the present client, if it gave one.
#[derive(Debug, Default)]
pub(crate) struct ConfigChannel(Mutex<Option<UnixStream>>);

impl ConfigChannel {
    fn lock(&self) -> MutexGuard<'_, Option<UnixStream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the client, if it listens. Never blocks: when the channel is full, unread messages of the
    /// same kind are in it.
    pub(crate) fn notify(&self) {
        if let Some(stream) = self.lock().as_ref() {
            let message = header(CONFIG_CHANGE_MSG, FLAG_VERSION, 0);
            let _ = rustix::net::send(stream, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
    }

    /// Forgets the channel of a client that is gone.
    pub(crate) fn close(&self) {
        *self.lock() = None;
    }

    /// Waits for the next message on `client` and handles it if it is ours. Answers whether it was; if
    /// not, the message is untouched.
    ///
    /// # Errors
    /// The connection is broken, or the message malformed.
    pub(crate) fn intercept(&self, client: &UnixStream, acks: bool) -> io::Result<bool> {
        let mut bytes = [0; HEADER];
        let (_, got) = rustix::net::recv(client, &mut bytes, RecvFlags::PEEK | RecvFlags::WAITALL)?;
        let word = |at: usize| {
            let field = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
            u32::from_ne_bytes(field.unwrap_or_default())
        };
        let (request, flags, size) = (word(0), word(4), word(8));
        if got < HEADER || request != SET_BACKEND_REQ_FD {
            return Ok(false);
        }
        let malformed =
            || io::Error::new(io::ErrorKind::InvalidData, "malformed SET_BACKEND_REQ_FD");
        let (got, file) = client.recv_with_fd(&mut bytes).map_err(io::Error::from)?;
        if got != HEADER || size != 0 {
            return Err(malformed());
        }
        let file = file.ok_or_else(malformed)?;
        *self.lock() = Some(UnixStream::from(std::os::fd::OwnedFd::from(file)));
        if acks && flags & FLAG_NEED_REPLY != 0 {
            let mut reply = header(request, FLAG_VERSION | FLAG_REPLY, 8).to_vec();
            reply.extend_from_slice(&0u64.to_ne_bytes());
            rustix::net::send(client, &reply, SendFlags::NOSIGNAL)?;
        }
        Ok(true)
    }
}
