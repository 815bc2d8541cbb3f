// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a disk is called on command lines.

use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use virtio_blk_core::disk::{Disk, DiskError};
use virtio_blk_disks::disk_arg::{ArgError, DiskOptions};

use crate::address::{FORMS, Target};
use crate::{Address, NbdDisk, TlsOptions};

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
#[serde(from = "Words")]
pub struct NbdOptions {
    address: Option<Address>,
    export: String,
    read_only: bool,
    reconnect: u32,
    timeout: u32,
    connections: NonZeroU16,
    unflushed: Unflushed,
    tls: Tls,
}

/// Connections at most, unless something else is said.
const CONNECTIONS: NonZeroU16 = NonZeroU16::MIN.saturating_add(7);

impl Default for NbdOptions {
    fn default() -> Self {
        Self {
            address: None,
            export: String::new(),
            read_only: false,
            reconnect: 0,
            timeout: 0,
            connections: CONNECTIONS,
            unflushed: Unflushed::Fail,
            tls: Tls::default(),
        }
    }
}

/// TLS as it is written: what belongs together is seen when the disk is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Tls {
    on: bool,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    name: Option<String>,
}

/// The options as they are written.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Words {
    export: String,
    readonly: bool,
    reconnect: u32,
    timeout: u32,
    connections: NonZeroU16,
    unflushed: Unflushed,
    tls: bool,
    tls_ca: Option<PathBuf>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    tls_name: Option<String>,
}

impl Default for Words {
    fn default() -> Self {
        let usual = NbdOptions::default();
        Self {
            export: usual.export,
            readonly: usual.read_only,
            reconnect: usual.reconnect,
            timeout: usual.timeout,
            connections: usual.connections,
            unflushed: usual.unflushed,
            tls: false,
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
            tls_name: None,
        }
    }
}

impl From<Words> for NbdOptions {
    fn from(words: Words) -> Self {
        Self {
            address: None,
            export: words.export,
            read_only: words.readonly,
            reconnect: words.reconnect,
            timeout: words.timeout,
            connections: words.connections,
            unflushed: words.unflushed,
            tls: Tls {
                on: words.tls,
                ca: words.tls_ca,
                cert: words.tls_cert,
                key: words.tls_key,
                name: words.tls_name,
            },
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

    /// Seconds that the server may be without any progress of a request that it has (default: 0, without end). The
    /// connection is given up then, after at most half as long again, and as after any other loss its operations wait for
    /// [`NbdOptions::reconnect`], or fail. Without an end, a warning says after 30 seconds that a request waits.
    ///
    /// A server that is only slow may be given up as well, and writes are executed again: choose more than the worst that
    /// its storage takes.
    #[must_use]
    pub const fn timeout(mut self, seconds: u32) -> Self {
        self.timeout = seconds;
        self
    }

    /// The most connections that are made to a server that allows for several (default: 8): one for each queue, and
    /// queues beyond share them.
    #[must_use]
    pub const fn connections(mut self, most: NonZeroU16) -> Self {
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

    /// TLS (default: none). Needs the cargo feature `tls`.
    #[must_use]
    pub fn tls(mut self, options: TlsOptions) -> Self {
        let (cert, key) = options.identity.unzip();
        self.tls = Tls {
            on: true,
            ca: Some(options.ca),
            cert,
            key,
            name: options.name,
        };
        self
    }

    /// What is said of TLS.
    ///
    /// # Errors
    /// What is missing, or goes without `tls=on`.
    pub(crate) fn tls_options(&self) -> Result<Option<TlsOptions>, &'static str> {
        let Tls {
            on,
            ca,
            cert,
            key,
            name,
        } = &self.tls;
        if !on {
            return match (ca, cert, key, name) {
                (None, None, None, None) => Ok(None),
                _ => Err("the options tls_ca, tls_cert, tls_key and tls_name need tls=on"),
            };
        }
        let Some(ca) = ca.clone() else {
            return Err("tls=on lacks tls_ca=FILE, the certificate that signed the server's");
        };
        let identity = match (cert, key) {
            (Some(cert), Some(key)) => Some((cert.clone(), key.clone())),
            (None, None) => None,
            _ => return Err("tls_cert=FILE and tls_key=FILE belong together"),
        };
        Ok(Some(TlsOptions {
            ca,
            identity,
            name: name.clone(),
        }))
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

    pub(crate) fn patience(&self) -> Option<Duration> {
        (self.timeout != 0).then(|| Duration::from_secs(self.timeout.into()))
    }

    pub(crate) fn most_connections(&self) -> usize {
        usize::from(self.connections.get())
    }

    pub(crate) fn trusts(&self) -> bool {
        self.unflushed == Unflushed::Trust
    }
}

impl DiskOptions for NbdOptions {
    const NAME: &'static str = "nbd";
    const TARGET: &'static str = "ADDRESS";
    const HELP: &'static str = "nbd:unix:PATH|tcp:HOST:PORT[,export=NAME][,readonly=on|off][,reconnect=SECONDS]\
                                [,timeout=SECONDS][,connections=N][,unflushed=fail|trust]\
                                [,tls=on,tls_ca=FILE[,tls_cert=FILE,tls_key=FILE][,tls_name=NAME]]";
    const MANUAL: &'static str = "  \
  nbd:unix:PATH[,OPTION…]
  nbd:tcp:HOST:PORT[,OPTION…]
                          an export of an NBD server; also as a URI:
                          nbd:nbd+unix:///EXPORT?socket=PATH
      export=NAME         which (the server's default one)
      readonly=on|off     read-only in any case (off)
      reconnect=SECONDS   how long operations wait when the connection is
                          lost, before they fail (0)
      timeout=SECONDS     how long a request may be without a reply before
                          the connection is given up (0: no end)
      connections=N       at most so many, where the server allows for
                          several: one for each queue (8)
      unflushed=fail|trust
                          after a reconnect to what may be another server,
                          fail flushes if writes were not flushed (fail), or
                          trust that the server still has them
      tls=on,tls_ca=FILE[,tls_cert=FILE,tls_key=FILE][,tls_name=NAME]
                          with TLS: who signed the server's certificate, the
                          client's own (PEM), and the server's name if it is
                          not the host's";

    fn set_target(&mut self, target: String) -> Result<(), ArgError> {
        let Some(parsed) = Target::parse(&target) else {
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
        self.tls.on |= parsed.tls;
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
        if self.timeout != usual.timeout {
            changed.push(("timeout", self.timeout.to_string()));
        }
        if self.connections != usual.connections {
            changed.push(("connections", self.connections.to_string()));
        }
        if self.unflushed == Unflushed::Trust {
            changed.push(("unflushed", "trust".to_owned()));
        }
        if self.tls.on {
            changed.push(("tls", "on".to_owned()));
        }
        let path = |path: &Option<PathBuf>| {
            path.as_ref()
                .map(|path| path.to_string_lossy().into_owned())
        };
        for (name, value) in [
            ("tls_ca", path(&self.tls.ca)),
            ("tls_cert", path(&self.tls.cert)),
            ("tls_key", path(&self.tls.key)),
            ("tls_name", self.tls.name.clone()),
        ] {
            changed.extend(value.map(|value| (name, value)));
        }
        changed
    }

    fn open(&self, read_only: bool) -> Result<Arc<dyn Disk>, DiskError> {
        let read_only = read_only || self.read_only;
        Ok(Arc::new(NbdDisk::open(&self.clone().read_only(read_only))?))
    }
}

#[cfg(test)]
mod tests {
    use virtio_blk_disks::disk_arg::{ArgError, DiskArg, DiskKind, DiskKinds};

    use super::*;

    const KINDS: &[DiskKind] = &[DiskKind::of::<NbdOptions>()];

    fn parse(text: &str) -> Result<DiskArg, ArgError> {
        DiskKinds::new(KINDS).parse(text)
    }

    #[test]
    fn every_option_is_read_and_shown() {
        for text in [
            "nbd:unix:/run/n.sock",
            "nbd:tcp:host:1,export=a,,b,readonly=on,reconnect=30,timeout=60,connections=2,unflushed=trust",
            "nbd:tcp:[::1]:1,tls=on,tls_ca=/ca,tls_cert=/cert,tls_key=/key,tls_name=name",
        ] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
        let uri = parse("nbd:nbds+unix:///disk?socket=/n,tls_ca=/ca").unwrap();
        assert_eq!(uri.to_string(), "nbd:unix:/n,export=disk,tls=on,tls_ca=/ca");
        let uri = parse("nbd://host/disk,reconnect=1").unwrap();
        assert_eq!(
            uri.to_string(),
            "nbd:tcp:host:10809,export=disk,reconnect=1"
        );
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_could() {
        for (text, words) in [
            ("nbd:/run/n.sock", "unix:PATH"),
            ("nbd:http://host", "nbd://HOST:PORT/EXPORT"),
            ("nbd://host/a,export=b", "given twice"),
            ("nbd:unix:/n,unflushed=maybe", "fail or trust"),
            ("nbd:unix:/n,reconnect=soon", "a number"),
            ("nbd:unix:/n,reconnet=1", "reconnect"),
            ("nbd:unix:/n,connections=0", "nonzero"),
            ("nbd:unix:/n,timeout=-1", "a number"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn tls_is_whole_or_refused() {
        for (options, words) in [
            ("tls=on", "tls_ca"),
            ("tls_ca=/ca", "need tls=on"),
            ("tls_name=x", "need tls=on"),
            ("tls=on,tls_ca=/ca,tls_key=/key", "belong together"),
        ] {
            // Nobody listens there: it is refused before.
            let disk = parse(&format!("nbd:unix:/nowhere,{options}")).unwrap();
            let error = disk.open(false).err().unwrap().to_string();
            assert!(error.contains(words), "{options}: {error}");
        }
    }
}
