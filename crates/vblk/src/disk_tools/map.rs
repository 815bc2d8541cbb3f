// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vblk disk map`.

use std::error::Error;
use std::fs::File;
use std::io::{self, IsTerminal, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use rustix::fs::{SeekFrom as Offset, seek};
use serde::Serialize;
use virtio_blk_core::disk::{Disk, DiskError};
use virtio_blk_qcow2::{ChainFile, Extent, Qcow2Disk, Qcow2Options, Where};

use super::arg::{Format, Image};
use super::open;
use crate::output::{self, OutputError};
use crate::progress::Progress;

/// What `--help` says at its end.
pub const HELP: &str = "\
A DISK is raw:PATH, qcow2:PATH or qcow2:PATH,backing=allow (the files that it
names are opened, too; for trusted images only). It is neither locked nor
changed; what somebody changes meanwhile may or may not be seen.

A line for each part that is all of one kind:
  START LENGTH  bytes of the guest's disk
  DEPTH         0: in the image; 1: in its backing file; and so on
  KIND          data; compressed; zero: it reads as zeroes, and the image says
                so; none: nobody has written it, and it reads as zeroes
  OFFSET FILE   where data is
With --json each line is an object with the names of qemu-img map.

Examples:
  vblk disk map qcow2:disk.qcow2
  vblk disk map --json qcow2:child.qcow2,backing=allow
  vblk disk map raw:disk.img";

/// Options of `disk map`.
#[derive(Debug, Args)]
pub struct MapArgs {
    /// The disk; see below.
    #[arg(value_name = "DISK")]
    disk: Image,
}

/// Extents that are asked for at a time.
const MOST: usize = 4096;

/// A part of the disk. Field names are the JSON's.
#[derive(Serialize)]
struct Line<'a> {
    start: u64,
    length: u64,
    depth: usize,
    present: bool,
    zero: bool,
    data: bool,
    compressed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    filename: Option<&'a Path>,
}

impl Line<'_> {
    const fn kind(&self) -> &'static str {
        match self {
            Self {
                compressed: true, ..
            } => "compressed",
            Self { data: true, .. } => "data",
            Self { present: true, .. } => "zero",
            _ => "none",
        }
    }
}

/// Writes lines.
struct Lines<'a> {
    chain: &'a [ChainFile],
    json: bool,
    text: String,
}

impl<'a> Lines<'a> {
    fn new(chain: &'a [ChainFile], json: bool) -> Self {
        let text = match json {
            true => String::new(),
            false => row(&["START", "LENGTH", "DEPTH", "KIND", "OFFSET", "FILE"]),
        };
        Self { chain, json, text }
    }

    fn add(&mut self, extent: Extent) -> Result<(), Box<dyn Error>> {
        let (place, file) = (extent.place, self.chain.get(extent.depth));
        let offset = match place {
            Where::Data(offset) => Some(offset),
            _ => None,
        };
        let compressed = place == Where::Compressed;
        let data = compressed || offset.is_some();
        let file = file.filter(|_| data);
        let line = Line {
            start: extent.offset,
            length: extent.len,
            depth: extent.depth,
            present: place != Where::Unallocated,
            zero: !data,
            data,
            compressed,
            offset,
            filename: file.map(|file| file.data_file.as_deref().unwrap_or(&file.path)),
        };
        if self.json {
            self.text += &serde_json::to_string(&line)?;
            self.text.push('\n');
            return Ok(());
        }
        self.text += &row(&[
            &line.start.to_string(),
            &line.length.to_string(),
            &line.depth.to_string(),
            line.kind(),
            &line.offset.map_or_else(String::new, |at| at.to_string()),
            &line
                .filename
                .map_or_else(String::new, |path| path.display().to_string()),
        ]);
        Ok(())
    }

    fn write(&mut self) -> Result<(), OutputError> {
        output::write(&std::mem::take(&mut self.text))
    }
}

/// A line of a table.
fn row([start, length, depth, kind, offset, file]: &[&str; 6]) -> String {
    let line = format!("{start:>15}  {length:>15}  {depth:>5}  {kind:<10}  {offset:>15}  {file}");
    format!("{}\n", line.trim_end())
}

/// Shows what is where.
pub fn run(args: &MapArgs, json: bool) -> Result<(), Box<dyn Error>> {
    let path = &*args.disk.path;
    // It would be drawn in the middle of the lines.
    let quiet = json || std::io::stdout().is_terminal();
    let mut progress = Progress::new("mapping", quiet);
    if args.disk.format == Format::Raw {
        let chain = [ChainFile::raw(path)];
        let mut lines = Lines::new(&chain, json);
        let file = RawFile::open(path)?;
        file.holes(Extent::data(0..file.len, 0), &mut |extent| {
            lines.add(extent)
        })?;
        return Ok(lines.write()?);
    }
    let look = Qcow2Options::new().inspect(true).backing(args.disk.backing);
    let disk = Qcow2Disk::open(path, Arc::new(open), look)?;
    let (chain, size) = (disk.chain()?, disk.caps().capacity_bytes());
    // Of a raw file at the end, the host knows where nothing is.
    let last = chain.last().filter(|file| file.raw);
    let last = last.map(|file| RawFile::open(&file.path)).transpose()?;
    let mut lines = Lines::new(&chain, json);
    let mut at = 0;
    loop {
        let extents = disk.map(at, MOST)?;
        for extent in &extents {
            match &last {
                Some(file) if extent.depth + 1 == chain.len() => {
                    file.holes(*extent, &mut |extent| lines.add(extent))?;
                }
                _ => lines.add(*extent)?,
            }
            at = extent.offset + extent.len;
        }
        lines.write()?;
        progress.tell(at, size);
        if extents.is_empty() || at >= size {
            return Ok(());
        }
    }
}

/// A raw file.
struct RawFile {
    file: File,
    path: PathBuf,
    len: u64,
}

impl RawFile {
    fn open(path: &Path) -> Result<Self, DiskError> {
        let named = |error: io::Error| DiskError::Config(format!("{}: {error}", path.display()));
        let mut file = File::open(path).map_err(named)?;
        Ok(Self {
            len: file.seek(SeekFrom::End(0)).map_err(named)?,
            path: path.to_owned(),
            file,
        })
    }

    /// Takes apart what the file system has and what it has not.
    fn holes(
        &self,
        extent: Extent,
        each: &mut dyn FnMut(Extent) -> Result<(), Box<dyn Error>>,
    ) -> Result<(), Box<dyn Error>> {
        if extent.place == Where::Unallocated {
            return each(extent);
        }
        let (mut at, end) = (extent.offset, extent.offset + extent.len);
        while at < end {
            let data = self.next(Offset::Data(at), at, end)?;
            if data > at {
                each(Extent::zero(at..data, extent.depth))?;
            }
            at = data;
            if at < end {
                let hole = self.next(Offset::Hole(at), end, end)?;
                // A file that is changed meanwhile must not hold it up.
                let hole = hole.max(at + 1);
                each(Extent::data(at..hole, extent.depth))?;
                at = hole;
            }
        }
        Ok(())
    }

    /// Where data, or a hole, is next, up to `end`; `unknown` where the file system can't say.
    fn next(&self, what: Offset, unknown: u64, end: u64) -> Result<u64, DiskError> {
        match seek(&self.file, what) {
            Ok(at) => Ok(at.min(end)),
            // There is none up to the end.
            Err(rustix::io::Errno::NXIO) => Ok(end),
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => Ok(unknown),
            Err(error) => Err(DiskError::Config(format!(
                "{}: {error}",
                self.path.display()
            ))),
        }
    }
}
