// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From an address to a connection that can be used.

use std::os::fd::OwnedFd;

use crate::handshake::{self, Export, Wanted};
use crate::options::NbdOptions;
use crate::socket::{Peer, connect_to};
use crate::stream::{Deadline, Handshaking, PlainStream, Stream};
use crate::{Address, NbdError};

/// Seconds that a server has for connection and handshake.
pub(crate) const PATIENCE: u64 = 10;

/// The same for connections beyond the first, which a server may leave waiting that serves fewer clients.
pub(crate) const FURTHER_PATIENCE: u64 = 2;

/// A connection after the handshake.
pub(crate) struct Connected {
    pub stream: Box<dyn Stream>,
    pub export: Export,
    pub peer: Option<Peer>,
}

/// Connects, and agrees upon the export.
///
/// # Errors
/// There is no server, or it can't be used.
pub(crate) fn dial(
    options: &NbdOptions,
    address: &Address,
    seconds: u64,
    look: bool,
) -> Result<Connected, NbdError> {
    // Before anything is sent.
    options
        .tls_options()
        .map_err(|what| NbdError::Tls(what.to_owned()))?;
    let deadline = Deadline::after(seconds);
    let socket = connect_to(address, deadline)?;
    agree(options, address, socket, deadline, look)
}

/// Agrees upon the export over a socket that is connected.
///
/// # Errors
/// The server can't be used.
pub(crate) fn agree(
    options: &NbdOptions,
    address: &Address,
    socket: OwnedFd,
    deadline: Deadline,
    look: bool,
) -> Result<Connected, NbdError> {
    let tls = options
        .tls_options()
        .map_err(|what| NbdError::Tls(what.to_owned()))?;
    let peer = match address {
        Address::Unix(_) => Peer::of(&socket),
        Address::Tcp { .. } => None,
    };
    let mut stream = PlainStream(socket);
    let mut greeting = Handshaking {
        stream: &mut stream,
        deadline,
    };
    let flags = handshake::greet(&mut greeting)?;
    let mut stream: Box<dyn Stream> = match tls {
        None => Box::new(stream),
        #[cfg(feature = "tls")]
        Some(tls) => {
            handshake::start_tls(&mut greeting, flags)?;
            let tls = crate::tls::connection(&tls, address)?;
            Box::new(crate::stream::TlsStream::open(stream.0, tls, deadline)?)
        }
        #[cfg(not(feature = "tls"))]
        Some(_) => {
            let text = "this program was built without it: build it with the cargo feature `tls`";
            return Err(NbdError::Tls(text.to_owned()));
        }
    };
    let wanted = Wanted {
        export: options.export_name(),
        look,
    };
    let mut peer_stream = Handshaking {
        stream: &mut *stream,
        deadline,
    };
    let export = handshake::negotiate(&mut peer_stream, flags, &wanted)?;
    if look {
        handshake::abort(&mut peer_stream)?;
    }
    Ok(Connected {
        stream,
        export,
        peer,
    })
}
