// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vblk serve vduse`.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use vdpa_bus::management::{DeviceName, Driver};
use vduse_backend::{Outcome, Server, ServerError, ServerHandle, ServerOptions};
use virtio_blk_core::device::{Device, DeviceOptions};
use virtio_blk_core::spec::feature::ACCESS_PLATFORM;

use super::attach::Attachment;
use super::listening::Listening;
use super::{Common, Failure, LONG, Ready, usual_queues};
use crate::cli::{AttachArg, VduseArgs};
use crate::layers::ExportedDisk;
use crate::status::Totals;
use crate::{output, report};

/// Where the device can be found. Field names are the JSON's.
#[derive(Serialize)]
struct At {
    name: String,
    taken_over: bool,
}

/// What is printed at the end. Field names are the JSON's.
#[derive(Serialize)]
struct Ended {
    event: &'static str,
    name: String,
    /// Whether the device is gone; if not, it is still attached, or the disk did not finish.
    removed: bool,
    /// Whether the disk finished all requests in time, or released them.
    finished: bool,
    #[serde(flatten)]
    totals: Totals,
}

/// What is printed once the device can be used. Field names are the JSON's.
#[derive(Serialize)]
struct Attached<'a> {
    event: &'static str,
    name: &'a str,
    node: Option<PathBuf>,
}

fn attach_and_tell(attachment: &Attachment, driver: Driver, json: bool) -> Result<(), String> {
    let name = attachment.name();
    let node = attachment.attach(driver).map_err(|error| {
        format!(
            "device {name} can't be attached: {error}; the modules are vduse and {}",
            driver.name()
        )
    })?;
    if attachment.is_ended() {
        return Ok(());
    }
    match &node {
        Some(node) if !json => report::say(format_args!("device {name} is {}", node.display())),
        None => log::warn!("device {name} has no node: is the module virtio_blk loaded?"),
        Some(_) => {}
    }
    if json {
        let attached = Attached {
            event: "attached",
            name: name.as_str(),
            node,
        };
        output::tell(&attached);
    }
    Ok(())
}

/// Opens the disk and creates the device.
pub(super) fn prepare(args: &VduseArgs, common: &Common) -> Result<Ready, Box<dyn Error>> {
    let (serve, json) = (&args.serve, common.json);
    let (stack, _) = common.open(serve)?;
    let disk = stack.disk();
    let options = DeviceOptions {
        queues: args
            .queues
            .unwrap_or_else(|| usual_queues(disk.as_ref(), u16::MAX)),
        queue_size: args.queue_size,
        serial: args.driver.serial.clone(),
        read_only: serve.read_only,
        // The driver can't write the configuration space of a vDPA device.
        config_wce: false,
        transport_features: ACCESS_PLATFORM,
        ..DeviceOptions::default()
    };
    let device = Device::new(disk, options)?;
    let options = ServerOptions {
        poll: args.driver.poll(),
        pin: !args.no_pin,
        state_dir: args.state_dir.clone(),
        bounce_size: args.bounce_size,
        msg_timeout: args.msg_timeout,
        ..ServerOptions::new(args.name.as_str())
    };
    let server = Server::new(common.kernel.clone(), device.clone(), options)?;
    let at = At {
        name: args.name.to_string(),
        taken_over: server.is_taken_over(),
    };
    let place = format!("as VDUSE device {}", args.name);
    let (arg, listening) = (serve.disk.to_string(), device.clone());
    let (handle, connected) = (server.handle(), server.handle());
    let attachment = args.attach.map(|driver| {
        let driver = match driver {
            AttachArg::Virtio => Driver::Virtio,
            AttachArg::Vhost => Driver::Vhost,
        };
        (Attachment::new(args.name.clone()), driver)
    });
    let attached = attachment.clone().map(|(attachment, _)| attachment);
    let stop = move || stop(&handle, attached.as_ref());
    let (name, counted) = (args.name.clone(), device.clone());
    Ok(Ready {
        served: ExportedDisk::of_device(args.name.to_string(), &serve.disk.disk, stack, device),
        announce: Box::new(move || Listening::print(at, &place, arg, &listening, json)),
        connected: Box::new(move || connected.is_live()),
        stop: Box::new(stop),
        run: Box::new(move || run(server, &name, attachment, &counted, json)),
    })
}

/// Has the server end, once the device is off the bus.
fn stop(handle: &ServerHandle, attachment: Option<&Arc<Attachment>>) {
    let Some(attachment) = attachment else {
        return handle.stop();
    };
    let (server, attachment) = (handle.clone(), attachment.clone());
    // Taking it off the bus may wait for others; a second signal is still handled.
    let thread = std::thread::Builder::new().name("vblk-stop".into());
    let started = thread.spawn(move || {
        attachment.detach_in_time();
        server.stop();
    });
    if let Err(error) = started {
        log::error!("the device stays on the bus: no thread to take it off: {error}");
        handle.stop();
    }
}

/// Serves until it is stopped.
fn run(
    server: Server,
    name: &DeviceName,
    attachment: Option<(Arc<Attachment>, Driver)>,
    device: &Device,
    json: bool,
) -> Result<(), Failure> {
    let (stop, medium) = (server.handle(), server.medium());
    let attacher = attachment.map(|(attachment, driver)| {
        let thread = std::thread::Builder::new().name("vblk-attach".into());
        thread.spawn(move || {
            let attached = attach_and_tell(&attachment, driver, json);
            if attached.is_err() {
                // What is half there goes again.
                let _ = attachment.detach();
                stop.stop();
            }
            attached
        })
    });
    // Without that thread the server is dropped, and its device with it.
    let attacher = attacher.transpose()?;
    let (outcome, lost) = match server.run() {
        Ok(outcome) => (outcome, None),
        Err(error @ ServerError::Lost { outcome, .. }) => (outcome, Some(error)),
        Err(error) => return Err(error.into()),
    };
    if outcome == Outcome::Unfinished && medium.left_behind() == 0 {
        log::warn!("the disk still makes stable what it kept in memory: it is waited for");
        // What it writes would be lost with the process. A second signal ends that, and `--stop-timeout`.
        while medium.wait_left(Instant::now() + LONG).is_none() {}
        if let Some(error) = medium.take_lost() {
            return Err(format!("what the disk kept in memory may be lost: {error}").into());
        }
    }
    if let Some(Ok(Err(error))) = attacher.map(std::thread::JoinHandle::join) {
        return Err(error.into());
    }
    if json {
        let ended = Ended {
            event: "ended",
            name: name.to_string(),
            removed: outcome == Outcome::Removed,
            finished: outcome != Outcome::Unfinished,
            totals: Totals::of(device),
        };
        output::tell(&ended);
    }
    if let Some(error) = lost {
        return Err(error.into());
    }
    match outcome {
        Outcome::Removed => Ok(()),
        Outcome::Attached if json => Ok(()),
        Outcome::Attached => {
            report::say(format_args!(
                "device {name} is still attached: its requests wait for the next server; `vblk vdpa del {name}`, and \
                 another start and end, take it away"
            ));
            Ok(())
        }
        Outcome::Unfinished => Err(format!(
            "device {name}: the disk has not finished what it was given: the next server, which can start once this \
             process has ended, executes it again"
        )
        .into()),
    }
}

#[cfg(test)]
mod tests;
