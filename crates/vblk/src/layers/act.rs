// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a control socket does to a served disk.

use std::error::Error;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use virtio_blk_core::disk::DiskError;
use virtio_blk_disks::hot_swap::HoldError;
use virtio_blk_disks::stack::Stack;

use super::ExportedDisk;

/// How long a drain may take: on a busy host a single flush takes seconds.
const DRAIN: Duration = Duration::from_secs(60);
/// The longest that requests are kept waiting.
pub const MAX_HOLD: u64 = 3600;

pub(super) type Answer = Result<Value, Box<dyn Error>>;

/// Waits until all queues have followed. Returns whether they have.
pub(super) fn settle(stack: &Stack, patience: Duration) -> Result<bool, Box<dyn Error>> {
    let until = Instant::now() + patience;
    loop {
        let settled = stack.is_settled()?;
        if settled || Instant::now() >= until {
            return Ok(settled);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Ends what is in flight, flushes, and keeps what comes waiting for `hold` seconds.
pub(super) fn drain(served: &ExportedDisk, hold: u64) -> Answer {
    if hold > MAX_HOLD {
        return Err(format!("requests can wait for {MAX_HOLD} seconds at most").into());
    }
    let stack = &served.stack;
    let hold = Duration::from_secs(hold);
    // For what is in flight, and as long again for the flush.
    stack.hold(2 * DRAIN)?;
    let drained = settle(stack, DRAIN).and_then(|settled| {
        if !settled {
            let late = format!("what is in flight did not end within {DRAIN:?}");
            return Err(late.into());
        }
        stack.flush()?;
        if hold.is_zero() {
            return Ok(stack.resume().hold?);
        }
        // The time counts from here.
        Ok(stack.extend(hold)?)
    });
    if drained.is_err() {
        // That it has ended before is the error told, or of no interest beside it.
        let _ = stack.resume();
    }
    drained?;
    Ok(json!({"drained": true, "held_seconds": hold.as_secs()}))
}

/// Ends such a time, and has operations that failed and are held tried again.
pub(super) fn resume(served: &ExportedDisk) -> Answer {
    let resumed = served.stack.resume();
    let operations = resumed.operations;
    match resumed.hold {
        Ok(()) => Ok(json!({"resumed": true, "hold": true, "operations": operations})),
        Err(HoldError::None) if operations != 0 => {
            Ok(json!({"resumed": true, "hold": false, "operations": operations}))
        }
        Err(ended) if operations != 0 => {
            let also = format!("{ended}; {operations} operations that had failed are tried again");
            Err(also.into())
        }
        Err(ended) => Err(ended.into()),
    }
}

/// Looks at the disk's size again.
pub(super) fn refresh(served: &ExportedDisk) -> Answer {
    served.disk.refresh()?;
    Ok(json!({"capacity": served.disk.caps().capacity_bytes()}))
}

/// Grows the disk, through the handle that it is open by: its name may lead elsewhere by now.
pub(super) fn resize(served: &ExportedDisk, bytes: u64) -> Answer {
    let disk = &served.disk;
    let now = disk.caps().capacity_bytes();
    if bytes < now {
        return Err(format!(
            "{bytes} bytes: the disk has {now}; to lose what lies behind, truncate its file and then `refresh`"
        )
        .into());
    }
    disk.resize(bytes).map_err(|error| match error {
        DiskError::Unsupported => format!(
            "{} can't be made larger while it is served: end the server, and use the tools for its format",
            served.source
        ),
        error => error.to_string(),
    })?;
    Ok(json!({"capacity": disk.caps().capacity_bytes()}))
}
