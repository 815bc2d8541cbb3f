// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A qcow2 image that somebody has damaged, and a guest and an operator that use it.
//!
//! The image lies on a memory disk. Whatever is in it, opening, checking, mapping and growing it and each request ends
//! with a result or an error; a sound image behaves as a disk does, stays sound, and loses no cluster; and the guest never
//! gets to write the header, which would name a backing file for the next opening.

mod bitmap;
mod input;
mod judge;
mod model;
pub(crate) mod seeds;

use std::path::Path;
use std::sync::Arc;

use virtio_blk_core::disk::{
    Completion, Disk, DiskError, IoBuf, IoQueue, Op, OpKind, Submit, Token, Wait,
};
use virtio_blk_disks::MemoryDisk;
use virtio_blk_qcow2::{
    Access, Checked, OpenError, Qcow2Disk, Qcow2Options, Repair, Where, check, create,
};

use input::GUEST;
pub use input::{Input, Made, Patch, Step, Value};
pub use judge::judge;
use model::Model;

/// Most requests that are made.
const MAX_STEPS: usize = 64;
/// Most bytes of one request.
const MAX_LEN: u64 = 32 << 10;
/// Most bytes that a guest's disk grows to.
const MAX_GUEST: u64 = 8 << 20;
const SECTOR: u64 = 512;
/// Bytes of the header that are looked at.
const HEAD: usize = 512;
const PATH: &str = "fuzzed.qcow2";

fn execute(queue: &mut dyn IoQueue, kind: OpKind, buf: IoBuf) -> Completion {
    let token = Token(7);
    let mut done = Vec::new();
    match queue.execute_or_submit(Op { token, kind, buf }) {
        Submit::Done(completion) => done.push(completion),
        Submit::Queued => {}
        Submit::Full(_) => panic!("an empty queue is full"),
    }
    while done.is_empty() {
        queue.flush_batch().expect("the queue works");
        if queue.reap(&mut done).expect("the queue works") == 0
            && let Wait::Fd(fd) = queue.wait()
        {
            let mut fds = [rustix::event::PollFd::new(
                &fd,
                rustix::event::PollFlags::IN,
            )];
            let _ = rustix::event::poll(&mut fds, None);
        }
    }
    assert_eq!((done.len(), done[0].token), (1, token));
    done.remove(0)
}

/// A memory disk that holds an image.
struct Host(Arc<dyn Disk>);

impl Host {
    /// Makes an image, uses it, and damages it as the input says.
    fn new(input: &Input) -> Self {
        let this = Self(Arc::new(MemoryDisk::new(SECTOR).expect("memory")));
        let options = input.made.options();
        create(&this.0, None, &options, &mut |_, _| {}).expect("the options are possible");
        if input.made.used {
            let disk = this.open().expect("a new image is sound");
            let mut queue = disk.open_queue(1).expect("memory");
            // In the first and the last cluster, and across a border.
            for offset in [0, 65_536 - 1024, GUEST - 1024] {
                let write = OpKind::Write { offset, fua: false };
                let done = execute(&mut *queue, write, IoBuf::from_vec(vec![0x5a; 1024]));
                done.result.expect("memory");
            }
        }
        if input.made.bitmap {
            let mut bytes = this.content();
            bitmap::add(&mut bytes, input.made.cluster() as usize, GUEST);
            this.0.resize(bytes.len() as u64).expect("memory");
            this.put(&bytes);
            this.check(Repair::Counts)
                .expect("counts are all that is wrong");
        }
        if !input.patches.is_empty() {
            let mut bytes = this.content();
            damage(&mut bytes, input.made.cluster(), &input.patches);
            this.put(&bytes);
        }
        this
    }

    fn put(&self, bytes: &[u8]) {
        let mut queue = self.0.open_queue(1).expect("memory");
        let write = OpKind::Write {
            offset: 0,
            fua: false,
        };
        let done = execute(&mut *queue, write, IoBuf::from_vec(bytes.to_vec()));
        done.result.expect("memory");
    }

    fn read(&self, len: usize) -> Vec<u8> {
        let mut queue = self.0.open_queue(1).expect("memory");
        let done = execute(&mut *queue, OpKind::Read { offset: 0 }, IoBuf::zeroed(len));
        done.result.expect("memory");
        done.buf.to_vec()
    }

    fn content(&self) -> Vec<u8> {
        self.read(self.0.caps().capacity_bytes() as usize)
    }

    fn check(&self, repair: Repair) -> Result<Checked, OpenError> {
        check(&self.0, Path::new(PATH), repair, &mut |_, _| {})
    }

    fn open(&self) -> Option<Qcow2Disk> {
        let files = |_: &Path, _: Access| Err(DiskError::Unsupported);
        Qcow2Disk::over(self.0.clone(), PATH, Arc::new(files), Qcow2Options::new()).ok()
    }
}

fn damage(image: &mut [u8], cluster: u64, patches: &[Patch]) {
    for patch in patches {
        let place = |number: u8| u64::from(number) * cluster;
        let value = match patch.value {
            Value::Any { value } => value,
            Value::Cluster { number } => place(number) | 1 << 63,
            Value::Bare { number } => place(number),
            Value::Compressed { number, sectors } => {
                place(number) | 1 << 62 | u64::from(sectors) << 58
            }
        };
        let at = usize::from(patch.place) * 8 % image.len();
        image[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }
}

/// An image that is used.
struct Play {
    host: Host,
    disk: Option<Qcow2Disk>,
    queue: Option<Box<dyn IoQueue>>,
    /// Nothing was damaged: this is what the guest finds.
    model: Option<Model>,
    /// What was changed, if a bitmap has to know it.
    changed: Option<Vec<(u64, u64)>>,
    /// Bytes that the guest can reach.
    size: u64,
}

impl Play {
    fn new(host: Host, input: &Input) -> Self {
        let mut this = Self {
            host,
            disk: None,
            queue: None,
            model: None,
            changed: None,
            size: GUEST,
        };
        let is_sound = input.patches.is_empty();
        this.changed = (is_sound && input.made.bitmap).then(Vec::new);
        this.reopen(is_sound);
        if input.patches.is_empty() {
            let read = OpKind::Read { offset: 0 };
            let queue = this.queue.as_mut().expect("it is open");
            let done = execute(&mut **queue, read, IoBuf::zeroed(GUEST as usize));
            done.result.expect("memory");
            this.model = Some(Model::new(&done.buf.to_vec()));
        }
        this
    }

    fn close(&mut self) {
        drop((self.queue.take(), self.disk.take()));
    }

    fn reopen(&mut self, is_sound: bool) {
        self.close();
        self.disk = self.host.open();
        let disk = self.disk.as_ref();
        assert!(disk.is_some() || !is_sound, "a sound image is refused");
        self.queue = disk.and_then(|disk| disk.open_queue(4).ok());
        if let (Some(changed), Some(disk)) = (&self.changed, disk) {
            let bitmap = disk.bitmap(bitmap::NAME).expect("it is active");
            let marked = bitmap.expect("it is up to date").ranges();
            for (offset, len) in changed {
                let is_in =
                    |(first, sum): &(u64, u64)| first <= offset && offset + len <= first + sum;
                assert!(marked.iter().any(is_in), "{len} bytes from {offset} on");
            }
        }
    }

    fn range(&self, sector: u16, sectors: u8) -> (u64, u64) {
        let offset = u64::from(sector) * SECTOR % self.size;
        let len = (u64::from(sectors) + 1) * SECTOR;
        (offset, len.min(MAX_LEN).min(self.size - offset))
    }

    /// Executes a request. Its data, if it succeeds.
    fn request(&mut self, kind: OpKind, buf: IoBuf) -> Option<Vec<u8>> {
        if let (Some(changed), Some(range)) = (&mut self.changed, kind.range(buf.len() as u64))
            && kind.is_write()
        {
            changed.push(range);
        }
        let queue = self.queue.as_mut()?;
        let done = execute(&mut **queue, kind, buf);
        if self.model.is_some() {
            assert!(done.result.is_ok(), "{kind:?}: {:?}", done.result);
        }
        done.result.ok().map(|()| done.buf.to_vec())
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Read { sector, sectors } => {
                let (offset, len) = self.range(sector, sectors);
                let read = OpKind::Read { offset };
                let data = self.request(read, IoBuf::zeroed(len as usize));
                if let (Some(model), Some(data)) = (&mut self.model, data) {
                    assert!(model.allows(offset, &data), "{step:?}");
                }
            }
            Step::Write {
                sector,
                sectors,
                value,
                fua,
            } => {
                let (offset, len) = self.range(sector, sectors);
                let buf = IoBuf::from_vec(vec![value; len as usize]);
                self.request(OpKind::Write { offset, fua }, buf);
                if let Some(model) = &mut self.model {
                    model.write(offset, len, value);
                }
            }
            Step::Discard { sector, sectors } => {
                let (offset, len) = self.range(sector, sectors);
                self.request(OpKind::Discard { offset, len }, IoBuf::new());
                if let Some(model) = &mut self.model {
                    model.discard(offset, len);
                }
            }
            Step::Zeroes {
                sector,
                sectors,
                unmap,
            } => {
                let (offset, len) = self.range(sector, sectors);
                let zeroes = OpKind::WriteZeroes {
                    offset,
                    len,
                    unmap,
                    fua: false,
                };
                self.request(zeroes, IoBuf::new());
                if let Some(model) = &mut self.model {
                    model.write(offset, len, 0);
                }
            }
            Step::Flush => drop(self.request(OpKind::Flush, IoBuf::new())),
            Step::Reopen => self.reopen(self.model.is_some()),
            Step::Grow { sectors } => self.grow(u64::from(sectors) * SECTOR),
            Step::Map { sector, most } => self.map(u64::from(sector) * SECTOR, most.into()),
            Step::Check { repair } => self.check(repair),
        }
    }

    fn grow(&mut self, more: u64) {
        let size = (self.size + more).min(MAX_GUEST);
        let Some(disk) = &self.disk else { return };
        let grown = disk.resize(size);
        if let Some(model) = &mut self.model {
            grown.expect("there is room");
            model.grow(size);
            self.size = size;
        }
    }

    fn map(&self, offset: u64, most: usize) {
        let Some(disk) = &self.disk else { return };
        let extents = disk.map(offset % self.size, most);
        if self.model.is_none() {
            return;
        }
        let mut at = offset % self.size;
        let extents = extents.expect("it is sound");
        assert!(!extents.is_empty() && extents.len() <= most.max(1));
        for extent in extents {
            assert_eq!((extent.offset, extent.depth), (at, 0));
            assert!(extent.len > 0 && extent.place != Where::Backing);
            at += extent.len;
        }
        assert!(at <= self.size);
    }

    fn check(&mut self, repair: u8) {
        self.close();
        let repair = match repair % 3 {
            0 => Repair::Nothing,
            1 => Repair::Leaks,
            _ => Repair::Counts,
        };
        let found = self.host.check(repair);
        if self.model.is_some() {
            let found = found.expect("it is sound");
            assert_eq!((found.leaks, found.corruptions), (0, 0), "{:?}", found.told);
        } else if let Ok(found) = found
            && repair != Repair::Nothing
            && let Ok(again) = self.host.check(Repair::Nothing)
        {
            // What was mended is.
            assert!(again.leaks <= found.leaks_left(), "{:?}", again.told);
        }
        self.reopen(self.model.is_some());
    }
}

/// Does with an image what the input says.
///
/// # Panics
/// The disk did what it must not do.
pub fn run(input: &Input) {
    play(input);
}

fn play(input: &Input) -> Host {
    let host = Host::new(input);
    let before = host.read(HEAD);
    let mut play = Play::new(host, input);
    for step in input.steps.iter().take(MAX_STEPS) {
        if play.disk.is_none() {
            break;
        }
        play.step(step);
    }
    play.close();
    let after = play.host.read(HEAD);
    // Sizes and tables may be others, an image that was mended is not dirty any more, and features that are cleared by who
    // does not know them are.
    for place in [0..24, 32..36, 60..72, 73..79, 80..88, 96..HEAD] {
        assert!(
            after[place.clone()] == before[place],
            "the header is another"
        );
    }
    play.host
}
