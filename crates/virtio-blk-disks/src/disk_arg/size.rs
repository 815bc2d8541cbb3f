// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sizes with binary units.

use std::fmt;

use super::ArgError;

/// Units, smallest first: each is 1024 of the one before.
const UNITS: [char; 5] = ['K', 'M', 'G', 'T', 'P'];

/// A number of bytes, written with the largest unit that fits evenly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let power = match self.0 {
            0 => 0,
            bytes => (bytes.trailing_zeros() as usize / 10).min(UNITS.len()),
        };
        write!(f, "{}", self.0 >> (10 * power))?;
        match power.checked_sub(1).and_then(|index| UNITS.get(index)) {
            Some(unit) => write!(f, "{unit}"),
            None => Ok(()),
        }
    }
}

/// Reads a number of bytes. `None` if it is none below 2^63.
pub(crate) fn bytes(text: &str) -> Option<u64> {
    let unit = text
        .chars()
        .last()
        .and_then(|last| {
            let index = UNITS.iter().position(|u| u.eq_ignore_ascii_case(&last))?;
            Some(index + 1)
        })
        .unwrap_or(0);
    let digits = if unit > 0 {
        text.get(..text.len() - 1)?
    } else {
        text
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    let bytes = count.checked_mul(1 << (10 * unit))?;
    (bytes <= i64::MAX as u64).then_some(bytes)
}

/// Reads the size of a disk.
pub(super) fn parse(text: &str) -> Result<u64, ArgError> {
    let size = bytes(text).filter(|bytes| *bytes != 0 && bytes.is_multiple_of(512));
    size.ok_or_else(|| ArgError::Size {
        value: text.to_owned(),
    })
}
