// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Results on standard output: aligned text, or one JSON object a line.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::Value;
use signal_hook::consts::SIGPIPE;

/// Standard output can't be written.
#[derive(Debug, thiserror::Error)]
#[error("standard output can't be written: {0}")]
pub struct OutputError(#[from] io::Error);

impl OutputError {
    /// Whether nobody reads it any more, as with `| head`.
    pub fn is_closed(&self) -> bool {
        self.0.kind() == io::ErrorKind::BrokenPipe
    }
}

/// Ends the process as SIGPIPE does, without a word: what the programs of coreutils do when nobody reads their output
/// any more. A shell sees status 141.
pub fn end_as_others_do() -> ! {
    // Rust programs start with the signal ignored.
    let _ = signal_hook::low_level::emulate_default_handler(SIGPIPE);
    std::process::exit(128 + SIGPIPE)
}

/// Writes to standard output.
///
/// # Errors
/// Standard output is closed, or what it goes to is full.
pub fn write(text: &str) -> Result<(), OutputError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Prints `value`, an object, as text or as JSON.
///
/// # Errors
/// As for [`write()`].
pub fn print(value: &impl Serialize, json: bool) -> Result<(), OutputError> {
    let value = serde_json::to_value(value).map_err(io::Error::from)?;
    let mut lines = String::new();
    if json {
        lines = format!("{value}\n");
    } else if let Value::Object(fields) = &value {
        let width = fields.keys().map(String::len).max().unwrap_or(0);
        for (name, field) in fields {
            let name = name.replace('_', " ");
            lines += &format!("{name:width$}  {}\n", text(field));
        }
    }
    write(&lines)
}

/// Prints what happened to a server as JSON. Nobody may read it any more, which is no reason to end.
pub fn tell(event: &impl Serialize) {
    if let Err(error) = print(event, true) {
        log::debug!("{error}");
    }
}

/// A value as a person reads it.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "no".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(" "),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, field)| format!("{} {}", name.replace('_', " "), text(field)))
            .collect::<Vec<_>>()
            .join(", "),
    }
}

/// A number with a comma at each thousand, e.g. `1,234,567`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index != 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in the largest binary unit that leaves at least one, e.g. `1.5 GiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut scaled = bytes as f64;
    let mut unit = "bytes";
    for next in UNITS {
        if scaled < 1024.0 {
            break;
        }
        scaled /= 1024.0;
        unit = next;
    }
    let digits = if unit == "bytes" || scaled >= 100.0 || scaled.fract() == 0.0 {
        0
    } else {
        1
    };
    format!("{scaled:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        assert_eq!(size(0), "0 bytes");
        assert_eq!(size(1023), "1023 bytes");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(8 << 30), "8 GiB");
        assert_eq!(size(u64::MAX), "16 EiB");
    }

    #[test]
    fn values_read_well() {
        let value = serde_json::json!({"a_b": true, "list": [1, "x"], "none": null});
        assert_eq!(text(&value), "a b yes, list 1 x, none no");
    }

    #[test]
    fn thousands_are_told_apart() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (147_879, "147,879"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(thousands(number), text);
        }
    }
}
