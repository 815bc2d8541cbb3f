// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a disk is called on command lines.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use virtio_blk_core::disk::{Disk, DiskError};
use virtio_blk_disks::disk_arg::{ArgError, DiskOptions};

use crate::address::{FORMS, Target};
use crate::{Address, NbdDisk};

/// What to do if writes may be lost that completed: see [`NbdOptions::unflushed`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unflushed {
    /// Every later flush fails.
    #[default]
    Fail,
    /// Nothing: the server keeps what it acknowledged also over its own end.
    Trust,
}

/// An NBD export as a disk: `nbd:ADDRESS[,OPTION…]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NbdOptions {
    #[serde(skip)]
    address: Option<Address>,
    export: String,
    #[serde(rename = "readonly")]
    read_only: bool,
    reconnect: u32,
    connections: u16,
    unflushed: Unflushed,
}

impl Default for NbdOptions {
    fn default() -> Self {
        Self {
            address: None,
            export: String::new(),
            read_only: false,
            reconnect: 0,
            connections: 8,
            unflushed: Unflushed::Fail,
        }
    }
}

impl NbdOptions {
    /// The default export of the server at `address`.
    pub fn new(address: Address) -> Self {
        Self {
            address: Some(address),
            ..Self::default()
        }
    }

    /// The name of the export (default: empty, which is the server's default export).
    #[must_use]
    pub fn export(mut self, name: impl Into<String>) -> Self {
        self.export = name.into();
        self
    }

    /// Whether the disk is read-only though the export is not (default: no).
    #[must_use]
    pub const fn read_only(mut self, yes: bool) -> Self {
        self.read_only = yes;
        self
    }

    /// Seconds that operations wait for a connection after one was lost (default: 0). They are sent again when there
    /// is one, and fail when the time is over. The way to the server is looked for in any case.
    #[must_use]
    pub const fn reconnect(mut self, seconds: u32) -> Self {
        self.reconnect = seconds;
        self
    }

    /// The most connections that are made to a server that allows for several (default: 8): one for each queue, and
    /// queues beyond share them. At least 1.
    #[must_use]
    pub const fn connections(mut self, most: u16) -> Self {
        self.connections = most;
        self
    }

    /// What to do if a connection was lost while writes had completed that no flush covers, and it can't be told that
    /// the same server is at the other end of the next (default: fail every later flush, as the writes may be gone
    /// with the old server's cache).
    #[must_use]
    pub const fn unflushed(mut self, policy: Unflushed) -> Self {
        self.unflushed = policy;
        self
    }

    pub(crate) const fn address(&self) -> Option<&Address> {
        self.address.as_ref()
    }

    pub(crate) fn export_name(&self) -> &str {
        &self.export
    }

    pub(crate) const fn is_read_only(&self) -> bool {
        self.read_only
    }

    pub(crate) fn window(&self) -> Duration {
        Duration::from_secs(self.reconnect.into())
    }

    pub(crate) fn most_connections(&self) -> usize {
        usize::from(self.connections).max(1)
    }

    pub(crate) fn trusts(&self) -> bool {
        self.unflushed == Unflushed::Trust
    }
}

impl DiskOptions for NbdOptions {
    const NAME: &'static str = "nbd";
    const TARGET: &'static str = "ADDRESS";
    const HELP: &'static str = "nbd:unix:PATH|tcp:HOST:PORT[,export=NAME][,readonly=on|off][,reconnect=SECONDS]\
                                [,connections=N][,unflushed=fail|trust]";
    const MANUAL: &'static str = "  \
  nbd:unix:PATH[,OPTION…]
  nbd:tcp:HOST:PORT[,OPTION…]
                          an export of an NBD server; also as a URI:
                          nbd:nbd+unix:///EXPORT?socket=PATH
      export=NAME         which (the server's default one)
      readonly=on|off     read-only in any case (off)
      reconnect=SECONDS   how long operations wait when the connection is
                          lost, before they fail (0)
      connections=N       at most so many, where the server allows for
                          several: one for each queue (8)
      unflushed=fail|trust
                          after a reconnect to what may be another server,
                          fail flushes if writes were not flushed (fail), or
                          trust that the server still has them";

    fn set_target(&mut self, target: String) -> Result<(), ArgError> {
        let Some(parsed) = Target::parse(&target).filter(|parsed| !parsed.tls) else {
            return Err(ArgError::Value {
                option: Self::NAME.into(),
                value: target,
                allowed: FORMS.into(),
            });
        };
        if let Some(export) = parsed.export {
            if !self.export.is_empty() {
                return Err(ArgError::Twice {
                    option: "export".to_owned(),
                });
            }
            self.export = export;
        }
        self.address = Some(parsed.address);
        Ok(())
    }

    fn target(&self) -> String {
        self.address
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default()
    }

    fn changed(&self) -> Vec<(&'static str, String)> {
        let usual = Self::default();
        let mut changed = Vec::new();
        if !self.export.is_empty() {
            changed.push(("export", self.export.clone()));
        }
        if self.read_only {
            changed.push(("readonly", "on".to_owned()));
        }
        if self.reconnect != usual.reconnect {
            changed.push(("reconnect", self.reconnect.to_string()));
        }
        if self.connections != usual.connections {
            changed.push(("connections", self.connections.to_string()));
        }
        if self.unflushed == Unflushed::Trust {
            changed.push(("unflushed", "trust".to_owned()));
        }
        changed
    }

    fn open(&self, read_only: bool) -> Result<Arc<dyn Disk>, DiskError> {
        let read_only = read_only || self.read_only;
        Ok(Arc::new(NbdDisk::open(&self.clone().read_only(read_only))?))
    }
}
