// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `--disk toml:FILE`: a disk and its layers written down in a file.
//!
//! The file becomes the same [`Tree`]s as the text of a command line: so both have the same names and the same messages,
//! and a message knows the line it is about.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use virtio_blk_disks::StackArg;
use virtio_blk_disks::disk_arg::tree::{Entry, FromTree, Key, Tree, TreeError, Value};
use virtio_blk_disks::stack::LayerArg;

use crate::layers::LAYERS;
use crate::source::{KINDS, Source};

/// The largest file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// Why a DISK on the command line, or the file it names, can't be understood.
#[derive(Debug, thiserror::Error)]
pub enum DiskArgError {
    /// It is written wrongly.
    #[error(transparent)]
    Arg(#[from] virtio_blk_disks::ArgError),
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
pub fn parse(text: &str) -> Result<StackArg<Source>, DiskArgError> {
    let Some(path) = text.strip_prefix("toml:") else {
        return Ok(StackArg::parse(text, LAYERS)?);
    };
    let path = PathBuf::from(path);
    let content = match read(&path) {
        Ok(content) => content,
        Err(source) => return Err(DiskArgError::Read { path, source }),
    };
    stack(&content).map_err(|wrong| DiskArgError::Content {
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

impl From<TreeError> for Wrong {
    fn from(TreeError { key, error }: TreeError) -> Self {
        Self::about(&key, error)
    }
}

impl Wrong {
    fn about(key: &Key, why: impl ToString) -> Self {
        Self::new(key.at, format!("`{}`: {}", key.name, why.to_string()))
    }
}

fn entries(table: &DeTable<'_>) -> Result<Vec<Entry>, Wrong> {
    let entry = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
        let key = key_of(key);
        let value = value_of(&key, value.get_ref())?;
        Ok(Entry { key, value })
    };
    table.iter().map(entry).collect()
}

fn key_of(key: &Spanned<Cow<'_, str>>) -> Key {
    Key {
        name: key.get_ref().to_string(),
        at: key.span().start,
    }
}

/// The value as a text has it; a table's with its parts.
fn value_of(key: &Key, value: &DeValue<'_>) -> Result<Value, Wrong> {
    Ok(Value::Text(match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix())
            .map_err(|error| Wrong::about(key, error))?
            .to_string(),
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(true) => "on".to_owned(),
        DeValue::Boolean(false) => "off".to_owned(),
        DeValue::Table(parts) => return entries(parts).map(Value::Parts),
        other => {
            let why = format!(
                "give a text, a number, true or false instead of this {}",
                other.type_str()
            );
            return Err(Wrong::about(key, why));
        }
    }))
}

/// Takes the first of these keys out of a table.
fn take(entries: &mut Vec<Entry>, names: &[&str]) -> Option<Entry> {
    let place = |name: &&str| entries.iter().position(|entry| entry.key.name == *name);
    let index = names.iter().find_map(place)?;
    Some(entries.remove(index))
}

fn layer(table: &Spanned<DeValue<'_>>) -> Result<LayerArg, Wrong> {
    let start = table.span().start;
    let DeValue::Table(table) = table.get_ref() else {
        return Err(Wrong::new(start, "write each layer as [[layer]]"));
    };
    let mut options = entries(table)?;
    let kind = take(&mut options, &["type"])
        .ok_or_else(|| Wrong::new(start, "this [[layer]] lacks `type`"))?;
    let target = take(&mut options, &["name"]);
    let tree = Tree {
        kind,
        target,
        options,
    };
    Ok(LAYERS.read(&tree)?)
}

/// Takes what a command line has after the colon: the size of a disk that is nothing else, of others the path.
fn target(kind: &Entry, options: &mut Vec<Entry>) -> Result<Option<Entry>, Wrong> {
    let Some(known) = KINDS.iter().find(|known| known.name == kind.word()) else {
        // That is what is wrong, and said by who reads it.
        return Ok(take(options, &["path", "size"]));
    };
    let (name, other) = match known.target {
        "SIZE" => ("size", "path"),
        _ => ("path", "size"),
    };
    if let Some(target) = take(options, &[name]) {
        return Ok(Some(target));
    }
    match take(options, &[other]) {
        None => Ok(None),
        Some(entry) => {
            let why = format!("{} is described by its `{name}` instead", known.name);
            Err(Wrong::about(&entry.key, why))
        }
    }
}

/// The disk and the layers that a file describes.
fn stack(content: &str) -> Result<StackArg<Source>, Wrong> {
    let table = DeTable::parse(content).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        Wrong::new(at, error.message())
    })?;
    let mut table = table.into_inner();
    let layers = table.remove_entry("layer");
    let mut options = entries(&table)?;
    let lacks = |what: &str| Wrong::new(0, format!("the file lacks {what}"));
    let kind = take(&mut options, &["format"]).ok_or_else(|| lacks("`format`"))?;
    let target = target(&kind, &mut options)?
        .ok_or_else(|| lacks("`path`, or `size` for a disk without a file"))?;
    let tree = Tree {
        kind,
        target: Some(target),
        options,
    };
    let disk = Source::from_tree(&tree)?;
    let layers = match &layers {
        None => Vec::new(),
        Some((key, layers)) => match layers.get_ref() {
            DeValue::Array(layers) => layers.iter().map(layer).collect::<Result<_, _>>()?,
            _ => return Err(Wrong::about(&key_of(key), "write each layer as [[layer]]")),
        },
    };
    Ok(StackArg { disk, layers })
}

#[cfg(test)]
mod tests;
