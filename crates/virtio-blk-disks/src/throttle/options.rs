// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The throttle's options.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use virtio_blk_core::disk::{Disk, DiskError};

use super::{Limits, Rate, Throttle, ThrottleDisk, ThrottleGroup};
use crate::disk_arg::{ArgError, Size, bytes, name, parsed, seconds};
use crate::layer::Layered;
use crate::stack::{JoinError, LayerArg, LayerContext, LayerOptions, Parts, Shape, StackError};

/// How long a burst lasts where nothing else is said.
const BURST_LENGTH: Duration = Duration::from_secs(1);

/// A [`ThrottleDisk`] by name: `throttle=iops:5000/burst:20000/group:a`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "Words")]
pub struct ThrottleOptions {
    /// What is allowed. None at all in a group that has limits: those of the group.
    pub limits: Limits,
    /// The group whose limits these are; without one they are this disk's alone.
    pub group: Option<String>,
}

/// The options as they are written.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Words {
    #[serde(deserialize_with = "rate::<Operations, _>")]
    iops: Option<Rate>,
    #[serde(deserialize_with = "rate::<Operations, _>")]
    read_iops: Option<Rate>,
    #[serde(deserialize_with = "rate::<Operations, _>")]
    write_iops: Option<Rate>,
    #[serde(deserialize_with = "rate::<Bytes, _>")]
    bandwidth: Option<Rate>,
    #[serde(deserialize_with = "rate::<Bytes, _>")]
    read_bandwidth: Option<Rate>,
    #[serde(deserialize_with = "rate::<Bytes, _>")]
    write_bandwidth: Option<Rate>,
    #[serde(deserialize_with = "name")]
    group: Option<String>,
}

impl From<Words> for ThrottleOptions {
    fn from(words: Words) -> Self {
        Self {
            limits: Limits {
                iops: words.iops,
                read_iops: words.read_iops,
                write_iops: words.write_iops,
                bandwidth: words.bandwidth,
                read_bandwidth: words.read_bandwidth,
                write_bandwidth: words.write_bandwidth,
            },
            group: words.group,
        }
    }
}

/// What a rate counts.
trait Unit {
    /// Reads a number of them. The error says what could stand there.
    fn parse(text: &str) -> Result<u64, &'static str>;
}

struct Operations;
struct Bytes;

impl Unit for Operations {
    fn parse(text: &str) -> Result<u64, &'static str> {
        let number = text.parse();
        number.map_err(|_| "a whole number of operations a second")
    }
}

impl Unit for Bytes {
    fn parse(text: &str) -> Result<u64, &'static str> {
        bytes(text).ok_or("bytes a second, such as 500K, 50M or 2G")
    }
}

/// Units a second; not 0.
struct PerSecond<U>(u64, PhantomData<U>);

impl<U: Unit> PerSecond<U> {
    fn parse(text: &str) -> Result<u64, &'static str> {
        match U::parse(text)? {
            0 => Err(
                "at least 1 a second (a limit that is left out does not hold; a disk that shall do nothing for a \
                 while is held with `drain`)",
            ),
            number => Ok(number),
        }
    }
}

impl<'de, U: Unit> Deserialize<'de> for PerSecond<U> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        parsed(from, Self::parse).map(|number| Self(number, PhantomData))
    }
}

/// Reads a limit: a number, or a number and its burst.
fn rate<'de, U: Unit, D: Deserializer<'de>>(from: D) -> Result<Option<Rate>, D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields, bound = "U: Unit")]
    struct Whole<U> {
        rate: PerSecond<U>,
        burst: Option<PerSecond<U>>,
        #[serde(default, deserialize_with = "length")]
        length: Option<Duration>,
    }

    struct Limit<U>(PhantomData<U>);

    impl<'de, U: Unit> Visitor<'de> for Limit<U> {
        type Value = Rate;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a number a second")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Rate, E> {
            PerSecond::<U>::parse(text)
                .map(Rate::new)
                .map_err(|allowed| E::invalid_value(de::Unexpected::Str(text), &allowed))
        }

        fn visit_map<A: MapAccess<'de>>(self, parts: A) -> Result<Rate, A::Error> {
            let parts = de::value::MapAccessDeserializer::new(parts);
            let whole = Whole::<U>::deserialize(parts)?;
            let rate = Rate::new(whole.rate.0);
            match (whole.burst, whole.length) {
                (Some(burst), length) => {
                    Ok(rate.with_burst(burst.0, length.unwrap_or(BURST_LENGTH)))
                }
                (None, None) => Ok(rate),
                // A length belongs to a burst.
                (None, Some(_)) => Err(de::Error::missing_field("burst")),
            }
        }
    }

    from.deserialize_any(Limit::<U>(PhantomData)).map(Some)
}

fn length<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    seconds(from).map(Some)
}

/// The limits by their words, and whether their units are bytes.
const fn named(limits: &Limits) -> [(&'static str, Option<Rate>, bool); 6] {
    [
        ("iops", limits.iops, false),
        ("read_iops", limits.read_iops, false),
        ("write_iops", limits.write_iops, false),
        ("bandwidth", limits.bandwidth, true),
        ("read_bandwidth", limits.read_bandwidth, true),
        ("write_bandwidth", limits.write_bandwidth, true),
    ]
}

impl ThrottleOptions {
    /// The error for a group that has other limits.
    fn contradicts(&self, group: &str, theirs: Limits) -> ArgError {
        let written = |options| LayerArg::new(options).to_string();
        ArgError::GroupLimits {
            layer: written(self.clone()),
            group: group.to_owned(),
            theirs: written(Self {
                limits: theirs,
                group: Some(group.to_owned()),
            }),
        }
    }
}

impl LayerOptions for ThrottleOptions {
    type Layer = Throttle;

    const NAME: &'static str = "throttle";
    const SHAPE: Shape = Shape::SomeOption("throttle=iops:5000");
    const MANUAL: &'static str = "  \
  throttle=LIMIT[/LIMIT…][/group:NAME]
                          LIMIT is iops:N, read_iops:N, write_iops:N
                          (operations a second), bandwidth:B,
                          read_bandwidth:B, write_bandwidth:B (bytes a second,
                          such as 50M), and /burst:RATE[/length:SECONDS] after
                          it for the time after a quiet one; the disks of a
                          group share its limits";
    const PARTS: Option<Parts> = Some(Parts {
        words: &["burst", "length"],
        of: &[
            "iops",
            "read_iops",
            "write_iops",
            "bandwidth",
            "read_bandwidth",
            "write_bandwidth",
        ],
        after: "it after the limit it belongs to, such as iops:5000/burst:20000",
        order: "one burst for a limit, and its length after it",
    });
    const ADAPTS: bool = true;

    fn changed(&self) -> Vec<(&'static str, String)> {
        let mut changed = Vec::new();
        for (word, rate, in_bytes) in named(&self.limits) {
            let Some(rate) = rate else { continue };
            let number = |value: u64| match in_bytes {
                true => Size(value).to_string(),
                false => value.to_string(),
            };
            changed.push((word, number(rate.per_second)));
            if let Some(burst) = rate.burst {
                changed.push(("burst", number(burst.per_second)));
                if burst.length != BURST_LENGTH {
                    changed.push(("length", burst.length.as_secs_f64().to_string()));
                }
            }
        }
        changed.extend(self.group.iter().map(|name| ("group", name.clone())));
        changed
    }

    fn validate(&self) -> Result<(), ArgError> {
        Ok(self.limits.validate()?)
    }

    fn identity(&self) -> Option<String> {
        self.group.as_ref().map(|group| format!("group:{group}"))
    }

    fn build(
        &self,
        inner: Arc<dyn Disk>,
        context: &LayerContext<'_>,
    ) -> Result<Layered<Throttle>, StackError> {
        let group = match &self.group {
            Some(name) => {
                (context.groups.join(name, self.limits)).map_err(|error| match error {
                    JoinError::Limits(error) => ArgError::from(error),
                    JoinError::Others(theirs) => self.contradicts(name, *theirs),
                })?
            }
            None => ThrottleGroup::new(self.limits).map_err(ArgError::from)?,
        };
        Ok(ThrottleDisk::new(inner, group))
    }

    fn apply(&self, disk: &Layered<Throttle>) -> Result<(), DiskError> {
        // A member of a group that says nothing takes the group's limits.
        let is_said = self.group.is_none() || self.limits != Limits::default();
        if is_said && self.limits != disk.group().limits() {
            let set = disk.group().set_limits(self.limits);
            set.map_err(|error| DiskError::Config(error.to_string()))?;
        }
        Ok(())
    }

    fn current(&self, disk: &Layered<Throttle>) -> Self {
        Self {
            limits: disk.group().limits(),
            group: self.group.clone(),
        }
    }

    fn sees_requests(disk: &Layered<Throttle>) -> bool {
        disk.group().is_limited()
    }
}
