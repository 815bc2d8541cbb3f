// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From text to [`Tree`]s of layers, and from these to [`LayerArg`].

use super::LayerArg;
use super::options::{LayerOptions, Parts, Shape};
use crate::disk_arg::tree::{Entry, Key, VALUE_KEY, Value};
use crate::disk_arg::{self, ArgError, Tree, TreeError};

fn wrong(option: &str, value: &str, allowed: &'static str) -> ArgError {
    ArgError::Value {
        option: option.to_owned().into(),
        value: value.to_owned(),
        allowed: allowed.into(),
    }
}

/// Makes the tree of a layer of that kind, from a word with its value, if it has one.
pub(super) fn tree<O: LayerOptions>(word: &str, value: Option<&str>) -> Result<Tree, ArgError> {
    let mut tree = Tree {
        kind: Entry::text("", word),
        target: None,
        options: Vec::new(),
    };
    if O::SHORT.contains(&word) {
        tree.target = Some(Entry::text(word, value.unwrap_or_default()));
        return Ok(tree);
    }
    let mut rest = value.unwrap_or_default();
    match (O::SHAPE, value) {
        (Shape::Alone, Some(value)) => {
            let allowed = "it as a word of its own, without a value";
            return Err(wrong(O::NAME, value, allowed));
        }
        (Shape::Target(_), _) => {
            let (target, options) = rest.split_once('/').unwrap_or((rest, ""));
            tree.target = Some(Entry::text("", target));
            rest = options;
        }
        (Shape::Alone | Shape::Options | Shape::SomeOption(_), _) => {}
    }
    tree.options = items(rest, O::PATH, disk_arg::names::<O>(), O::PARTS)?;
    Ok(tree)
}

/// Splits `name:value` items.
fn items(
    text: &str,
    path: Option<&str>,
    names: &[&str],
    parts: Option<Parts>,
) -> Result<Vec<Entry>, ArgError> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (item, after) = rest.split_once('/').unwrap_or((rest, ""));
        let (name, value) = item.split_once(':').unwrap_or((item, ""));
        if Some(name) == path && item != name {
            entries.extend(with_path(name, rest, names));
            break;
        }
        rest = after;
        if item.is_empty() {
            continue;
        }
        match parts.filter(|parts| parts.words.contains(&name)) {
            Some(parts) => add_part(&mut entries, parts, name, value)?,
            None => entries.push(Entry::text(name, value)),
        }
    }
    Ok(entries)
}

/// The entry of a path, which ends where one of the other options stands, and those of these.
fn with_path(name: &str, text: &str, names: &[&str]) -> Vec<Entry> {
    let mut path = text.get(name.len() + 1..).unwrap_or_default();
    let mut entries = Vec::new();
    while let Some((before, last)) = path.rsplit_once('/')
        && let Some((other, value)) = last.split_once(':')
        && other != name
        && names.contains(&other)
    {
        entries.push(Entry::text(other, value));
        path = before;
    }
    entries.push(Entry::text(name, path));
    entries
}

/// Adds a word to the option it belongs to: the last that can have it.
fn add_part(entries: &mut [Entry], parts: Parts, name: &str, value: &str) -> Result<(), ArgError> {
    let can_have = |entry: &&mut Entry| parts.of.contains(&entry.key.name.as_str());
    let Some(entry) = entries.iter_mut().rev().find(can_have) else {
        return Err(wrong(name, value, parts.after));
    };
    if let Value::Text(own) = &entry.value {
        entry.value = Value::Parts(vec![Entry::text(VALUE_KEY, own)]);
    }
    if let Value::Parts(found) = &mut entry.value {
        // The value of the option itself is the first.
        let next = parts.words.get(found.len() - 1);
        if next != Some(&name) {
            return Err(wrong(name, value, parts.order));
        }
        found.push(Entry::text(name, value));
    }
    Ok(())
}

/// Reads the tree of a layer of that kind.
pub(super) fn options<O: LayerOptions>(tree: &Tree) -> Result<LayerArg, TreeError> {
    let key_of = |name: Option<&str>| {
        let named = |entry: &&Entry| Some(entry.key.name.as_str()) == name;
        let target = tree.target.iter();
        let entry = tree.options.iter().chain(target).find(named);
        entry.unwrap_or(&tree.kind).key.clone()
    };
    let wrong = |key: Key, error| TreeError { key, error };
    let word = tree.kind.word();
    let target = tree.target.as_ref();
    let short = O::SHORT.iter().copied().find(|short| *short == word);
    let is_short = short.is_some();
    let mut entries = tree.options.clone();
    // The word is the only option then.
    let is_other = |entry: &&Entry| short.is_some_and(|short| entry.key.name != short);
    if let (Some(format), Some(other)) = (short, entries.iter().find(is_other)) {
        let option = other.key.name.clone();
        let allowed = format!("it is {format} alone; {} has more", O::NAME).into();
        let error = ArgError::Option {
            option,
            format,
            allowed,
        };
        return Err(wrong(other.key.clone(), error));
    }
    match (O::SHAPE, target) {
        _ if is_short => entries.extend(target.map(|target| Entry {
            key: Key {
                name: word.to_owned(),
                at: target.key.at,
            },
            value: target.value.clone(),
        })),
        (Shape::Target(_), _) => {}
        (_, Some(target)) => entries.insert(0, target.clone()),
        (_, None) => {}
    }
    let empty = |example| ArgError::NoValue {
        layer: O::NAME,
        example,
    };
    let place = target.unwrap_or(&tree.kind);
    let mut named = O::default();
    match O::SHAPE {
        Shape::SomeOption(example) if entries.is_empty() => {
            return Err(wrong(place.key.clone(), empty(example)));
        }
        Shape::Target(example) => {
            let target = target.map_or("", |target| target.word());
            if target.is_empty() {
                return Err(wrong(place.key.clone(), empty(example)));
            }
            (named.set_target(target)).map_err(|error| wrong(place.key.clone(), error))?;
        }
        _ => {}
    }
    let mut read: O = disk_arg::read(O::NAME, &tree.kind.key, &entries)
        .map_err(|wrong| with_parts(wrong, O::PARTS))?;
    if let Some(target) = named.target() {
        (read.set_target(&target)).map_err(|error| wrong(place.key.clone(), error))?;
    }
    (read.validate()).map_err(|error| wrong(key_of(error.option()), error))?;
    Ok(LayerArg::new(read))
}

/// Names the parts of options among those there are.
fn with_parts(mut wrong: TreeError, parts: Option<Parts>) -> TreeError {
    let is_part = |name: &str| name == VALUE_KEY;
    if let (ArgError::Option { allowed, .. }, Some(parts)) = (&mut wrong.error, parts)
        && !allowed.split([' ', ',']).any(is_part)
    {
        let words = disk_arg::list(parts.words, "and");
        *allowed = format!("{allowed}; a limit has {words} after it").into();
    }
    wrong
}
