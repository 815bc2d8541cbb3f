// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Messages as bytes, right or wrong.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::{PATIENCE, Result, connect};

/// Bytes of a header.
const HEADER: usize = 12;
/// Version 1.
const VERSION: u32 = 1;
/// The sender wants an answer.
const NEED_REPLY: u32 = 8;

/// A message header: request, flags, bytes of payload.
pub fn header(request: u32, flags: u32, size: u32) -> Vec<u8> {
    [request, flags, size]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect()
}

/// A connection for bytes.
pub struct Wire {
    stream: UnixStream,
}

impl Wire {
    /// Connects; nothing is sent.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream })
    }

    /// The same connection as another client has, for a message that client can't send.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn over(stream: &UnixStream) -> Result<Self> {
        let stream = stream.try_clone()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream })
    }

    /// The connection.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends bytes. A server that hangs up meanwhile is no error.
    pub fn bytes(&mut self, bytes: &[u8]) {
        // What the server made of it is seen when it is read from.
        let _ = self.stream.write_all(bytes);
    }

    /// Sends bytes with descriptors, as [`Wire::bytes`] does.
    pub fn bytes_with(&mut self, bytes: &[u8], fds: &[RawFd]) {
        let _ = self.stream.send_with_fds(&[bytes], fds);
    }

    /// Sends a message of 64-bit words.
    pub fn message(&mut self, request: u32, words: &[u64], fds: &[RawFd]) {
        self.send(request, VERSION, words, fds);
    }

    /// Sends a message of 64-bit words and wants it acknowledged. Returns the server's word on it.
    ///
    /// # Errors
    /// It hung up, or said something else.
    pub fn acked(&mut self, request: u32, words: &[u64], fds: &[RawFd]) -> Result<u64> {
        self.send(request, VERSION | NEED_REPLY, words, fds);
        self.answer()
    }

    /// Reads an answer of one 64-bit word.
    ///
    /// # Errors
    /// The server hung up, or said something else.
    pub fn answer(&mut self) -> Result<u64> {
        let mut bytes = [0; HEADER + 8];
        self.stream.read_exact(&mut bytes)?;
        if bytes[8..12] != 8u32.to_ne_bytes() {
            return Err(format!("not an acknowledgement: {bytes:x?}").into());
        }
        let word = bytes.last_chunk().copied().unwrap_or_default();
        Ok(u64::from_ne_bytes(word))
    }

    fn send(&mut self, request: u32, flags: u32, words: &[u64], fds: &[RawFd]) {
        let mut bytes = header(request, flags, 8 * words.len() as u32);
        bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        if fds.is_empty() {
            self.bytes(&bytes);
        } else {
            self.bytes_with(&bytes, fds);
        }
    }

    /// Says that nothing more comes, and waits until the server hangs up. Returns what it said.
    ///
    /// # Errors
    /// It is silent and stays for a minute.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        // It may have hung up already.
        let _ = self.stream.shutdown(Shutdown::Write);
        self.wait_for_end()
    }

    /// Waits until the server hangs up by itself. Returns what it said.
    ///
    /// # Errors
    /// It is silent and stays for a minute.
    pub fn wait_for_end(&mut self) -> Result<Vec<u8>> {
        let mut said = Vec::new();
        match self.stream.read_to_end(&mut said) {
            Ok(_) => Ok(said),
            // What it left unread when it hung up.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(said),
            Err(error) => Err(error.into()),
        }
    }
}
