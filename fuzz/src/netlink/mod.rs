// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The client of the kernel's vDPA management against a kernel that says anything.
//!
//! Whatever it says, each question has one answer or error after a bounded number of exchanges, and the same one each time.
//! A kernel that says what it should is understood.

mod input;
pub mod seeds;

use std::fmt::Write;
use std::io;

pub use input::{Attribute, Datagram, Input, Message, Value};
use vdpa_bus::management::{
    AddDevice, DeviceName, Link, MacAddress, Management, ManagementError, ManagementName,
};

/// The family's number.
const FAMILY: u16 = 0x22;
/// The controller, which tells it.
const CONTROL: u16 = 0x10;
const DONE: u16 = 3;
/// Questions that consist of several exchanges have no more.
const EXCHANGES: usize = 5;

/// A kernel.
struct Kernel {
    input: Input,
    request: Vec<u8>,
    sent: usize,
    next: usize,
}

impl Kernel {
    /// The sequence number of the request, and of what follows `by` after it.
    fn sequence(&self, by: i8) -> u32 {
        let bytes = self.request.get(8..12).and_then(|b| b.try_into().ok());
        u32::from_ne_bytes(bytes.unwrap_or_default()).wrapping_add_signed(by.into())
    }

    fn message(&self, kind: u16, flags: u16, sequence: i8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = ((16 + payload.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(self.sequence(sequence).to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn content(&self, family: u16, command: u8, sequence: i8, attributes: &[u8]) -> Vec<u8> {
        let payload = [&[command, 1, 0, 0], attributes].concat();
        self.message(family, 0, sequence, &payload)
    }

    fn say(&self, message: &Message) -> Vec<u8> {
        match message {
            Message::Content {
                command,
                sequence,
                attributes,
            } => self.content(FAMILY, *command, *sequence, &encode(attributes)),
            Message::Control {
                kind,
                flags,
                sequence,
                code,
                echo,
                attributes,
            } => {
                let echo = &self.request[..self.request.len().min((*echo).into())];
                let payload = [&code.to_ne_bytes()[..], echo, &encode(attributes)].concat();
                self.message((*kind).into(), *flags, *sequence, &payload)
            }
            Message::Device { class } => {
                let word = |kind, value: u32| Attribute {
                    kind,
                    value: Value::Word { value },
                    more: 0,
                };
                let text = |kind, text: &str| Attribute {
                    kind,
                    value: Value::Bytes {
                        bytes: text.as_bytes().to_vec(),
                    },
                    more: 0,
                };
                let list = [
                    text(4, "disk0\0"),
                    text(2, "vduse\0"),
                    word(5, (*class).into()),
                    word(6, 0),
                    word(7, 2),
                ];
                // What DEV_GET is answered with.
                self.content(FAMILY, 3, 0, &encode(&list))
            }
            Message::End => self.message(DONE, 2, 0, &[0; 4]),
            Message::Any { bytes } => bytes.clone(),
        }
    }

    fn datagram(&self, datagram: &Datagram) -> Vec<u8> {
        let messages = datagram.messages.iter().take(64);
        let mut bytes: Vec<u8> = messages.flat_map(|message| self.say(message)).collect();
        bytes.truncate(bytes.len().saturating_sub(datagram.cut.into()));
        bytes
    }
}

fn encode(attributes: &[Attribute]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for attribute in attributes.iter().take(64) {
        let value = match &attribute.value {
            Value::Byte { value } => vec![*value],
            Value::Short { value } => value.to_ne_bytes().to_vec(),
            Value::Word { value } => value.to_ne_bytes().to_vec(),
            Value::Long { value } => value.to_ne_bytes().to_vec(),
            Value::Bytes { bytes } => bytes.clone(),
        };
        let len = (4 + value.len() as u16).wrapping_add_signed(attribute.more.into());
        bytes.extend(len.to_ne_bytes());
        bytes.extend(u16::from(attribute.kind).to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

impl Link for Kernel {
    fn send(&mut self, request: &[u8]) -> io::Result<()> {
        let len = request.first_chunk().map(|len| u32::from_ne_bytes(*len));
        assert_eq!(len, Some(request.len() as u32), "a request of its length");
        self.request = request.to_vec();
        self.sent += 1;
        assert!(self.sent <= EXCHANGES, "one question, so many exchanges");
        Ok(())
    }

    fn receive(&mut self) -> io::Result<Vec<u8>> {
        if self.sent == 1 && self.input.resolved {
            let id = [6, 0, 1, 0, FAMILY as u8, 0, 0, 0];
            let family = self.content(CONTROL, 1, 0, &id);
            return Ok([family, self.say(&Message::End)].concat());
        }
        let datagrams = &self.input.datagrams;
        let datagram = match datagrams.get(self.next) {
            Some(datagram) => self.datagram(datagram),
            None => match datagrams.last() {
                Some(last) if self.next < datagrams.len() + usize::from(self.input.again) => {
                    self.datagram(last)
                }
                _ => return Err(io::ErrorKind::WouldBlock.into()),
            },
        };
        self.next += 1;
        Ok(datagram)
    }
}

/// Asks, and returns the answer in words.
fn ask(input: &Input) -> Result<String, ManagementError> {
    let mut client = Management::with_link(Kernel {
        input: input.clone(),
        request: Vec::new(),
        sent: 0,
        next: 0,
    })?;
    let name: DeviceName = "disk0".parse().expect("a name");
    let mut said = String::new();
    let mut say = |what: &dyn std::fmt::Debug| {
        write!(said, "{what:?}").expect("memory");
    };
    match input.question % 9 {
        0 => {
            for device in client.devices()? {
                // Any bytes may be in it.
                say(&DeviceName::new(&device.name).is_ok());
                say(&device);
            }
        }
        1 => say(&client.device(&name)?),
        2 => say(&client.config(&name)?),
        3 => say(&client.configs()?),
        4 => {
            for parent in client.management_devices()? {
                say(&(parent.supports(2), parent.supports(u32::MAX), parent));
            }
        }
        5 => say(&client.vendor_stats(&name, 3)?),
        6 => client.delete(&name)?,
        7 => client.set_mac_address(&name, MacAddress([2, 0, 0, 0, 0, 1]))?,
        _ => {
            let management: ManagementName = "pci/0000:01:00.0".parse().expect("a name");
            client.add(&AddDevice::new(name, management).mtu(1500))?;
        }
    }
    Ok(said)
}

/// Runs an input.
///
/// # Panics
/// The client did what it must not.
pub fn run(input: &Input) {
    let words = |answer: Result<String, ManagementError>| answer.map_err(|e| e.to_string());
    let answer = words(ask(input));
    assert_eq!(answer, words(ask(input)), "not the same twice");
    // A kernel that behaves: nothing but devices, and an end.
    let good = |message: &Message| matches!(message, Message::Device { .. });
    if let [Datagram { messages, cut: 0 }] = &input.datagrams[..]
        && let Some((Message::End, devices)) = messages.split_last()
        && devices.iter().all(good)
        && messages.len() <= 64
        && input.resolved
        && input.question % 9 == 0
    {
        let said = answer.expect("a kernel that behaves is understood");
        assert_eq!(said.matches("Device {").count(), devices.len());
    }
}
