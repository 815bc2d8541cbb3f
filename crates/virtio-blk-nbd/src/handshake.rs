// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The client's part of the handshake.

use crate::NbdError;
use crate::proto::{
    BASE_ALLOCATION, BlockSizes, ClientFlags, EXPORT_NAME_ZEROES, ExportFlags, ExportRequest,
    Greeting, HandshakeFlags, Info, InfoKind, MetaContext, MetaContextQuery, OldExport,
    OptionHeader, OptionKind, OptionReply, OptionReplyKind, ReplyMode,
};
use crate::stream::Handshaking;

/// Replies to one option that are read at most: a server could send them without end.
const MAX_REPLIES: usize = 256;

/// What client and server have agreed upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Export {
    /// Bytes.
    pub size: u64,
    /// What it can do.
    pub flags: ExportFlags,
    /// What offsets and lengths must be like.
    pub sizes: BlockSizes,
    /// How requests and replies look.
    pub mode: ReplyMode,
    /// The number of the context `base:allocation`, if the server has it.
    pub allocation: Option<u32>,
}

impl Export {
    pub(crate) const fn can(&self, flag: ExportFlags) -> bool {
        self.flags.contains(flag)
    }
}

/// What the client wants.
pub(crate) struct Wanted<'a> {
    /// The name of the export.
    pub export: &'a str,
    /// Only to know what it is like.
    pub look: bool,
}

/// The first exchange. Returns what the server can do.
///
/// # Errors
/// It is no server of the new style.
pub(crate) fn greet(peer: &mut Handshaking<'_>) -> Result<HandshakeFlags, NbdError> {
    let flags = Greeting::decode(&peer.array()?)?.flags;
    let has = |flag| flags.contains(flag);
    let mine = ClientFlags::NONE
        .with(
            ClientFlags::FIXED_NEWSTYLE,
            has(HandshakeFlags::FIXED_NEWSTYLE),
        )
        .with(ClientFlags::NO_ZEROES, has(HandshakeFlags::NO_ZEROES));
    peer.send(&mine.0.to_be_bytes())?;
    Ok(flags)
}

/// Asks for TLS.
///
/// # Errors
/// The server has none.
#[cfg(feature = "tls")]
pub(crate) fn start_tls(peer: &mut Handshaking<'_>, flags: HandshakeFlags) -> Result<(), NbdError> {
    const HINT: &str = "it has no certificate, or no TLS";
    if !flags.contains(HandshakeFlags::FIXED_NEWSTYLE) {
        return Err(NbdError::Tls("the server is too old for it".to_owned()));
    }
    send(peer, OptionKind::STARTTLS, &[])?;
    let (kind, payload) = reply(peer, OptionKind::STARTTLS)?;
    match kind {
        OptionReplyKind::ACK => Ok(()),
        kind => Err(refused("TLS", kind, &payload, Some(HINT))),
    }
}

/// Agrees upon the export and how to use it. What the server does not have is gone without, as far as that is possible.
///
/// # Errors
/// The server refuses, is silent or breaks the protocol.
pub(crate) fn negotiate(
    peer: &mut Handshaking<'_>,
    flags: HandshakeFlags,
    wanted: &Wanted<'_>,
) -> Result<Export, NbdError> {
    if !flags.contains(HandshakeFlags::FIXED_NEWSTYLE) {
        return export_name(peer, flags, wanted);
    }
    let mode = if accepts(peer, OptionKind::EXTENDED_HEADERS)? {
        ReplyMode::Extended
    } else if accepts(peer, OptionKind::STRUCTURED_REPLY)? {
        ReplyMode::Structured
    } else {
        ReplyMode::Simple
    };
    let allocation = match mode {
        ReplyMode::Simple => None,
        ReplyMode::Structured | ReplyMode::Extended => set_context(peer, wanted.export)?,
    };
    let option = if wanted.look {
        OptionKind::INFO
    } else {
        OptionKind::GO
    };
    let request = ExportRequest {
        name: wanted.export,
        infos: vec![InfoKind::BLOCK_SIZE],
    };
    send(peer, option, &request.encode())?;
    let mut export = None;
    let mut sizes = BlockSizes::default();
    for _ in 0..MAX_REPLIES {
        let (kind, payload) = reply(peer, option)?;
        match kind {
            OptionReplyKind::INFO => match Info::decode(&payload)? {
                Info::Export { size, flags } => export = Some((size, flags)),
                Info::BlockSize(told) => sizes = told,
                _ => {}
            },
            OptionReplyKind::ACK => {
                let Some((size, flags)) = export else {
                    return Err(NbdError::Reply("it did not say how large the export is"));
                };
                return Ok(Export {
                    size,
                    flags,
                    sizes,
                    mode,
                    allocation,
                });
            }
            OptionReplyKind::ERR_UNSUP if !wanted.look && mode == ReplyMode::Simple => {
                return export_name(peer, flags, wanted);
            }
            kind => return Err(refused("the export", kind, &payload, None)),
        }
    }
    Err(NbdError::Reply("it replies to one option without end"))
}

/// Says that the client goes away. The reply is not waited for.
///
/// # Errors
/// The connection's.
pub(crate) fn abort(peer: &mut Handshaking<'_>) -> Result<(), NbdError> {
    send(peer, OptionKind::ABORT, &[])
}

/// The old way, without a reply that says no.
fn export_name(
    peer: &mut Handshaking<'_>,
    flags: HandshakeFlags,
    wanted: &Wanted<'_>,
) -> Result<Export, NbdError> {
    send(peer, OptionKind::EXPORT_NAME, wanted.export.as_bytes())?;
    let OldExport { size, flags: can } = match peer.array() {
        Ok(bytes) => OldExport::decode(&bytes)?,
        // All that a server can do which does not have it.
        Err(NbdError::Closed) => {
            let kind = OptionReplyKind::ERR_UNKNOWN;
            return Err(refused("the export", kind, &[], None));
        }
        Err(error) => return Err(error),
    };
    if !flags.contains(HandshakeFlags::NO_ZEROES) {
        peer.array::<EXPORT_NAME_ZEROES>()?;
    }
    Ok(Export {
        size,
        flags: can,
        sizes: BlockSizes::default(),
        mode: ReplyMode::Simple,
        allocation: None,
    })
}

/// Sends an option without a payload that the server may not have. Returns whether it has.
fn accepts(peer: &mut Handshaking<'_>, option: OptionKind) -> Result<bool, NbdError> {
    send(peer, option, &[])?;
    let (kind, payload) = reply(peer, option)?;
    match kind {
        OptionReplyKind::ACK => Ok(true),
        OptionReplyKind::ERR_UNSUP | OptionReplyKind::ERR_POLICY | OptionReplyKind::ERR_INVALID => {
            Ok(false)
        }
        kind => Err(refused("an option", kind, &payload, None)),
    }
}

/// Asks for the context `base:allocation`. Returns its number, if the server has it.
fn set_context(peer: &mut Handshaking<'_>, export: &str) -> Result<Option<u32>, NbdError> {
    const OPTION: OptionKind = OptionKind::SET_META_CONTEXT;
    let query = MetaContextQuery {
        export,
        queries: vec![BASE_ALLOCATION],
    };
    send(peer, OPTION, &query.encode())?;
    let mut found = None;
    for _ in 0..MAX_REPLIES {
        let (kind, payload) = reply(peer, OPTION)?;
        match kind {
            OptionReplyKind::META_CONTEXT => {
                let context = MetaContext::decode(&payload)?;
                if context.name != BASE_ALLOCATION || found.is_some() {
                    return Err(NbdError::Reply("it offers a context that nobody asked for"));
                }
                found = Some(context.id);
            }
            OptionReplyKind::ACK => return Ok(found),
            // What is wrong with the export is told again, and better, when it is asked for.
            kind if kind.is_error() && kind != OptionReplyKind::ERR_TLS_REQD => return Ok(None),
            kind => return Err(refused("a context", kind, &payload, None)),
        }
    }
    Err(NbdError::Reply("it replies to one option without end"))
}

fn send(peer: &mut Handshaking<'_>, kind: OptionKind, payload: &[u8]) -> Result<(), NbdError> {
    let header = OptionHeader {
        kind,
        // A name and a query: far below.
        len: payload.len() as u32,
    };
    peer.send(&[&header.encode(), payload].concat())
}

fn reply(
    peer: &mut Handshaking<'_>,
    option: OptionKind,
) -> Result<(OptionReplyKind, Vec<u8>), NbdError> {
    let reply = OptionReply::decode(&peer.array()?, option)?;
    let payload = peer.receive(reply.len as usize)?;
    Ok((reply.kind, payload))
}

fn refused(
    what: &'static str,
    kind: OptionReplyKind,
    payload: &[u8],
    hint: Option<&'static str>,
) -> NbdError {
    if !kind.is_error() {
        return NbdError::Reply("its reply does not belong to the option");
    }
    let usual = match kind {
        OptionReplyKind::ERR_UNKNOWN => {
            "it has no export of that name; `nbdinfo --list` shows which it has, and export=NAME chooses one"
        }
        OptionReplyKind::ERR_TLS_REQD => "it wants TLS: use tls=on",
        OptionReplyKind::ERR_POLICY => "its settings forbid it",
        OptionReplyKind::ERR_SHUTDOWN => "it is about to end",
        OptionReplyKind::ERR_UNSUP => "it does not know that",
        _ => "its log may say why",
    };
    NbdError::Refused {
        what,
        kind,
        text: OptionReply::error_text(payload),
        hint: hint.unwrap_or(usual),
    }
}
