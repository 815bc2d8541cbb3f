// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From text to [`LayerSpec`] and [`StackSpec`].

use std::str::FromStr;
use std::time::Duration;

use super::StackSpec;
use super::layer::{FaultSpec, GRANULARITY, LayerSpec, named};
use crate::spec::{SpecError, bytes, split, switch};
use crate::throttle::{Burst, Limits, Rate};

/// How long a burst lasts where nothing else is said.
pub(super) const BURST_LENGTH: Duration = Duration::from_secs(1);

const LAYERS: [&str; 5] = ["throttle", "dirty", "meter", "verify", "fault"];

fn name_of(part: &str) -> &str {
    part.split_once('=').map_or(part, |(name, _)| name)
}

fn is_layer(part: &str) -> bool {
    LAYERS.contains(&name_of(part))
}

/// Reads a disk and its layers.
pub(super) fn stack<D>(text: &str) -> Result<StackSpec<D>, SpecError>
where
    D: FromStr<Err = SpecError>,
{
    let mut parts = split(text).into_iter().peekable();
    let mut disk = Vec::new();
    while let Some(part) = parts.next_if(|part| disk.is_empty() || !is_layer(part)) {
        disk.push(part.replace(',', ",,"));
    }
    let layers = parts.map(|part| layer(&part)).collect::<Result<_, _>>()?;
    Ok(StackSpec {
        disk: disk.join(",").parse()?,
        layers,
    })
}

/// Reads one layer.
pub(super) fn layer(part: &str) -> Result<LayerSpec, SpecError> {
    let (name, value) = part.split_once('=').unwrap_or((part, ""));
    match name {
        "throttle" => throttle(value),
        "dirty" => dirty(value),
        "meter" | "verify" if part != name => Err(SpecError::Value {
            option: if name == "meter" { "meter" } else { "verify" },
            value: value.to_owned(),
            allowed: "it as a word of its own, without a value",
        }),
        "meter" => Ok(LayerSpec::Meter),
        "verify" => Ok(LayerSpec::Verify),
        "fault" => fault(value),
        _ => Err(SpecError::Layer {
            layer: name.to_owned(),
        }),
    }
}

/// Splits `name:value` items, refusing a name that comes twice unless it belongs to the item before it.
fn items<'a>(value: &'a str, repeats: &[&str]) -> Result<Vec<(&'a str, &'a str)>, SpecError> {
    let mut found: Vec<(&str, &str)> = Vec::new();
    for item in value.split('/').filter(|item| !item.is_empty()) {
        let (name, value) = item.split_once(':').unwrap_or((item, ""));
        if !repeats.contains(&name) && found.iter().any(|(other, _)| *other == name) {
            return Err(SpecError::Twice {
                option: name.to_owned(),
            });
        }
        found.push((name, value));
    }
    Ok(found)
}

fn wrong(option: &'static str, value: &str, allowed: &'static str) -> SpecError {
    SpecError::Value {
        option,
        value: value.to_owned(),
        allowed,
    }
}

fn name(option: &'static str, value: &str) -> Result<String, SpecError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if value.is_empty() || value.len() > 64 || !value.chars().all(plain) {
        let allowed = "a name of up to 64 letters, digits, `-`, `_` and `.`";
        return Err(wrong(option, value, allowed));
    }
    Ok(value.to_owned())
}

/// Reads a rate; `burst` and `length` say their own names in errors.
fn rate(option: &'static str, value: &str, in_bytes: bool) -> Result<u64, SpecError> {
    let number = if in_bytes {
        bytes(value)
    } else {
        value.parse().ok()
    };
    number.filter(|number| *number > 0).ok_or_else(|| {
        let allowed = if in_bytes {
            "bytes a second, such as 500K, 50M or 2G"
        } else {
            "a whole number of operations a second"
        };
        wrong(option, value, allowed)
    })
}

fn seconds(option: &'static str, value: &str) -> Result<Duration, SpecError> {
    let parsed = value.parse().ok().filter(|s: &f64| (0.0..=1e6).contains(s));
    parsed
        .map(Duration::from_secs_f64)
        .ok_or_else(|| wrong(option, value, "seconds, such as 10 or 0.5"))
}

fn throttle(value: &str) -> Result<LayerSpec, SpecError> {
    let mut limits = Limits::default();
    let mut group = None;
    // The limit that `burst` and `length` belong to.
    let mut last: Option<&'static str> = None;
    for (word, value) in items(value, &["burst", "length"])? {
        if word == "group" {
            group = Some(name("group", value)?);
            continue;
        }
        let mut all = named(&mut limits).into_iter();
        if let Some(word) = ["burst", "length"].into_iter().find(|found| *found == word) {
            let found = all.find(|(name, ..)| Some(*name) == last);
            let Some((_, Some(rate_of), in_bytes)) = found else {
                let allowed = "it after the limit it belongs to, such as iops:5000/burst:20000";
                return Err(wrong(word, value, allowed));
            };
            match (&mut rate_of.burst, word) {
                (burst @ None, "burst") => {
                    *burst = Some(Burst {
                        per_second: rate("burst", value, in_bytes)?,
                        length: BURST_LENGTH,
                    });
                }
                (Some(burst), "length") => burst.length = seconds("length", value)?,
                _ => {
                    let allowed = "one burst for a limit, and its length after it";
                    return Err(wrong(word, value, allowed));
                }
            }
            continue;
        }
        let Some((name, slot, in_bytes)) = all.find(|(name, ..)| *name == word) else {
            return Err(SpecError::Option {
                option: word.to_owned(),
                format: "throttle",
                allowed: "it has iops, read_iops, write_iops, bandwidth, read_bandwidth, \
                          write_bandwidth, burst, length and group",
            });
        };
        *slot = Some(Rate::new(rate(name, value, in_bytes)?));
        last = Some(name);
    }
    limits.validate()?;
    if limits == Limits::default() && group.is_none() {
        return Err(SpecError::NoValue {
            layer: "throttle",
            example: "throttle=iops:5000",
        });
    }
    Ok(LayerSpec::Throttle { limits, group })
}

fn dirty(value: &str) -> Result<LayerSpec, SpecError> {
    let (bitmap, rest) = value.split_once('/').unwrap_or((value, ""));
    if bitmap.is_empty() {
        return Err(SpecError::NoValue {
            layer: "dirty",
            example: "dirty=backup",
        });
    }
    let mut granularity = GRANULARITY;
    for (word, value) in items(rest, &[])? {
        if word != "granularity" {
            return Err(SpecError::Option {
                option: word.to_owned(),
                format: "dirty",
                allowed: "it has granularity",
            });
        }
        granularity = bytes(value)
            .filter(|bytes| bytes.is_power_of_two() && *bytes >= 512)
            .ok_or_else(|| {
                let allowed = "a power of two from 512 (bytes), such as 64K";
                wrong("granularity", value, allowed)
            })?;
    }
    Ok(LayerSpec::Dirty {
        name: name("dirty", bitmap)?,
        granularity,
    })
}

fn per_mille(option: &'static str, value: &str) -> Result<u32, SpecError> {
    let rate = value.parse().ok().filter(|rate| *rate <= 1000);
    rate.ok_or_else(|| wrong(option, value, "0 to 1000 (of a thousand operations)"))
}

fn fault(value: &str) -> Result<LayerSpec, SpecError> {
    let mut fault = FaultSpec::default();
    for (word, value) in items(value, &[])? {
        match word {
            "seed" => {
                fault.seed = value
                    .parse()
                    .map_err(|_| wrong("seed", value, "a whole number"))?;
            }
            "errors" => fault.errors = per_mille("errors", value)?,
            "torn" => fault.torn = per_mille("torn", value)?,
            "delay" => fault.delay = seconds("delay", value)?,
            "reorder" => fault.reorder = switch("reorder", value)?,
            _ => {
                return Err(SpecError::Option {
                    option: word.to_owned(),
                    format: "fault",
                    allowed: "it has seed, errors, torn, delay and reorder",
                });
            }
        }
    }
    Ok(LayerSpec::Fault(fault))
}
