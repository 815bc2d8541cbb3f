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
    queues: u16,
    queue_size: u16,
    read_only: bool,
}

impl<T: Serialize> Listening<T> {
    /// `at`: where the server can be found, for JSON; `place`: the same for people.
    pub(super) fn print(at: T, place: &str, disk: String, device: &Device, json: bool) {
        let options = device.options();
        let listening = Self {
            event: "listening",
            at,
            disk,
            bytes: device.capacity() * 512,
            queues: options.queues,
            queue_size: options.queue_size,
            read_only: device.disk().caps().read_only || options.read_only,
        };
        if json {
            output::tell(&listening);
        } else {
            let (size, queues) = (output::size(listening.bytes), listening.queues);
            report::say(format_args!(
                "serving {} ({size}) {place} with {queues} queue{}",
                listening.disk,
                if queues == 1 { "" } else { "s" }
            ));
        }
    }
}
