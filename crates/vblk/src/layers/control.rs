// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What can be asked for on a control socket, a JSON object a line, and who does it.

use std::collections::HashMap;
use std::error::Error;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::ExportedDisk;
use super::act;
use super::edit::{self, Edit};
use super::marks::{self, Dirty};
use super::nbd::{self, Exporting};
use super::stats::{Before, Stats};

/// What can be asked for.
#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// [`Stats`].
    Stats {
        /// Since the last time on this connection.
        #[serde(default)]
        since: bool,
    },
    /// The layers, after this was done to them.
    Layers(Edit),
    /// The names of the disks.
    Disks {},
    /// Looks at the size of the disk again.
    Refresh {},
    /// Grows the disk.
    Resize {
        /// To this size.
        bytes: u64,
    },
    /// Ends what is in flight, and flushes.
    Drain {
        /// Keep what comes afterwards waiting, for so many seconds.
        #[serde(default)]
        hold: u64,
    },
    /// Ends such a time, and has operations that failed and are held tried again.
    Resume {},
    /// What is marked in a dirty bitmap.
    Dirty(Dirty),
    /// The disk as a network block device, too.
    Export(Exporting),
}

/// What was counted the last time on a connection, by disk.
pub(super) type Seen = HashMap<String, Before>;

fn names(served: &[ExportedDisk]) -> Vec<&str> {
    served.iter().map(|disk| disk.name.as_str()).collect()
}

/// The disk of this name, or the only one.
fn choose<'a>(served: &'a [ExportedDisk], name: &Value) -> Result<&'a ExportedDisk, String> {
    let all = || names(served).join(", ");
    match (name, served) {
        (Value::Null, [one]) => Ok(one),
        (Value::Null, _) => Err(format!("which disk? --disk takes one of {}", all())),
        _ => {
            let found = served.iter().find(|disk| *name == disk.name);
            found.ok_or_else(|| format!("there is no disk {name}, but {}", all()))
        }
    }
}

/// Takes a line: a request, with the disk that it is for.
pub(super) fn take(
    all: &[ExportedDisk],
    line: &str,
    seen: &mut Seen,
) -> Result<Value, Box<dyn Error>> {
    let mut line: Value = serde_json::from_str(line)?;
    let disk = line.as_object_mut().and_then(|line| line.remove("disk"));
    execute(
        all,
        &disk.unwrap_or_default(),
        serde_json::from_value(line)?,
        seen,
    )
}

fn execute(
    all: &[ExportedDisk],
    disk: &Value,
    request: Request,
    seen: &mut Seen,
) -> Result<Value, Box<dyn Error>> {
    let served = || choose(all, disk);
    match request {
        Request::Stats { since } => {
            let served = served()?;
            let before = seen.get(&served.name).filter(|_| since);
            let (stats, now) = Stats::of(served, before);
            seen.insert(served.name.clone(), now);
            Ok(serde_json::to_value(stats)?)
        }
        Request::Layers(edit) => edit::layers(served()?, &edit),
        Request::Disks {} => Ok(json!({"disks": names(all)})),
        Request::Refresh {} => act::refresh(served()?),
        Request::Resize { bytes } => act::resize(served()?, bytes),
        Request::Drain { hold } => act::drain(served()?, hold),
        Request::Resume {} => act::resume(served()?),
        Request::Dirty(what) => marks::dirty(served()?, &what),
        Request::Export(what) => nbd::export(served()?, &what),
    }
}
