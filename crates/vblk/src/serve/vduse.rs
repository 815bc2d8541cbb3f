// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vblk serve vduse`.

use std::error::Error;
use std::sync::Arc;

use serde::Serialize;
use vduse_backend::{Linux, Outcome, Server, ServerOptions};
use virtio_blk_core::device::{Device, Options};
use virtio_blk_core::spec::feature::ACCESS_PLATFORM;

use super::{Listening, Ticker, refresh, usual_queues};
use crate::cli::VduseArgs;
use crate::layers::{self, Windows};
use crate::status::Totals;
use crate::{output, signals};

/// Where the device can be found. Field names are the JSON's.
#[derive(Serialize)]
struct At<'a> {
    name: &'a str,
    taken_over: bool,
}

/// What is printed at the end. Field names are the JSON's.
#[derive(Serialize)]
struct Ended {
    event: &'static str,
    /// Whether the device is gone; if not, it is still attached.
    removed: bool,
    #[serde(flatten)]
    totals: Totals,
}

/// Serves until a signal.
pub fn run(args: &VduseArgs, json: bool) -> Result<(), Box<dyn Error>> {
    let serve = &args.serve;
    let stack = layers::open(&serve.disk, serve.read_only, &serve.layers)?;
    let disk = stack.disk();
    let options = Options {
        queues: args
            .queues
            .unwrap_or_else(|| usual_queues(disk.as_ref(), u16::MAX)),
        queue_size: args.queue_size,
        serial: serve.serial.clone(),
        read_only: serve.read_only,
        // The driver can't write the configuration space of a vDPA device.
        config_wce: false,
        transport_features: ACCESS_PLATFORM,
        ..Options::default()
    };
    let device = Device::new(disk.clone(), options)?;
    let options = ServerOptions {
        poll: serve.poll(),
        state_dir: args.state_dir.clone(),
        bounce_size: args.bounce_size,
        msg_timeout: args.msg_timeout,
        ..ServerOptions::new(&args.name)
    };
    let server = Server::new(Arc::new(Linux), device.clone(), options)?;
    let handle = server.handle();
    let stop = handle.clone();
    signals::handle(move || stop.stop(), move || refresh(disk.as_ref()))?;

    let at = At {
        name: &args.name,
        taken_over: server.is_taken_over(),
    };
    let place = format!("as VDUSE device {}", args.name);
    Listening::print(at, &place, serve.disk.to_string(), &device, json)?;
    let windows = Windows::open(&serve.layers, &serve.disk, stack, device.clone(), json)?;
    let ticker = Ticker::start(&device, json, move || handle.is_live())?;
    let result = server.run();
    drop(ticker);
    drop(windows);
    let outcome = result?;
    if json {
        let ended = Ended {
            event: "ended",
            removed: outcome == Outcome::Removed,
            totals: Totals::of(&device),
        };
        output::print(&ended, true)?;
    } else if outcome == Outcome::Attached {
        eprintln!(
            "device {0} is still attached: its requests wait for the next server, or `vdpa dev del {0}` and \
             another start and end take it away",
            args.name
        );
    }
    Ok(())
}
