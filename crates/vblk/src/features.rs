// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vblk features`.

use std::error::Error;

use serde::Serialize;
use virtio_blk_core::device::{Device, Options};
use virtio_blk_disks::raw;

use crate::cli::FeaturesArgs;
use crate::output;

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

/// Lists them.
pub fn run(args: &FeaturesArgs, json: bool) -> Result<(), Box<dyn Error>> {
    let virtio = match &args.disk {
        Some(spec) => {
            let disk = spec.open(false).or_else(|_| spec.open(true))?.disk;
            let queues = disk.caps().max_queues.min(2);
            let options = Options {
                queues,
                ..Options::default()
            };
            Some(Device::new(disk, options)?.offered_names())
        }
        None => None,
    };
    let features = Features {
        version: env!("CARGO_PKG_VERSION"),
        exports: vec!["vhost-user", "vduse"],
        disks: vec!["raw", "memory", "null", "vdpa"],
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
