// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A writer for the `newc` archive the kernel unpacks as its first root file system.
//!
//! Own code because device nodes must go in without being root, and because the format is one header of
//! 110 ASCII characters per file.

use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// Writes one archive. Everything belongs to root and has no time stamp, so equal input gives equal bytes.
pub struct Writer<W: Write> {
    out: W,
    inode: u32,
}

impl<W: Write> Writer<W> {
    /// Starts an archive at the current end of `out`, which must be a multiple of 4 bytes long.
    pub fn new(out: W) -> Self {
        Self { out, inode: 0 }
    }

    /// Adds a character device.
    ///
    /// # Errors
    /// As for each method here: those of the underlying writer, and names or contents of 4 GiB and more.
    pub fn character_device(&mut self, name: &str, major: u32, minor: u32) -> io::Result<()> {
        self.entry(name.as_bytes(), CHARACTER | 0o600, (major, minor), &[])
    }

    /// Adds what is inside the directory `root`, sorted by name, links as links.
    ///
    /// # Errors
    /// See [`Writer::character_device`]; also those of reading the tree.
    pub fn tree(&mut self, root: &Path) -> io::Result<()> {
        self.subtree(root, root)
    }

    fn subtree(&mut self, root: &Path, directory: &Path) -> io::Result<()> {
        let mut entries = fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let relative = path.strip_prefix(root).unwrap_or(&path).to_owned();
            let name = relative.as_os_str().as_bytes();
            let metadata = fs::symlink_metadata(&path)?;
            let kind = metadata.file_type();
            let permissions = metadata.permissions().mode() & 0o7777;
            if kind.is_symlink() {
                let target = fs::read_link(&path)?;
                self.entry(name, SYMLINK | 0o777, (0, 0), target.as_os_str().as_bytes())?;
            } else if kind.is_dir() {
                self.entry(name, DIRECTORY | permissions, (0, 0), &[])?;
                self.subtree(root, &path)?;
            } else if kind.is_file() {
                self.entry(name, REGULAR | permissions, (0, 0), &fs::read(&path)?)?;
            }
        }
        Ok(())
    }

    /// Ends the archive and gives the writer back.
    ///
    /// # Errors
    /// See [`Writer::character_device`].
    pub fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.entry(b"TRAILER!!!", 0, (0, 0), &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, name: &[u8], mode: u32, device: (u32, u32), data: &[u8]) -> io::Result<()> {
        let size = u32::try_from(data.len()).map_err(io::Error::other)?;
        let name_size = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
        self.inode += 1;
        // The fields after the magic, in the format's order; the check field is unused in newc.
        let fields = [
            self.inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0,
        ];
        self.out.write_all(b"070701")?;
        for field in fields {
            write!(self.out, "{field:08x}")?;
        }
        self.out.write_all(name)?;
        self.out.write_all(&[0])?;
        self.pad(6 + 8 * fields.len() + name.len() + 1)?;
        self.out.write_all(data)?;
        self.pad(data.len())
    }

    fn pad(&mut self, written: usize) -> io::Result<()> {
        self.out
            .write_all(&[0; 3][..written.next_multiple_of(4) - written])
    }
}
