// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Messages of the kernel and the replies to them.

use crate::uapi::MESSAGE_SIZE;

/// A message as read from the device's file.
pub type RawMessage = [u8; MESSAGE_SIZE];
/// A response as written to it.
pub type RawResponse = [u8; MESSAGE_SIZE];

/// Where a message's payload begins.
const PAYLOAD: usize = 24;

/// What the kernel asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// The next available index of a queue.
    GetVqState {
        /// The queue.
        index: u32,
    },
    /// A new device status; 0 is a reset.
    SetStatus(u8),
    /// Mappings in this range have changed.
    UpdateIotlb {
        /// First address.
        first: u64,
        /// Last address.
        last: u64,
    },
    /// A group of queues goes to an address space (version 1).
    SetGroupAsid {
        /// The group.
        group: u32,
        /// The address space.
        asid: u32,
    },
    /// A queue is enabled or disabled (`VDUSE_F_QUEUE_READY`).
    SetVqReady {
        /// The queue.
        index: u32,
        /// Enabled.
        ready: bool,
    },
    /// Finish what was taken and take nothing more (`VDUSE_F_SUSPEND`).
    Suspend,
    /// A message of the future.
    Unknown(u32),
}

/// A request with the number that its reply must carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// The kernel's number.
    pub id: u32,
    /// What is asked for.
    pub request: Request,
}

/// What the kernel is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done.
    Ok,
    /// Refused.
    Failed,
    /// Done; the queue's next available index.
    VqState {
        /// The queue.
        index: u32,
        /// The index.
        next_avail: u16,
    },
}

fn word(raw: &RawMessage, at: usize) -> u32 {
    let mut bytes = [0; 4];
    for (to, from) in bytes.iter_mut().zip(raw.iter().skip(at)) {
        *to = *from;
    }
    u32::from_ne_bytes(bytes)
}

fn long(raw: &RawMessage, at: usize) -> u64 {
    let mut bytes = [0; 8];
    for (to, from) in bytes.iter_mut().zip(raw.iter().skip(at)) {
        *to = *from;
    }
    u64::from_ne_bytes(bytes)
}

fn put(raw: &mut [u8], at: usize, bytes: &[u8]) {
    for (to, from) in raw.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

fn byte(raw: &RawMessage, at: usize) -> u8 {
    raw.get(at).copied().unwrap_or_default()
}

impl Message {
    /// Understands a message.
    pub fn parse(raw: &RawMessage) -> Self {
        let request = match word(raw, 0) {
            0 => Request::GetVqState {
                index: word(raw, PAYLOAD),
            },
            1 => Request::SetStatus(byte(raw, PAYLOAD)),
            2 => Request::UpdateIotlb {
                first: long(raw, PAYLOAD),
                last: long(raw, PAYLOAD + 8),
            },
            3 => Request::SetGroupAsid {
                group: word(raw, PAYLOAD),
                asid: word(raw, PAYLOAD + 4),
            },
            4 => Request::SetVqReady {
                index: word(raw, PAYLOAD),
                ready: byte(raw, PAYLOAD + 4) != 0,
            },
            5 => Request::Suspend,
            other => Request::Unknown(other),
        };
        Self {
            id: word(raw, 4),
            request,
        }
    }

    /// The bytes of the message: what the kernel writes.
    pub fn to_bytes(&self) -> RawMessage {
        let mut raw = [0; MESSAGE_SIZE];
        let kind: u32 = match self.request {
            Request::GetVqState { index } => {
                put(&mut raw, PAYLOAD, &index.to_ne_bytes());
                0
            }
            Request::SetStatus(status) => {
                put(&mut raw, PAYLOAD, &[status]);
                1
            }
            Request::UpdateIotlb { first, last } => {
                put(&mut raw, PAYLOAD, &first.to_ne_bytes());
                put(&mut raw, PAYLOAD + 8, &last.to_ne_bytes());
                2
            }
            Request::SetGroupAsid { group, asid } => {
                put(&mut raw, PAYLOAD, &group.to_ne_bytes());
                put(&mut raw, PAYLOAD + 4, &asid.to_ne_bytes());
                3
            }
            Request::SetVqReady { index, ready } => {
                put(&mut raw, PAYLOAD, &index.to_ne_bytes());
                put(&mut raw, PAYLOAD + 4, &[u8::from(ready)]);
                4
            }
            Request::Suspend => 5,
            Request::Unknown(kind) => kind,
        };
        put(&mut raw, 0, &kind.to_ne_bytes());
        put(&mut raw, 4, &self.id.to_ne_bytes());
        raw
    }
}

impl Answer {
    /// The bytes of the response to message `id`.
    pub fn to_bytes(&self, id: u32) -> RawResponse {
        let mut raw = [0; MESSAGE_SIZE];
        let result = u32::from(*self == Self::Failed);
        put(&mut raw, 0, &id.to_ne_bytes());
        put(&mut raw, 4, &result.to_ne_bytes());
        if let Self::VqState { index, next_avail } = self {
            put(&mut raw, PAYLOAD, &index.to_ne_bytes());
            put(&mut raw, PAYLOAD + 4, &next_avail.to_ne_bytes());
        }
        raw
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_comes_through() {
        for request in [
            Request::GetVqState { index: 7 },
            Request::SetStatus(0xf),
            Request::UpdateIotlb {
                first: 1,
                last: u64::MAX,
            },
            Request::SetGroupAsid { group: 1, asid: 2 },
            Request::SetVqReady {
                index: 3,
                ready: true,
            },
            Request::Suspend,
            Request::Unknown(99),
        ] {
            let message = Message { id: 42, request };
            assert_eq!(Message::parse(&message.to_bytes()), message);
        }
    }

    #[test]
    fn messages_and_responses_lie_as_in_the_header() {
        let mut raw = [0; MESSAGE_SIZE];
        raw[0] = 2;
        raw[4] = 9;
        raw[24] = 5;
        raw[32..40].fill(0xff);
        let expected = Request::UpdateIotlb {
            first: 5,
            last: u64::MAX,
        };
        let (id, request) = (9, expected);
        assert_eq!(Message::parse(&raw), Message { id, request });
        let answer = Answer::VqState {
            index: 1,
            next_avail: 0x1234,
        };
        let raw = answer.to_bytes(0x0102_0304);
        assert_eq!(raw[..8], [4, 3, 2, 1, 0, 0, 0, 0]);
        assert_eq!(raw[24..32], [1, 0, 0, 0, 0x34, 0x12, 0, 0]);
        assert_eq!(Answer::Failed.to_bytes(1)[4], 1);
    }
}
