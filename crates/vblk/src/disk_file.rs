// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `--disk toml:FILE`: a disk and its layers written down in a file.
//!
//! Each key becomes the word that stands for it on a command line, and is tried alone first: so both have the
//! same names and the same messages, and a message knows the line it is about.

use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use virtio_blk_disks::StackSpec;
use virtio_blk_disks::stack::LayerSpec;

use crate::source::Source;

/// The largest file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// Why a DISK on the command line, or the file it names, can't be understood.
#[derive(Debug, thiserror::Error)]
pub enum DiskArgError {
    /// It is written wrongly.
    #[error(transparent)]
    Spec(#[from] virtio_blk_disks::SpecError),
    /// The file can't be read.
    #[error("{}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file says something wrong.
    #[error("{}, line {line}: {why}", .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// From 1 on.
        line: usize,
        /// What, with the key.
        why: String,
    },
}

/// Reads what stands after `--disk`.
///
/// # Errors
/// The first thing that is wrong.
pub fn parse(text: &str) -> Result<StackSpec<Source>, DiskArgError> {
    let Some(path) = text.strip_prefix("toml:") else {
        return Ok(text.parse()?);
    };
    let path = PathBuf::from(path);
    let content = match read(&path) {
        Ok(content) => content,
        Err(source) => return Err(DiskArgError::Read { path, source }),
    };
    spec(&content).map_err(|wrong| DiskArgError::Content {
        path,
        line: 1 + content
            .bytes()
            .take(wrong.at)
            .filter(|byte| *byte == b'\n')
            .count(),
        why: wrong.why,
    })
}

fn read(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut content = String::new();
    let file = std::fs::File::open(path)?;
    if file.take(MAX_BYTES + 1).read_to_string(&mut content)? as u64 > MAX_BYTES {
        return Err(std::io::Error::other("it is larger than 1 MiB"));
    }
    Ok(content)
}

/// Something wrong, and the byte of the file where.
#[derive(Debug)]
struct Wrong {
    at: usize,
    why: String,
}

impl Wrong {
    fn new(at: usize, why: impl ToString) -> Self {
        Self {
            at,
            why: why.to_string(),
        }
    }
}

/// A key with its value.
struct Entry<'a> {
    key: &'a str,
    at: usize,
    value: &'a DeValue<'a>,
}

impl<'a> Entry<'a> {
    fn all(table: &'a DeTable<'a>) -> impl Iterator<Item = Self> {
        table.iter().map(|(key, value)| Self {
            key: key.get_ref(),
            at: key.span().start,
            value: value.get_ref(),
        })
    }

    fn find(table: &'a DeTable<'a>, key: &str) -> Option<Self> {
        Self::all(table).find(|entry| entry.key == key)
    }

    fn wrong(&self, why: impl ToString) -> Wrong {
        Wrong::new(self.at, format!("`{}`: {}", self.key, why.to_string()))
    }

    /// The value as the command line has it.
    fn plain(&self) -> Result<String, Wrong> {
        match self.value {
            DeValue::String(text) => Ok(text.to_string()),
            DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix())
                .map(|number| number.to_string())
                .map_err(|error| self.wrong(error)),
            DeValue::Float(number) => Ok(number.as_str().to_owned()),
            DeValue::Boolean(true) => Ok("on".to_owned()),
            DeValue::Boolean(false) => Ok("off".to_owned()),
            other => Err(self.wrong(format!(
                "give a text, a number, true or false instead of this {}",
                other.type_str()
            ))),
        }
    }

    /// The same without what separates words there.
    fn word(&self) -> Result<String, Wrong> {
        let text = self.plain()?;
        match text.contains([',', '/', ':', '=']) {
            true => Err(self.wrong(format!("`{text}` is no value for it"))),
            false => Ok(text),
        }
    }
}

/// The words of a limit that is written as a table.
fn limit(entry: &Entry<'_>, parts: &DeTable<'_>) -> Result<String, Wrong> {
    let rate = Entry::find(parts, "rate").ok_or_else(|| entry.wrong("it lacks `rate`"))?;
    let mut word = format!("{}:{}", entry.key, rate.word()?);
    // A length belongs to the burst before it.
    for name in ["burst", "length"] {
        if let Some(part) = Entry::find(parts, name) {
            word = format!("{word}/{name}:{}", part.word()?);
        }
    }
    match Entry::all(parts).find(|part| !["rate", "burst", "length"].contains(&part.key)) {
        Some(other) => Err(other.wrong("a limit has rate, burst and length")),
        None => Ok(word),
    }
}

fn layer(table: &Spanned<DeValue<'_>>) -> Result<LayerSpec, Wrong> {
    let start = table.span().start;
    let DeValue::Table(table) = table.get_ref() else {
        return Err(Wrong::new(start, "write each layer as [[layer]]"));
    };
    let kind = Entry::find(table, "type")
        .ok_or_else(|| Wrong::new(start, "this [[layer]] lacks `type`"))?;
    let word = kind.word()?;
    let name = Entry::find(table, "name");
    let first = name.as_ref().map(Entry::word).transpose()?;
    let mut items: Vec<String> = first.into_iter().collect();
    let written = |items: &[String]| match items.is_empty() {
        true => word.clone(),
        false => format!("{word}={}", items.join("/")),
    };
    for entry in Entry::all(table).filter(|entry| !["type", "name"].contains(&entry.key)) {
        let item = match entry.value {
            DeValue::Table(parts) => limit(&entry, parts)?,
            // A path, which has slashes.
            _ if entry.key == "persist" => format!("{}:{}", entry.key, entry.plain()?),
            _ => format!("{}:{}", entry.key, entry.word()?),
        };
        let named = items.iter().take(usize::from(name.is_some())).cloned();
        let alone: Vec<String> = named.chain([item.clone()]).collect();
        // `sync` says nothing without `persist`.
        if entry.key != "sync" {
            let tried: Result<LayerSpec, _> = written(&alone).parse();
            tried.map_err(|why| entry.wrong(why))?;
        }
        items.push(item);
    }
    let whole: Result<LayerSpec, _> = written(&items).parse();
    whole.map_err(|why| kind.wrong(why))
}

fn disk(table: &DeTable<'_>) -> Result<Source, Wrong> {
    let lacks = |what: &str| Wrong::new(0, format!("the file lacks {what}"));
    let format = Entry::find(table, "format").ok_or_else(|| lacks("`format`"))?;
    let place = (Entry::find(table, "path").or_else(|| Entry::find(table, "size")))
        .ok_or_else(|| lacks("`path`, or `size` for a disk without a file"))?;
    let start = format!("{}:{}", format.word()?, place.plain()?.replace(',', ",,"));
    let parse = |text: &str| text.parse::<Source>();
    // Whether it is the format or the place that is wrong.
    if let Err(why) = parse(&start) {
        let is_format = parse(&format!("{}:512", format.plain()?)).is_err();
        return Err(if is_format {
            format.wrong(why)
        } else {
            place.wrong(why)
        });
    }
    let mut whole = start.clone();
    for entry in Entry::all(table) {
        if !["format", "layer", place.key].contains(&entry.key) {
            let option = format!(",{}={}", entry.key, entry.word()?);
            parse(&format!("{start}{option}")).map_err(|why| entry.wrong(why))?;
            whole += &option;
        }
    }
    parse(&whole).map_err(|why| format.wrong(why))
}

/// The disk and the layers that a file describes.
fn spec(content: &str) -> Result<StackSpec<Source>, Wrong> {
    let table = DeTable::parse(content).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        Wrong::new(at, error.message())
    })?;
    let table = table.get_ref();
    let disk = disk(table)?;
    let layers = match Entry::find(table, "layer") {
        None => Vec::new(),
        Some(entry) => match entry.value {
            DeValue::Array(layers) => layers.iter().map(layer).collect::<Result<_, _>>()?,
            _ => return Err(entry.wrong("write each layer as [[layer]]")),
        },
    };
    Ok(StackSpec { disk, layers })
}

#[cfg(test)]
mod tests;
