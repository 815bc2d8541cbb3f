// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Servers of other programs, which tests.sh installs.
#![allow(dead_code)] // Each test binary uses a part of it.

use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use virtio_blk_nbd::{Address, NbdOptions};

/// A server that serves a file.
pub struct Server {
    directory: tempfile::TempDir,
    address: Address,
    program: &'static str,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl Server {
    /// `qemu-nbd` with a file of `size` bytes, each of them known.
    pub fn qemu_nbd(size: usize, options: &[&str]) -> Self {
        let directory = image(size);
        let socket = directory.path().join("n.sock");
        let mut arguments = words(&["--persistent", "-f", "raw", "-k"]);
        arguments.push(text(&socket));
        arguments.extend(words(options));
        arguments.push(text(&directory.path().join("disk.img")));
        Self::start(directory, Address::Unix(socket), "qemu-nbd", arguments)
    }

    /// `nbdkit` with a file of `size` bytes, each of them known.
    pub fn nbdkit(size: usize, tcp: bool, filters: &[&str], parameters: &[&str]) -> Self {
        let filters: Vec<String> = filters
            .iter()
            .map(|name| format!("--filter={name}"))
            .collect();
        let filters: Vec<&str> = filters.iter().map(String::as_str).collect();
        Self::nbdkit_with(size, tcp, &filters, parameters)
    }

    /// The same with options, and parameters of its filters.
    pub fn nbdkit_with(size: usize, tcp: bool, options: &[&str], parameters: &[&str]) -> Self {
        let directory = image(size);
        let socket = directory.path().join("n.sock");
        let mut arguments = words(&["--foreground"]);
        let address = if tcp {
            // Free now, and hardly taken until it is bound again.
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            arguments.extend(words(&["-i", "127.0.0.1", "-p", &port.to_string()]));
            let host = "127.0.0.1".to_owned();
            Address::Tcp { host, port }
        } else {
            arguments.push("-U".to_owned());
            arguments.push(text(&socket));
            Address::Unix(socket)
        };
        arguments.extend(words(options));
        arguments.push("file".to_owned());
        arguments.push(text(&directory.path().join("disk.img")));
        arguments.extend(words(parameters));
        Self::start(directory, address, "nbdkit", arguments)
    }

    fn start(
        directory: tempfile::TempDir,
        address: Address,
        program: &'static str,
        arguments: Vec<String>,
    ) -> Self {
        let mut server = Self {
            directory,
            address,
            program,
            arguments,
            child: None,
        };
        server.run();
        server
    }

    /// Starts the program, and waits until it listens.
    pub fn run(&mut self) {
        if let Address::Unix(path) = &self.address {
            let _ = std::fs::remove_file(path);
        }
        let child = Command::new(self.program)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .spawn();
        self.child = Some(child.unwrap_or_else(|error| panic!("{}: {error}", self.program)));
        let since = Instant::now();
        while !self.listens() {
            assert!(
                since.elapsed() < Duration::from_secs(20),
                "{} does not listen",
                self.program
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn listens(&self) -> bool {
        match &self.address {
            Address::Unix(path) => UnixStream::connect(path).is_ok(),
            Address::Tcp { host, port } => TcpStream::connect((host.as_str(), *port)).is_ok(),
        }
    }

    /// Ends the program at once.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn options(&self) -> NbdOptions {
        NbdOptions::new(self.address.clone())
    }

    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The file that it serves.
    pub fn file(&self) -> PathBuf {
        self.directory.path().join("disk.img")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn image(size: usize) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..size).map(|i| (i / 512) as u8 | 1).collect();
    std::fs::write(directory.path().join("disk.img"), content).unwrap();
    directory
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}
