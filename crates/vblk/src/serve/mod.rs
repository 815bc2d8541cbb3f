// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vblk serve`.

mod attach;
mod vduse;
mod vhost_user;

use std::error::Error;
use std::io;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Serialize;
use virtio_blk_core::device::Device;
use virtio_blk_core::disk::Disk;

pub use vduse::run as vduse;
pub use vhost_user::run as vhost_user;

use crate::output;
use crate::status::{StatusLine, Totals};

/// How often the disk's size is looked at and the status line drawn.
const TICK: Duration = Duration::from_secs(1);

/// What is printed once drivers can come. Field names are the JSON's.
#[derive(Serialize)]
struct Listening<T: Serialize> {
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
    fn print(
        at: T,
        place: &str,
        disk: String,
        device: &Device,
        json: bool,
    ) -> Result<(), Box<dyn Error>> {
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
            output::print(&listening, true)?;
        } else {
            let (size, queues) = (output::size(listening.bytes), listening.queues);
            eprintln!(
                "serving {} ({size}) {place} with {queues} queue{}",
                listening.disk,
                if queues == 1 { "" } else { "s" }
            );
        }
        Ok(())
    }
}

/// One queue per CPU, as far as disk and transport have them.
fn usual_queues(disk: &dyn Disk, most: u16) -> u16 {
    let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
    u16::try_from(cpus)
        .unwrap_or(u16::MAX)
        .min(disk.caps().max_queues)
        .min(most)
}

/// The thread that looks at the disk's size and draws the status line, until it is dropped.
struct Ticker {
    ended: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    /// `is_connected`: whether a driver uses the device.
    fn start(
        device: &Arc<Device>,
        json: bool,
        is_connected: impl Fn() -> bool + Send + 'static,
    ) -> io::Result<Self> {
        let (ended, wait) = channel();
        let device = device.clone();
        let line = if json { None } else { StatusLine::new() };
        let thread = std::thread::Builder::new()
            .name("vblk-ticker".into())
            .spawn(move || tick(&wait, &device, is_connected, line))?;
        Ok(Self {
            ended: Some(ended),
            thread: Some(thread),
        })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.ended = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn tick(
    ended: &Receiver<()>,
    device: &Arc<Device>,
    is_connected: impl Fn() -> bool,
    mut line: Option<StatusLine>,
) {
    while ended.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
        refresh(device.disk().as_ref());
        if let Some(line) = &mut line {
            line.draw(is_connected(), Totals::of(device));
        }
    }
}

fn refresh(disk: &dyn Disk) {
    if let Err(error) = disk.refresh() {
        log::warn!("the disk's size can't be read: {error}");
    }
}
