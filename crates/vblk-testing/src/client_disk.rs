// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a vhost-user server serves, by the `blkio` driver, as a disk: so a VDUSE device can be made of it, and programs
//! that want a block device can use the server.

use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blkio::ReqFlags;
use virtio_blk_core::disk::{
    Alignments, Caps, Completion, Disk, DiskError, EraseLimits, IoQueue, Op, OpKind, Submit, Wait,
    ZeroLimits,
};

use crate::client::{self, Client, Options, Properties, Queue};
use crate::{Error, SECTOR};

/// Requests in flight on a queue.
pub const DEPTH: u16 = 64;
/// Longest read or write in bytes: more than the kernel's block layer asks for.
const SLOT: usize = 4 << 20;

/// The queues that nobody has opened, with the driver, which must outlive them all.
struct Idle {
    queues: Vec<Queue>,
    _client: Client,
}

/// The disk.
pub struct ClientDisk {
    caps: Caps,
    idle: Arc<Mutex<Idle>>,
}

impl ClientDisk {
    /// Connects to the server.
    ///
    /// # Errors
    /// The driver's, or the server's disk is none for us.
    pub fn connect(socket: &Path, queues: u16) -> Result<Self, Error> {
        let options = Options {
            socket: socket.to_owned(),
            queues: queues.into(),
            // A request is up to three descriptors.
            queue_size: 4 * DEPTH,
            poll: false,
            read_only: false,
            memory: usize::from(DEPTH) * SLOT,
        };
        let (client, mut opened) = Client::start(&options)?;
        for queue in &mut opened {
            queue.driver().set_completion_fd_enabled(true);
        }
        let caps = caps(&client.properties(), queues)?;
        let idle = Idle {
            queues: opened,
            _client: client,
        };
        Ok(Self {
            caps,
            idle: Arc::new(Mutex::new(idle)),
        })
    }
}

fn caps(properties: &Properties, queues: u16) -> Result<Caps, Error> {
    let sectors = |bytes: u64| u32::try_from(bytes / SECTOR as u64).unwrap_or(u32::MAX);
    let block = u32::try_from(properties.block)
        .map_err(|_| Error::Config(format!("blocks of {} bytes", properties.block)))?;
    let (discard, zeroes) = (properties.max_discard, properties.max_write_zeroes);
    let caps = Caps {
        align: Alignments {
            guest_block: block,
            host_offset: block,
            host_memory: 1,
        },
        flush: true,
        discard: (discard != 0).then(|| EraseLimits {
            max_sectors: sectors(discard),
            max_segments: 1,
            alignment: sectors(block.into()),
        }),
        write_zeroes: (zeroes != 0).then(|| ZeroLimits {
            max_sectors: sectors(zeroes),
            max_segments: 1,
            may_unmap: true,
        }),
        max_queues: queues,
        ..Caps::basic(properties.capacity / SECTOR as u64)
    };
    let invalid = |error| Error::Config(format!("the server's disk: {error}"));
    caps.validate().map_err(invalid)?;
    Ok(caps)
}

fn lock(idle: &Mutex<Idle>) -> MutexGuard<'_, Idle> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}

fn broken(error: Error) -> DiskError {
    DiskError::Io(io::Error::other(error))
}

impl Disk for ClientDisk {
    fn caps(&self) -> Caps {
        self.caps
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        if depth > DEPTH {
            return Err(DiskError::Config(format!(
                "{depth} requests in flight, this disk takes {DEPTH}"
            )));
        }
        let queue = lock(&self.idle).queues.pop();
        let queue = queue.ok_or_else(|| DiskError::Config("all queues are open".into()))?;
        let fd = queue.completion_fd().map_err(broken)?;
        Ok(Box::new(ClientQueue {
            queue: Some(queue),
            fd,
            slots: (0..DEPTH).map(|_| None).collect(),
            free: (0..DEPTH.into()).collect(),
            ended: Vec::new(),
            idle: self.idle.clone(),
        }))
    }
}

struct ClientQueue {
    /// There until this is dropped.
    queue: Option<Queue>,
    fd: RawFd,
    slots: Vec<Option<Op>>,
    free: Vec<usize>,
    ended: Vec<client::Completion>,
    idle: Arc<Mutex<Idle>>,
}

impl ClientQueue {
    fn queue(&mut self) -> Result<&mut Queue, DiskError> {
        self.queue.as_mut().ok_or(DiskError::Cancelled)
    }

    fn start(&mut self, slot: usize, op: &Op) -> Result<(), DiskError> {
        let len = op.buf.len();
        if len > SLOT {
            return Err(DiskError::OutOfRange);
        }
        let queue = self.queue()?;
        let (memory, at) = (queue.memory(), slot * SLOT);
        let driver = queue.driver();
        let flag = |set, flag| if set { flag } else { ReqFlags::empty() };
        match op.kind {
            OpKind::Read { offset } => {
                driver.read(offset, memory.at(at, len), len, slot, ReqFlags::empty());
            }
            OpKind::Write { offset, fua } => {
                // SAFETY: the slot is free, so nobody else uses its part of the memory, and the queue is there.
                op.buf.copy_out(0, unsafe { memory.bytes(at, len) });
                let flags = flag(fua, ReqFlags::FUA);
                driver.write(offset, memory.at(at, len), len, slot, flags);
            }
            OpKind::Flush => driver.flush(slot, ReqFlags::empty()),
            OpKind::Discard { offset, len } => {
                driver.discard(offset, len, slot, ReqFlags::empty());
            }
            OpKind::WriteZeroes {
                offset,
                len,
                unmap,
                fua,
            } => {
                let flags = flag(!unmap, ReqFlags::NO_UNMAP) | flag(fua, ReqFlags::FUA);
                driver.write_zeroes(offset, len, slot, flags);
            }
            _ => return Err(DiskError::Unsupported),
        }
        Ok(())
    }

    /// Takes what has completed.
    fn finish(&mut self, done: &mut Vec<Completion>) -> Result<(), DiskError> {
        for client::Completion { slot, ret } in std::mem::take(&mut self.ended) {
            let op = self.slots.get_mut(slot).and_then(Option::take);
            let op = op.ok_or_else(|| broken(Error::Spurious { queue: 0, slot }))?;
            let result = match ret {
                0 => Ok(()),
                errno => Err(DiskError::from_errno(-errno)),
            };
            if let (Ok(()), OpKind::Read { .. }) = (&result, op.kind) {
                let memory = self.queue()?.memory();
                // SAFETY: the device is done with the slot, and the queue is there.
                op.buf
                    .copy_in(0, unsafe { memory.bytes(slot * SLOT, op.buf.len()) });
            }
            self.free.push(slot);
            done.push(op.complete(result));
        }
        Ok(())
    }
}

impl IoQueue for ClientQueue {
    fn submit(&mut self, op: Op) -> Submit {
        let Some(slot) = self.free.pop() else {
            return Submit::Full(op);
        };
        if let Err(error) = self.start(slot, &op) {
            self.free.push(slot);
            return Submit::Done(op.complete(Err(error)));
        }
        if let Some(place) = self.slots.get_mut(slot) {
            *place = Some(op);
        }
        Submit::Queued
    }

    fn flush_batch(&mut self) -> Result<(), DiskError> {
        let mut ended = std::mem::take(&mut self.ended);
        let taken = self.queue()?.take(&mut ended).map_err(broken);
        self.ended = ended;
        if taken? != 0 {
            // `reap` comes when the descriptor says so.
            let one = 1_u64.to_ne_bytes();
            // SAFETY: eight bytes to an eventfd that the queue keeps open.
            unsafe { libc::write(self.fd, one.as_ptr().cast(), one.len()) };
        }
        Ok(())
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        let before = done.len();
        let mut count = [0_u8; 8];
        // SAFETY: room for the eight bytes of an eventfd, which does not block and which the queue keeps open.
        unsafe { libc::read(self.fd, count.as_mut_ptr().cast(), count.len()) };
        loop {
            let mut ended = std::mem::take(&mut self.ended);
            let taken = self.queue()?.take(&mut ended).map_err(broken);
            self.ended = ended;
            self.finish(done)?;
            if taken? < Queue::BATCH {
                return Ok(done.len() - before);
            }
        }
    }

    fn wait(&self) -> Wait<'_> {
        // SAFETY: the queue keeps it open.
        Wait::Fd(unsafe { BorrowedFd::borrow_raw(self.fd) })
    }
}

impl Drop for ClientQueue {
    fn drop(&mut self) {
        let Some(mut queue) = self.queue.take() else {
            return;
        };
        let mut in_flight = self.slots.iter().flatten().count() - self.ended.len();
        while in_flight != 0 {
            self.ended.clear();
            if queue.wait(in_flight, &mut self.ended).is_err() {
                // The device may still write there: never again.
                std::mem::forget(queue);
                return;
            }
            in_flight -= self.ended.len();
        }
        lock(&self.idle).queues.push(queue);
    }
}
