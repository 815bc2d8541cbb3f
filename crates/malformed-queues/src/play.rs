// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Playing a case against a device, and judging the device.

use virtio_queue::QueueState;
use vm_memory::GuestAddress;

use super::{Case, Expect, HostileError, HostileRing, Planned};
use crate::testmem::Space;
use virtio_blk_driver::wire::{S_OK, S_UNWRITTEN};
use virtio_blk_driver::{AccessError, Memory};

/// What a device is started with.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Addresses, size and position of the queue, as a hostile driver set them.
    /// `max_size` is the size that the device has to offer.
    pub state: QueueState,
    /// `VIRTIO_F_INDIRECT_DESC` is negotiated.
    pub indirect: bool,
    /// The medium must keep operations in flight: those submitted during one [`Subject::service`] are
    /// completed at the beginning of the next. Else they may complete whenever they like, as long as
    /// `service` waits for all of them.
    pub deferred: bool,
}

/// How a queue is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// The queue works.
    Running,
    /// The queue refused to start, or stopped for good: the transport sets `DEVICE_NEEDS_RESET`.
    Latched,
}

/// A device with a writable medium of 64 sectors of 512 bytes or more (less than 4 GiB), on which nothing else happens.
/// It offers no discard, no write-zeroes and no secure erase.
pub trait Subject {
    /// Starts the queue. Called once.
    fn start(&mut self, setup: &Setup) -> Health;

    /// Does all that can be done now, as after a kick, and waits until no operation is in flight
    /// (but see [`Setup::deferred`]). Must return also when the driver misbehaves.
    fn service(&mut self) -> Health;
}

/// How to play.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Queue size: at least 16.
    pub size: u16,
    /// First index of the rings. Close to 65536 shows mistakes at the wrap.
    pub start: u16,
    /// `VIRTIO_F_EVENT_IDX` is negotiated.
    pub event_idx: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            size: 16,
            start: 0,
            event_idx: false,
        }
    }
}

/// What a device did wrong.
#[derive(Debug, thiserror::Error)]
pub enum Mismatch {
    /// The case could not be built: nothing was learnt about the device.
    #[error("the case could not be built")]
    Setup(#[from] HostileError),
    /// The queue works though it should have stopped, or the other way round.
    #[error("the queue is {actual:?} {when}, expected {expected:?}")]
    Health {
        /// When that was.
        when: &'static str,
        /// How the queue is.
        actual: Health,
        /// How it should be.
        expected: Health,
    },
    /// The number of used entries is wrong.
    #[error("{actual} chains were used {when}, expected {expected}")]
    Count {
        /// When that was.
        when: &'static str,
        /// Used entries.
        actual: u16,
        /// What should be.
        expected: u16,
    },
    /// A head was used that was not to be, or not again.
    #[error("head {id} was used, with length {len}, out of turn")]
    Head {
        /// The used entry's id.
        id: u32,
        /// The used entry's length.
        len: u32,
    },
    /// The used length is wrong.
    #[error("head {head} was used with length {len}, expected {expected}")]
    Len {
        /// The chain.
        head: u16,
        /// The used entry's length.
        len: u32,
        /// What it should be, in words.
        expected: String,
    },
    /// The status byte is wrong.
    #[error("head {head} has status {actual:#x}, expected {expected:#x}")]
    Status {
        /// The chain.
        head: u16,
        /// The status byte.
        actual: u8,
        /// What it should be.
        expected: u8,
    },
    /// The used ring's flags are not 0 though event index is negotiated.
    #[error("the used ring's flags are {0:#x}, with event index they must be 0")]
    UsedFlags(u16),
    /// The device changed memory that it may only read.
    #[error("the device wrote to the {len} read-only bytes at {addr:#x}")]
    Touched {
        /// First byte of the area.
        addr: u64,
        /// Bytes of the area.
        len: u32,
    },
}

impl From<AccessError> for Mismatch {
    fn from(error: AccessError) -> Self {
        Self::Setup(error.into())
    }
}

/// Builds a case in `mem`, runs it against `subject`, and checks: the used entries, their lengths, the
/// status bytes, the queue's health, that well-formed requests beside and after the malformed one are
/// served (where the queue is to stay usable) or not (where it is to stop), and that the device wrote nothing
/// it must not write.
///
/// `space` is memory to play in: 64 KiB are plenty for a queue of 16.
///
/// # Errors
/// The first thing that is wrong.
///
/// # Panics
/// If the options are not as described there.
pub fn play(
    case: &Case,
    mem: &dyn Memory,
    space: Space,
    options: Options,
    subject: &mut dyn Subject,
) -> Result<(), Mismatch> {
    assert!(options.size >= 16, "cases need a queue of 16");
    let Options {
        size,
        start,
        event_idx,
    } = options;
    let mut ring = HostileRing::new(mem, space, size, start, event_idx)?;
    (case.build)(&mut ring)?;
    let mut game = Game {
        planned: ring.planned().to_vec(),
        ring,
        start,
        size,
    };
    match case.expect {
        Expect::LenZero | Expect::Status(_) => game.goes_on(case.expect, subject),
        Expect::Latched => game.stops(subject),
        Expect::Refused => game.never_runs(subject),
        Expect::Survives => {
            if subject.start(&game.setup()) == Health::Running {
                subject.service();
            }
            Ok(())
        }
    }
}

struct Game<'m> {
    ring: HostileRing<'m>,
    /// The case's own chains; the rest of the ring's are probes.
    planned: Vec<Planned>,
    start: u16,
    size: u16,
}

impl Game<'_> {
    fn setup(&self) -> Setup {
        Setup {
            state: self.ring.state,
            indirect: self.ring.indirect,
            deferred: self.ring.deferred,
        }
    }

    /// Makes a well-formed read available, in the `nth` three descriptors from the end of the table.
    fn probe(&mut self, nth: u16) -> Result<Planned, Mismatch> {
        let (header, data, status) = (
            self.ring.read_header()?,
            self.ring.writable(512)?,
            self.ring.writable(1)?,
        );
        let head = self.size - 3 * (nth + 1);
        self.ring.chain(head, &[header, data, status])?;
        let probe = Planned {
            head,
            status: Some(status.addr),
            max_len: 513,
        };
        self.ring.offer(probe)?;
        Ok(probe)
    }

    /// The malformed chains come back, and so do good ones in the same batch and in the next.
    fn goes_on(&mut self, expect: Expect, subject: &mut dyn Subject) -> Result<(), Mismatch> {
        // A full ring leaves no room beside.
        let full = self.planned.len() >= usize::from(self.size);
        let beside = if full { None } else { Some(self.probe(0)?) };
        let before = self.snapshot()?;
        self.expect_health("after start", subject.start(&self.setup()), Health::Running)?;
        self.expect_health("after the case", subject.service(), Health::Running)?;

        let mut open = self.planned.clone();
        open.extend(beside);
        self.expect_used("after the case", open.len() as u16)?;
        for index in 0..open.len() as u16 {
            let chain = self.take(index, &mut open)?;
            if Some(chain.0) == beside {
                self.check(chain, Expect::Status(S_OK))?;
            } else {
                self.check(chain, expect)?;
            }
        }
        self.compare(&before)?;

        let done = self.ring.planned().len() as u16;
        let after = self.probe(1)?;
        self.expect_health("after the next request", subject.service(), Health::Running)?;
        self.expect_used("after the next request", done + 1)?;
        let chain = self.take(done, &mut vec![after])?;
        self.check(chain, Expect::Status(S_OK))?;
        match self.ring.used_flags()? {
            flags if self.ring.state.event_idx_enabled && flags != 0 => {
                Err(Mismatch::UsedFlags(flags))
            }
            _ => Ok(()),
        }
    }

    /// The queue stops: nothing comes back, except what was in flight before, at most once.
    fn stops(&mut self, subject: &mut dyn Subject) -> Result<(), Mismatch> {
        if !self.ring.has_raw_index() {
            self.probe(0)?;
        }
        let before = self.snapshot()?;
        self.expect_health("after start", subject.start(&self.setup()), Health::Running)?;
        for when in ["after the case", "when serviced again"] {
            self.expect_health(when, subject.service(), Health::Latched)?;
        }
        // With everything else stopped only a chain in flight may come back.
        let mut open = if self.ring.deferred {
            self.planned[..1].to_vec()
        } else {
            Vec::new()
        };
        let used = self.ring.used_idx()?.wrapping_sub(self.start);
        if usize::from(used) > open.len() {
            return Err(Mismatch::Count {
                when: "after the queue stopped",
                actual: used,
                expected: 0,
            });
        }
        for index in 0..used {
            let chain = self.take(index, &mut open)?;
            self.check(chain, Expect::Status(S_OK))?;
        }
        self.compare(&before)
    }

    /// The queue does not start, or stops at once; nothing is written.
    fn never_runs(&mut self, subject: &mut dyn Subject) -> Result<(), Mismatch> {
        self.probe(0)?;
        let before = self.snapshot()?;
        if subject.start(&self.setup()) == Health::Running {
            self.expect_health("after the case", subject.service(), Health::Latched)?;
        }
        self.expect_used("after the case", 0)?;
        self.compare(&before)
    }

    fn expect_health(
        &self,
        when: &'static str,
        actual: Health,
        expected: Health,
    ) -> Result<(), Mismatch> {
        if actual == expected {
            return Ok(());
        }
        Err(Mismatch::Health {
            when,
            actual,
            expected,
        })
    }

    fn expect_used(&self, when: &'static str, expected: u16) -> Result<(), Mismatch> {
        let actual = self.ring.used_idx()?.wrapping_sub(self.start);
        if actual == expected {
            return Ok(());
        }
        Err(Mismatch::Count {
            when,
            actual,
            expected,
        })
    }

    /// The chain that the `index`th used entry names, with the length; it must be in `open`, and is
    /// taken out.
    fn take(&self, index: u16, open: &mut Vec<Planned>) -> Result<(Planned, u32), Mismatch> {
        let (id, len) = self.ring.used_entry(self.start.wrapping_add(index))?;
        match open.iter().position(|chain| u32::from(chain.head) == id) {
            Some(place) => Ok((open.swap_remove(place), len)),
            None => Err(Mismatch::Head { id, len }),
        }
    }

    fn check(&self, (chain, len): (Planned, u32), expect: Expect) -> Result<(), Mismatch> {
        let wrong_len = |expected: String| {
            Err(Mismatch::Len {
                head: chain.head,
                len,
                expected,
            })
        };
        let status = match expect {
            Expect::Status(status) => status,
            _ => S_UNWRITTEN,
        };
        if status == S_UNWRITTEN && len != 0 {
            return wrong_len("0".to_owned());
        }
        if status == S_OK && len != chain.max_len {
            return wrong_len(format!("{}", chain.max_len));
        }
        if len > chain.max_len {
            return wrong_len(format!("at most {}", chain.max_len));
        }
        let Some(at) = chain.status else {
            return Ok(());
        };
        let mut actual = [0];
        self.ring.memory().read_at(at, &mut actual)?;
        if actual[0] == status {
            return Ok(());
        }
        Err(Mismatch::Status {
            head: chain.head,
            actual: actual[0],
            expected: status,
        })
    }

    /// What the device must not change, as it is.
    fn snapshot(&self) -> Result<Vec<(GuestAddress, Vec<u8>)>, Mismatch> {
        let areas = self.ring.untouchable().into_iter();
        areas
            .map(|(addr, len)| {
                let mut bytes = vec![0; len as usize];
                self.ring.memory().read_at(addr, &mut bytes)?;
                Ok((addr, bytes))
            })
            .collect()
    }

    fn compare(&self, before: &[(GuestAddress, Vec<u8>)]) -> Result<(), Mismatch> {
        for (addr, bytes) in before {
            let mut now = vec![0; bytes.len()];
            self.ring.memory().read_at(*addr, &mut now)?;
            if now != *bytes {
                return Err(Mismatch::Touched {
                    addr: addr.0,
                    len: bytes.len() as u32,
                });
            }
        }
        Ok(())
    }
}
