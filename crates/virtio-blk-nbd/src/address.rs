// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where a server is.

use std::fmt;
use std::path::PathBuf;

use crate::proto::PORT;

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// A port of a host.
    Tcp {
        /// A name, or an address without brackets.
        host: String,
        /// The port.
        port: u16,
    },
}

/// What a disk is called: an address, and what else a URI says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub address: Address,
    /// Of a URI: the export, if it names one.
    pub export: Option<String>,
    /// Of a URI: `nbds`.
    pub tls: bool,
}

/// The forms a target can have, for error messages.
pub(crate) const FORMS: &str =
    "unix:PATH, tcp:HOST:PORT, nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH";

impl Target {
    /// Reads what stands behind `nbd:`. `None`: it has none of the [`FORMS`].
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Self::plain(unix(path)?);
        }
        if let Some(rest) = text.strip_prefix("tcp:") {
            return Self::plain(tcp(rest)?);
        }
        // `nbd:` itself may be the scheme.
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (scheme, rest),
            None => ("nbd", text.strip_prefix("//")?),
        };
        let (kind, transport) = match scheme.split_once('+') {
            Some((kind, transport)) => (kind, transport),
            None => (scheme, "tcp"),
        };
        let tls = match kind {
            "nbd" => false,
            "nbds" => true,
            _ => return None,
        };
        let (place, query) = match rest.split_once('?') {
            Some((place, query)) => (place, Some(query)),
            None => (rest, None),
        };
        let (authority, export) = match place.split_once('/') {
            Some((authority, export)) => (authority, decoded(export)?),
            None => (place, String::new()),
        };
        let address = match (transport, query) {
            ("tcp", None) => tcp(authority)?,
            ("unix", Some(query)) if authority.is_empty() => {
                unix(&decoded(query.strip_prefix("socket=")?)?)?
            }
            _ => return None,
        };
        let export = Some(export).filter(|name| !name.is_empty());
        Some(Self {
            address,
            export,
            tls,
        })
    }

    const fn plain(address: Address) -> Option<Self> {
        Some(Self {
            address,
            export: None,
            tls: false,
        })
    }
}

fn unix(path: &str) -> Option<Address> {
    let good = !path.is_empty() && !path.contains('\0');
    good.then(|| Address::Unix(path.into()))
}

/// `HOST`, `HOST:PORT`, `[ADDRESS]` or `[ADDRESS]:PORT`.
fn tcp(text: &str) -> Option<Address> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            (
                host,
                if rest.is_empty() {
                    None
                } else {
                    Some(rest.strip_prefix(':')?)
                },
            )
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_:%".contains(c);
    let port = port.map_or(Some(PORT), |port| port.parse().ok())?;
    (!host.is_empty() && host.chars().all(plain) && port != 0).then(|| Address::Tcp {
        host: host.to_owned(),
        port,
    })
}

/// Text of a URI, with `%20` for a space.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let value = 16 * digit()? + digit()?;
        bytes.push(u8::try_from(value).ok()?);
    }
    String::from_utf8(bytes).ok()
}

impl fmt::Display for Address {
    /// As it is written behind `nbd:`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Address {
        Address::Tcp {
            host: host.to_owned(),
            port,
        }
    }

    #[test]
    fn all_forms_are_read() {
        let unix = |path: &str| Address::Unix(path.into());
        for (text, address, export, tls) in [
            ("unix:/run/n.sock", unix("/run/n.sock"), None, false),
            ("tcp:host", tcp("host", 10809), None, false),
            ("tcp:host:1234", tcp("host", 1234), None, false),
            ("tcp:[::1]:1234", tcp("::1", 1234), None, false),
            (
                "tcp:[fe80::1%eth0]",
                tcp("fe80::1%eth0", 10809),
                None,
                false,
            ),
            ("nbd://host", tcp("host", 10809), None, false),
            ("//host/disk", tcp("host", 10809), Some("disk"), false),
            ("nbds://host:1/a%20b", tcp("host", 1), Some("a b"), true),
            (
                "nbd+unix:///disk?socket=/n%2c",
                unix("/n,"),
                Some("disk"),
                false,
            ),
            ("nbd+unix:///?socket=n", unix("n"), None, false),
            ("nbds+unix:///x?socket=/n", unix("/n"), Some("x"), true),
        ] {
            let expected = Target {
                address,
                export: export.map(str::to_owned),
                tls,
            };
            assert_eq!(Target::parse(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn others_are_refused() {
        for text in [
            "",
            "host",
            "unix:",
            "unix:a\0b",
            "tcp:",
            "tcp::1",
            "tcp:host:",
            "tcp:host:0",
            "tcp:host:65536",
            "tcp:[::1",
            "tcp:[::1]x",
            "tcp:a b",
            "http://host",
            "nbd+vsock://1",
            "nbd://host?socket=/n",
            "nbd+unix:///disk",
            "nbd+unix://host/disk?socket=/n",
            "nbd+unix:///?path=/n",
            "nbd://host/%2",
            "nbd://host/%zz",
            "nbd://host/%ff",
            "/path",
        ] {
            assert_eq!(Target::parse(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_shown_is_read() {
        for text in ["unix:/n", "tcp:host:1", "tcp:[::1]:10809"] {
            let target = Target::parse(text).unwrap();
            assert_eq!(target.address.to_string(), text);
        }
    }
}
