// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The slow path above a device that says and does anything.
//!
//! All is done in one thread, so that each run is the same. Whatever the device does, each operation completes once, after
//! the device was given up at the latest, and the data of a write stays as it is. As long as the device behaves, it is given
//! no memory to write to but that of the operations it has and the slow path's own, and reads return what was written.

mod device;
mod input;
pub mod seeds;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use device::{Hostile, Piece, fresh};
pub use input::{Input, Place, Shape, Step};
use vhost_vdpa_frontend::{CompletionMode, SlowOptions, SlowPath};
use virtio_blk_core::disk::{Completion, Disk, IoBuf, IoQueue, Op, OpKind, Submit, Token};
use virtio_blk_core::memory::{HostMemory, KeepAlive};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// Steps, at most.
const STEPS: usize = 200;
/// Operations in flight.
const DEPTH: u16 = 8;
/// The longest operation, in blocks.
const LONGEST: u16 = 64;
/// Memory that the device may know: where it is to the device, and its pages.
const KNOWN: u64 = 1 << 20;
const PAGES: usize = 64;
const PAGE: usize = 4096;
/// Bytes of it that each operation's buffer has for itself, with a guard.
const SHARE: usize = PAGES * PAGE / (DEPTH as usize * 2);
const GUARD: u8 = 0xc3;

/// Memory of one operation.
struct Buffer {
    buf: IoBuf,
    /// Which part of the known memory, if it is there.
    share: Option<usize>,
}

/// An operation in flight.
struct Flight {
    kind: OpKind,
    len: usize,
    fill: Option<u8>,
    share: Option<usize>,
    /// A write of the same blocks was in flight with it: which came first is open.
    contested: bool,
}

impl Flight {
    /// Whether both cover a block, and one changes it.
    fn contests(&self, other: &Self) -> bool {
        let range = |flight: &Self| {
            let (first, len) = flight.kind.range(flight.len as u64)?;
            Some((first, first.saturating_add(len)))
        };
        let (Some(one), Some(two)) = (range(self), range(other)) else {
            return false;
        };
        (self.kind.is_write() || other.kind.is_write()) && one.0 < two.1 && two.0 < one.1
    }
}

/// The known memory.
struct Known {
    memory: Arc<GuestMemoryMmap<()>>,
    host: HostMemory,
    free: Vec<usize>,
}

impl Known {
    fn new() -> Self {
        let range = (GuestAddress(KNOWN), PAGES * PAGE);
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[range]).expect("memory"));
        let mut host = HostMemory::of_map(&memory);
        let (_, host) = host.pop().expect("one region");
        Self {
            memory,
            host,
            free: (0..usize::from(DEPTH) * 2).collect(),
        }
    }

    /// A buffer of `len` bytes, which fit a share with the offset.
    #[allow(unsafe_code)]
    fn take(&mut self, offset: usize, cut: usize, len: usize) -> Option<Buffer> {
        let share = self.free.pop()?;
        let mut buf = IoBuf::new();
        let keep: Arc<dyn KeepAlive> = self.memory.clone();
        buf.set_keep(keep);
        let first = share * SHARE + offset % 512;
        let cut = cut.min(len);
        // The second piece begins a guard behind the first's end.
        for (at, len) in [(first, cut), (first + cut + 16, len - cut)] {
            let part = self.host.slice(at, len)?;
            if len != 0 {
                // SAFETY: `part` is memory that is mapped as long as `keep` lives; nobody has references into it.
                unsafe { buf.push(part.as_ptr(), len) };
            }
        }
        Some(Buffer {
            buf,
            share: Some(share),
        })
    }
}

/// The disk, and what is asked of it.
struct Bench {
    device: Arc<Hostile>,
    path: SlowPath,
    queue: Option<Box<dyn IoQueue>>,
    known: Known,
    next: u64,
    in_flight: HashMap<Token, Flight>,
    /// What each block holds, if that is certain.
    content: HashMap<u64, Option<u8>>,
    done: Vec<Completion>,
    /// No call of the driver's was to fail.
    calls_succeed: bool,
}

impl Bench {
    fn new(input: &Input) -> Option<Self> {
        let device = Arc::new(Hostile::new(&input.device));
        let options = SlowOptions {
            queues: 1,
            queue_size: 1 << (2 + input.device.ring % 5),
            completion_mode: match input.polls {
                true => CompletionMode::Poll,
                false => CompletionMode::Event,
            },
            bounces: 2,
            bounce_len: 4096,
            timeout: Some(Duration::from_secs(600)),
            ..SlowOptions::default()
        };
        let path = SlowPath::new(device.clone(), options).ok()?;
        path.caps()
            .validate()
            .expect("what the disk says of itself makes sense");
        let queue = path.open_queue(DEPTH).ok()?;
        Some(Self {
            calls_succeed: input.device.failing == 0,
            device,
            path,
            queue: Some(queue),
            known: Known::new(),
            next: 0,
            in_flight: HashMap::new(),
            content: HashMap::new(),
            done: Vec::new(),
        })
    }

    /// Whether what the device does can be told beforehand.
    fn is_sure(&self) -> bool {
        self.device.behaves() && self.calls_succeed
    }

    fn buffer(&mut self, place: &Place, len: usize, fill: u8) -> Buffer {
        let known = match place {
            Place::Elsewhere => None,
            _ if len + 1024 > SHARE => None,
            Place::Known { offset } => self.known.take((*offset).into(), len, len),
            Place::Pieces { cut } => self.known.take(0, (*cut).into(), len),
        };
        let buffer = known.unwrap_or_else(|| Buffer {
            buf: IoBuf::zeroed(len),
            share: None,
        });
        if let Some(share) = buffer.share {
            let guarded = self.share(share);
            guarded.fill(0, SHARE, GUARD);
        }
        buffer.buf.fill(0, len, fill);
        buffer
    }

    /// All of a share.
    #[allow(unsafe_code)]
    fn share(&self, share: usize) -> IoBuf {
        let part = self
            .known
            .host
            .slice(share * SHARE, SHARE)
            .expect("a share");
        let mut buf = IoBuf::new();
        let keep: Arc<dyn KeepAlive> = self.known.memory.clone();
        buf.set_keep(keep);
        // SAFETY: memory that is mapped as long as `keep` lives; nobody has references into it.
        unsafe { buf.push(part.as_ptr(), SHARE) };
        buf
    }

    fn submit(&mut self, kind: OpKind, blocks: u16, place: &Place) {
        let Some(mut queue) = self.queue.take() else {
            return;
        };
        self.next += 1;
        let token = Token(self.next);
        let len = usize::from(blocks % (LONGEST + 1)) * 512;
        let fill = matches!(kind, OpKind::Write { .. }).then_some(self.next as u8);
        let buffer = match kind {
            OpKind::Read { .. } | OpKind::Write { .. } => {
                self.buffer(place, len, fill.unwrap_or(0xee))
            }
            OpKind::Lifetime => self.buffer(&Place::Elsewhere, 6, 0),
            _ => Buffer {
                buf: IoBuf::new(),
                share: None,
            },
        };
        let mut flight = Flight {
            kind,
            len: buffer.buf.len(),
            fill,
            share: buffer.share,
            contested: false,
        };
        for other in self.in_flight.values_mut() {
            if flight.contests(other) {
                (flight.contested, other.contested) = (true, true);
            }
        }
        self.doubt(&flight);
        let buf = buffer.buf;
        match queue.submit(Op { token, kind, buf }) {
            Submit::Queued => {
                self.in_flight.insert(token, flight);
            }
            Submit::Done(completion) => {
                self.in_flight.insert(token, flight);
                self.end(completion);
            }
            Submit::Full(op) => {
                assert_eq!(op.token, token);
                self.known.free.extend(flight.share);
            }
        }
        self.queue = Some(queue);
    }

    /// Until a write completes with success, nobody knows what its blocks hold.
    fn doubt(&mut self, flight: &Flight) {
        if let Some((offset, len)) = flight.kind.range(flight.len as u64)
            && flight.kind.is_write()
        {
            for block in offset / 512..(offset + len) / 512 {
                self.content.insert(block, None);
            }
        }
    }

    fn end(&mut self, completion: Completion) {
        let flight = self
            .in_flight
            .remove(&completion.token)
            .expect("completed twice, or never submitted");
        let bytes = completion.buf.to_vec();
        assert_eq!(bytes.len(), flight.len);
        if let Some(fill) = flight.fill {
            assert!(
                bytes.iter().all(|byte| *byte == fill),
                "a write's data was changed"
            );
        }
        if let Some(share) = flight.share {
            if self.device.behaves() {
                let outside = SHARE - flight.len;
                let guards = self.share(share).to_vec();
                let guards = guards.iter().filter(|byte| **byte == GUARD).count();
                assert!(guards >= outside, "memory beside a buffer was written");
            }
            self.known.free.push(share);
        }
        if completion.result.is_ok() && self.is_sure() && !flight.contested {
            self.check(&flight, &bytes);
        }
    }

    fn check(&mut self, flight: &Flight, bytes: &[u8]) {
        match flight.kind {
            OpKind::Read { offset } => {
                for (block, bytes) in (offset / 512..).zip(bytes.chunks(512)) {
                    let content = self.content.get(&block).copied();
                    if let Some(expected) = content.unwrap_or(Some(fresh(block))) {
                        assert!(
                            bytes.iter().all(|byte| *byte == expected),
                            "block {block} is not what was written"
                        );
                    }
                }
            }
            OpKind::Write { offset, .. } => {
                for block in offset / 512..(offset + flight.len as u64) / 512 {
                    self.content.insert(block, flight.fill);
                }
            }
            _ => {}
        }
    }

    fn reap(&mut self) {
        let Some(mut queue) = self.queue.take() else {
            return;
        };
        let mut done = std::mem::take(&mut self.done);
        let count = queue.reap(&mut done).expect("the queue is never broken");
        assert_eq!(count, done.len());
        done.drain(..).for_each(|completion| self.end(completion));
        self.done = done;
        self.queue = Some(queue);
    }

    /// The device carries out requests.
    fn serve(&mut self, count: u8, status: u8) {
        for _ in 0..count {
            let sure = self.is_sure();
            let Some(chain) = self.device.serve(status) else {
                break;
            };
            if sure {
                chain.iter().for_each(|piece| self.check_piece(piece));
            }
        }
    }

    /// What the device may write lies in the window, or in the buffer of a read in flight.
    fn check_piece(&self, &(at, len, writable): &Piece) {
        let (first, last) = self.path.window();
        let end = at.checked_add(u64::from(len)).expect("a piece that wraps");
        assert_ne!(len, 0, "a piece of nothing");
        if at >= first && end - 1 <= last {
            return;
        }
        let from = at.checked_sub(KNOWN).expect("memory that is not there") as usize;
        let to = (end - KNOWN) as usize;
        assert!(to <= PAGES * PAGE, "memory that is not there");
        let owner = self.in_flight.values().find(|flight| {
            let share = flight.share.map(|share| share * SHARE);
            share.is_some_and(|share| share <= from && to <= share + SHARE)
        });
        let owner = owner.expect("memory of no operation in flight");
        assert!(
            !writable || owner.fill.is_none(),
            "a write's data is offered for writing"
        );
    }

    fn take_step(&mut self, step: &Step) {
        let place = |at: u16| u64::from(at) * 512;
        match step {
            Step::Read {
                at,
                len,
                place: buffer,
            } => {
                let offset = place(*at);
                self.submit(OpKind::Read { offset }, (*len).into(), buffer);
            }
            Step::Write {
                at,
                len,
                fua,
                place: buffer,
            } => {
                let offset = place(*at);
                self.submit(OpKind::Write { offset, fua: *fua }, (*len).into(), buffer);
            }
            Step::Flush => self.submit(OpKind::Flush, 0, &Place::Elsewhere),
            Step::Erase { kind, at, len } => {
                let (offset, len) = (place(*at), place(*len % 256));
                let kind = match kind % 3 {
                    0 => OpKind::Discard { offset, len },
                    1 => OpKind::SecureErase { offset, len },
                    _ => OpKind::WriteZeroes {
                        offset,
                        len,
                        unmap: true,
                        fua: true,
                    },
                };
                self.submit(kind, 0, &Place::Elsewhere);
            }
            Step::Lifetime => self.submit(OpKind::Lifetime, 0, &Place::Elsewhere),
            Step::Start => {
                if let Some(queue) = &mut self.queue {
                    queue.flush_batch().expect("the queue is never broken");
                }
            }
            Step::Reap => self.reap(),
            Step::Cancel { token } => {
                if let Some(queue) = &mut self.queue {
                    queue.cancel(Token((*token).into()));
                }
            }
            Step::Refresh => {
                let _ = self.path.refresh();
                self.path
                    .caps()
                    .validate()
                    .expect("what the disk says of itself makes sense");
            }
            // Memory is never taken away from operations in flight: that would have to wait for them.
            Step::Know { pages } if self.in_flight.is_empty() => {
                let pages = usize::from(*pages) % (PAGES + 1);
                let part = self.known.host.slice(0, pages * PAGE).expect("a part");
                let memory = match pages {
                    0 => Vec::new(),
                    _ => vec![(KNOWN, part)],
                };
                let _ = self.path.set_memory(&memory);
            }
            Step::Know { .. } => {}
            // A queue's end waits for what is in flight.
            Step::Reopen if self.in_flight.is_empty() => {
                self.queue = None;
                self.queue = self.path.open_queue(DEPTH).ok();
                assert!(self.queue.is_some() || self.path.is_broken());
            }
            Step::Reopen => {}
            Step::Serve { count, status } => self.serve(*count, *status),
            Step::Used { head, len } => self.device.use_head(*head, *len),
            Step::Jump { by } => self.device.jump(*by),
            Step::Scribble { at, value } => self.device.scribble(*at, *value),
            Step::Status { byte } => self.device.set_status_byte(*byte),
            Step::Config { at, value } => self.device.set_config_word(*at, *value),
            Step::Interrupt => self.device.interrupt(),
            Step::Fail { after } => {
                self.calls_succeed = false;
                self.device.fail(*after);
            }
        }
        // As many as the queue was opened for, or its ring has entries.
        assert!(self.in_flight.len() <= 64);
    }
}

/// Runs an input.
///
/// # Panics
/// The slow path did what it must not.
pub fn run(input: &Input) {
    let Some(mut bench) = Bench::new(input) else {
        return;
    };
    for step in input.steps.iter().take(STEPS) {
        bench.take_step(step);
    }
    if bench.is_sure() && !bench.path.is_broken() {
        // A device that behaves completes everything in the end, with at most a request for each block.
        for _ in 0..64 * 256 {
            if bench.in_flight.is_empty() {
                break;
            }
            bench.take_step(&Step::Start);
            bench.serve(u8::MAX, 0);
            bench.reap();
        }
        assert!(!bench.path.is_broken(), "a device that behaves is given up");
        assert!(bench.in_flight.is_empty(), "an operation never completes");
    }
    bench.device.give_in();
    let _ = bench.path.refresh();
    assert!(
        bench.path.is_broken(),
        "a device that needs a reset is given up"
    );
    bench.reap();
    assert!(
        bench.in_flight.is_empty(),
        "{} operations never complete",
        bench.in_flight.len()
    );
}
