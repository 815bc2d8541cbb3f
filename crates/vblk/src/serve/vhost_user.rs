// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vblk serve vhost-user`.

use std::error::Error;
use std::time::Instant;

use serde::Serialize;
use vhost_user_blk::socket::{Listener, SocketOptions};
use vhost_user_blk::{LeaveError, Server, ServerHandle, ServerOptions};
use virtio_blk_core::device::{Device, DeviceOptions};

use super::listening::Listening;
use super::{Common, LONG, Ready, usual_queues};
use crate::cli::VhostUserArgs;
use crate::layers::ExportedDisk;
use crate::output;
use crate::status::Totals;

/// Where clients can connect. Field names are the JSON's.
#[derive(Serialize)]
struct At {
    socket: String,
}

/// What is printed at the end. Field names are the JSON's.
#[derive(Serialize)]
struct Ended {
    event: &'static str,
    socket: String,
    clients: u64,
    /// For a vDPA device: data that was copied, as the device did not know the client's memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    copied_bytes: Option<u64>,
    #[serde(flatten)]
    totals: Totals,
}

/// Waits for the disk to be left: what it still writes would be lost with the process. A second signal ends that, and
/// `--stop-timeout`.
fn wait_left(handle: &ServerHandle) -> Result<(), LeaveError> {
    let mut left = handle.wait_disk_left(Instant::now());
    if let Err(LeaveError::Slow(_)) = left {
        log::warn!("the disk still makes stable what it kept in memory: it is waited for");
    }
    while let Err(LeaveError::Slow(_)) = left {
        left = handle.wait_disk_left(Instant::now() + LONG);
    }
    left
}

/// Opens disk and socket.
pub(super) fn prepare(args: &VhostUserArgs, common: &Common) -> Result<Ready, Box<dyn Error>> {
    let (serve, json) = (&args.serve, common.json);
    let (stack, vdpa) = common.open(serve)?;
    let disk = stack.disk();
    let usual = usual_queues(disk.as_ref(), vhost_user_blk::MAX_QUEUES);
    let options = DeviceOptions {
        queues: common.descriptors.queues(args.queues, usual)?,
        queue_size: args.queue_size,
        serial: args.driver.serial.clone(),
        read_only: serve.read_only,
        ..DeviceOptions::default()
    };
    let device = Device::new(disk, options)?;
    let options = ServerOptions {
        poll: args.driver.poll(),
        ..ServerOptions::default()
    };
    let socket = SocketOptions {
        mode: args.socket_mode,
        group: args.socket_group,
    };
    let listener = Listener::open(&args.socket, &socket)?;
    let mut server = Server::new(listener, device.clone(), options)?;
    if let Some(path) = vdpa.clone() {
        server = server.on_memory(move |memory| {
            if let Err(error) = path.set_memory(memory) {
                log::warn!(
                    "the vDPA device does not know the client's memory, data is copied: {error}"
                );
            }
        });
    }
    let at = At {
        socket: args.socket.to_string(),
    };
    let name = args.socket.to_string();
    let place = format!("on {name}");
    let (arg, listening) = (serve.disk.to_string(), device.clone());
    let (handle, stop, connected) = (server.handle(), server.handle(), server.handle());
    let socket = name.clone();
    let totals = device.clone();
    let run = move || {
        let result = server.run();
        let unfinished = handle.unfinished();
        let left = match unfinished {
            0 => wait_left(&handle),
            // The disk stays in use for them.
            _ => Ok(()),
        };
        drop(server);
        if json {
            let ended = Ended {
                event: "ended",
                socket,
                clients: handle.clients(),
                copied_bytes: vdpa.map(|path| path.copied_bytes()),
                totals: Totals::of(&totals),
            };
            output::tell(&ended);
        }
        result?;
        match unfinished {
            0 => Ok(left?),
            queues => Err(format!(
                "the disk has not finished what {queues} of its queues were given: the next server executes it again"
            )
            .into()),
        }
    };
    Ok(Ready {
        served: ExportedDisk::of_device(name, &serve.disk.disk, stack, device),
        announce: Box::new(move || Listening::print(at, &place, arg, &listening, json)),
        connected: Box::new(move || connected.is_connected()),
        stop: Box::new(move || stop.stop()),
        run: Box::new(run),
    })
}
