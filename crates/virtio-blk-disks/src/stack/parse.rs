// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From text to [`LayerSpec`] and [`StackSpec`].

use std::str::FromStr;
use std::time::Duration;

use super::StackSpec;
use super::layer::{FaultSpec, GRANULARITY, LayerSpec, named};
use crate::dirty::PersistOptions;
use crate::disk_arg::{SpecError, bytes, split, switch};
use crate::policy::OnError;
use crate::throttle::{Burst, Limits, Rate};

/// How long a burst lasts where nothing else is said.
pub(super) const BURST_LENGTH: Duration = Duration::from_secs(1);

const LAYERS: [&str; 8] = [
    "throttle", "dirty", "rerror", "werror", "errors", "meter", "verify", "fault",
];

fn name_of(part: &str) -> &str {
    part.split_once('=').map_or(part, |(name, _)| name)
}

fn is_layer(part: &str) -> bool {
    LAYERS.contains(&name_of(part))
}

/// How many letters have to be added, left out, exchanged or swapped with their neighbour to get from one word to the
/// other.
fn distance(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    // The distances of what came before each letter, for this letter of `from` and the two before it.
    let mut earlier: Vec<usize> = Vec::new();
    let mut before: Vec<usize> = (0..=to.len()).collect();
    for (row, a) in from.iter().enumerate() {
        let mut here = vec![row + 1];
        for (column, b) in to.iter().enumerate() {
            let at =
                |list: &[usize], index: usize| list.get(index).copied().unwrap_or(usize::MAX - 1);
            let exchanged = at(&before, column) + usize::from(a != b);
            let mut least = exchanged
                .min(at(&before, column + 1) + 1)
                .min(at(&here, column) + 1);
            let previous = |list: &[char], index: usize| list.get(index.checked_sub(1)?).copied();
            if previous(&from, row) == Some(*b) && previous(&to, column) == Some(*a) {
                least = least.min(at(&earlier, column - 1) + 1);
            }
            here.push(least);
        }
        earlier = std::mem::replace(&mut before, here);
    }
    before.last().copied().unwrap_or(0)
}

/// The layer that a word was perhaps meant to be.
fn nearest(word: &str) -> Option<&'static str> {
    // A guess takes time in proportion to the word.
    let word = Some(word).filter(|word| word.len() <= 16)?;
    let near = LAYERS
        .into_iter()
        .map(|layer| (distance(word, layer), layer));
    let (distance, layer) = near.min()?;
    (distance <= layer.len() / 3).then_some(layer)
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
    let disk = disk.join(",").parse().map_err(|error| match error {
        // What is no option was perhaps to be a layer.
        SpecError::Option { option, .. } if nearest(&option).is_some() => unknown(&option),
        error => error,
    })?;
    Ok(StackSpec { disk, layers })
}

/// Reads one layer.
pub(super) fn layer(part: &str) -> Result<LayerSpec, SpecError> {
    let (name, value) = part.split_once('=').unwrap_or((part, ""));
    match name {
        "throttle" => throttle(value),
        "dirty" => dirty(value),
        "meter" | "verify" if part != name => Err(SpecError::Value {
            option: if name == "meter" { "meter" } else { "verify" }.into(),
            value: value.to_owned(),
            allowed: "it as a word of its own, without a value".into(),
        }),
        "meter" => Ok(LayerSpec::Meter),
        "verify" => Ok(LayerSpec::Verify),
        "fault" => fault(value),
        "rerror" => Ok(LayerSpec::Errors {
            read: Some(on_read_error(value)?),
            write: None,
        }),
        "werror" => Ok(LayerSpec::Errors {
            read: None,
            write: Some(on_write_error(value)?),
        }),
        "errors" => errors(value),
        _ => Err(unknown(name)),
    }
}

fn unknown(name: &str) -> SpecError {
    SpecError::Layer {
        layer: name.to_owned(),
        nearest: nearest(name),
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
        option: option.into(),
        value: value.to_owned(),
        allowed: allowed.into(),
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
    match number {
        Some(0) => {
            let allowed = "at least 1 a second (a limit that is left out does not hold; a disk that shall do nothing \
                           for a while is held with `drain`)";
            Err(wrong(option, value, allowed))
        }
        Some(number) => Ok(number),
        None if in_bytes => {
            let allowed = "bytes a second, such as 500K, 50M or 2G";
            Err(wrong(option, value, allowed))
        }
        None => {
            let allowed = "a whole number of operations a second";
            Err(wrong(option, value, allowed))
        }
    }
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
                          write_bandwidth, burst, length and group"
                    .into(),
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
    // A path has slashes itself: it ends where one of the other words stands.
    let (rest, mut path) = match rest.split_once("persist:") {
        Some((before, path)) if before.is_empty() || before.ends_with('/') => (before, Some(path)),
        _ => (rest, None),
    };
    let mut words: Vec<&str> = rest.split('/').collect();
    while let Some((before, last)) = path.and_then(|path| path.rsplit_once('/'))
        && ["granularity:", "sync:"]
            .iter()
            .any(|word| last.starts_with(word))
    {
        words.push(last);
        path = Some(before);
    }
    let (mut granularity, mut sync) = (GRANULARITY, None);
    for (word, value) in items(&words.join("/"), &[])? {
        match word {
            "granularity" => {
                granularity = bytes(value)
                    .filter(|bytes| bytes.is_power_of_two() && *bytes >= 512)
                    .ok_or_else(|| {
                        let allowed = "a power of two from 512 (bytes), such as 64K";
                        wrong("granularity", value, allowed)
                    })?;
            }
            "sync" => sync = Some(switch("sync", value)?),
            _ => {
                return Err(SpecError::Option {
                    option: word.to_owned(),
                    format: "dirty",
                    allowed: "it has granularity, persist and sync".into(),
                });
            }
        }
    }
    let persist = match path {
        Some("") => return Err(wrong("persist", "", "the path of a file")),
        Some(path) => Some(PersistOptions {
            path: path.into(),
            sync: sync.unwrap_or_default(),
        }),
        None if sync.is_some() => {
            return Err(SpecError::NoValue {
                layer: "sync",
                example: "dirty=backup/sync:on/persist:/var/lib/backup.bitmap",
            });
        }
        None => None,
    };
    Ok(LayerSpec::Dirty {
        name: name("dirty", bitmap)?,
        granularity,
        persist,
    })
}

fn on_read_error(value: &str) -> Result<OnError, SpecError> {
    match value {
        "report" => Ok(OnError::Report),
        "stop" => Ok(OnError::Stop),
        _ => Err(wrong("rerror", value, "report or stop")),
    }
}

fn on_write_error(value: &str) -> Result<OnError, SpecError> {
    match value {
        "report" => Ok(OnError::Report),
        "stop" => Ok(OnError::Stop),
        "enospc" => Ok(OnError::Enospc),
        _ => Err(wrong("werror", value, "report, stop or enospc")),
    }
}

fn errors(value: &str) -> Result<LayerSpec, SpecError> {
    let (mut read, mut write) = (None, None);
    for (word, value) in items(value, &[])? {
        match word {
            "rerror" => read = Some(on_read_error(value)?),
            "werror" => write = Some(on_write_error(value)?),
            _ => {
                return Err(SpecError::Option {
                    option: word.to_owned(),
                    format: "errors",
                    allowed: "it has rerror and werror".into(),
                });
            }
        }
    }
    if read.is_none() && write.is_none() {
        return Err(SpecError::NoValue {
            layer: "errors",
            example: "errors=rerror:stop/werror:enospc",
        });
    }
    Ok(LayerSpec::Errors { read, write })
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
                    allowed: "it has seed, errors, torn, delay and reorder".into(),
                });
            }
        }
    }
    Ok(LayerSpec::Fault(fault))
}
