// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Telling the client that the configuration space changed (vhost-user:
//! `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG`).
//!
//! The `vhost` crate takes the descriptor of the back-end's channel (`SET_BACKEND_REQ_FD`) and keeps it,
//! but can't send this message on it. So this one request is looked at before the crate sees it, and
//! handled here.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags};
use vhost::vhost_user::message::FrontendReq;

use crate::header::{self, Header};

const CONFIG_CHANGE_MSG: u32 = 2;
const FLAG_VERSION: u32 = 1;
const FLAG_REPLY: u32 = 1 << 2;

fn message(request: u32, flags: u32, size: u32) -> [u8; header::LEN] {
    let mut bytes = [0; header::LEN];
    for (to, from) in bytes.chunks_exact_mut(4).zip([request, flags, size]) {
        to.copy_from_slice(&from.to_ne_bytes());
    }
    bytes
}

/// Reads a header and the descriptors that came with it. (`vmm-sys-util` can do that too, but with room for
/// one descriptor it loses a second one, which then stays open.)
fn receive(client: &UnixStream) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut bytes = [0; header::LEN];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let parts = &mut [IoSliceMut::new(&mut bytes)];
    let got = rustix::net::recvmsg(client, parts, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
    let files = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => Some(files),
            _ => None,
        })
        .flatten()
        .collect();
    Ok((got, files))
}

/// What there is of the present client.
#[derive(Debug, Default)]
struct State {
    stream: Option<UnixStream>,
    /// Its first queue has started: it has read the configuration space, or relies on what it read from an
    /// earlier server.
    relied_on: bool,
}

impl State {
    fn send(&self) {
        if let Some(stream) = &self.stream {
            let message = message(CONFIG_CHANGE_MSG, FLAG_VERSION, 0);
            let _ = rustix::net::send(stream, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
    }
}

/// The channel to the present client, if it gave one.
#[derive(Debug, Default)]
pub(crate) struct ConfigChannel(Mutex<State>);

impl ConfigChannel {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the client, if it listens. Never blocks: when the channel is full, unread messages of the
    /// same kind are in it.
    pub(crate) fn notify(&self) {
        self.lock().send();
    }

    /// A queue has started. At the first one of a client it is told to read the configuration space, as
    /// that may have changed while no server was there: QEMU does not read it at a reconnection.
    pub(crate) fn queue_started(&self) {
        let mut state = self.lock();
        if !std::mem::replace(&mut state.relied_on, true) {
            state.send();
        }
    }

    /// Forgets a client that is gone.
    pub(crate) fn close(&self) {
        *self.lock() = State::default();
    }

    /// Takes the request that hands the channel over, whose header was looked at.
    ///
    /// # Errors
    /// The connection is broken, or the request malformed.
    pub(crate) fn take(&self, client: &UnixStream, header: Header, acks: bool) -> io::Result<()> {
        let malformed = |what| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        let (got, files) = receive(client)?;
        if got != header::LEN || header.size != 0 {
            return malformed("it has a payload, or came in pieces");
        }
        let Ok([file]) = <[OwnedFd; 1]>::try_from(files) else {
            return malformed("it takes one descriptor");
        };
        let stream = UnixStream::from(file);
        // Anything else can't take a message.
        if stream.peer_addr().is_err() {
            return malformed("its descriptor is not a connected unix socket");
        }
        {
            let mut state = self.lock();
            state.stream = Some(stream);
            if state.relied_on {
                state.send();
            }
        }
        if acks && header.needs_reply() {
            let code = FrontendReq::SET_BACKEND_REQ_FD as u32;
            let mut reply = message(code, FLAG_VERSION | FLAG_REPLY, 8).to_vec();
            reply.extend_from_slice(&0u64.to_ne_bytes());
            rustix::net::send(client, &reply, SendFlags::NOSIGNAL)?;
        }
        Ok(())
    }
}
