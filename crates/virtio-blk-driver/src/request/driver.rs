// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One queue of a virtio-blk driver.

use std::collections::VecDeque;
use std::ops::Deref;

use virtio_queue::QueueState;

use super::arena::Slot;
use super::{Arena, DriverError, In, Out, Request};
use crate::ring::{Chain, RingConfig, RingError, SplitDriver, SplitLayout};
use crate::wire::{HEADER_LEN, Range, S_OK, S_UNWRITTEN};
use crate::{Memory, Segment};

/// Names a submitted request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token {
    slot: u16,
    generation: u32,
}

/// The completion of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Which request.
    pub token: Token,
    /// The status byte; [`S_UNWRITTEN`] if the device left it alone, or there was none.
    pub status: u8,
    /// Bytes the device says it wrote, status included.
    pub len: u32,
}

impl Done {
    /// Whether the status is OK.
    pub const fn is_ok(&self) -> bool {
        self.status == S_OK
    }
}

/// What is known of a slot.
#[derive(Clone, Copy, Debug, Default)]
struct Use {
    generation: u32,
    in_len: u32,
    status: bool,
}

/// One queue of a virtio-blk driver: a ring, memory for requests, and the guest memory both lie in.
///
/// In the steady state it allocates nothing. A request's memory is left alone from its completion until a
/// later [`Driver::submit`] takes the slot; slots are reused in the order they became free.
#[derive(Debug)]
pub struct Driver<G> {
    mem: G,
    ring: SplitDriver,
    arena: Arena,
    uses: Box<[Use]>,
    free: VecDeque<u16>,
    /// The descriptors of the request being submitted.
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    scratch: Vec<Segment>,
}

impl<G> Driver<G>
where
    G: Deref,
    G::Target: Memory,
{
    /// Initialises the ring in memory (see [`SplitDriver::new`]). `layout` and `arena` must not overlap.
    ///
    /// # Errors
    /// [`RingError::Memory`] if some area of the ring is not entirely in memory.
    pub fn new(
        mem: G,
        layout: SplitLayout,
        config: RingConfig,
        arena: Arena,
    ) -> Result<Self, RingError> {
        let ring = SplitDriver::new(&*mem, layout, config)?;
        let slots = arena.config().slots;
        let room = usize::from(arena.config().table_len).max(8);
        Ok(Self {
            mem,
            ring,
            arena,
            uses: vec![Use::default(); slots.into()].into(),
            free: (0..slots).collect(),
            readable: Vec::with_capacity(room),
            writable: Vec::with_capacity(room),
            scratch: Vec::with_capacity(room),
        })
    }

    /// The guest memory.
    pub fn memory(&self) -> &G::Target {
        &self.mem
    }

    /// The ring.
    pub const fn ring(&self) -> &SplitDriver {
        &self.ring
    }

    /// The ring and the memory to use it with. Chains added here don't come out of [`Driver::poll`] in
    /// a sensible way: it is for interrupts and audits.
    pub fn ring_mut(&mut self) -> (&mut SplitDriver, &G::Target) {
        (&mut self.ring, &self.mem)
    }

    /// What to start a device with (see [`SplitDriver::state`]).
    pub fn state(&self) -> QueueState {
        self.ring.state()
    }

    /// Requests submitted and not yet completed.
    pub const fn in_flight(&self) -> u16 {
        self.ring.in_flight()
    }

    /// Writes a request into memory and the ring. The device sees it after [`Driver::publish`].
    ///
    /// # Errors
    /// [`DriverError::NoSlot`] or [`RingError::Full`] if there is no room now; anything else says what
    /// is wrong with the request. Nothing was submitted then.
    pub fn submit(&mut self, request: &Request<'_>) -> Result<Token, DriverError> {
        let index = *self
            .free
            .front()
            .ok_or(DriverError::NoSlot(self.arena.config().slots))?;
        let slot = self.arena.slot(index);
        let in_len = match request.input {
            In::Len(len) => len,
            In::None | In::Segments(_) => 0,
        };
        let needed = request.out.slot_len() + u64::from(in_len);
        if needed > slot.data.len.into() {
            return Err(DriverError::DataTooLong {
                needed,
                room: slot.data.len,
            });
        }
        self.write(&slot, request)?;
        self.describe(&slot, request, in_len);
        let table = request.indirect.then_some(slot.table);
        let descriptors = self.readable.len() + self.writable.len();
        if table.is_some() && descriptors > self.arena.config().table_len.into() {
            return Err(DriverError::TableTooLong {
                needed: descriptors,
                room: self.arena.config().table_len,
            });
        }
        let generation = self.uses[usize::from(index)].generation.wrapping_add(1);
        let chain = Chain {
            readable: &self.readable,
            writable: &self.writable,
            indirect: table,
        };
        self.ring.add(&*self.mem, &chain, index.into())?;
        self.free.pop_front();
        self.uses[usize::from(index)] = Use {
            generation,
            in_len,
            status: request.status,
        };
        Ok(Token {
            slot: index,
            generation,
        })
    }

    /// Writes header, data and the unwritten status.
    fn write(&self, slot: &Slot, request: &Request<'_>) -> Result<(), DriverError> {
        self.mem.write_at(slot.header(), &request.header)?;
        match request.out {
            Out::Bytes(bytes) => self.mem.write_at(slot.data.addr, bytes)?,
            Out::Ranges(ranges) => {
                let mut at = slot.data.addr;
                for range in ranges {
                    self.mem.write_at(at, &range.to_bytes())?;
                    at.0 += u64::from(Range::LEN);
                }
            }
            Out::None | Out::InPlace(_) | Out::Segments(_) => {}
        }
        self.mem.write_at(slot.status(), &[S_UNWRITTEN])?;
        Ok(())
    }

    /// Fills `readable` and `writable`.
    fn describe(&mut self, slot: &Slot, request: &Request<'_>, in_len: u32) {
        self.readable.clear();
        self.writable.clear();
        let header = Segment::new(
            slot.header(),
            request.header_len.min(HEADER_LEN as u8).into(),
        );
        if header.len > 0 {
            self.readable.push(header);
        }
        match request.out {
            Out::None => {}
            Out::Segments(list) => self.readable.extend_from_slice(list),
            // Fits: checked against the slot's room.
            _ => self
                .readable
                .push(Segment::new(slot.data.addr, request.out.slot_len() as u32)),
        }
        match request.input {
            In::None => {}
            In::Segments(list) => self.writable.extend_from_slice(list),
            In::Len(_) => self.writable.push(slot.input(in_len)),
        }
        if request.status {
            self.writable.push(Segment::new(slot.status(), 1));
        }
        request
            .framing
            .apply(&mut self.readable, &mut self.writable, &mut self.scratch);
    }

    /// Makes submitted requests visible to the device. Returns whether to kick it.
    ///
    /// # Errors
    /// The ring's memory is gone, or the device broke a rule.
    pub fn publish(&mut self) -> Result<bool, DriverError> {
        self.ring.publish(&*self.mem)?;
        Ok(self.ring.needs_kick(&*self.mem)?)
    }

    /// The next completion, if there is one.
    ///
    /// # Errors
    /// The device broke a rule ([`RingError::Violation`]), or memory is gone.
    pub fn poll(&mut self) -> Result<Option<Done>, DriverError> {
        let Some(used) = self.ring.poll_used(&*self.mem)? else {
            return Ok(None);
        };
        // The ring returns only what `submit` gave it.
        let index = used.cookie as u16;
        let Use {
            generation, status, ..
        } = self.uses[usize::from(index)];
        let mut byte = [S_UNWRITTEN];
        if status {
            self.mem
                .read_at(self.arena.slot(index).status(), &mut byte)?;
        }
        self.free.push_back(index);
        Ok(Some(Done {
            token: Token {
                slot: index,
                generation,
            },
            status: byte[0],
            len: used.len,
        }))
    }

    /// Copies the data in that a request asked for ([`In::Len`]), from byte `offset` on, to `out`.
    ///
    /// # Errors
    /// [`DriverError::StaleToken`] if the slot serves a later request, [`DriverError::DataTooLong`] if
    /// that much was not asked for, [`DriverError::Memory`].
    pub fn read_data(&self, token: Token, offset: u32, out: &mut [u8]) -> Result<(), DriverError> {
        let data = self.data(token)?;
        let needed = u64::from(offset) + out.len() as u64;
        if needed > data.len.into() {
            return Err(DriverError::DataTooLong {
                needed,
                room: data.len,
            });
        }
        let at = vm_memory::GuestAddress(data.addr.0 + u64::from(offset));
        Ok(self.mem.read_at(at, out)?)
    }

    /// Where a request's data in ([`In::Len`]) lies.
    ///
    /// # Errors
    /// [`DriverError::StaleToken`] if the slot serves a later request.
    pub fn data(&self, token: Token) -> Result<Segment, DriverError> {
        match self.uses.get(usize::from(token.slot)) {
            Some(slot) if slot.generation == token.generation => {
                Ok(self.arena.slot(token.slot).input(slot.in_len))
            }
            _ => Err(DriverError::StaleToken),
        }
    }

    /// Sets every byte of every data area to `value`, for [`Out::InPlace`]. Nothing may be in flight.
    ///
    /// # Errors
    /// [`DriverError::Memory`].
    pub fn fill_data(&self, value: u8) -> Result<(), DriverError> {
        let bytes = vec![value; self.arena.config().data_len as usize];
        for index in 0..self.arena.config().slots {
            self.mem
                .write_at(self.arena.slot(index).data.addr, &bytes)?;
        }
        Ok(())
    }
}
