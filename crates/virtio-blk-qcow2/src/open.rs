// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Opens an image and what it stands on.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use virtio_blk_core::disk::{
    Alignments, Caps, Disk, DiskError, EraseLimits, SECTOR_SIZE, Topology, ZeroLimits,
};

use crate::base::Base;
use crate::bitmaps::Bitmaps;
use crate::check::{Repair, check};
use crate::disk::Qcow2Disk;
use crate::error::OpenError;
use crate::extents::NamedFiles;
use crate::files::{Access, Files};
use crate::format::Header;
use crate::head;
use crate::image::Image;
use crate::lane::Lane;
use crate::layout::Layout;
use crate::listeners::Listeners;
use crate::medium::Medium;
use crate::options::Qcow2Options;
use crate::refcounts::Refcounts;
use crate::sync::lock;
use crate::tables::Tables;

/// Most images on top of each other.
const MAX_CHAIN: usize = 64;
/// Most segments in one erasing request.
const MAX_ERASE_SEGMENTS: u32 = 32;
/// Most sectors in one segment: 2 GiB.
const MAX_ERASE_SECTORS: u32 = 1 << 22;
/// Most bytes of L2 tables that are looked through while an image is opened.
const MAX_MENDED: u64 = 1 << 30;
/// Bytes that the host transfers best.
const PHYSICAL: u32 = 4096;

/// The files of a chain so far, so that none stands on itself.
#[derive(Debug, Default)]
pub struct Chain(Mutex<Vec<PathBuf>>);

impl Chain {
    /// Adds a file.
    ///
    /// # Errors
    /// It is in the chain already, or the chain is too long.
    pub fn add(&self, path: &Path) -> Result<(), OpenError> {
        let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let mut files = lock(&self.0);
        if files.contains(&real) {
            let what = "it is its own backing file, directly or through others";
            return Err(OpenError::damaged(path, what));
        }
        if files.len() == MAX_CHAIN {
            let what = format!("more than {MAX_CHAIN} images stand on each other");
            return Err(OpenError::damaged(path, what));
        }
        files.push(real);
        Ok(())
    }
}

/// What an image is opened with.
#[derive(Clone)]
pub struct Opening {
    /// Where it is, or what it is called.
    pub path: PathBuf,
    /// Opens what it names.
    pub files: Arc<dyn Files>,
    /// How it is to be used.
    pub options: Qcow2Options,
    /// What stands on it.
    pub chain: Arc<Chain>,
    /// Who wants to know of its changes.
    pub listeners: Arc<Listeners>,
}

impl Opening {
    /// How the image's own file is opened.
    pub const fn access(&self) -> Access {
        match self.options {
            Qcow2Options { inspect: true, .. } => Access::Look,
            Qcow2Options {
                read_only: true, ..
            } => Access::Read,
            _ => Access::Write,
        }
    }

    /// Opens the image's own file.
    ///
    /// # Errors
    /// It can't be opened.
    pub fn file(&self, access: Access) -> Result<Arc<dyn Disk>, OpenError> {
        (self.files.open(&self.path, access)).map_err(|error| OpenError::file(&self.path, error))
    }
}

/// What is said of an image by its header alone.
///
/// # Errors
/// See [`OpenError`].
pub fn header(disk: &Arc<dyn Disk>, opening: &Opening) -> Result<(Header, Vec<u8>), OpenError> {
    let path = &*opening.path;
    let failed = |error| OpenError::file(path, error);
    let medium = Arc::new(Medium::new(disk.clone()).map_err(failed)?);
    let mut lane = medium.lane().map_err(failed)?;
    let len = medium.len();
    let (header, first) = head::read(&mut lane, len, path)?;
    // Its tables are in order, only the counts may not be: nobody who only reads looks at them.
    if header.dirty && opening.options.is_writable() && !opening.options.repair {
        return Err(OpenError::Marked {
            path: path.to_owned(),
            mark: "dirty: it was not closed, and its refcounts may be out of date (repair=on mends them)",
        });
    }
    if let Some(backing) = &header.backing
        && !opening.options.backing
    {
        return Err(OpenError::BackingDenied {
            path: path.to_owned(),
            backing: backing.clone(),
        });
    }
    Ok((header, first))
}

/// What the disk of an image can do, by its header and the disk that its data is on.
///
/// # Errors
/// The two don't fit.
pub fn caps(header: &Header, below: &dyn Disk, opening: &Opening) -> Result<Caps, OpenError> {
    let path = &*opening.path;
    let block = below.caps().align.guest_block;
    if u64::from(block) > header.geometry.unit() {
        return Err(OpenError::unsupported(
            path,
            format!(
                "clusters smaller than the blocks of the disk below it ({block} bytes; try direct=off)"
            ),
        ));
    }
    if !header.size.is_multiple_of(block.into()) {
        return Err(OpenError::damaged(
            path,
            format!(
                "its size, {} bytes, is not a multiple of {block} bytes",
                header.size
            ),
        ));
    }
    let cluster = u32::try_from(header.geometry.cluster() / SECTOR_SIZE).unwrap_or(1);
    let physical = PHYSICAL.max(block);
    let read_only = opening.options.read_only;
    let mut caps = Caps {
        align: Alignments {
            guest_block: block,
            ..below.caps().align
        },
        topology: Topology {
            physical_block_exp: (physical / block).ilog2() as u8,
            alignment_offset: 0,
            min_io_size: u16::try_from(physical / block).unwrap_or(1),
            opt_io_size: (cluster * SECTOR_SIZE as u32 / block).max(1),
        },
        read_only,
        flush: true,
        ..Caps::basic(header.size / SECTOR_SIZE)
    };
    // Version 2 has no way to say that a cluster is zero although there is a backing file.
    if !read_only && header.version >= 3 {
        caps.discard = Some(EraseLimits {
            max_sectors: MAX_ERASE_SECTORS,
            max_segments: MAX_ERASE_SEGMENTS,
            alignment: cluster,
        });
        caps.write_zeroes = Some(ZeroLimits {
            max_sectors: MAX_ERASE_SECTORS,
            max_segments: MAX_ERASE_SEGMENTS,
            may_unmap: true,
        });
    }
    caps.validate()
        .map_err(|error| OpenError::damaged(path, error.to_string()))?;
    Ok(caps)
}

/// Opens an image on a disk.
///
/// # Errors
/// See [`OpenError`].
pub fn image(disk: &Arc<dyn Disk>, opening: &Opening) -> Result<Image, OpenError> {
    let (path, options) = (&*opening.path, opening.options);
    let failed = |error| OpenError::file(path, error);
    let (mut header, mut head) = header(disk, opening)?;
    if header.dirty && options.is_writable() {
        mend(disk, &header, path)?;
        (header, head) = self::header(disk, opening)?;
    }
    let medium = Arc::new(Medium::new(disk.clone()).map_err(failed)?);
    if options.is_writable() {
        // Clusters are written as a whole, also the last. On what can't grow, a part of a cluster at the end is not used.
        let whole = header.geometry.clusters(medium.len()) * header.geometry.cluster();
        match medium.ensure(whole) {
            Err(error) if !error.is_no_space() => return Err(failed(error)),
            Ok(()) | Err(_) => {}
        }
    }
    let mut lane = medium.lane().map_err(failed)?;
    let layout = Layout::read(&header, medium.len(), &mut lane).map_err(|error| error.of(path))?;
    let mut named = NamedFiles::default();
    let backing = match &header.backing {
        Some(name) => Some(backing(name, &header, opening, &mut named)?),
        None => None,
    };
    let base = Arc::new(Base::new(
        medium.clone(),
        &header,
        head,
        layout.tables,
        opening.listeners.clone(),
    ));
    let data = if header.external {
        data_file(&header, opening, &mut named)?
    } else {
        medium
    };
    if let Some((below, _)) = &backing
        && below.block() > data.block()
    {
        return Err(OpenError::unsupported(
            path,
            "a backing file with larger blocks",
        ));
    }
    let caps = caps(&header, data.disk(), opening)?;
    let tables = Tables::new(base.clone(), &header, &layout.l1);
    let refcounts = Refcounts::open(base.clone(), &header, &mut lane).map_err(failed)?;
    read_bitmaps(&header, &base, &mut lane, opening).map_err(failed)?;
    drop(lane);
    let mut image = Image::new(
        base,
        data,
        backing,
        tables,
        refcounts,
        &header,
        caps,
        options.discard,
        !options.is_writable(),
    );
    image.named = named;
    Ok(image)
}

/// Reads persistent bitmaps. Those that can't be kept up to date are told in the log.
fn read_bitmaps(
    header: &Header,
    base: &Base,
    lane: &mut Lane,
    opening: &Opening,
) -> Result<(), DiskError> {
    let writable = opening.options.is_writable();
    match Bitmaps::read(header, base, lane, writable)? {
        Ok(None) => {}
        Ok(Some(bitmaps)) => {
            // It was made for this image.
            let _ = base.bitmaps.set(bitmaps);
        }
        Err(error) => log::warn!(
            "{}: its persistent bitmaps are out of date after the first change, as they can't be used ({error})",
            opening.path.display()
        ),
    }
    Ok(())
}

/// Mends the counts of an image that was not closed, unless that takes long.
fn mend(disk: &Arc<dyn Disk>, header: &Header, path: &Path) -> Result<(), OpenError> {
    let failed = |error| OpenError::file(path, error);
    let medium = Arc::new(Medium::new(disk.clone()).map_err(failed)?);
    let mut lane = medium.lane().map_err(failed)?;
    let layout = Layout::read(header, medium.len(), &mut lane).map_err(|error| error.of(path))?;
    drop(lane);
    let tables = layout
        .l1
        .chunks(8)
        .filter(|entry| entry.iter().any(|byte| *byte != 0));
    let bytes = tables.count() as u64 * header.geometry.cluster();
    if bytes > MAX_MENDED {
        return Err(OpenError::Marked {
            path: path.to_owned(),
            mark: "dirty, and has more than 1 GiB of tables, which are not looked through while it is opened",
        });
    }
    log::warn!(
        "{} was not closed: its counts are mended, which reads all its tables ({} MiB)",
        path.display(),
        bytes.div_ceil(1 << 20)
    );
    let found = check(disk, path, Repair::Counts, &mut |done, all| {
        log::info!("{}: {done} of {all} clusters", path.display());
    })?;
    if found.is_sound() {
        return Ok(());
    }
    let first = found.told.into_iter().next().unwrap_or_default();
    Err(OpenError::damaged(
        path,
        format!("more is wrong than its counts ({first})"),
    ))
}

/// Where a file is that an image names.
fn resolve(name: &str, opening: &Opening) -> Result<PathBuf, OpenError> {
    let scheme = name.split('/').next().unwrap_or_default();
    if scheme.contains(':') {
        return Err(OpenError::Named {
            path: opening.path.clone(),
            name: name.to_owned(),
            why: "a protocol is named; only plain files are opened".into(),
        });
    }
    let directory = opening.path.parent().unwrap_or(Path::new(""));
    Ok(directory.join(name))
}

/// Opens the backing file.
fn backing(
    name: &str,
    header: &Header,
    opening: &Opening,
    into: &mut NamedFiles,
) -> Result<(Arc<Medium>, u64), OpenError> {
    let named = |why: String| OpenError::Named {
        path: opening.path.clone(),
        name: name.to_owned(),
        why,
    };
    let path = resolve(name, opening)?;
    into.backing = Some(path.clone());
    let access = if opening.options.inspect {
        Access::Look
    } else {
        Access::Read
    };
    let disk: Arc<dyn Disk> = match header.extensions.backing_format.as_deref() {
        Some("raw") => {
            opening.chain.add(&path)?;
            let disk = opening.files.open(&path, access);
            disk.map_err(|error| named(error.to_string()))?
        }
        Some("qcow2") => {
            let options = opening.options.read_only(true).handover(false);
            let disk = Qcow2Disk::open_as(Opening {
                path,
                options,
                // Its own events are none of the image's.
                listeners: Arc::default(),
                ..opening.clone()
            })?;
            let disk = Arc::new(disk);
            into.image = Some(disk.clone());
            disk
        }
        Some(other) => {
            return Err(named(format!("its format is {other}, not raw or qcow2")));
        }
        None => {
            return Err(named(format!(
                "the image does not name its format, which is never guessed, as a guest could choose it: `qemu-img rebase -u -b \
                 {name} -F raw {}` names it, or qcow2 in place of raw",
                opening.path.display()
            )));
        }
    };
    let medium = Medium::new(disk).map_err(|error| named(error.to_string()))?;
    let len = medium.len();
    Ok((Arc::new(medium), len))
}

/// Opens the external data file.
fn data_file(
    header: &Header,
    opening: &Opening,
    into: &mut NamedFiles,
) -> Result<Arc<Medium>, OpenError> {
    let Some(name) = &header.extensions.data_file else {
        return Err(OpenError::damaged(
            &opening.path,
            "it has an external data file without a name",
        ));
    };
    let named = |why: String| OpenError::Named {
        path: opening.path.clone(),
        name: name.clone(),
        why,
    };
    if !opening.options.backing {
        return Err(named(
            "with backing=allow it is opened, too. The image's author chose that file, and a guest can read and write \
             it; check it before"
                .into(),
        ));
    }
    let path = resolve(name, opening)?;
    into.data = Some(path.clone());
    let access = opening.access();
    opening.chain.add(&path)?;
    let disk = opening.files.open(&path, access);
    let disk = disk.map_err(|error| named(error.to_string()))?;
    let medium = Medium::new(disk).map_err(|error| named(error.to_string()))?;
    if access == Access::Write {
        let block = medium.block() as u64;
        medium
            .ensure(header.size.next_multiple_of(block))
            .map_err(|error| named(error.to_string()))?;
    }
    Ok(Arc::new(medium))
}
