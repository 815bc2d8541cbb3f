// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The wire format: requests out, replies in. Headers, acknowledgements and attributes are
//! `netlink-packet-core`'s; the four bytes of the generic header are done here.

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLA_HEADER_SIZE, NLM_F_ACK_TLVS, NLM_F_CAPPED,
    NetlinkBuffer, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable, NlasIterator,
};

use super::attribute::NLMSGERR_ATTR_MSG;

/// The generic header: command, version, two reserved bytes.
const GENERIC_HEADER: usize = 4;
/// `struct nlmsghdr`.
const MESSAGE_HEADER: usize = 16;

/// A generic netlink message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generic {
    /// The family's number, the message's type in netlink.
    pub family: u16,
    /// What is asked for or answered.
    pub command: u8,
    /// The family's version.
    pub version: u8,
    /// The attributes, encoded.
    pub attributes: Vec<u8>,
}

impl NetlinkSerializable for Generic {
    fn message_type(&self) -> u16 {
        self.family
    }

    fn buffer_len(&self) -> usize {
        GENERIC_HEADER + self.attributes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let (header, attributes) = buffer.split_at_mut(GENERIC_HEADER);
        header.copy_from_slice(&[self.command, self.version, 0, 0]);
        attributes.copy_from_slice(&self.attributes);
    }
}

impl NetlinkDeserializable for Generic {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        match payload {
            [command, version, _, _, attributes @ ..] => Ok(Self {
                family: header.message_type,
                command: *command,
                version: *version,
                attributes: attributes.to_vec(),
            }),
            _ => Err(DecodeError::invalid_buffer(
                "genlmsghdr",
                payload.len(),
                GENERIC_HEADER,
            )),
        }
    }
}

/// Encodes attributes.
pub fn attributes(list: &[DefaultNla]) -> Vec<u8> {
    let mut bytes = vec![0; list.buffer_len()];
    list.emit(&mut bytes);
    bytes
}

/// A text attribute, with the NUL that the kernel's policy wants.
pub fn text(kind: u16, value: &str) -> DefaultNla {
    let mut bytes = value.as_bytes().to_vec();
    bytes.push(0);
    DefaultNla::new(kind, bytes)
}

/// A number or address as attribute, in this machine's byte order.
pub fn plain(kind: u16, bytes: impl Into<Vec<u8>>) -> DefaultNla {
    DefaultNla::new(kind, bytes.into())
}

/// A whole request.
pub fn request(message: Generic, flags: u16, sequence: u32) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// What one message of a reply says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Something of what was asked for.
    Content(Generic),
    /// That is all.
    End,
    /// The request failed.
    Refused {
        /// The error number, positive.
        errno: i32,
        /// The kernel's own words.
        reason: Option<String>,
    },
}

/// Takes a datagram apart. Messages of other exchanges than `sequence` are left out.
///
/// # Errors
/// What is malformed.
pub fn parts(mut datagram: &[u8], sequence: u32) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    if datagram.is_empty() {
        return Err("an empty datagram".to_owned());
    }
    while !datagram.is_empty() {
        let buffer = NetlinkBuffer::new_checked(datagram).map_err(|error| error.to_string())?;
        let length = usize::try_from(buffer.length()).map_err(|error| error.to_string())?;
        // Both checked by `new_checked`: at least a header, at most what is there.
        let (message, rest) = datagram
            .split_at_checked(length)
            .ok_or("a length beyond the datagram")?;
        if buffer.sequence_number() == sequence {
            parts.extend(part(message)?);
        }
        // Messages start at multiples of four; after the last there may be no padding.
        let padding = length.next_multiple_of(4) - length;
        datagram = rest.get(padding..).unwrap_or_default();
    }
    Ok(parts)
}

fn part(message: &[u8]) -> Result<Option<Part>, String> {
    let message =
        NetlinkMessage::<Generic>::deserialize(message).map_err(|error| error.to_string())?;
    let (header, payload) = message.into_parts();
    let refused = |code: i32, words: &[u8]| Part::Refused {
        errno: code.checked_neg().unwrap_or(i32::MAX),
        reason: reason(words),
    };
    Ok(match payload {
        NetlinkPayload::InnerMessage(generic) => Some(Part::Content(generic)),
        NetlinkPayload::Done(done) if done.code < 0 => Some(refused(done.code, &done.extended_ack)),
        NetlinkPayload::Done(_) => Some(Part::End),
        NetlinkPayload::Error(error) => Some(match error.raw_code() {
            0 => Part::End,
            code if code < 0 => refused(code, words(header.flags, &error.header)?),
            code => return Err(format!("the error number {code}")),
        }),
        NetlinkPayload::Noop => None,
        NetlinkPayload::Overrun(_) => return Err("messages were lost".to_owned()),
        _ => return Err("a message of an unknown kind".to_owned()),
    })
}

/// The attributes of an acknowledgement: behind the header of the request, or all of the request.
fn words(flags: u16, echoed: &[u8]) -> Result<&[u8], String> {
    if flags & NLM_F_ACK_TLVS == 0 {
        return Ok(&[]);
    }
    let request = if flags & NLM_F_CAPPED != 0 {
        MESSAGE_HEADER
    } else {
        let request = NetlinkBuffer::new_checked(echoed).map_err(|error| error.to_string())?;
        usize::try_from(request.length()).map_err(|error| error.to_string())?
    };
    let start = request.next_multiple_of(4);
    echoed
        .get(start..)
        .ok_or_else(|| "an acknowledgement without the request's header".to_owned())
}

/// The text in an extended acknowledgement. One that can't be read takes nothing from the error number.
fn reason(attributes: &[u8]) -> Option<String> {
    let attributes = Attributes::parse(attributes).ok()?;
    let text = attributes.text(NLMSGERR_ATTR_MSG)?;
    (!text.is_empty()).then_some(text)
}

/// Decoded attributes, in their order.
#[derive(Debug)]
pub struct Attributes<'a>(Vec<(u16, &'a [u8])>);

impl<'a> Attributes<'a> {
    /// Takes encoded attributes apart.
    ///
    /// # Errors
    /// What is malformed.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let mut list = Vec::new();
        for attribute in NlasIterator::new(bytes) {
            let attribute = attribute.map_err(|error| error.to_string())?;
            let (kind, length) = (attribute.kind(), usize::from(attribute.length()));
            let value = attribute.into_inner().get(NLA_HEADER_SIZE..length);
            list.push((kind, value.ok_or("an attribute of a wrong length")?));
        }
        Ok(Self(list))
    }

    /// All of them, in the order of the message.
    pub fn iter(&self) -> impl Iterator<Item = (u16, &'a [u8])> {
        self.0.iter().copied()
    }

    fn find(&self, kind: u16) -> Option<&'a [u8]> {
        self.iter()
            .find(|(found, _)| *found == kind)
            .map(|(_, value)| value)
    }

    /// A text up to its NUL. What isn't UTF-8 in it is replaced.
    pub fn text(&self, kind: u16) -> Option<String> {
        self.find(kind).map(text_of)
    }

    /// As [`Attributes::text`], for one that must be there.
    ///
    /// # Errors
    /// It isn't.
    pub fn needed_text(&self, kind: u16) -> Result<String, String> {
        self.text(kind)
            .ok_or_else(|| format!("attribute {kind} is missing"))
    }

    /// A number of one byte.
    ///
    /// # Errors
    /// It has another length.
    pub fn u8(&self, kind: u16) -> Result<Option<u8>, String> {
        Ok(self.fixed(kind)?.map(u8::from_ne_bytes))
    }

    /// A number of two bytes.
    ///
    /// # Errors
    /// It has another length.
    pub fn u16(&self, kind: u16) -> Result<Option<u16>, String> {
        Ok(self.fixed(kind)?.map(u16::from_ne_bytes))
    }

    /// A number of four bytes.
    ///
    /// # Errors
    /// It has another length.
    pub fn u32(&self, kind: u16) -> Result<Option<u32>, String> {
        Ok(self.fixed(kind)?.map(u32::from_ne_bytes))
    }

    /// A number of eight bytes.
    ///
    /// # Errors
    /// It has another length.
    pub fn u64(&self, kind: u16) -> Result<Option<u64>, String> {
        Ok(self.fixed(kind)?.map(u64::from_ne_bytes))
    }

    /// Bytes of a given number.
    ///
    /// # Errors
    /// There is another number of them.
    pub fn fixed<const N: usize>(&self, kind: u16) -> Result<Option<[u8; N]>, String> {
        self.find(kind).map(|value| fixed(kind, value)).transpose()
    }
}

/// A text up to its NUL.
pub fn text_of(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&value[..end.unwrap_or(value.len())]).into_owned()
}

/// A value of `N` bytes.
///
/// # Errors
/// It has another length.
pub fn fixed<const N: usize>(kind: u16, value: &[u8]) -> Result<[u8; N], String> {
    let length = value.len();
    value
        .try_into()
        .map_err(|_| format!("attribute {kind} has {length} bytes, not {N}"))
}
