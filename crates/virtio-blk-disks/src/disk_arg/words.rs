// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Words that the options of several kinds of disks have as values: for [`DiskOptions`](super::DiskOptions), also of other
//! crates.

use serde::{Deserialize, Deserializer};

use crate::{Engine, Lock};

/// The word for a switch.
pub const fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// The word for a lock.
pub const fn lock(lock: Lock) -> &'static str {
    match lock {
        Lock::On => "on",
        Lock::Off => "off",
        Lock::Handover => "handover",
    }
}

/// The word for an engine.
pub const fn engine(engine: Engine) -> &'static str {
    match engine {
        Engine::Auto => "auto",
        Engine::IoUring => "io_uring",
        Engine::Sync => "sync",
    }
}

/// Names and values of those options that are not as by default. Each comes as its name, its value, and the default.
pub fn differing<const N: usize>(
    options: [(&'static str, &'static str, &'static str); N],
) -> Vec<(&'static str, String)> {
    let changed = options.into_iter().filter(|(_, now, usual)| now != usual);
    changed
        .map(|(name, now, _)| (name, now.to_owned()))
        .collect()
}

/// Reads `auto` (true) or `off`, for serde's `deserialize_with`.
///
/// # Errors
/// Another word.
pub fn auto_or_off<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Word {
        Auto,
        Off,
    }
    Ok(matches!(Word::deserialize(from)?, Word::Auto))
}

/// Reads `allow` (true) or `deny`, for serde's `deserialize_with`.
///
/// # Errors
/// Another word.
pub fn allow_or_deny<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Word {
        Allow,
        Deny,
    }
    Ok(matches!(Word::deserialize(from)?, Word::Allow))
}
