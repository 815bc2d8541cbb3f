// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How requests reach the kernel.

use std::io;
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr, protocols};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, recv};

/// Room for one datagram of replies. The kernel makes none larger than 32 KiB for a dump, and a single reply
/// is one page.
const MAX_DATAGRAM: usize = 64 << 10;

/// A connection to the kernel's generic netlink. [`KernelLink`] is the real one; others record or replay.
pub trait Link {
    /// Sends one request, as a whole. For a request that adds or deletes a device the kernel does it inside
    /// this call.
    ///
    /// # Errors
    /// The system refused to carry it.
    fn send(&mut self, request: &[u8]) -> io::Result<()>;

    /// Receives the next datagram, with one or more messages.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] or [`io::ErrorKind::TimedOut`]: there is none within the link's time
    /// limit. [`io::ErrorKind::InvalidData`]: it was cut short. Others: as the system says, for instance
    /// `ENOBUFS` when replies were lost.
    fn receive(&mut self) -> io::Result<Vec<u8>>;
}

/// A netlink socket that is connected to the kernel, so that no other process can send to it.
#[derive(Debug)]
pub struct KernelLink {
    socket: Socket,
}

impl KernelLink {
    /// Opens a socket that waits at most `limit` for each datagram.
    ///
    /// # Errors
    /// The kernel has no netlink, or the process may not open more files.
    pub fn open(limit: Duration) -> io::Result<Self> {
        let mut socket = Socket::new(protocols::NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // The reason of a refusal in words; and the request isn't sent back with it.
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(limit))?;
        Ok(Self { socket })
    }
}

impl Link for KernelLink {
    fn send(&mut self, request: &[u8]) -> io::Result<()> {
        let sent = self.socket.send(request, 0)?;
        if sent != request.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }

    fn receive(&mut self) -> io::Result<Vec<u8>> {
        let mut datagram = vec![0; MAX_DATAGRAM];
        let (_, length) = rustix::io::retry_on_intr(|| {
            recv(&self.socket, datagram.as_mut_slice(), RecvFlags::TRUNC)
        })?;
        if length > datagram.len() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        datagram.truncate(length);
        Ok(datagram)
    }
}
