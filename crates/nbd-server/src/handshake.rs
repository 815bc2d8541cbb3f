// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The handshake: which export a client wants, and how it wants to talk.

use std::io;

use virtio_blk_core::disk::SECTOR_SIZE;
use virtio_blk_nbd::proto::{
    ClientFlags, EXPORT_NAME_ZEROES, ExportRequest, Greeting, HandshakeFlags, Info, InfoKind,
    MAX_OPTION, MetaContext, MetaContextQuery, OldExport, OptionHeader, OptionKind, OptionReply,
    OptionReplyKind, ProtoError, ReplyMode, ServerExport,
};

use crate::channel::Talk;
use crate::context::Context;
use crate::export::{Export, Use};
use crate::exports::Exports;
use crate::server::Security;

/// Options that a client may send.
const MAX_OPTIONS: usize = 1024;

/// Contexts that a connection may ask for block status in.
const MAX_CONTEXTS: usize = 16;

/// What the two sides have agreed upon.
pub(crate) struct Agreed {
    pub(crate) using: Use,
    pub(crate) mode: ReplyMode,
    /// Their numbers are their places.
    pub(crate) contexts: Vec<Context>,
}

/// How a handshake ends before it is complete.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    /// The client went away, or took too long.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The client broke the protocol.
    #[error(transparent)]
    Proto(#[from] ProtoError),
    #[error("{0}")]
    Refused(String),
    /// In order.
    #[error("the client ended the handshake")]
    Aborted,
}

/// What was said so far.
struct Handshake<'a, 'b> {
    talk: Talk<'a>,
    exports: &'b Exports,
    mode: ReplyMode,
    /// Chosen for the export of this name.
    contexts: Option<(String, Vec<Context>)>,
    no_zeroes: bool,
    security: &'b Security,
}

/// Talks with a client until it begins to use an export.
///
/// # Errors
/// [`HandshakeError`]: the connection is to be closed.
pub(crate) fn shake_hands(
    mut talk: Talk<'_>,
    exports: &Exports,
    security: &Security,
) -> Result<Agreed, HandshakeError> {
    let greeting = Greeting {
        flags: HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES,
    };
    talk.write(&greeting.encode())?;
    let mut flags = [0; 4];
    talk.read(&mut flags)?;
    let flags = ClientFlags(u32::from_be_bytes(flags));
    let known = ClientFlags::FIXED_NEWSTYLE | ClientFlags::NO_ZEROES;
    if flags.without(known) != ClientFlags::NONE {
        return Err(ProtoError::Value {
            what: "the client's flags",
            found: flags.0.into(),
        }
        .into());
    }
    let mut handshake = Handshake {
        talk,
        exports,
        mode: ReplyMode::Simple,
        contexts: None,
        no_zeroes: flags.contains(ClientFlags::NO_ZEROES),
        security,
    };
    for _ in 0..MAX_OPTIONS {
        if let Some(agreed) = handshake.option()? {
            return Ok(agreed);
        }
    }
    let text = format!("more than {MAX_OPTIONS} options");
    Err(HandshakeError::Refused(text))
}

impl Handshake<'_, '_> {
    fn reply(&mut self, to: OptionKind, kind: OptionReplyKind, payload: &[u8]) -> io::Result<()> {
        self.talk.write(&OptionReply::message(to, kind, payload))
    }

    /// Receives an option and replies to it. Returns what was agreed upon, if that is all.
    fn option(&mut self) -> Result<Option<Agreed>, HandshakeError> {
        let mut header = [0; OptionHeader::LEN];
        self.talk.read(&mut header)?;
        let OptionHeader { kind, len } = OptionHeader::decode(&header)?;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len > MAX_OPTION {
            if kind == OptionKind::EXPORT_NAME {
                let text = format!("an export's name of {len} bytes");
                return Err(HandshakeError::Refused(text));
            }
            self.talk.skip(len)?;
            let text = format!("{len} bytes, beyond the limit of {MAX_OPTION}");
            self.reply(kind, OptionReplyKind::ERR_TOO_BIG, text.as_bytes())?;
            return Ok(None);
        }
        let mut payload = vec![0; len];
        self.talk.read(&mut payload)?;
        let needs_tls = self.security.is_required() && !self.talk.channel.is_secret();
        if needs_tls && ![OptionKind::STARTTLS, OptionKind::ABORT].contains(&kind) {
            if kind == OptionKind::EXPORT_NAME {
                return Err(HandshakeError::Refused("it does not use TLS".to_owned()));
            }
            let text = b"this server wants TLS";
            self.reply(kind, OptionReplyKind::ERR_TLS_REQD, text)?;
            return Ok(None);
        }
        let is_plain = matches!(
            kind,
            OptionKind::LIST
                | OptionKind::STARTTLS
                | OptionKind::STRUCTURED_REPLY
                | OptionKind::EXTENDED_HEADERS
        );
        if is_plain && !payload.is_empty() {
            self.reply(
                kind,
                OptionReplyKind::ERR_INVALID,
                b"the option has no payload",
            )?;
            return Ok(None);
        }
        match kind {
            OptionKind::EXPORT_NAME => return self.export_name(&payload).map(Some),
            OptionKind::ABORT => {
                // The client need not wait for it.
                let _ = self.reply(kind, OptionReplyKind::ACK, &[]);
                return Err(HandshakeError::Aborted);
            }
            #[cfg(feature = "tls")]
            OptionKind::STARTTLS if self.security.is_required() => self.start_tls()?,
            OptionKind::LIST => self.list()?,
            OptionKind::INFO | OptionKind::GO => return self.info(kind, &payload),
            OptionKind::STRUCTURED_REPLY if self.mode == ReplyMode::Extended => {
                let text = b"extended headers were agreed upon";
                self.reply(kind, OptionReplyKind::ERR_EXT_HEADER_REQD, text)?;
            }
            OptionKind::STRUCTURED_REPLY => {
                self.mode = ReplyMode::Structured;
                self.reply(kind, OptionReplyKind::ACK, &[])?;
            }
            OptionKind::EXTENDED_HEADERS => {
                self.mode = ReplyMode::Extended;
                self.reply(kind, OptionReplyKind::ACK, &[])?;
            }
            OptionKind::LIST_META_CONTEXT | OptionKind::SET_META_CONTEXT => {
                self.meta_context(kind, &payload)?;
            }
            _ => self.reply(kind, OptionReplyKind::ERR_UNSUP, &[])?,
        }
        Ok(None)
    }

    /// Everything is under TLS from here on, and what was said before is forgotten.
    #[cfg(feature = "tls")]
    fn start_tls(&mut self) -> io::Result<()> {
        let kind = OptionKind::STARTTLS;
        let Some(identity) = self
            .security
            .identity()
            .filter(|_| !self.talk.channel.is_secret())
        else {
            let text = b"TLS was begun already";
            return self.reply(kind, OptionReplyKind::ERR_INVALID, text);
        };
        self.reply(kind, OptionReplyKind::ACK, &[])?;
        let session = identity.shake_hands(&mut self.talk)?;
        self.talk.channel.secure(session);
        self.mode = ReplyMode::Simple;
        self.contexts = None;
        Ok(())
    }

    fn list(&mut self) -> io::Result<()> {
        for export in self.exports.list() {
            let server = ServerExport {
                name: export.name(),
                description: &export.options.description,
            };
            self.reply(OptionKind::LIST, OptionReplyKind::SERVER, &server.encode())?;
        }
        self.reply(OptionKind::LIST, OptionReplyKind::ACK, &[])
    }

    /// The contexts that were chosen for this export.
    fn contexts_of(&mut self, export: &Export) -> Vec<Context> {
        match self.contexts.take() {
            Some((of, contexts)) if of == export.name() => contexts,
            _ => Vec::new(),
        }
    }

    fn export_name(&mut self, payload: &[u8]) -> Result<Agreed, HandshakeError> {
        let name = std::str::from_utf8(payload).unwrap_or("\u{fffd}");
        let export = self.exports.find(name);
        let refused = |text: &dyn std::fmt::Display| HandshakeError::Refused(text.to_string());
        let export = export.ok_or_else(|| refused(&format!("there is no export {name:?}")))?;
        let using = export.enter(self.talk.deadline);
        let using = using.map_err(|error| refused(&error))?;
        let caps = export.disk.caps();
        let old = OldExport {
            size: caps.capacity * SECTOR_SIZE,
            flags: export.flags(&caps, self.mode != ReplyMode::Simple),
        };
        self.talk.write(&old.encode())?;
        if !self.no_zeroes {
            self.talk.write(&[0; EXPORT_NAME_ZEROES])?;
        }
        Ok(Agreed {
            mode: self.mode,
            contexts: self.contexts_of(&export),
            using,
        })
    }

    /// Replies to `INFO` and `GO`.
    fn info(&mut self, kind: OptionKind, payload: &[u8]) -> Result<Option<Agreed>, HandshakeError> {
        let request = match ExportRequest::decode(payload) {
            Ok(request) => request,
            Err(error) => {
                let text = error.to_string();
                self.reply(kind, OptionReplyKind::ERR_INVALID, text.as_bytes())?;
                return Ok(None);
            }
        };
        let Some(export) = self.exports.find(request.name) else {
            let text = format!("there is no export {:?}", request.name);
            self.reply(kind, OptionReplyKind::ERR_UNKNOWN, text.as_bytes())?;
            return Ok(None);
        };
        let caps = export.disk.caps();
        let sizes = Export::block_sizes(&caps);
        let asks = |info| request.infos.contains(&info);
        if kind == OptionKind::GO && sizes.minimum > 512 && !asks(InfoKind::BLOCK_SIZE) {
            let text = format!(
                "offsets and lengths must be multiples of {} bytes: ask for the block size",
                sizes.minimum
            );
            self.reply(kind, OptionReplyKind::ERR_BLOCK_SIZE_REQD, text.as_bytes())?;
            return Ok(None);
        }
        let using = match kind {
            OptionKind::GO => match export.enter(self.talk.deadline) {
                Ok(using) => Some(using),
                Err(error) => {
                    let text = error.to_string();
                    log::warn!("{}: a client was refused: {text}", export.label());
                    self.reply(kind, OptionReplyKind::ERR_PLATFORM, text.as_bytes())?;
                    return Ok(None);
                }
            },
            _ => None,
        };
        // What is told is so once the disk is in use.
        let caps = export.disk.caps();
        let mut infos = vec![
            Info::Export {
                size: caps.capacity * SECTOR_SIZE,
                flags: export.flags(&caps, self.mode != ReplyMode::Simple),
            },
            Info::BlockSize(sizes),
        ];
        if asks(InfoKind::NAME) {
            infos.push(Info::Name(export.name()));
        }
        if asks(InfoKind::DESCRIPTION) {
            infos.push(Info::Description(&export.options.description));
        }
        for info in infos {
            self.reply(kind, OptionReplyKind::INFO, &info.encode())?;
        }
        self.reply(kind, OptionReplyKind::ACK, &[])?;
        Ok(using.map(|using| Agreed {
            mode: self.mode,
            contexts: self.contexts_of(&export),
            using,
        }))
    }

    /// Replies to `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
    fn meta_context(&mut self, kind: OptionKind, payload: &[u8]) -> io::Result<()> {
        let sets = kind == OptionKind::SET_META_CONTEXT;
        if sets {
            // Whatever comes of this one.
            self.contexts = None;
        }
        if self.mode == ReplyMode::Simple {
            let text = b"agree upon structured replies first";
            return self.reply(kind, OptionReplyKind::ERR_INVALID, text);
        }
        let query = match MetaContextQuery::decode(payload) {
            Ok(query) => query,
            Err(error) => {
                let text = error.to_string();
                return self.reply(kind, OptionReplyKind::ERR_INVALID, text.as_bytes());
            }
        };
        let Some(export) = self.exports.find(query.export) else {
            let text = format!("there is no export {:?}", query.export);
            return self.reply(kind, OptionReplyKind::ERR_UNKNOWN, text.as_bytes());
        };
        let all = Context::all(export.options.bitmaps.as_deref());
        let found: Vec<Context> = match sets {
            true => {
                let is_chosen =
                    |context: &Context| query.queries.contains(&context.name().as_str());
                all.into_iter().filter(is_chosen).collect()
            }
            false if query.queries.is_empty() => all,
            false => {
                let is_listed =
                    |context: &Context| query.queries.iter().any(|query| context.is_listed(query));
                all.into_iter().filter(is_listed).collect()
            }
        };
        if sets && found.len() > MAX_CONTEXTS {
            let text = format!("more than {MAX_CONTEXTS} contexts at a time");
            return self.reply(kind, OptionReplyKind::ERR_TOO_BIG, text.as_bytes());
        }
        for (id, context) in (0..).zip(&found) {
            let name = context.name();
            let context = MetaContext {
                id: if sets { id } else { 0 },
                name: &name,
            };
            self.reply(kind, OptionReplyKind::META_CONTEXT, &context.encode())?;
        }
        if sets {
            self.contexts = Some((export.name().to_owned(), found));
        }
        self.reply(kind, OptionReplyKind::ACK, &[])
    }
}
