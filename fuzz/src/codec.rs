// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Inputs as bytes and back.
//!
//! The fuzzer's bytes become an input by [`arbitrary::Arbitrary`]: any bytes do, and what is missing at
//! the end is zero. [`Encode`] is the way back, for seeds written as inputs.

/// Writes the bytes that decode to a value.
pub trait Encode {
    /// Appends them to `out`.
    fn encode(&self, out: &mut Vec<u8>);
}

macro_rules! numbers {
    ($($type:ty),*) => {
        $(impl Encode for $type {
            fn encode(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        })*
    };
}
numbers!(u8, i8, u16, i16, u32, u64);

impl Encode for bool {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl<T: Encode> Encode for Vec<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        for item in self {
            out.push(1);
            item.encode(out);
        }
        out.push(0);
    }
}

/// Defines a structure or enumeration that decodes and encodes: fields in order, an enumeration's
/// variant as one byte before them.
macro_rules! input {
    (
        $(#[$meta:meta])*
        pub struct $name:ident { $($(#[$doc:meta])* pub $field:ident: $type:ty,)* }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name { $($(#[$doc])* pub $field: $type,)* }

        impl<'a> arbitrary::Arbitrary<'a> for $name {
            fn arbitrary(u: &mut arbitrary::Unstructured<'a>) -> arbitrary::Result<Self> {
                Ok(Self { $($field: arbitrary::Arbitrary::arbitrary(u)?,)* })
            }
        }

        impl $crate::Encode for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                $(self.$field.encode(out);)*
            }
        }
    };
    (
        $(#[$meta:meta])*
        pub enum $name:ident {
            $($(#[$doc:meta])* $variant:ident $({ $($(#[$fdoc:meta])* $field:ident: $type:ty,)* })?,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$doc])* $variant $({ $($(#[$fdoc])* $field: $type,)* })?,)*
        }

        impl<'a> arbitrary::Arbitrary<'a> for $name {
            fn arbitrary(u: &mut arbitrary::Unstructured<'a>) -> arbitrary::Result<Self> {
                const COUNT: u8 = [$(stringify!($variant)),*].len() as u8;
                let tag = u.arbitrary::<u8>()? % COUNT;
                let mut variants = 0..COUNT;
                $(if variants.next() == Some(tag) {
                    return Ok(Self::$variant $({ $($field: arbitrary::Arbitrary::arbitrary(u)?,)* })?);
                })*
                Err(arbitrary::Error::IncorrectFormat)
            }
        }

        impl $crate::Encode for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                let mut variants = 0_u8..;
                $(let tag = variants.next().unwrap_or(0);
                if let Self::$variant $({ $($field,)* })? = self {
                    out.push(tag);
                    $($($field.encode(out);)*)?
                })*
            }
        }
    };
}
