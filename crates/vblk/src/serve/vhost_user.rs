// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vblk serve vhost-user`.

use std::error::Error;
use std::sync::Arc;

use serde::Serialize;
use vhost_user_blk::{Server, ServerOptions};
use virtio_blk_core::device::{Device, Options};

use super::{Listening, Ticker, refresh, usual_queues};
use crate::cli::VhostUserArgs;
use crate::layers::{self, Windows};
use crate::status::Totals;
use crate::{output, signals};

/// Where clients can connect. Field names are the JSON's.
#[derive(Serialize)]
struct At<'a> {
    socket: &'a std::path::Path,
}

/// What is printed at the end. Field names are the JSON's.
#[derive(Serialize)]
struct Ended {
    event: &'static str,
    clients: u64,
    /// For a vDPA device: data that was copied, as the device did not know the client's memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    copied_bytes: Option<u64>,
    #[serde(flatten)]
    totals: Totals,
}

/// Serves until a signal.
pub fn run(args: &VhostUserArgs, json: bool) -> Result<(), Box<dyn Error>> {
    let serve = &args.serve;
    let (stack, vdpa) = layers::open(&serve.disk, serve.read_only, &serve.layers)?;
    let disk = stack.disk();
    let usual = usual_queues(disk.as_ref(), vhost_user_blk::MAX_QUEUES);
    let options = Options {
        queues: args.queues.unwrap_or(usual),
        queue_size: args.queue_size,
        serial: serve.serial.clone(),
        read_only: serve.read_only,
        ..Options::default()
    };
    let device = Device::new(disk.clone(), options)?;
    let poll = serve.poll();
    let mut server = Server::bind(&args.socket, device.clone(), ServerOptions { poll })?;
    if let Some(path) = vdpa.clone() {
        server = server.on_memory(move |memory| {
            if let Err(error) = path.set_memory(memory) {
                log::warn!(
                    "the vDPA device does not know the client's memory, data is copied: {error}"
                );
            }
        });
    }
    let handle = server.handle();
    let stop = handle.clone();
    // The thread outlives the disk, which has things to write when it is dropped.
    let watched = Arc::downgrade(&disk);
    let look = move || {
        if let Some(disk) = watched.upgrade() {
            refresh(disk.as_ref());
        }
    };
    signals::handle(move || stop.stop(), look)?;

    let at = At {
        socket: &args.socket,
    };
    let place = format!("on {}", args.socket.display());
    Listening::print(at, &place, serve.disk.to_string(), &device, json)?;
    let connected = handle.clone();
    let windows = Windows::open(&serve.layers, &serve.disk, stack, device.clone(), json)?;
    let ticker = Ticker::start(&device, json, move || connected.is_connected())?;
    let result = server.run();
    drop(ticker);
    drop(windows);
    drop(server);
    if json {
        let ended = Ended {
            event: "ended",
            clients: handle.clients(),
            copied_bytes: vdpa.map(|path| path.copied_bytes()),
            totals: Totals::of(&device),
        };
        output::print(&ended, true)?;
    }
    Ok(result?)
}
