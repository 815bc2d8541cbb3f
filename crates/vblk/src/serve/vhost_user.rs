// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vblk serve vhost-user`.

use std::error::Error;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use serde::Serialize;
use vhost_user_blk::{Server, ServerHandle, ServerOptions};
use virtio_blk_core::device::{Device, Options};
use virtio_blk_core::disk::Disk;

use crate::cli::VhostUserArgs;
use crate::status::{StatusLine, Totals};
use crate::{output, signals};

/// How often the disk's size is looked at and the status line drawn.
const TICK: Duration = Duration::from_secs(1);

/// What is printed once clients can connect. Field names are the JSON's.
#[derive(Serialize)]
struct Listening<'a> {
    event: &'static str,
    socket: &'a std::path::Path,
    disk: String,
    bytes: u64,
    queues: u16,
    queue_size: u16,
    read_only: bool,
}

/// What is printed at the end. Field names are the JSON's.
#[derive(Serialize)]
struct Ended {
    event: &'static str,
    clients: u64,
    #[serde(flatten)]
    totals: Totals,
}

/// Serves until a signal.
pub fn run(args: &VhostUserArgs, json: bool) -> Result<(), Box<dyn Error>> {
    let disk = args.disk.open(args.read_only)?;
    let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
    let cpus = u16::try_from(cpus)
        .unwrap_or(u16::MAX)
        .min(disk.caps().max_queues)
        .min(vhost_user_blk::MAX_QUEUES);
    let options = Options {
        queues: args.queues.unwrap_or(cpus),
        queue_size: args.queue_size,
        serial: args.serial.clone(),
        read_only: args.read_only,
        ..Options::default()
    };
    let device = Device::new(disk.clone(), options)?;
    let server = Server::bind(
        &args.socket,
        device.clone(),
        ServerOptions { poll: args.poll() },
    )?;
    let handle = server.handle();
    let stop = handle.clone();
    let refreshed = disk.clone();
    signals::handle(move || stop.stop(), move || refresh(refreshed.as_ref()))?;

    let listening = Listening {
        event: "listening",
        socket: &args.socket,
        disk: args.disk.to_string(),
        bytes: device.capacity() * 512,
        queues: device.options().queues,
        queue_size: device.options().queue_size,
        read_only: disk.caps().read_only || args.read_only,
    };
    if json {
        output::print(&listening, true)?;
    } else {
        let (size, queues) = (output::size(listening.bytes), listening.queues);
        eprintln!(
            "serving {} ({size}) on {} with {queues} queue{}",
            listening.disk,
            args.socket.display(),
            if queues == 1 { "" } else { "s" }
        );
    }

    let (ended, wait) = channel::<()>();
    let ticker = std::thread::Builder::new()
        .name("vblk-ticker".into())
        .spawn({
            let device = device.clone();
            let line = if json { None } else { StatusLine::new() };
            move || tick(&wait, &device, &handle, line)
        })?;
    let result = server.run();
    drop(ended);
    let _ = ticker.join();
    let handle = server.handle();
    drop(server);
    if json {
        let ended = Ended {
            event: "ended",
            clients: handle.clients(),
            totals: Totals::of(&device),
        };
        output::print(&ended, true)?;
    }
    Ok(result?)
}

/// Looks at the disk's size and draws the status line, until the server has ended.
fn tick(
    ended: &Receiver<()>,
    device: &Arc<Device>,
    handle: &ServerHandle,
    mut line: Option<StatusLine>,
) {
    while ended.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
        refresh(device.disk().as_ref());
        if let Some(line) = &mut line {
            line.draw(handle.is_connected(), Totals::of(device));
        }
    }
}

fn refresh(disk: &dyn Disk) {
    if let Err(error) = disk.refresh() {
        log::warn!("the disk's size can't be read: {error}");
    }
}
