// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An export as a disk.

use std::io;
use std::num::NonZeroU16;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::ioctl_fionbio;
use virtio_blk_core::disk::{Allocation, Caps, Disk, DiskError, DiskListener, Extent, IoQueue};

use crate::asked::Asked;
use crate::dial::{Connected, FURTHER_PATIENCE, PATIENCE, agree, dial};
use crate::flight::MAX_RANGE;
use crate::link::Link;
use crate::options::NbdOptions;
use crate::proto::ExportFlags;
use crate::queue::NbdQueue;
use crate::shared::Shared;
use crate::stream::Deadline;
use crate::{Address, NbdError};

/// How often the size is asked for at most, as that takes a connection.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// An export of an NBD server as a disk.
///
/// Connections are made when the disk and its queues are opened, and stay until all of them are dropped. Each queue has
/// one of its own if the server allows for that (CAN_MULTI_CONN); else, and beyond
/// [`NbdOptions::connections`], queues share them.
///
/// **Lost connections** are made anew in the background. Operations wait for that as long as
/// [`NbdOptions::reconnect`] says, are sent again, or fail. A write that is sent again may be executed twice: newer
/// operations on its range wait for it on all queues. What the lost connection's server still does with its copy nobody
/// can tell, as NBD has no way to fence it off.
///
/// **Stops.** Dropping a queue waits at most a second for replies to changes that the server has. Reads and flushes can
/// be cancelled at once, changes as long as the server does not have them.
///
/// **Requests without a reply** wait for as long as their connection lasts, unless [`NbdOptions::timeout`] says how long a
/// server may take.
pub struct NbdDisk {
    shared: Arc<Shared>,
    links: Mutex<Links>,
    /// When the size was asked for last.
    looked: Mutex<Instant>,
}

struct Links {
    all: Vec<Arc<Link>>,
    /// The most there can be.
    most: usize,
}

impl NbdDisk {
    /// Connects to the server, and agrees upon the export.
    ///
    /// # Errors
    /// The server can't be reached, has no such export, or one that can't be used. The message says what to do.
    pub fn open(options: &NbdOptions) -> Result<Self, DiskError> {
        let Some(address) = options.address().cloned() else {
            return Err(DiskError::Config("nbd: there is no address".to_owned()));
        };
        let connected = dial(options, &address, PATIENCE, false)?;
        Ok(Self::new(options, address, connected, true)?)
    }

    /// Agrees upon the export over a stream socket that is connected to the server, and that somebody passed in.
    /// It is the only connection, and is not made anew: once it is lost, every operation fails.
    ///
    /// # Errors
    /// As for [`NbdDisk::open`].
    pub fn over(options: &NbdOptions, socket: OwnedFd) -> Result<Self, DiskError> {
        let address = Address::Unix("(a socket that was passed in)".into());
        ioctl_fionbio(&socket, true).map_err(io::Error::from)?;
        let connected = agree(options, &address, socket, Deadline::after(PATIENCE), false)?;
        let options = options.clone().connections(NonZeroU16::MIN).reconnect(0);
        Ok(Self::new(&options, address, connected, false)?)
    }

    fn new(
        options: &NbdOptions,
        address: Address,
        connected: Connected,
        redials: bool,
    ) -> Result<Self, NbdError> {
        let multiple = redials && connected.export.can(ExportFlags::CAN_MULTI_CONN);
        let shared = Shared::new(options.clone(), address, connected.export, redials)?;
        let shared = Arc::new(shared);
        let link = Link::new(shared.clone(), connected);
        Ok(Self {
            shared,
            links: Mutex::new(Links {
                all: vec![link],
                most: if multiple {
                    options.most_connections()
                } else {
                    1
                },
            }),
            looked: Mutex::new(Instant::now()),
        })
    }

    /// Asks the server for the size, on a connection of its own: NBD has no other way. Listeners are told if it is new.
    ///
    /// # Errors
    /// The server can't be reached, or has no room for another connection; what was known before stays in force.
    pub fn read_size(&self) -> Result<(), DiskError> {
        let shared = &self.shared;
        let looked = dial(&shared.options, &shared.address, FURTHER_PATIENCE, true)?;
        shared.admits(&looked.export)?;
        shared.set_size(looked.export.size);
        Ok(())
    }

    /// The connection that the next queue uses.
    fn link(&self) -> Option<Arc<Link>> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let (fewest, link) = (links.all.iter())
            .map(|link| (link.member_count(), link))
            .min_by_key(|(count, _)| *count)?;
        if fewest == 0 {
            // Nobody has looked at it since its last queue.
            link.revive();
            return Some(link.clone());
        }
        if links.all.len() >= links.most {
            return Some(link.clone());
        }
        let shared = &self.shared;
        let dialed = dial(&shared.options, &shared.address, FURTHER_PATIENCE, false);
        let dialed = dialed.and_then(|connected| {
            shared.admits(&connected.export)?;
            Ok(connected)
        });
        match dialed {
            Ok(connected) => {
                let epoch = shared.durability.epoch();
                let known = |link: &Arc<Link>| link.leads_to(connected.peer);
                if !links.all.iter().all(known) {
                    // A flush on this one is not for what the others' server had.
                    shared.replaced(epoch);
                }
                let link = Link::new(shared.clone(), connected);
                links.all.push(link.clone());
                Some(link)
            }
            Err(error) => {
                let count = links.all.len();
                log::warn!(
                    "nbd:{}: no connection beside the {count} there are: {error}; queues share them",
                    shared.address
                );
                let link = link.clone();
                links.most = count;
                Some(link)
            }
        }
    }
}

impl Disk for NbdDisk {
    fn caps(&self) -> Caps {
        self.shared.caps()
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        let Some(link) = self.link() else {
            return Err(DiskError::Config("nbd: there is no connection".to_owned()));
        };
        Ok(Box::new(NbdQueue::open(self.shared.clone(), link, depth)?))
    }

    fn flush_error(&self) -> Option<DiskError> {
        self.shared.durability.check().err()
    }

    /// As [`NbdDisk::read_size`], but no more than once a minute, and not if the server has room for one connection
    /// only. A new size is also seen whenever a connection is made anew.
    fn refresh(&self) -> Result<(), DiskError> {
        if !self.shared.redials || !self.shared.can(ExportFlags::CAN_MULTI_CONN) {
            return Ok(());
        }
        {
            let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
            if looked.elapsed() < LOOK_EVERY {
                return Ok(());
            }
            *looked = Instant::now();
        }
        self.read_size()
    }

    /// As the server tells in the context `base:allocation`; all is data where it has none. Waits for the answer for 30
    /// seconds, and for [`NbdOptions::reconnect`] if the connection was lost.
    fn extents(&self, range: Range<u64>, most: usize) -> Result<Vec<Extent>, DiskError> {
        let caps = self.shared.caps();
        let len = range.end.saturating_sub(range.start);
        if len == 0 || !caps.contains(range.start, len) {
            return Err(DiskError::OutOfRange);
        }
        let all = |len| {
            let allocation = Allocation::Data;
            Ok(vec![Extent { len, allocation }])
        };
        let block = caps.align.guest_block.into();
        let link = {
            let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
            links.all.first().cloned()
        };
        let Some(link) = link.filter(|_| self.shared.tells_allocation()) else {
            return all(len);
        };
        if link.member_count() == 0 {
            // Nobody has looked at it since its last queue.
            link.revive();
        }
        // So that it is within the limit at bounds of blocks, too.
        let end = range.end.min(range.start + (MAX_RANGE - 2 * block));
        match link.ask(Asked::new(range.start..end, block, most)) {
            // Since the connection was made anew.
            Err(DiskError::Unsupported) => all(len),
            answer => answer,
        }
    }

    fn listen(&self, listener: DiskListener) {
        self.shared.listen(listener);
    }
}
