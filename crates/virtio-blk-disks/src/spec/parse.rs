// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From text to [`DiskSpec`].

use super::{DiskSpec, SpecError, size};
use crate::{Engine, Lock, RawOptions};

/// Splits at single commas; two in a row stand for one that belongs to the text.
pub(crate) fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(char) = rest.next() {
        if char == ',' && rest.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(char);
        }
    }
    parts
}

/// Splits `name=value` options, refusing one that comes twice.
fn options(parts: &[String]) -> Result<Vec<(&str, &str)>, SpecError> {
    let mut found: Vec<(&str, &str)> = Vec::new();
    for part in parts {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        if found.iter().any(|(other, _)| *other == name) {
            return Err(SpecError::Twice {
                option: name.to_owned(),
            });
        }
        found.push((name, value));
    }
    Ok(found)
}

/// Reads `on` or `off`.
pub(crate) fn switch(option: &'static str, value: &str) -> Result<bool, SpecError> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(SpecError::Value {
            option,
            value: value.to_owned(),
            allowed: "on or off",
        }),
    }
}

/// Reads the name of an engine.
fn engine(value: &str) -> Result<Engine, SpecError> {
    match value {
        "auto" => Ok(Engine::Auto),
        "io_uring" => Ok(Engine::IoUring),
        "sync" => Ok(Engine::Sync),
        _ => Err(SpecError::Value {
            option: "engine",
            value: value.to_owned(),
            allowed: "auto, io_uring or sync",
        }),
    }
}

/// Reads when a file is locked.
fn lock(value: &str) -> Result<Lock, SpecError> {
    match value {
        "on" => Ok(Lock::On),
        "off" => Ok(Lock::Off),
        "handover" => Ok(Lock::Handover),
        _ => Err(SpecError::Value {
            option: "lock",
            value: value.to_owned(),
            allowed: "on, off or handover",
        }),
    }
}

/// Reads the name of a disk.
pub(super) fn spec(text: &str) -> Result<DiskSpec, SpecError> {
    let (format, rest) = text.split_once(':').ok_or_else(|| SpecError::NoFormat {
        text: text.to_owned(),
    })?;
    match format {
        "raw" => raw(rest),
        #[cfg(feature = "qcow2")]
        "qcow2" => qcow2(rest),
        #[cfg(not(feature = "qcow2"))]
        "qcow2" => Err(SpecError::NotBuilt { format: "qcow2" }),
        "memory" => {
            let (bytes, given) = sized("memory", rest)?;
            match given.first() {
                None => Ok(DiskSpec::Memory { bytes }),
                Some(part) => Err(unknown(part, "memory", "it has none")),
            }
        }
        "null" => null(rest),
        // A path with a colon in it.
        _ if format.contains('/') => Err(SpecError::NoFormat {
            text: text.to_owned(),
        }),
        _ => Err(SpecError::Format {
            format: format.to_owned(),
        }),
    }
}

fn unknown(part: &str, format: &'static str, allowed: &'static str) -> SpecError {
    let name = part.split_once('=').map_or(part, |(name, _)| name);
    SpecError::Option {
        option: name.to_owned(),
        format,
        allowed,
    }
}

/// Reads a size and the parts after it.
fn sized(format: &'static str, rest: &str) -> Result<(u64, Vec<String>), SpecError> {
    let mut parts = split(rest);
    let size = parts.remove(0);
    if size.is_empty() {
        return Err(SpecError::Missing {
            format,
            what: "SIZE",
        });
    }
    Ok((size::parse(&size)?, parts))
}

fn null(rest: &str) -> Result<DiskSpec, SpecError> {
    let (bytes, given) = sized("null", rest)?;
    let mut zero = true;
    for (name, value) in options(&given)? {
        match name {
            "zero" => zero = switch("zero", value)?,
            _ => return Err(unknown(name, "null", "it has zero")),
        }
    }
    Ok(DiskSpec::Null { bytes, zero })
}

fn raw(rest: &str) -> Result<DiskSpec, SpecError> {
    let mut parts = split(rest);
    let path = parts.remove(0);
    if path.is_empty() {
        return Err(SpecError::Missing {
            format: "raw",
            what: "PATH",
        });
    }
    let mut raw = RawOptions::new(path);
    for (name, value) in options(&parts)? {
        match name {
            "readonly" => raw.read_only = switch("readonly", value)?,
            "direct" => raw.direct = switch("direct", value)?,
            "discard" => raw.discard = switch("discard", value)?,
            "lock" => raw.lock = lock(value)?,
            "engine" => raw.engine = engine(value)?,
            "mmap" => {
                raw.mmap = match value {
                    "auto" => true,
                    "off" => false,
                    _ => {
                        return Err(SpecError::Value {
                            option: "mmap",
                            value: value.to_owned(),
                            allowed: "auto or off",
                        });
                    }
                }
            }
            "block" => {
                let bytes = value.parse().ok().filter(|bytes: &u32| {
                    bytes.is_power_of_two() && (512..=1 << 21).contains(bytes)
                });
                raw.block = Some(bytes.ok_or_else(|| SpecError::Value {
                    option: "block",
                    value: value.to_owned(),
                    allowed: "a power of two from 512 to 2097152 (bytes)",
                })?);
            }
            _ => {
                return Err(unknown(
                    name,
                    "raw",
                    "it has readonly, direct, engine, discard, block, lock and mmap",
                ));
            }
        }
    }
    Ok(DiskSpec::Raw(raw))
}

#[cfg(feature = "qcow2")]
fn qcow2(rest: &str) -> Result<DiskSpec, SpecError> {
    let mut parts = split(rest);
    let path = parts.remove(0);
    if path.is_empty() {
        return Err(SpecError::Missing {
            format: "qcow2",
            what: "PATH",
        });
    }
    let mut image = crate::Qcow2Options::new(path);
    for (name, value) in options(&parts)? {
        match name {
            "readonly" => image.read_only = switch("readonly", value)?,
            "discard" => image.discard = switch("discard", value)?,
            "lock" => image.lock = lock(value)?,
            "engine" => image.engine = engine(value)?,
            "backing" => {
                image.backing = match value {
                    "allow" => true,
                    "deny" => false,
                    _ => {
                        return Err(SpecError::Value {
                            option: "backing",
                            value: value.to_owned(),
                            allowed: "allow or deny",
                        });
                    }
                }
            }
            _ => {
                return Err(unknown(
                    name,
                    "qcow2",
                    "it has readonly, backing, engine, discard and lock",
                ));
            }
        }
    }
    Ok(DiskSpec::Qcow2(image))
}
