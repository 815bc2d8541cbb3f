// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Layers on the served disk, and what shows and changes them: `--metrics`, `--control`, `vblk ctl`,
//! `vblk top`.

mod act;
mod address;
mod client;
mod clients;
mod control;
pub mod ctl;
mod edit;
mod http;
mod marks;
mod metrics;
pub mod nbd;
mod socket;
mod stats;
mod table;
mod terminal;
pub mod top;

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use vhost_vdpa_frontend::SlowPath;
use virtio_blk_core::device::Device;
use virtio_blk_core::disk::Disk;
use virtio_blk_disks::meter::MeterOptions;
use virtio_blk_disks::stack::{self, Groups, LayerArg, LayerKinds, Stack, StackArg};

use crate::journal::Journal;
use crate::source::{Opened, Source};
use crate::status::Totals;
use crate::{output, report};
pub use address::Address;
use nbd::NbdExport;

/// The kinds of layers that this program links.
pub const LAYERS: LayerKinds<'static> = LayerKinds::new(stack::OWN);

/// The part of `--help` about layers. Lines of at most 78 columns: longer ones are wrapped on a terminal of 80.
pub fn layers_help() -> String {
    let layers = LAYERS.manual();
    format!(
        "\
After the disk may stand layers, from the medium upwards:
  raw:disk.img,throttle=iops:5000/burst:20000,meter
The layers:
{layers}

toml:FILE stands for all of it: the disk's format, path (or size) and options,
then a [[layer]] for each layer, such as
  format = \"raw\"
  path = \"disk.img\"
  [[layer]]
  type = \"throttle\"
  iops = {{ rate = 5000, burst = 20000, length = 10 }}
  [[layer]]
  type = \"dirty\"
  name = \"backup\""
    )
}

/// Options of all servers about layers.
#[derive(Clone, Debug, Default, Args)]
pub struct LayerArgs {
    /// Serve Prometheus metrics at http://ADDR/metrics: 127.0.0.1:9477, localhost:9477, or :9477 for all addresses.
    #[arg(long, value_name = "ADDR")]
    pub metrics: Option<Address>,
    /// Unix socket for `vblk ctl` and `vblk top`: layers can then be changed while the disk is served.
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// Seconds after SIGTERM until the process ends although a disk has not finished [default: 10].
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub stop_timeout: Option<u64>,
}

impl LayerArgs {
    /// How long the end may take.
    pub fn stop_timeout(&self) -> Duration {
        Duration::from_secs(self.stop_timeout.unwrap_or(10))
    }

    /// The options of a process with several disks, each of which may have been given with any disk.
    pub fn of_all<'a>(all: impl Iterator<Item = &'a Self>) -> Result<Self, String> {
        let mut together = Self::default();
        for args in all {
            merge(&mut together.metrics, &args.metrics, "--metrics")?;
            merge(&mut together.control, &args.control, "--control")?;
            merge(
                &mut together.stop_timeout,
                &args.stop_timeout,
                "--stop-timeout",
            )?;
        }
        Ok(together)
    }
}

fn merge<T: Clone + PartialEq>(
    together: &mut Option<T>,
    one: &Option<T>,
    name: &str,
) -> Result<(), String> {
    match (&together, one) {
        (Some(known), Some(other)) if known != other => Err(format!(
            "{name} is for all disks of a process: give it once"
        )),
        (None, Some(_)) => {
            together.clone_from(one);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Opens a disk with its layers, for these options. If the disk is a vDPA device, this comes along.
pub fn open(
    arg: &StackArg<Source>,
    read_only: bool,
    args: &LayerArgs,
    groups: &Groups,
) -> Result<(Arc<Stack>, Option<SlowPath>), Box<dyn Error>> {
    let mut layers = arg.layers.clone();
    let meter = LayerArg::new(MeterOptions {});
    if args.metrics.is_some() && !layers.contains(&meter) {
        layers.push(meter);
    }
    let Opened { disk, vdpa } = arg.disk.open(read_only)?;
    let groups = groups.clone();
    let stack = match args.control {
        Some(_) => Stack::live(disk, &layers, groups)?,
        None => Stack::fixed(disk, &layers, groups)?,
    };
    Ok((Arc::new(stack), vdpa))
}

/// What the servers of metrics and control look at, and the ticker.
#[derive(Clone)]
pub struct ExportedDisk {
    /// What it is called in `ctl`, `top` and metrics.
    pub name: String,
    source: Source,
    stack: Arc<Stack>,
    /// The disk, with its layers.
    pub disk: Arc<dyn Disk>,
    /// What was done for its clients so far.
    pub totals: Arc<dyn Fn() -> Totals + Send + Sync>,
    /// What failed.
    pub journal: Arc<Journal>,
    /// Queues of the disk that its server opens at most.
    queues: u16,
    /// The disk beside its server.
    pub nbd: NbdExport,
}

impl ExportedDisk {
    /// A disk that is this one with layers. Who serves it opens `queues` of it at most and tells the journal what fails, and `totals`
    /// counts what it did.
    pub fn new(
        name: String,
        source: &Source,
        stack: Arc<Stack>,
        queues: u16,
        totals: impl Fn() -> Totals + Send + Sync + 'static,
    ) -> Self {
        let journal = Arc::new(Journal::new(name.clone()));
        let policy = journal.clone();
        stack.listen_events(move |event| policy.note_policy(event));
        Self {
            name,
            source: source.clone(),
            disk: stack.disk(),
            stack,
            totals: Arc::new(totals),
            journal,
            queues,
            nbd: NbdExport::default(),
        }
    }

    /// The disk of a device.
    pub fn of_device(
        name: String,
        source: &Source,
        stack: Arc<Stack>,
        device: Arc<Device>,
    ) -> Self {
        let counted = device.clone();
        let queues = device.options().queues;
        let this = Self::new(name, source, stack, queues, move || Totals::of(&counted));
        let queues = this.journal.clone();
        device.on_request_error(move |error| queues.note(error));
        this
    }
}

/// What is printed once metrics can be fetched. Field names are the JSON's.
#[derive(Serialize)]
struct Fetching {
    event: &'static str,
    address: SocketAddr,
}

/// How long the end waits for what a client has asked for.
const LAST_REQUEST: Duration = Duration::from_secs(5);

/// The disks, as the threads of these servers have them: no longer than for a request. A format writes its last when
/// the disk is dropped, which must be before the process ends, as these threads do not.
type Shown = Weak<Vec<ExportedDisk>>;

/// The servers of metrics and control, until it is dropped.
pub struct AdminServers {
    served: Option<Arc<Vec<ExportedDisk>>>,
    _control: Option<socket::Control>,
}

impl AdminServers {
    /// Starts those that the options ask for.
    pub fn open(
        args: &LayerArgs,
        served: Vec<ExportedDisk>,
        json: bool,
    ) -> Result<Self, Box<dyn Error>> {
        let served = Arc::new(served);
        if let Some(address) = &args.metrics {
            let address = metrics::start(address, Arc::downgrade(&served))?;
            if json {
                let event = "metrics";
                output::tell(&Fetching { event, address });
            } else {
                report::say(format_args!("metrics on http://{address}/metrics"));
            }
        }
        let control = match &args.control {
            Some(path) => Some(socket::Control::start(path, Arc::downgrade(&served))?),
            None => None,
        };
        Ok(Self {
            served: Some(served),
            _control: control,
        })
    }
}

impl Drop for AdminServers {
    fn drop(&mut self) {
        let shown = self.served.take().map(|served| Arc::downgrade(&served));
        let until = Instant::now() + LAST_REQUEST;
        while shown
            .as_ref()
            .is_some_and(|shown| shown.strong_count() != 0)
            && Instant::now() < until
        {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
