// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From `name=value` words to options, by serde.

use std::fmt;

use serde::de::value::{StrDeserializer, StringDeserializer};
use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, Unexpected, Visitor};
use serde::forward_to_deserialize_any;

use super::SpecError;

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

/// Reads `on` or `off`.
pub(crate) fn switch(option: &'static str, value: &str) -> Result<bool, SpecError> {
    on_or_off(value).map_err(|error| error.about(option))
}

fn on_or_off(value: &str) -> Result<bool, ValueError> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(ValueError::new(value, "on or off")),
    }
}

/// Words in the form `a, b or c`.
pub(super) fn list(words: &[&str], last: &str) -> String {
    match words {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., end] => format!("{} {last} {end}", first.join(", ")),
    }
}

/// Reads the options of a disk of the kind `format`.
pub(super) fn read<O: DeserializeOwned>(
    format: &'static str,
    parts: &[String],
) -> Result<O, SpecError> {
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
    let mut given = Given {
        list: found.into_iter(),
        current: ("", ""),
    };
    O::deserialize(&mut given).map_err(|error| match error {
        Wrong::Option { option, known } => SpecError::Option {
            option,
            format,
            allowed: match known {
                [] => "it has none".into(),
                known => format!("it has {}", list(known, "and")).into(),
            },
        },
        Wrong::Value(error) => error.about(given.current.0.to_owned()),
    })
}

/// A value that an option can't have.
#[derive(Debug)]
struct ValueError {
    value: String,
    allowed: String,
}

impl ValueError {
    fn new(value: impl Into<String>, allowed: impl Into<String>) -> Self {
        Self {
            value: value.into(),
            allowed: allowed.into(),
        }
    }

    fn about(self, option: impl Into<std::borrow::Cow<'static, str>>) -> SpecError {
        SpecError::Value {
            option: option.into(),
            value: self.value,
            allowed: self.allowed.into(),
        }
    }
}

/// What serde finds wrong.
#[derive(Debug)]
enum Wrong {
    Option {
        option: String,
        known: &'static [&'static str],
    },
    Value(ValueError),
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Option { option, .. } => write!(f, "unknown option `{option}`"),
            Self::Value(error) => write!(f, "`{}`: use {}", error.value, error.allowed),
        }
    }
}

impl std::error::Error for Wrong {}

impl de::Error for Wrong {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::Value(ValueError::new("", message.to_string()))
    }

    fn unknown_field(field: &str, known: &'static [&'static str]) -> Self {
        Self::Option {
            option: field.to_owned(),
            known,
        }
    }

    fn unknown_variant(variant: &str, known: &'static [&'static str]) -> Self {
        Self::Value(ValueError::new(variant, list(known, "or")))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let value = match found {
            Unexpected::Str(text) => text.to_owned(),
            other => other.to_string(),
        };
        Self::Value(ValueError::new(value, expected.to_string()))
    }
}

/// The options of a disk, one after the other.
struct Given<'a> {
    list: std::vec::IntoIter<(&'a str, &'a str)>,
    /// That whose value is read.
    current: (&'a str, &'a str),
}

impl<'de, 'a> de::Deserializer<'de> for &mut Given<'a> {
    type Error = Wrong;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_map(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de, 'a> de::MapAccess<'de> for &mut Given<'a> {
    type Error = Wrong;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Wrong> {
        let Some(next) = self.list.next() else {
            return Ok(None);
        };
        self.current = next;
        let name: StringDeserializer<Wrong> = next.0.to_owned().into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Wrong> {
        seed.deserialize(Value(self.current.1))
    }
}

/// The value of an option.
struct Value<'a>(&'a str);

impl Value<'_> {
    fn number(&self) -> Result<u64, Wrong> {
        let number = self.0.parse().ok();
        number.ok_or_else(|| Wrong::Value(ValueError::new(self.0, "a number")))
    }
}

impl<'de> de::Deserializer<'de> for Value<'_> {
    type Error = Wrong;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_str(self.0)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_bool(on_or_off(self.0).map_err(Wrong::Value)?)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_u64(self.number()?)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_u64(self.number()?)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_u64(self.number()?)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        let value: StrDeserializer<'_, Wrong> = self.0.into_deserializer();
        visitor.visit_enum(value)
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        seq tuple tuple_struct map struct identifier ignored_any
    }
}
