// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A connection of the `blkio` driver, with memory for its requests.

use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use blkio::{Blkio, Blkioq, Errno};

use crate::Error;

/// How long requests in flight may make no progress. Generous: a busy machine must not fail a check.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a connection may be refused.
const START: Duration = Duration::from_secs(10);

/// How to connect.
#[derive(Clone, Debug)]
pub struct Options {
    /// A vhost-user server's socket, or a vhost-vdpa device.
    pub socket: PathBuf,
    /// Queues to set up, at least one.
    pub queues: usize,
    /// Entries of each queue, a power of two.
    pub queue_size: u16,
    /// Busy-wait for completions instead of sleeping.
    pub poll: bool,
    /// Accept a read-only device, and refuse to write to any.
    pub read_only: bool,
    /// Bytes of shared memory for each queue.
    pub memory: usize,
}

/// What the device says of itself. Lengths in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Properties {
    /// Size of the disk.
    pub capacity: u64,
    /// Offsets and lengths are multiples of it.
    pub block: usize,
    /// Most data segments of a request.
    pub max_segments: usize,
    /// Longest discard, 0 if there is none.
    pub max_discard: u64,
    /// Longest write-zeroes, 0 if there is none.
    pub max_write_zeroes: u64,
    /// Most queues.
    pub max_queues: usize,
}

/// A started device. It must outlive its [`Queue`]s: they are handed out once, by [`Client::start`].
pub struct Client {
    /// Never used again, but the queues need what it holds.
    _driver: Blkio,
    properties: Properties,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("properties", &self.properties)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Connects and sets up all queues.
    ///
    /// # Errors
    /// The driver's, with the step that failed.
    pub fn start(options: &Options) -> Result<(Self, Vec<Queue>), Error> {
        let mut driver = connect(&options.socket, options.read_only)?;
        let properties = properties(&driver)?;
        let queues = i32::try_from(options.queues).unwrap_or(i32::MAX);
        let (ours, other) = if options.poll {
            ("num-poll-queues", "num-queues")
        } else {
            ("num-queues", "num-poll-queues")
        };
        driver.set_i32(ours, queues).map_err(Error::driver(ours))?;
        driver.set_i32(other, 0).map_err(Error::driver(other))?;
        driver
            .set_i32("queue-size", options.queue_size.into())
            .map_err(Error::driver("queue-size"))?;
        let outcome = driver.start().map_err(Error::driver("start"))?;

        let mut queues = Vec::new();
        for (index, queue) in outcome
            .queues
            .into_iter()
            .chain(outcome.poll_queues)
            .enumerate()
        {
            let region = driver
                .alloc_mem_region(options.memory)
                .map_err(Error::driver("alloc_mem_region"))?;
            driver
                .map_mem_region(&region)
                .map_err(Error::driver("map_mem_region"))?;
            queues.push(Queue {
                queue,
                index,
                memory: Memory {
                    base: region.addr as *mut u8,
                    len: region.len,
                },
                completions: [const { MaybeUninit::uninit() }; Queue::BATCH],
            });
        }
        let client = Self {
            _driver: driver,
            properties,
        };
        Ok((client, queues))
    }

    /// What the device said when it was connected.
    pub fn properties(&self) -> Properties {
        self.properties
    }
}

fn connect(socket: &Path, read_only: bool) -> Result<Blkio, Error> {
    let path = socket
        .to_str()
        .ok_or_else(|| Error::Config(format!("{} is not UTF-8", socket.display())))?;
    let is_device =
        std::fs::metadata(socket).is_ok_and(|metadata| metadata.file_type().is_char_device());
    let name = if is_device {
        "virtio-blk-vhost-vdpa"
    } else {
        "virtio-blk-vhost-user"
    };
    let mut driver = Blkio::new(name).map_err(Error::driver(name))?;
    driver
        .set_str("path", path)
        .map_err(Error::driver("path"))?;
    driver
        .set_bool("read-only", read_only)
        .map_err(Error::driver("read-only"))?;
    let started = Instant::now();
    loop {
        match driver.connect() {
            Ok(()) => return Ok(driver),
            // A server's socket is there a moment before it listens.
            Err(e) if e.errno() == Errno::CONNREFUSED && started.elapsed() < START => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(source) => {
                return Err(Error::Driver {
                    step: "connect",
                    source,
                });
            }
        }
    }
}

fn properties(driver: &Blkio) -> Result<Properties, Error> {
    let wide = |name| driver.get_u64(name).map_err(Error::driver(name));
    let narrow = |name| match driver.get_i32(name) {
        Ok(value) => usize::try_from(value)
            .map_err(|_| Error::Config(format!("the device states {name} = {value}"))),
        Err(source) => Err(Error::Driver { step: name, source }),
    };
    Ok(Properties {
        capacity: wide("capacity")?,
        block: narrow("request-alignment")?,
        max_segments: narrow("max-segments")?,
        max_discard: wide("max-discard-len")?,
        max_write_zeroes: wide("max-write-zeroes-len")?,
        max_queues: narrow("max-queues")?,
    })
}

/// The end of a request.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    /// The number given with the request.
    pub slot: usize,
    /// Zero or a negative `errno`.
    pub ret: i32,
}

/// One queue and its memory, for one thread.
pub struct Queue {
    queue: Blkioq,
    index: usize,
    memory: Memory,
    completions: [MaybeUninit<blkio::Completion>; Self::BATCH],
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

impl Queue {
    /// Most completions taken at a time.
    pub const BATCH: usize = 128;

    /// Its number.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The driver's queue, to submit requests to.
    pub fn driver(&mut self) -> &mut Blkioq {
        &mut self.queue
    }

    /// The memory shared with the device. The caller must only pass addresses inside it to the device.
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// Polls readable when a request has completed since it was last read: an eventfd.
    ///
    /// # Errors
    /// A queue that is polled has none.
    pub fn completion_fd(&self) -> Result<RawFd, Error> {
        let fd = self.queue.get_completion_fd();
        fd.ok_or_else(|| Error::Config("a polled queue has no completion descriptor".into()))
    }

    /// Submits what was queued, waits until something completed and appends that to `done`.
    ///
    /// # Errors
    /// Nothing completed for a minute, or the driver failed.
    pub fn wait(&mut self, in_flight: usize, done: &mut Vec<Completion>) -> Result<(), Error> {
        let mut patience = PATIENCE;
        match self.io(1, Some(&mut patience), done) {
            Err(Error::Driver { source, .. }) if source.errno() == Errno::TIME => {
                Err(Error::Lost {
                    queue: self.index,
                    in_flight,
                    waited: PATIENCE,
                })
            }
            other => other.map(drop),
        }
    }

    /// Submits what was queued and appends to `done` what has completed, without waiting; at most [`Queue::BATCH`].
    /// Returns how many.
    ///
    /// # Errors
    /// The driver failed.
    pub fn take(&mut self, done: &mut Vec<Completion>) -> Result<usize, Error> {
        self.io(0, None, done)
    }

    fn io(
        &mut self,
        least: usize,
        patience: Option<&mut Duration>,
        done: &mut Vec<Completion>,
    ) -> Result<usize, Error> {
        let count = self
            .queue
            .do_io(&mut self.completions, least, patience, None)
            .map_err(Error::driver("do_io"))?;
        for completion in &self.completions[..count] {
            // SAFETY: `do_io` has filled the first `count`.
            let completion = unsafe { completion.assume_init_ref() };
            done.push(Completion {
                slot: completion.user_data,
                ret: completion.ret,
            });
        }
        Ok(count)
    }
}

/// Memory shared with the device. Only the thread of the queue it belongs to uses it, and only the
/// parts that are not in flight.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    base: *mut u8,
    len: usize,
}

// SAFETY: a plain address; the mapping lives as long as the driver's queue it comes with.
unsafe impl Send for Memory {}

impl Memory {
    /// The address of byte `offset`.
    ///
    /// # Panics
    /// `len` bytes from `offset` on are not inside: a mistake of the caller.
    pub fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset <= self.len && len <= self.len - offset);
        self.base.wrapping_add(offset)
    }

    /// The bytes, to fill them before a request or to look at them afterwards.
    ///
    /// # Safety
    /// The device does not access these bytes, nor does anyone else, while the slice lives; and the
    /// queue that the memory came with is still there.
    ///
    /// # Panics
    /// As for [`Memory::at`].
    pub unsafe fn bytes<'a>(&self, offset: usize, len: usize) -> &'a mut [u8] {
        // SAFETY: inside the mapping; the caller guarantees exclusive use and that it lives.
        unsafe { std::slice::from_raw_parts_mut(self.at(offset, len), len) }
    }
}
