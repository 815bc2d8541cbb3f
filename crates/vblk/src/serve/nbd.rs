// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vblk serve nbd`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use nbd_server::{
    Export, ExportOptions, Exports, Listener, OperationError, Security, Server, ServerHandle,
    ServerOptions, TlsFiles, TlsIdentity,
};
use serde::Serialize;
use vhost_user_blk::socket::{Listener as UnixSocket, SocketOptions};

use super::listening::Listening;
use super::{Common, Failure, LONG, Ready};
use crate::cli::NbdArgs;
use crate::journal::Journal;
use crate::layers::ExportedDisk;
use crate::layers::nbd::LayerBitmaps;
use crate::output;
use crate::status::Totals;

/// Where clients can connect. Field names are the JSON's.
#[derive(Clone, Serialize)]
struct At {
    #[serde(skip_serializing_if = "Option::is_none")]
    socket: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<SocketAddr>,
    export: String,
}

/// What is printed at the end. Field names are the JSON's.
#[derive(Serialize)]
struct Ended {
    event: &'static str,
    #[serde(flatten)]
    at: At,
    clients: u64,
    #[serde(flatten)]
    totals: Totals,
}

/// The sockets of a process, by their places. One may have several exports.
#[derive(Default)]
pub(super) struct Servers(RefCell<HashMap<String, Place>>);

/// A socket with exports.
#[derive(Clone)]
struct Place {
    exports: Exports,
    handle: ServerHandle,
    /// The TCP address, with the port that it got.
    address: Option<SocketAddr>,
    shared: SocketArgs,
    ended: Arc<End>,
}

/// What all exports of a socket share.
#[derive(Clone, PartialEq, Eq)]
struct SocketArgs {
    max_connections: u16,
    tls: Option<PathBuf>,
    tls_verify_peer: bool,
}

impl SocketArgs {
    fn of(args: &NbdArgs) -> Self {
        Self {
            max_connections: args.max_connections,
            tls: args.tls.clone(),
            tls_verify_peer: args.tls_verify_peer,
        }
    }
}

/// A server, and its socket's file.
struct Owned {
    server: Server,
    _unix: Option<UnixSocket>,
}

/// Whether a server has ended.
#[derive(Default)]
struct End {
    is_there: Mutex<bool>,
    came: Condvar,
}

impl End {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.is_there.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self) {
        let mut is_there = self.lock();
        while !*is_there {
            is_there = self
                .came
                .wait(is_there)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Tells of the end, however it comes.
struct TellEnd(Arc<End>);

impl Drop for TellEnd {
    fn drop(&mut self) {
        *self.0.lock() = true;
        self.0.came.notify_all();
    }
}

fn totals(export: &Export) -> Totals {
    let counters = export.counters();
    Totals {
        reads: counters.reads,
        read_bytes: counters.read_bytes,
        writes: counters.writes,
        written_bytes: counters.written_bytes,
        flushes: counters.flushes,
        erases: counters.erases,
        errors: counters.errors,
        malformed: counters.malformed,
    }
}

impl Servers {
    /// The place of an export, and its server if this is the first of them.
    fn of(&self, args: &NbdArgs) -> Result<(Place, Option<Owned>), Box<dyn Error>> {
        let mut places = self.0.borrow_mut();
        let name = args.place();
        if let Some(place) = places.get(&name) {
            if place.shared != SocketArgs::of(args) {
                return Err(
                    "--max-connections, --tls and --tls-verify-peer are for all disks of a socket: write them in front of \
                     the first --disk"
                        .into(),
                );
            }
            return Ok((place.clone(), None));
        }
        let (unix, listener, address) = match (&args.socket, &args.listen) {
            (Some(socket), _) => {
                let options = SocketOptions {
                    mode: args.socket_mode,
                    group: args.socket_group,
                };
                let unix = UnixSocket::open(socket, &options)?;
                let listener = Listener::Unix(unix.socket().try_clone()?);
                (Some(unix), listener, None)
            }
            (None, Some(address)) => {
                let tcp = address.bind();
                let tcp = tcp.map_err(|error| format!("can't listen on {address}: {error}"))?;
                let address = tcp.local_addr()?;
                (None, Listener::Tcp(tcp), Some(address))
            }
            (None, None) => return Err("give --socket or --listen".into()),
        };
        let exports = Exports::default();
        let options = ServerOptions {
            security: security(args)?,
            connections: args.max_connections.into(),
            ..ServerOptions::default()
        };
        let server = Server::new(listener, exports.clone(), options)?;
        let place = Place {
            exports,
            handle: server.handle(),
            address,
            shared: SocketArgs::of(args),
            ended: Arc::default(),
        };
        places.insert(name, place.clone());
        Ok((
            place,
            Some(Owned {
                server,
                _unix: unix,
            }),
        ))
    }
}

/// What the connections of a place are under.
fn security(args: &NbdArgs) -> Result<Security, Box<dyn Error>> {
    let Some(directory) = &args.tls else {
        return Ok(Security::Plain);
    };
    let authority = directory.join("ca-cert.pem");
    let files = TlsFiles {
        certificate: directory.join("server-cert.pem"),
        key: directory.join("server-key.pem"),
        client_ca: args.tls_verify_peer.then_some(authority),
    };
    Ok(Security::Tls(TlsIdentity::load(&files)?))
}

/// Opens the disk, and the socket if no disk before has.
pub(super) fn prepare(args: &NbdArgs, common: &Common) -> Result<Ready, Box<dyn Error>> {
    let (serve, json) = (&args.serve, common.json);
    let (stack, _) = common.open(serve)?;
    let disk = stack.disk();
    let (place, owned) = common.nbd.of(args)?;
    let told = Arc::new(OnceLock::<Arc<Journal>>::new());
    let journal = told.clone();
    let options = ExportOptions {
        name: args.export.clone(),
        description: args.description.clone(),
        read_only: serve.read_only,
        bitmaps: Some(Box::new(LayerBitmaps(Arc::downgrade(&stack)))),
        on_error: Some(Box::new(move |failed: &OperationError<'_>| {
            if let Some(journal) = journal.get() {
                journal.note_operation(
                    failed.operation,
                    failed.offset,
                    failed.len,
                    "",
                    failed.error,
                );
            }
        })),
        ..ExportOptions::default()
    };
    let export = Export::new(disk, options)?;
    place.exports.add(export.clone())?;
    let counted = export.clone();
    let served = ExportedDisk::new(
        args.name(),
        &serve.disk.disk,
        stack,
        args.max_connections,
        move || totals(&counted),
    );
    // It is new.
    let _ = told.set(served.journal.clone());
    let at = At {
        socket: args.socket.as_ref().map(ToString::to_string),
        address: place.address,
        export: args.export.clone(),
    };
    let (shown, announced) = (at.clone(), export.clone());
    let words = match (&place.address, args.export.as_str()) {
        (Some(address), "") => format!("on {address}"),
        (Some(address), name) => format!("on {address} as {name}"),
        (None, "") => format!("on {}", args.place()),
        (None, name) => format!("on {} as {name}", args.place()),
    };
    let text = serve.disk.to_string();
    let announce = move || {
        let bytes = announced.size();
        Listening::print_disk(shown, &words, text, bytes, announced.is_read_only(), json);
    };
    let (connected, stop) = (export.clone(), place.handle.clone());
    Ok(Ready {
        served,
        announce: Box::new(announce),
        connected: Box::new(move || connected.connections() != 0),
        stop: Box::new(move || stop.stop()),
        run: Box::new(move || run(owned, &place, &export, at, json)),
    })
}

/// Serves until it is stopped, or waits for who does.
fn run(
    owned: Option<Owned>,
    place: &Place,
    export: &Export,
    at: At,
    json: bool,
) -> Result<(), Failure> {
    let result = match owned {
        Some(owned) => {
            let _end = TellEnd(place.ended.clone());
            owned.server.run()
        }
        None => {
            place.ended.wait();
            Ok(())
        }
    };
    // The disk is to be closed once nobody else has it.
    place.exports.remove(&at.export);
    let left = match export.connections() {
        0 => loop {
            // The deadline of the stop ends the process, if one was set.
            if let Some(left) = export.wait_left(Instant::now() + LONG) {
                break left;
            }
        },
        // The disk stays in use for them.
        _ => Ok(()),
    };
    if json {
        let ended = Ended {
            event: "ended",
            at,
            clients: export.counters().clients,
            totals: totals(export),
        };
        output::tell(&ended);
    }
    result?;
    let lost = |why| format!("what the disk kept in memory may be lost: {why}");
    Ok(left.map_err(lost)?)
}
