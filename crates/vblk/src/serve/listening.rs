// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a server says when drivers can come.

use serde::Serialize;
use virtio_blk_core::device::Device;

use crate::{output, report};

/// What is printed once drivers can come. Field names are the JSON's.
#[derive(Serialize)]
pub(super) struct Listening<T: Serialize> {
    event: &'static str,
    #[serde(flatten)]
    at: T,
    disk: String,
    bytes: u64,
    #[serde(flatten)]
    queues: Option<Queues>,
    read_only: bool,
}

/// The queues of a device.
#[derive(Serialize)]
struct Queues {
    queues: u16,
    queue_size: u16,
}

impl<T: Serialize> Listening<T> {
    /// A device. `at`: where the server can be found, for JSON; `place`: the same for people.
    pub(super) fn print(at: T, place: &str, disk: String, device: &Device, json: bool) {
        let options = device.options();
        let this = Self {
            event: "listening",
            at,
            disk,
            bytes: device.capacity() * 512,
            queues: Some(Queues {
                queues: options.queues,
                queue_size: options.queue_size,
            }),
            read_only: device.disk().caps().read_only || options.read_only,
        };
        this.tell(place, json);
    }

    /// A disk without a device; otherwise as [`Listening::print`].
    pub(super) fn print_disk(
        at: T,
        place: &str,
        disk: String,
        bytes: u64,
        read_only: bool,
        json: bool,
    ) {
        let this = Self {
            event: "listening",
            at,
            disk,
            bytes,
            queues: None,
            read_only,
        };
        this.tell(place, json);
    }

    fn tell(&self, place: &str, json: bool) {
        if json {
            return output::tell(self);
        }
        let (disk, size) = (&self.disk, output::size(self.bytes));
        match &self.queues {
            Some(Queues { queues, .. }) => report::say(format_args!(
                "serving {disk} ({size}) {place} with {queues} queue{}",
                if *queues == 1 { "" } else { "s" }
            )),
            None => report::say(format_args!("serving {disk} ({size}) {place}")),
        }
    }
}
