// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A served disk as a network block device beside its server: `vblk ctl export`.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

use nbd_server::{
    Bitmaps, Export, ExportOptions, Exports, Listener, Marked, OperationError, Server,
    ServerHandle, ServerOptions,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use vhost_user_blk::socket::{Listener as UnixSocket, SocketOptions};
use virtio_blk_core::disk::Handover;
use virtio_blk_disks::dirty::Run;
use virtio_blk_disks::stack::Stack;

use super::ExportedDisk;
use super::act::Answer;

/// Most connections of an export.
const MAX_CONNECTIONS: u16 = 16;

/// The dirty bitmaps of a disk's layers, as contexts.
pub struct LayerBitmaps(pub Weak<Stack>);

impl Bitmaps for LayerBitmaps {
    fn names(&self) -> Vec<String> {
        let stack = self.0.upgrade();
        stack.map_or_else(Vec::new, |stack| stack.dirty_names())
    }

    fn marks(&self, name: &str, range: Range<u64>, most: usize) -> Option<Vec<Marked>> {
        let bitmap = self.0.upgrade()?.dirty(name)?.bitmap(name)?;
        let runs = bitmap.runs(range, most).into_iter();
        let marked = |Run { len, dirty }| Marked { len, dirty };
        Some(runs.map(marked).collect())
    }
}

/// What is to be exported, or no more.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Exporting {
    /// Where clients connect. `None`: the export ends.
    pub socket: Option<PathBuf>,
    /// The export's name.
    #[serde(default)]
    pub name: String,
}

struct Running {
    socket: PathBuf,
    handle: ServerHandle,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Default)]
struct State {
    running: Option<Running>,
    /// The disk is about to end: there may be no other.
    ended: bool,
}

/// The export of a disk, if there is one. Clones are handles of the same.
#[derive(Clone, Default)]
pub struct NbdExport(Arc<Mutex<State>>);

impl NbdExport {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the export end, and does not wait. There will be no other.
    pub fn begin_end(&self) {
        let mut state = self.lock();
        state.ended = true;
        if let Some(running) = &state.running {
            running.handle.stop();
        }
    }

    /// As [`NbdExport::begin_end`], and waits: some seconds at most.
    pub fn end(&self) {
        self.begin_end();
        let running = self.lock().running.take();
        drop(running);
    }
}

/// Begins or ends the export of a disk.
pub(super) fn export(served: &ExportedDisk, what: &Exporting) -> Answer {
    let Some(socket) = &what.socket else {
        let running = served.nbd.lock().running.take();
        let Some(running) = running else {
            return Err("the disk is not exported".into());
        };
        let socket = running.socket.clone();
        drop(running);
        return Ok(json!({"exported": false, "socket": socket}));
    };
    let mut state = served.nbd.lock();
    if state.ended {
        return Err("the server is ending".into());
    }
    if let Some(running) = &state.running {
        let at = running.socket.display();
        return Err(format!("the disk is exported on {at}: `export stop` ends that").into());
    }
    let connections = connections(served)?;
    state.running = Some(start(served, socket, &what.name, connections)?);
    Ok(json!({
        "exported": true,
        "socket": socket,
        "export": what.name,
        "read_only": true,
        "connections": connections,
    }))
}

/// How many connections there may be beside the disk's server.
fn connections(served: &ExportedDisk) -> Result<u16, String> {
    if served.disk.handover() != Handover::Never {
        return Err(
            "the disk is handed over between servers (lock=handover), which a client of an export would prevent: serve \
             it with another lock"
                .to_owned(),
        );
    }
    let most = served.disk.caps().max_queues;
    match most.saturating_sub(served.queues).min(MAX_CONNECTIONS) {
        0 => Err(format!(
            "the disk has {most} queues, and its server uses {}: serve it with fewer --queues",
            served.queues
        )),
        left => Ok(left),
    }
}

fn start(
    served: &ExportedDisk,
    socket: &Path,
    name: &str,
    connections: u16,
) -> Result<Running, Box<dyn std::error::Error>> {
    let journal = served.journal.clone();
    let options = ExportOptions {
        name: name.to_owned(),
        description: served.name.clone(),
        read_only: true,
        bitmaps: Some(Box::new(LayerBitmaps(Arc::downgrade(&served.stack)))),
        on_error: Some(Box::new(move |failed: &OperationError<'_>| {
            let (operation, place) = (failed.operation, " (NBD export)");
            journal.note_operation(operation, failed.offset, failed.len, place, failed.error);
        })),
        is_active: true,
    };
    let exports = Exports::default();
    exports.add(Export::new(served.disk.clone(), options)?)?;
    let unix = UnixSocket::bind(socket, &SocketOptions::default())?;
    let options = ServerOptions {
        connections: connections.into(),
        ..ServerOptions::default()
    };
    let listener = Listener::Unix(unix.socket().try_clone()?);
    let server = Server::new(listener, exports, options)?;
    let (handle, of) = (server.handle(), served.name.clone());
    let thread = std::thread::Builder::new().name("vblk-nbd".to_owned());
    let thread = thread.spawn(move || {
        if let Err(error) = server.run() {
            log::error!("{of}: NBD export: {error}");
        }
        drop((server, unix));
    })?;
    Ok(Running {
        socket: socket.to_owned(),
        handle,
        thread: Some(thread),
    })
}
