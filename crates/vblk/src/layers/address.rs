// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The addresses that `--metrics` takes.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::str::FromStr;

/// HOST:PORT, or :PORT for all addresses of this host. `Display` writes what `FromStr` reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    text: String,
    /// Those that the host has, in the order in which they are tried.
    found: Vec<SocketAddr>,
}

impl Address {
    /// Listens on the first that can be listened on.
    ///
    /// # Errors
    /// That of the last.
    pub fn bind(&self) -> io::Result<TcpListener> {
        TcpListener::bind(self.found.as_slice())
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let help = "write HOST:PORT or :PORT, for example 127.0.0.1:9477, localhost:9477, [::1]:9477 or :9477";
        let found: Vec<SocketAddr> = match text.strip_prefix(':') {
            Some(port) => {
                let port = port
                    .parse()
                    .map_err(|_| format!("`{port}` is no port: {help}"))?;
                // The first takes IPv4 as well; a host without IPv6 has the second.
                vec![
                    (Ipv6Addr::UNSPECIFIED, port).into(),
                    (Ipv4Addr::UNSPECIFIED, port).into(),
                ]
            }
            None => {
                let found = text.to_socket_addrs();
                let mut found: Vec<_> =
                    found.map_err(|error| format!("{error}: {help}"))?.collect();
                // What most clients take `localhost` for.
                found.sort_by_key(SocketAddr::is_ipv6);
                found
            }
        };
        Ok(Self {
            text: text.to_owned(),
            found,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let found = |text: &str| text.parse::<Address>().unwrap().found;
        assert_eq!(found("127.0.0.1:9477"), ["127.0.0.1:9477".parse().unwrap()]);
        assert_eq!(found("[::1]:1"), ["[::1]:1".parse().unwrap()]);
        assert_eq!(
            found(":9477"),
            [
                "[::]:9477".parse().unwrap(),
                "0.0.0.0:9477".parse().unwrap()
            ]
        );
        assert_eq!(
            found("localhost:9477").first(),
            Some(&"127.0.0.1:9477".parse().unwrap())
        );
        for wrong in ["", ":", ":x", ":70000", "9477", "127.0.0.1", "localhost:"] {
            let said = wrong.parse::<Address>().unwrap_err();
            assert!(said.contains("localhost:9477"), "{wrong}: {said}");
        }
    }
}
