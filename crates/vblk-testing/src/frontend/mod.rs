// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A vhost-user client that takes each step of the protocol on its own, in any order.
//!
//! The `blkio` crate does what a good client does. This one, on `vhost`'s frontend and our own driver,
//! keeps the in-flight area over a server's death, exchanges memory and queues while they are in use,
//! and sends rubbish ([`Wire`]).

mod guest;
mod queue;
mod wire;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
    VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VringConfigData};
use vm_memory::GuestMemoryMmap;

pub use guest::{Guest, memory_file};
pub use queue::{Queue, event, readable};
pub use wire::{Wire, header};

/// The memory of a guest.
pub type GuestMemory = Arc<GuestMemoryMmap<()>>;

/// How long anything may take before it counts as lost.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What went wrong; tests only show it.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// A result with an error to show.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Protocol features that this client uses where they are offered.
const WANTED: VhostUserProtocolFeatures = VhostUserProtocolFeatures::all();

/// The feature bit that logs dirty pages.
pub const LOG_ALL: u64 = VhostUserVirtioFeatures::LOG_ALL.bits();

/// Connects to a socket, as soon as someone listens there.
///
/// # Errors
/// Nobody does for a minute.
pub fn connect(socket: &Path) -> Result<UnixStream> {
    let started = Instant::now();
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(error) if started.elapsed() > PATIENCE => {
                return Err(format!("{}: {error}", socket.display()).into());
            }
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// A connection to a server.
pub struct Client {
    frontend: Frontend,
    stream: UnixStream,
    /// The feature bits offered, with those of the protocol.
    pub offered: u64,
    /// The feature bits acknowledged.
    pub acked: u64,
    protocol: VhostUserProtocolFeatures,
}

impl Client {
    /// Connects and negotiates everything that is offered, with acknowledged requests.
    ///
    /// # Errors
    /// The server refuses a step.
    pub fn connect(socket: &Path) -> Result<Self> {
        Self::connect_with(socket, WANTED)
    }

    /// As [`Client::connect`], with these protocol features where they are offered.
    ///
    /// # Errors
    /// The server refuses a step.
    pub fn connect_with(socket: &Path, wanted: VhostUserProtocolFeatures) -> Result<Self> {
        Self::greet(socket, wanted)?.negotiated()
    }

    /// As [`Client::connect`], over a connection that is there: does not wait for a server that is gone.
    ///
    /// # Errors
    /// The server refuses a step.
    pub fn over(stream: UnixStream) -> Result<Self> {
        Self::greet_over(stream, WANTED)?.negotiated()
    }

    fn negotiated(mut self) -> Result<Self> {
        let bits = self.offered & !LOG_ALL;
        self.set_features(bits)?;
        Ok(self)
    }

    /// Connects and negotiates the protocol's features, but not the device's.
    ///
    /// # Errors
    /// The server refuses a step.
    pub fn greet(socket: &Path, wanted: VhostUserProtocolFeatures) -> Result<Self> {
        Self::greet_over(connect(socket)?, wanted)
    }

    fn greet_over(stream: UnixStream, wanted: VhostUserProtocolFeatures) -> Result<Self> {
        let mut frontend = Frontend::from_stream(stream.try_clone()?, 1);
        frontend.set_owner()?;
        let offered = frontend.get_features()?;
        let protocol = frontend.get_protocol_features()? & wanted;
        if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        frontend.set_protocol_features(protocol)?;
        if protocol.contains(VhostUserProtocolFeatures::MQ) {
            frontend.get_queue_num()?;
        }
        Ok(Self {
            frontend,
            stream,
            offered,
            acked: 0,
            protocol,
        })
    }

    /// The protocol's features in use.
    pub fn protocol(&self) -> VhostUserProtocolFeatures {
        self.protocol
    }

    /// `vhost`'s side of the connection, for everything that has no method here.
    pub fn frontend(&mut self) -> &mut Frontend {
        &mut self.frontend
    }

    /// The connection, to break it.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Acknowledges features.
    ///
    /// # Errors
    /// The server refuses them.
    pub fn set_features(&mut self, features: u64) -> Result<()> {
        self.frontend.set_features(features)?;
        self.acked = features;
        Ok(())
    }

    /// Shares memory in one table.
    ///
    /// # Errors
    /// The server refuses it.
    pub fn set_memory(&mut self, guest: &Guest) -> Result<()> {
        self.frontend.set_mem_table(&guest.regions())?;
        Ok(())
    }

    /// Shares memory region by region, beside what is shared already.
    ///
    /// # Errors
    /// The server refuses one.
    pub fn add_memory(&mut self, guest: &Guest) -> Result<()> {
        for region in guest.regions() {
            self.frontend.add_mem_region(&region)?;
        }
        Ok(())
    }

    /// Takes memory back region by region.
    ///
    /// # Errors
    /// The server refuses one.
    pub fn remove_memory(&mut self, guest: &Guest) -> Result<()> {
        for region in guest.regions() {
            self.frontend.remove_mem_region(&region)?;
        }
        Ok(())
    }

    /// Tells where a queue lies. `log`: its used ring is logged.
    ///
    /// # Errors
    /// The server refuses it.
    pub fn set_addresses(&mut self, index: usize, queue: &Queue, log: bool) -> Result<()> {
        let layout = queue.driver.ring().layout();
        let user = |addr: vm_memory::GuestAddress| Guest::user_address(addr.0);
        self.frontend.set_vring_addr(
            index,
            &VringConfigData {
                queue_max_size: layout.size(),
                queue_size: layout.size(),
                flags: u32::from(log),
                desc_table_addr: user(layout.desc()),
                used_ring_addr: user(layout.used()),
                avail_ring_addr: user(layout.avail()),
                log_addr: log.then_some(layout.used().0),
            },
        )?;
        Ok(())
    }

    /// Starts a queue at available index `base` and enables it.
    ///
    /// # Errors
    /// The server refuses a step.
    pub fn start(&mut self, index: usize, queue: &Queue, base: u16) -> Result<()> {
        self.frontend
            .set_vring_num(index, queue.driver.ring().layout().size())?;
        self.frontend.set_vring_base(index, base)?;
        self.set_addresses(index, queue, false)?;
        self.frontend.set_vring_call(index, &queue.call)?;
        self.frontend.set_vring_err(index, &queue.err)?;
        self.frontend.set_vring_kick(index, &queue.kick)?;
        if self.acked & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0 {
            self.frontend.set_vring_enable(index, true)?;
        }
        Ok(())
    }

    /// Stops a queue. Returns where it continues.
    ///
    /// # Errors
    /// The server refuses it.
    pub fn stop(&mut self, index: usize) -> Result<u16> {
        let base = self.frontend.get_vring_base(index)?;
        Ok(u16::try_from(base)?)
    }

    /// Reads the configuration space.
    ///
    /// # Errors
    /// The server refuses it.
    pub fn config(&mut self, offset: u32, len: u32) -> Result<Vec<u8>> {
        let room = vec![0; usize::try_from(len)?];
        let flags = VhostUserConfigFlags::empty();
        let (_, bytes) = self.frontend.get_config(offset, len, flags, &room)?;
        Ok(bytes)
    }

    /// Writes the configuration space.
    ///
    /// # Errors
    /// The server refuses it.
    pub fn set_config(&mut self, offset: u32, bytes: &[u8]) -> Result<()> {
        let flags = VhostUserConfigFlags::empty();
        Ok(self.frontend.set_config(offset, flags, bytes)?)
    }

    /// The disk's capacity in sectors of 512 bytes.
    ///
    /// # Errors
    /// The server refuses it.
    pub fn capacity(&mut self) -> Result<u64> {
        let bytes = self.config(0, 8)?;
        Ok(u64::from_le_bytes(
            bytes.try_into().map_err(|_| "a short answer")?,
        ))
    }

    /// Asks for an in-flight area.
    ///
    /// # Errors
    /// The server refuses it.
    pub fn get_in_flight(&mut self, queues: u16, queue_size: u16) -> Result<InFlight> {
        let wanted = VhostUserInflight::new(0, 0, queues, queue_size);
        let (area, file) = self.frontend.get_inflight_fd(&wanted)?;
        Ok(InFlight { area, file })
    }

    /// Hands an in-flight area over.
    ///
    /// # Errors
    /// The server refuses it.
    pub fn set_in_flight(&mut self, in_flight: &InFlight) -> Result<()> {
        let fd = in_flight.file.as_raw_fd();
        Ok(self.frontend.set_inflight_fd(&in_flight.area, fd)?)
    }

    /// Opens the channel on which the server sends requests of its own. Returns our end.
    ///
    /// # Errors
    /// The server refuses it.
    pub fn open_backend_channel(&mut self) -> Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        self.frontend.set_backend_request_fd(&theirs)?;
        ours.set_read_timeout(Some(PATIENCE))?;
        Ok(ours)
    }
}

/// An in-flight area as the client keeps it.
pub struct InFlight {
    /// Its description.
    pub area: VhostUserInflight,
    /// Its memory.
    pub file: File,
}
