// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The first message: the server's.

use super::fields::{Fields, Header};
use super::{HandshakeFlags, ProtoError};

/// `NBDMAGIC`.
const INIT_PASSWORD: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`, which also stands before each option.
pub(super) const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
/// In its place in the old style.
const CLISERV: u64 = 0x0000_4202_8186_1253;

/// The first message, from the server. The client sends its [`ClientFlags`](super::ClientFlags) then: 4 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// What the server can do.
    pub flags: HandshakeFlags,
}

impl Greeting {
    /// Bytes on the wire.
    pub const LEN: usize = 18;

    /// The wire form.
    pub fn encode(self) -> [u8; Self::LEN] {
        Header::new()
            .put(&INIT_PASSWORD.to_be_bytes())
            .put(&IHAVEOPT.to_be_bytes())
            .put(&self.flags.0.to_be_bytes())
            .done()
    }

    /// Reads the wire form.
    ///
    /// # Errors
    /// It is not that of a server of the new style.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Result<Self, ProtoError> {
        let mut fields = Fields::of("the server's greeting", bytes);
        fields.magic64(INIT_PASSWORD)?;
        match fields.u64()? {
            IHAVEOPT => {}
            CLISERV => return Err(ProtoError::OldStyle),
            found => {
                return Err(ProtoError::Magic {
                    what: "the server's greeting",
                    found,
                });
            }
        }
        let flags = HandshakeFlags(fields.u16()?);
        fields.end()?;
        Ok(Self { flags })
    }
}
