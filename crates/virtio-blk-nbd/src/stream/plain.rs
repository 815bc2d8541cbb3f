// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A socket without anything around it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::Stream;
use crate::iov::{Inbound, Outbound};

/// A connected socket.
pub(crate) struct PlainStream(pub OwnedFd);

impl Stream for PlainStream {
    fn socket(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn send(&mut self, data: &Outbound<'_>) -> io::Result<usize> {
        data.send(self.0.as_fd())
    }

    fn receive(&mut self, into: &mut Inbound<'_>) -> io::Result<usize> {
        into.receive(self.0.as_fd())
    }
}
