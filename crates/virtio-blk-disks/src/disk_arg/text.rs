// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From what is written to options, by serde.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::value::{StrDeserializer, StringDeserializer};
use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, Unexpected, Visitor};
use serde::forward_to_deserialize_any;

use super::ArgError;
use super::tree::{Entry, Key, TreeError, VALUE_KEY, Value};

/// Reads `on` or `off`.
fn on_or_off(value: &str) -> Result<bool, ValueError> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(ValueError::new(value, "on or off")),
    }
}

/// Words in the form `a, b or c`.
pub(crate) fn list(words: &[&str], last: &str) -> String {
    match words {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., end] => format!("{} {last} {end}", first.join(", ")),
    }
}

/// Reads a word by `parse`, whose error says what could stand there.
pub(crate) fn parsed<'de, D, T>(
    from: D,
    parse: impl FnOnce(&str) -> Result<T, &'static str>,
) -> Result<T, D::Error>
where
    D: de::Deserializer<'de>,
{
    struct Parsed<F>(F);

    impl<T, F: FnOnce(&str) -> Result<T, &'static str>> Visitor<'_> for Parsed<F> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a single value")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            (self.0)(text).map_err(|allowed| E::invalid_value(Unexpected::Str(text), &allowed))
        }
    }

    from.deserialize_str(Parsed(parse))
}

/// Reads the options of the kind `format`, whose name stands at `kind`.
pub(crate) fn read<O: DeserializeOwned>(
    format: &'static str,
    kind: &Key,
    options: &[Entry],
) -> Result<O, TreeError> {
    let mut known = HashSet::new();
    for entry in options {
        if !known.insert(entry.key.name.as_str()) {
            return Err(TreeError {
                key: entry.key.clone(),
                error: ArgError::Twice {
                    option: entry.key.name.clone(),
                },
            });
        }
    }
    O::deserialize(Given::new(options)).map_err(|Wrong { key, what }| {
        // What concerns no single option concerns the whole.
        let option = key.as_ref().map_or(format, |key| &key.name).to_owned();
        let key = key.unwrap_or_else(|| kind.clone());
        let error = match what {
            What::Option(known) => ArgError::Option {
                option,
                format,
                allowed: match known {
                    [] => "it has none".into(),
                    known => format!("it has {}", list(known, "and")).into(),
                },
            },
            What::Missing(part) => ArgError::MissingPart { option, part },
            What::Value(error) => error.about(option),
            What::Other(why) => ArgError::Other { option, why },
        };
        TreeError { key, error }
    })
}

/// The names of all options of a kind.
pub(crate) fn names<O: DeserializeOwned>() -> &'static [&'static str] {
    let mut names = Names(&[]);
    let _ = O::deserialize(&mut names);
    names.0
}

/// Learns the names of a type's fields.
struct Names(&'static [&'static str]);

impl<'de> de::Deserializer<'de> for &mut Names {
    type Error = Wrong;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Wrong> {
        Err(de::Error::custom("only fields have names"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Wrong> {
        self.0 = fields;
        Err(de::Error::custom("the names are all that is asked for"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
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

    fn about(self, option: impl Into<std::borrow::Cow<'static, str>>) -> ArgError {
        ArgError::Value {
            option: option.into(),
            value: self.value,
            allowed: self.allowed.into(),
        }
    }
}

/// What serde finds wrong, and with which key.
#[derive(Debug)]
struct Wrong {
    key: Option<Key>,
    what: What,
}

#[derive(Debug)]
enum What {
    /// An unknown option, beside those there are.
    Option(&'static [&'static str]),
    /// A part that can't be left out.
    Missing(&'static str),
    Value(ValueError),
    /// What a type says of itself.
    Other(String),
}

impl Wrong {
    const fn value(error: ValueError) -> Self {
        Self {
            key: None,
            what: What::Value(error),
        }
    }

    /// With its key, unless a part of that is wrong. The value in front of parts goes by the name of the whole.
    fn with_key(mut self, key: &Key) -> Self {
        if self.key.as_ref().is_none_or(|key| key.name == VALUE_KEY) {
            self.key = Some(key.clone());
        }
        self
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            What::Option(_) => f.write_str("unknown option"),
            What::Missing(part) => write!(f, "`{part}` is missing"),
            What::Value(error) => write!(f, "`{}`: use {}", error.value, error.allowed),
            What::Other(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Wrong {}

impl de::Error for Wrong {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self {
            key: None,
            what: What::Other(message.to_string()),
        }
    }

    fn unknown_field(_: &str, known: &'static [&'static str]) -> Self {
        Self {
            key: None,
            what: What::Option(known),
        }
    }

    fn missing_field(field: &'static str) -> Self {
        Self {
            key: None,
            what: What::Missing(field),
        }
    }

    fn unknown_variant(variant: &str, known: &'static [&'static str]) -> Self {
        Self::value(ValueError::new(variant, list(known, "or")))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let value = match found {
            Unexpected::Str(text) => text.to_owned(),
            Unexpected::Map => "{…}".to_owned(),
            other => other.to_string(),
        };
        Self::value(ValueError::new(value, expected.to_string()))
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::invalid_value(found, expected)
    }
}

/// Options, or the parts of one, one after the other.
struct Given<'a> {
    rest: std::slice::Iter<'a, Entry>,
    /// That whose value is read.
    current: Option<&'a Entry>,
}

impl<'a> Given<'a> {
    fn new(entries: &'a [Entry]) -> Self {
        Self {
            rest: entries.iter(),
            current: None,
        }
    }
}

impl<'de> de::Deserializer<'de> for Given<'_> {
    type Error = Wrong;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_map(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de> de::MapAccess<'de> for Given<'_> {
    type Error = Wrong;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Wrong> {
        let Some(entry) = self.rest.next() else {
            return Ok(None);
        };
        self.current = Some(entry);
        let name: StringDeserializer<Wrong> = entry.key.name.clone().into_deserializer();
        let key = seed.deserialize(name);
        key.map(Some).map_err(|wrong| wrong.with_key(&entry.key))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Wrong> {
        let Some(entry) = self.current else {
            return Err(de::Error::custom("a key comes before its value"));
        };
        let value = seed.deserialize(GivenValue(&entry.value));
        value.map_err(|wrong| wrong.with_key(&entry.key))
    }
}

/// The value of an option.
struct GivenValue<'a>(&'a Value);

impl GivenValue<'_> {
    fn text(&self, allowed: &str) -> Result<&str, Wrong> {
        match self.0 {
            Value::Text(text) => Ok(text),
            Value::Parts(_) => Err(Wrong::value(ValueError::new("{…}", allowed))),
        }
    }

    /// A whole number between these, which are the last that its type has.
    fn integer<T: FromStr + fmt::Display>(&self, least: T, most: T) -> Result<T, Wrong> {
        let allowed = format!("a number from {least} to {most}");
        let text = self.text(&allowed)?;
        let number = text.parse().ok();
        number.ok_or_else(|| Wrong::value(ValueError::new(text, allowed)))
    }

    /// A number with a fraction, if it is one; neither infinite nor none at all.
    fn float(&self) -> Result<f64, Wrong> {
        let allowed = "a number, such as 1 or 0.5";
        let text = self.text(allowed)?;
        let number = text.parse().ok().filter(|number: &f64| number.is_finite());
        number.ok_or_else(|| Wrong::value(ValueError::new(text, allowed)))
    }
}

/// Methods that read whole numbers, each of its type.
macro_rules! integers {
    ($($method:ident $visit:ident $type:ident),+) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
            visitor.$visit(self.integer($type::MIN, $type::MAX)?)
        })+
    };
}

impl<'de> de::Deserializer<'de> for GivenValue<'_> {
    type Error = Wrong;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self.0 {
            Value::Text(text) => visitor.visit_str(text),
            Value::Parts(parts) => visitor.visit_map(Given::new(parts)),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_bool(on_or_off(self.text("on or off")?).map_err(Wrong::value)?)
    }

    integers! {
        deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16, deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64, deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32, deserialize_u64 visit_u64 u64
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_f64(self.float()?)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_f64(self.float()?)
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
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        let text = self.text(&list(variants, "or"))?;
        let value: StrDeserializer<'_, Wrong> = text.into_deserializer();
        visitor.visit_enum(value)
    }

    forward_to_deserialize_any! {
        i128 u128 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map struct identifier
        ignored_any
    }
}

/// Checks a name that is given to something. The error says what a name is.
pub(crate) fn checked_name(text: &str) -> Result<String, &'static str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if text.is_empty() || text.len() > 64 || !text.chars().all(plain) {
        return Err("a name of up to 64 letters, digits, `-`, `_` and `.`");
    }
    Ok(text.to_owned())
}

/// Reads such a name.
pub(crate) fn name<'de, D: de::Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    parsed(from, |text| checked_name(text).map(Some))
}

/// Reads a number of seconds, with fractions.
pub(crate) fn seconds<'de, D: de::Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    parsed(from, |text| {
        let seconds = text.parse().ok().filter(|s: &f64| (0.0..=1e6).contains(s));
        seconds
            .map(Duration::from_secs_f64)
            .ok_or("seconds, such as 10 or 0.5")
    })
}
