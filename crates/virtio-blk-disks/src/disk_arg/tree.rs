// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is written of a disk or a layer, before it is understood: the same for text and for files.

use std::fmt;

use super::ArgError;

/// The key of an option's own value, where parts follow it: `iops:5000/burst:20000` is `iops` with the parts `rate` and
/// `burst`.
pub const VALUE_KEY: &str = "rate";

/// A key and where it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Key {
    /// The word.
    pub name: String,
    /// The byte of the file; 0 in text.
    pub at: usize,
}

/// What a key has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A word, a number, or `on` or `off`.
    Text(String),
    /// Parts with keys of their own.
    Parts(Vec<Entry>),
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Key,
    /// What it has.
    pub value: Value,
}

impl Entry {
    /// A word of a text.
    pub fn text(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self {
            key: Key {
                name: name.into(),
                at: 0,
            },
            value: Value::Text(value.into()),
        }
    }

    /// The value, if it has no parts; else an empty word.
    pub fn word(&self) -> &str {
        match &self.value {
            Value::Text(text) => text,
            Value::Parts(_) => "",
        }
    }
}

/// A disk or a layer as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// Which kind it is: what stands before the colon, or the equals sign.
    pub kind: Entry,
    /// What stands first after that, if something does.
    pub target: Option<Entry>,
    /// The rest.
    pub options: Vec<Entry>,
}

/// What is wrong in a [`Tree`], and with which key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct TreeError {
    /// The key.
    pub key: Key,
    /// What is wrong with it.
    #[source]
    pub error: ArgError,
}

impl From<TreeError> for ArgError {
    /// Without the place: a text names the word itself.
    fn from(error: TreeError) -> Self {
        error.error
    }
}

/// A disk that can be read from a [`Tree`]: a [`DiskArg`](super::DiskArg), or what a program has in its place.
pub trait FromTree: Sized {
    /// Reads it.
    ///
    /// # Errors
    /// It is of no kind there is, or not what that kind needs.
    fn from_tree(tree: &Tree) -> Result<Self, TreeError>;
}

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

fn doubled(text: &str) -> String {
    text.replace(',', ",,")
}

impl Tree {
    /// Reads `KIND:TARGET,OPTION=VALUE…`.
    ///
    /// # Errors
    /// [`ArgError::NoFormat`].
    pub fn disk(text: &str) -> Result<Self, ArgError> {
        Self::disk_of(&split(text))
    }

    /// As [`Tree::disk`], of what stands between the commas.
    pub(crate) fn disk_of(words: &[String]) -> Result<Self, ArgError> {
        let (first, rest) = words.split_first().map_or(("", words), |(a, b)| (a, b));
        let Some((kind, target)) = first.split_once(':') else {
            let words: Vec<String> = words.iter().map(|word| doubled(word)).collect();
            return Err(ArgError::NoFormat {
                text: words.join(","),
            });
        };
        let option = |word: &String| {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            Entry::text(name, value)
        };
        Ok(Self {
            kind: Entry::text("", kind),
            target: Some(Entry::text("", target)),
            options: rest.iter().map(option).collect(),
        })
    }
}

impl fmt::Display for Tree {
    /// Writes a disk as [`Tree::disk`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.kind.word())?;
        if let Some(target) = &self.target {
            f.write_str(&doubled(target.word()))?;
        }
        for entry in &self.options {
            write!(f, ",{}", doubled(&entry.key.name))?;
            if !entry.word().is_empty() {
                write!(f, "={}", doubled(entry.word()))?;
            }
        }
        Ok(())
    }
}
