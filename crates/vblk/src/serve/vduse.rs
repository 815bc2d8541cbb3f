// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vblk serve vduse`.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use vdpa_bus::management::{DeviceName, Driver};
use vduse_backend::{Linux, Outcome, Server, ServerOptions};
use virtio_blk_core::device::{Device, Options};
use virtio_blk_core::spec::feature::ACCESS_PLATFORM;

use super::{Listening, Ticker, attach, refresh, usual_queues};
use crate::cli::{AttachArg, VduseArgs};
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

/// What is printed once the device can be used. Field names are the JSON's.
#[derive(Serialize)]
struct Attached<'a> {
    event: &'static str,
    name: &'a str,
    node: Option<PathBuf>,
}

fn attach_and_tell(name: &DeviceName, driver: AttachArg, json: bool) -> Result<(), String> {
    let driver = match driver {
        AttachArg::Virtio => Driver::Virtio,
        AttachArg::Vhost => Driver::Vhost,
    };
    let node = attach::attach(name, driver).map_err(|error| {
        format!(
            "device {name} can't be attached: {error}; the modules are vduse and {}",
            driver.name()
        )
    })?;
    match &node {
        Some(node) if !json => eprintln!("device {name} is {}", node.display()),
        None => log::warn!("device {name} has no node: is the module virtio_blk loaded?"),
        Some(_) => {}
    }
    if json {
        let attached = Attached {
            event: "attached",
            name: name.as_str(),
            node,
        };
        // Whoever does not read it any more does not need it.
        let _ = output::print(&attached, true);
    }
    Ok(())
}

/// Serves until a signal.
pub fn run(args: &VduseArgs, json: bool) -> Result<(), Box<dyn Error>> {
    let serve = &args.serve;
    let (stack, _) = layers::open(&serve.disk, serve.read_only, &serve.layers)?;
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
        ..ServerOptions::new(args.name.as_str())
    };
    let server = Server::new(Arc::new(Linux), device.clone(), options)?;
    let handle = server.handle();
    let (stop, name, attached) = (handle.clone(), args.name.clone(), args.attach.is_some());
    let stop = move || {
        let (stop, name) = (stop.clone(), name.clone());
        // Taking it off the bus may wait for others; a second signal is still heard.
        std::thread::spawn(move || {
            if attached && let Err(error) = attach::detach(&name) {
                log::error!("device {name} can't be taken off the bus: {error}");
            }
            stop.stop();
        });
    };
    // The thread outlives the disk, which has things to write when it is dropped.
    let watched = Arc::downgrade(&disk);
    let look = move || {
        if let Some(disk) = watched.upgrade() {
            refresh(disk.as_ref());
        }
    };
    signals::handle(stop, look)?;

    let at = At {
        name: args.name.as_str(),
        taken_over: server.is_taken_over(),
    };
    let place = format!("as VDUSE device {}", args.name);
    Listening::print(at, &place, serve.disk.to_string(), &device, json)?;
    let windows = Windows::open(&serve.layers, &serve.disk, stack, device.clone(), json)?;
    let attacher = args.attach.map(|driver| {
        let (name, stop) = (args.name.clone(), handle.clone());
        std::thread::spawn(move || {
            let attached = attach_and_tell(&name, driver, json);
            if attached.is_err() {
                // What is half there goes again.
                let _ = attach::detach(&name);
                stop.stop();
            }
            attached
        })
    });
    let ticker = Ticker::start(&device, json, move || handle.is_live())?;
    let result = server.run();
    drop(ticker);
    drop(windows);
    let outcome = result?;
    if let Some(Ok(Err(error))) = attacher.map(std::thread::JoinHandle::join) {
        return Err(error.into());
    }
    if json {
        let ended = Ended {
            event: "ended",
            removed: outcome == Outcome::Removed,
            totals: Totals::of(&device),
        };
        output::print(&ended, true)?;
    } else if outcome == Outcome::Attached {
        eprintln!(
            "device {0} is still attached: its requests wait for the next server; `vblk vdpa del {0}`, and \
             another start and end, take it away",
            args.name
        );
    }
    Ok(())
}
