// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From text to what is written of layers, and from that to [`LayerSpec`] and [`StackSpec`].

use super::options::{LayerOptions, Parts, Shape};
use super::{LayerSpec, StackSpec};
use crate::dirty::DirtyOptions;
use crate::disk_arg::tree::{Entry, Key, VALUE_KEY, Value};
use crate::disk_arg::{self, DiskArg, SpecError, Tree, TreeError};
use crate::fault::FaultOptions;
use crate::meter::MeterOptions;
use crate::policy::ErrorsOptions;
use crate::throttle::ThrottleOptions;
use crate::verify::VerifyOptions;

/// The layers there are, in the order in which they are named.
static LAYERS: &[LayerKind] = &[
    LayerKind::of::<ThrottleOptions>(),
    LayerKind::of::<DirtyOptions>(),
    LayerKind::of::<ErrorsOptions>(),
    LayerKind::of::<MeterOptions>(),
    LayerKind::of::<VerifyOptions>(),
    LayerKind::of::<FaultOptions>(),
];

/// A kind of layer in the table.
struct LayerKind {
    name: &'static str,
    short: &'static [&'static str],
    manual: &'static str,
    /// From a word with its value, if it has one.
    parse: fn(&str, Option<&str>) -> Result<Tree, SpecError>,
    read: fn(&Tree) -> Result<LayerSpec, TreeError>,
}

impl LayerKind {
    const fn of<O: LayerOptions>() -> Self {
        Self {
            name: O::NAME,
            short: O::SHORT,
            manual: O::MANUAL,
            parse: tree::<O>,
            read: options::<O>,
        }
    }

    fn find(word: &str) -> Option<&'static Self> {
        LAYERS
            .iter()
            .find(|kind| kind.name == word || kind.short.contains(&word))
    }
}

/// The words that name layers.
fn names() -> impl Iterator<Item = &'static str> {
    let of = |kind: &'static LayerKind| kind.short.iter().copied().chain([kind.name]);
    LAYERS.iter().flat_map(of)
}

/// The part of a help text about the layers.
pub(super) fn manual() -> String {
    let manuals: Vec<&str> = LAYERS.iter().map(|kind| kind.manual).collect();
    manuals.join("\n")
}

fn is_layer(part: &str) -> bool {
    let word = part.split_once('=').map_or(part, |(name, _)| name);
    LayerKind::find(word).is_some()
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
    let near = names().map(|layer| (distance(word, layer), layer));
    let (distance, layer) = near.min()?;
    (distance <= layer.len() / 3).then_some(layer)
}

fn unknown(name: &str) -> SpecError {
    let known: Vec<&str> = names().collect();
    SpecError::Layer {
        layer: name.to_owned(),
        nearest: nearest(name),
        known: disk_arg::list(&known, "or"),
    }
}

/// Reads a disk and its layers.
pub(super) fn stack<D: DiskArg>(text: &str) -> Result<StackSpec<D>, SpecError> {
    let words = disk_arg::split(text);
    let layers = words.iter().skip(1).position(|word| is_layer(word));
    let disk = layers.map_or(words.len(), |index| index + 1);
    let (disk, layers) = words.split_at_checked(disk).unwrap_or((&words, &[]));
    let layers = layers
        .iter()
        .map(|word| layer(word))
        .collect::<Result<_, _>>()?;
    let disk = D::from_tree(&Tree::disk_of(disk)?).map_err(|wrong| match wrong.error {
        // What is no option was perhaps to be a layer.
        SpecError::Option { option, .. } if nearest(&option).is_some() => unknown(&option),
        error => error,
    })?;
    Ok(StackSpec { disk, layers })
}

/// Reads one layer.
pub(super) fn layer(part: &str) -> Result<LayerSpec, SpecError> {
    let (name, value) = match part.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (part, None),
    };
    let kind = LayerKind::find(name).ok_or_else(|| unknown(name))?;
    Ok((kind.read)(&(kind.parse)(name, value)?)?)
}

/// Reads one layer as it was written.
pub(super) fn read(tree: &Tree) -> Result<LayerSpec, TreeError> {
    let name = tree.kind.word();
    let kind = LayerKind::find(name).ok_or_else(|| TreeError {
        key: tree.kind.key.clone(),
        error: unknown(name),
    })?;
    (kind.read)(tree)
}

fn wrong(option: &str, value: &str, allowed: &'static str) -> SpecError {
    SpecError::Value {
        option: option.to_owned().into(),
        value: value.to_owned(),
        allowed: allowed.into(),
    }
}

/// What is written of a layer of that kind.
fn tree<O: LayerOptions>(word: &str, value: Option<&str>) -> Result<Tree, SpecError> {
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
) -> Result<Vec<Entry>, SpecError> {
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
fn add_part(entries: &mut [Entry], parts: Parts, name: &str, value: &str) -> Result<(), SpecError> {
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

/// From what is written to a layer of that kind.
fn options<O: LayerOptions>(tree: &Tree) -> Result<LayerSpec, TreeError> {
    let key_of = |name: Option<&str>| {
        let named = |entry: &&Entry| Some(entry.key.name.as_str()) == name;
        let target = tree.target.iter();
        let entry = tree.options.iter().chain(target).find(named);
        entry.unwrap_or(&tree.kind).key.clone()
    };
    let wrong = |key: Key, error| TreeError { key, error };
    let word = tree.kind.word();
    let target = tree.target.as_ref();
    let is_short = O::SHORT.contains(&word);
    let mut entries = tree.options.clone();
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
    let empty = |example| SpecError::NoValue {
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
    let mut read: O =
        disk_arg::read(O::NAME, &entries).map_err(|wrong| with_parts(wrong, O::PARTS))?;
    if let Some(target) = named.target() {
        (read.set_target(&target)).map_err(|error| wrong(place.key.clone(), error))?;
    }
    (read.validate()).map_err(|error| wrong(key_of(error.option()), error))?;
    Ok(LayerSpec::new(read))
}

/// Names the parts of options among those there are.
fn with_parts(mut wrong: TreeError, parts: Option<Parts>) -> TreeError {
    let is_part = |name: &str| name == VALUE_KEY;
    if let (SpecError::Option { allowed, .. }, Some(parts)) = (&mut wrong.error, parts)
        && !allowed.split([' ', ',']).any(is_part)
    {
        let words = disk_arg::list(parts.words, "and");
        *allowed = format!("{allowed}; a limit has {words} after it").into();
    }
    wrong
}
