// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vblk features`.

use std::error::Error;
use std::sync::Arc;

use serde::Serialize;
use virtio_blk_core::device::{Device, DeviceOptions};
use virtio_blk_core::disk::{Caps, Disk, DiskError, IoQueue};
use virtio_blk_disks::raw;

use crate::cli::FeaturesArgs;
use crate::output;
use crate::source::Source;

/// What this build and host offer. Field names are the JSON's.
#[derive(Serialize)]
struct Features {
    version: &'static str,
    exports: Vec<&'static str>,
    disks: Vec<&'static str>,
    requests: Vec<&'static str>,
    vhost_user: Vec<String>,
    io_uring: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    virtio: Option<Vec<String>>,
}

/// A disk that was looked at, for a device that nobody uses.
struct Seen(Caps);

impl Disk for Seen {
    fn caps(&self) -> Caps {
        self.0
    }

    fn open_queue(&self, _: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        Err(DiskError::Unsupported)
    }
}

/// Lists them.
pub fn run(args: &FeaturesArgs, json: bool) -> Result<(), Box<dyn Error>> {
    let virtio = match &args.disk {
        Some(arg) => {
            let caps = arg.disk.look()?.caps;
            let options = DeviceOptions {
                queues: caps.max_queues.min(2),
                ..DeviceOptions::default()
            };
            Some(Device::new(Arc::new(Seen(caps)), options)?.offered_names())
        }
        None => None,
    };
    let features = Features {
        version: env!("CARGO_PKG_VERSION"),
        exports: vec!["vhost-user", "vduse"],
        disks: Source::formats(),
        requests: vec![
            "in",
            "out",
            "flush",
            "get-id",
            "get-lifetime",
            "discard",
            "write-zeroes",
            "secure-erase",
        ],
        vhost_user: vhost_user_blk::protocol_feature_names(),
        io_uring: raw::io_uring_support()
            .map_or_else(|why| format!("no: {why}"), |()| "yes".to_owned()),
        disk: args.disk.as_ref().map(ToString::to_string),
        virtio,
    };
    output::print(&features, json)?;
    Ok(())
}
