// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether a medium passes from one owner to another while the disk stays open.

/// Names the content of a medium at one moment. Equal stamps of one medium prove that nobody changed it between the
/// two moments; unequal ones prove nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentStamp(pub [u64; 4]);

/// What others can do to the medium of a disk now: see [`Disk::handover`](super::Disk::handover).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Handover {
    /// The disk does not let go of its medium as long as it is open.
    #[default]
    Never,
    /// The medium is in use, and nobody else changes it. With its stamp as it was found when it was taken, before the
    /// first change; `None`: it has none.
    Held(Option<ContentStamp>),
    /// Others may take the medium, and change it, until [`Disk::activate`](super::Disk::activate). With its stamp as
    /// it was left; `None`: it has none, or was never in use.
    Released(Option<ContentStamp>),
}
