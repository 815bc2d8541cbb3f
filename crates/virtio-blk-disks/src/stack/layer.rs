// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Layers by name.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::parse;
use crate::dirty::PersistOptions;
use crate::disk_arg::{Size, SpecError};
use crate::policy::OnError;
use crate::throttle::{Limits, Rate};

/// Bytes of a dirty bitmap's block where nothing else is said.
pub const GRANULARITY: u64 = 64 << 10;

/// A fault layer by name: a plain [`crate::FaultPlan`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultSpec {
    /// What its random numbers follow from.
    pub seed: u64,
    /// So many of a thousand operations fail with `EIO`, without having had an effect.
    pub errors: u32,
    /// So many of a thousand changes fail with `EIO` after a part of them was done.
    pub torn: u32,
    /// The longest time by which a completion comes late. Each is drawn from zero up to it.
    pub delay: Duration,
    /// Completions come out of order.
    pub reorder: bool,
}

/// A layer by name. `Display` writes what `FromStr` reads; see the [module](super) for the syntax.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayerSpec {
    /// [`crate::ThrottleDisk`].
    Throttle {
        /// What is allowed. None at all in a group that has limits: those of the group.
        limits: Limits,
        /// The group whose limits these are; without one they are this disk's alone.
        group: Option<String>,
    },
    /// [`crate::DirtyDisk`] with one bitmap.
    Dirty {
        /// The bitmap's name.
        name: String,
        /// Bytes of a block, see [`crate::dirty::DirtyBitmap::new`].
        granularity: u64,
        /// Where it is kept over restarts.
        persist: Option<PersistOptions>,
    },
    /// [`crate::PolicyDisk`]. What is not said is reported.
    Errors {
        /// For reads; never [`OnError::Enospc`].
        read: Option<OnError>,
        /// For everything that changes the disk.
        write: Option<OnError>,
    },
    /// [`crate::MeterDisk`].
    Meter,
    /// [`crate::VerifyDisk`].
    Verify,
    /// [`crate::FaultDisk`].
    Fault(FaultSpec),
}

impl LayerSpec {
    /// Whether both stand for the same layer of a disk, perhaps with other settings: of throttles the same group, of
    /// bitmaps the same name counts.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Throttle { group: a, .. }, Self::Throttle { group: b, .. }) => a == b,
            (Self::Dirty { name: a, .. }, Self::Dirty { name: b, .. }) => a == b,
            (Self::Errors { .. }, Self::Errors { .. }) => true,
            (a, b) => a.name() == b.name(),
        }
    }

    /// The word that names the layer.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Throttle { .. } => "throttle",
            Self::Dirty { .. } => "dirty",
            Self::Errors {
                read: Some(_),
                write: None,
            } => "rerror",
            Self::Errors {
                read: None,
                write: Some(_),
            } => "werror",
            Self::Errors { .. } => "errors",
            Self::Meter => "meter",
            Self::Verify => "verify",
            Self::Fault(_) => "fault",
        }
    }
}

impl FromStr for LayerSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        parse::layer(text)
    }
}

/// The limits with their words, and whether their units are bytes.
pub(super) fn named(limits: &mut Limits) -> [(&'static str, &mut Option<Rate>, bool); 6] {
    [
        ("iops", &mut limits.iops, false),
        ("read_iops", &mut limits.read_iops, false),
        ("write_iops", &mut limits.write_iops, false),
        ("bandwidth", &mut limits.bandwidth, true),
        ("read_bandwidth", &mut limits.read_bandwidth, true),
        ("write_bandwidth", &mut limits.write_bandwidth, true),
    ]
}

fn write_limits(items: &mut Vec<String>, mut limits: Limits) {
    for (word, rate, in_bytes) in named(&mut limits) {
        let Some(rate) = rate else { continue };
        let number = |value: u64| match in_bytes {
            true => Size(value).to_string(),
            false => value.to_string(),
        };
        items.push(format!("{word}:{}", number(rate.per_second)));
        if let Some(burst) = rate.burst {
            items.push(format!("burst:{}", number(burst.per_second)));
            if burst.length != parse::BURST_LENGTH {
                items.push(format!("length:{}", burst.length.as_secs_f64()));
            }
        }
    }
}

impl fmt::Display for LayerSpec {
    /// Leaves out what is as by default.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut items = Vec::new();
        match self {
            Self::Meter | Self::Verify => {}
            Self::Throttle { limits, group } => {
                write_limits(&mut items, *limits);
                items.extend(group.iter().map(|name| format!("group:{name}")));
            }
            Self::Dirty {
                name,
                granularity,
                persist,
            } => {
                items.push(name.clone());
                if *granularity != GRANULARITY {
                    items.push(format!("granularity:{}", Size(*granularity)));
                }
                if let Some(persist) = persist {
                    if persist.sync {
                        items.push("sync:on".to_owned());
                    }
                    // Last: it may have slashes.
                    items.push(format!("persist:{}", persist.path.to_string_lossy()));
                }
            }
            Self::Errors { read, write } => match (read, write) {
                (Some(one), None) | (None, Some(one)) => items.push(one.word().to_owned()),
                _ => {
                    let named = [("rerror", read), ("werror", write)].into_iter();
                    let given = named.filter_map(|(word, of)| Some((word, (*of)?)));
                    items.extend(given.map(|(word, of)| format!("{word}:{}", of.word())));
                }
            },
            Self::Fault(fault) => {
                items.push(format!("seed:{}", fault.seed));
                if fault.errors != 0 {
                    items.push(format!("errors:{}", fault.errors));
                }
                if fault.torn != 0 {
                    items.push(format!("torn:{}", fault.torn));
                }
                if fault.delay != Duration::ZERO {
                    items.push(format!("delay:{}", fault.delay.as_secs_f64()));
                }
                if fault.reorder {
                    items.push("reorder:on".to_owned());
                }
            }
        }
        f.write_str(self.name())?;
        if !items.is_empty() {
            write!(f, "={}", items.join("/"))?;
        }
        Ok(())
    }
}
