// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A client's end of a connection: messages with descriptors, right or wrong.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

const GET_FEATURES: u32 = 1;
/// Version 1.
const VERSION: u32 = 1;
/// Bytes of a header.
const HEADER: usize = 12;

/// How long the server may take to take or say something.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection.
pub(super) struct Client {
    stream: UnixStream,
    /// The server hung up.
    is_over: bool,
    /// What came and is no whole message yet.
    received: Vec<u8>,
    files: Vec<OwnedFd>,
}

/// What the server said.
pub(super) struct Reply {
    request: u32,
    pub(super) payload: Vec<u8>,
}

impl Client {
    pub(super) fn new(stream: UnixStream) -> Self {
        stream.set_nonblocking(true).expect("a socket");
        Self {
            stream,
            is_over: false,
            received: Vec::new(),
            files: Vec::new(),
        }
    }

    /// Sends a message of 64-bit words.
    pub(super) fn message(
        &mut self,
        request: u32,
        flags: u32,
        words: &[u64],
        fds: &[BorrowedFd<'_>],
    ) {
        let mut bytes = Vec::new();
        for word in [request, flags, 8 * words.len() as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        self.bytes(&bytes, fds);
    }

    /// Sends a good message.
    pub(super) fn say(&mut self, request: u32, words: &[u64], fds: &[BorrowedFd<'_>]) {
        self.message(request, VERSION, words, fds);
    }

    /// Sends bytes, the descriptors with the first of them. Replies are taken meanwhile, as otherwise both
    /// sides could wait.
    pub(super) fn bytes(&mut self, mut bytes: &[u8], mut fds: &[BorrowedFd<'_>]) {
        while !bytes.is_empty() && !self.is_over {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(fds));
            }
            let parts = [IoSlice::new(bytes)];
            match sendmsg(&self.stream, &parts, &mut control, SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    bytes = bytes.get(sent..).unwrap_or_default();
                    fds = &[];
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => self.wait(PollFlags::IN | PollFlags::OUT),
                Err(_) => self.is_over = true,
            }
            self.drain();
        }
    }

    /// Waits until something happens on the connection.
    fn wait(&mut self, flags: PollFlags) {
        let mut fds = [PollFd::new(&self.stream, flags)];
        let patience = Timespec {
            tv_sec: PATIENCE.as_secs().cast_signed(),
            tv_nsec: 0,
        };
        // libFuzzer's clock sends signals. Who waits looks again.
        let events = match poll(&mut fds, Some(&patience)) {
            Err(rustix::io::Errno::INTR) => return,
            events => events.expect("a socket"),
        };
        assert_ne!(events, 0, "the server neither takes nor says anything");
    }

    /// Takes what there is.
    fn drain(&mut self) {
        let mut bytes = [0; 4096];
        while !self.is_over {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let parts = &mut [IoSliceMut::new(&mut bytes)];
            match recvmsg(&self.stream, parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                Ok(message) if message.bytes != 0 => {
                    let got = message.bytes;
                    for message in control.drain() {
                        if let RecvAncillaryMessage::ScmRights(files) = message {
                            self.files.extend(files);
                        }
                    }
                    self.received.extend(bytes.get(..got).unwrap_or_default());
                }
                _ => self.is_over = true,
            }
        }
    }

    /// The next whole message that has come.
    fn next(&mut self) -> Option<Reply> {
        let word = |at: usize| {
            let bytes = self.received.get(at..at + 4)?;
            Some(u32::from_ne_bytes(bytes.try_into().ok()?))
        };
        let (request, flags, size) = (word(0)?, word(4)?, word(8)? as usize);
        assert_eq!(flags & 7, 5, "version 1, and a reply");
        let whole = HEADER + size;
        let payload = self.received.get(HEADER..whole)?.to_vec();
        self.received.drain(..whole);
        Some(Reply { request, payload })
    }

    /// Waits for the reply to `request`, past others. `None`: the server hung up.
    pub(super) fn reply(&mut self, request: u32) -> Option<Reply> {
        let started = Instant::now();
        loop {
            self.drain();
            while let Some(reply) = self.next() {
                if reply.request == request {
                    return Some(reply);
                }
            }
            if self.is_over {
                return None;
            }
            assert!(started.elapsed() < PATIENCE, "no reply to {request}");
            self.wait(PollFlags::IN);
        }
    }

    /// Waits until the server has handled everything before, or hung up.
    pub(super) fn settle(&mut self) {
        self.say(GET_FEATURES, &[], &[]);
        self.reply(GET_FEATURES);
        self.files.clear();
    }

    /// Whether the server hung up.
    #[cfg(test)]
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// The last descriptor that came.
    pub(super) fn file(&mut self) -> Option<File> {
        let file = self.files.pop()?;
        self.files.clear();
        Some(file.into())
    }

    /// Hangs up.
    pub(super) fn end(self) {
        // The server may have been faster.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
