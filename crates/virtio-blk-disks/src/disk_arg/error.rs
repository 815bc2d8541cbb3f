// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is wrong with the name of a disk.

use std::borrow::Cow;

use crate::throttle::LimitError;

/// What is wrong with the name of a disk. Each message quotes the offending word and says what could
/// stand there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArgError {
    /// No format before a colon.
    #[error(
        "`{text}` names no format: write raw:{text} for a raw image or a block device, or the word of another format \
         and a colon in front of it. The format is never guessed from the content, because a guest could then choose it"
    )]
    NoFormat {
        /// The whole text.
        text: String,
    },
    /// A format we don't have.
    #[error("unknown disk format `{format}`: use {known} (a bare path needs raw: before it)")]
    Format {
        /// The word before the colon.
        format: String,
        /// The formats there are.
        known: String,
    },
    /// Nothing after the colon.
    #[error("`{format}:` lacks its {what}: write {format}:{what}")]
    Missing {
        /// The format.
        format: &'static str,
        /// `PATH` or `SIZE`.
        what: &'static str,
    },
    /// An option the format doesn't have.
    #[error(
        "unknown option `{option}` for {format}: {allowed}. A comma in a path is written twice"
    )]
    Option {
        /// The word before the equals sign.
        option: String,
        /// The format.
        format: &'static str,
        /// The options there are.
        allowed: Cow<'static, str>,
    },
    /// An option given twice.
    #[error("the option `{option}` is given twice")]
    Twice {
        /// The option.
        option: String,
    },
    /// A value that the option can't have.
    #[error("`{value}` is no value for {option}: use {allowed}")]
    Value {
        /// The option.
        option: Cow<'static, str>,
        /// The word after the equals sign.
        value: String,
        /// The values there are.
        allowed: Cow<'static, str>,
    },
    /// Not a size.
    #[error(
        "`{value}` is no disk size: use a multiple of 512 bytes above 0 and below 2^63, such as 512, 64K, 10M, 8G \
         or 1T"
    )]
    Size {
        /// The word.
        value: String,
    },
    /// A layer we don't have.
    #[error(
        "unknown layer `{layer}`: {}use {known}",
        nearest.map(|nearest| format!("did you mean `{nearest}`? Else ")).unwrap_or_default()
    )]
    Layer {
        /// The word.
        layer: String,
        /// A layer with nearly that name.
        nearest: Option<&'static str>,
        /// The layers there are.
        known: String,
    },
    /// An option without a part that it needs.
    #[error("`{option}` lacks `{part}`")]
    MissingPart {
        /// The option.
        option: String,
        /// The part.
        part: &'static str,
    },
    /// Something else about an option, or about the whole disk or layer.
    #[error("{option}: {why}")]
    Other {
        /// The option, or the format.
        option: String,
        /// What is wrong.
        why: String,
    },
    /// A layer that says nothing.
    #[error("`{layer}` lacks its value: write for example {example}")]
    NoValue {
        /// The layer.
        layer: &'static str,
        /// How it could look.
        example: &'static str,
    },
    /// A rate that makes no sense.
    #[error("{0}")]
    Limits(#[from] LimitError),
    /// Two layers that can't be there together.
    #[error("the layer `{layer}` is given twice")]
    SameLayer {
        /// The layer as it was written.
        layer: String,
    },
    /// More layers than a disk can have.
    #[error("{given} layers are more than the {most} that a disk can have")]
    Layers {
        /// How many there are.
        given: usize,
        /// How many there may be.
        most: usize,
    },
    /// A throttle that joins a group with other limits than the group has.
    #[error(
        "`{layer}`: the other disks of the group `{group}` have `{theirs}`: give the same limits, or none \
         (throttle=group:{group}), and change them for all of the group while it is in use"
    )]
    GroupLimits {
        /// The layer as it was written.
        layer: String,
        /// The group.
        group: String,
        /// The layer as the group has it.
        theirs: String,
    },
}

impl ArgError {
    /// The option that is wrong, if one is.
    pub(crate) fn option(&self) -> Option<&str> {
        match self {
            Self::Option { option, .. }
            | Self::Twice { option }
            | Self::MissingPart { option, .. }
            | Self::Other { option, .. } => Some(option),
            Self::Value { option, .. } => Some(option),
            Self::NoValue { layer, .. } => Some(layer),
            Self::Limits(error) => Some(error.limit()),
            _ => None,
        }
    }
}
