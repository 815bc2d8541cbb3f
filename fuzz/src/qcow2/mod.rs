// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A qcow2 image that somebody has damaged, and a guest that uses it.
//!
//! The image lies on a memory disk. Whatever is in it, opening it and each request ends with data or an error; a sound
//! image behaves as a disk does; and the guest never gets to write the header, which would name a backing file for the
//! next opening.

pub(crate) mod seeds;

use std::sync::Arc;

use virtio_blk_core::disk::{Completion, Disk, IoBuf, IoQueue, Op, OpKind, Submit, Token, Wait};
use virtio_blk_disks::MemoryDisk;
use virtio_blk_qcow2::{Qcow2Disk, Qcow2File, Qcow2Options};

/// Bytes of the guest's disk, and of the disk that holds the image.
const GUEST: usize = 256 << 10;
const HOST: usize = 1 << 20;
/// Most requests that are made.
const MAX_STEPS: usize = 64;
/// Most bytes of one request.
const MAX_LEN: u64 = 32 << 10;
const SECTOR: u64 = 512;
/// Bytes that the guest must not change: the header.
const HEADER: usize = 104;

input! {
    /// An image, and what is done with it.
    pub struct Input {
        /// Clusters of 512 bytes instead of 4096.
        pub small: bool,
        /// Some clusters are in use already.
        pub used: bool,
        /// What is damaged.
        pub patches: Vec<Patch>,
        /// What the guest asks for.
        pub steps: Vec<Step>,
    }
}

input! {
    /// Eight bytes of the image, replaced.
    pub struct Patch {
        /// Which: the n-th eight bytes.
        pub place: u16,
        /// By what.
        pub value: Value,
    }
}

input! {
    /// What to put there.
    pub enum Value {
        /// Any number.
        Any {
            /// The number.
            value: u64,
        },
        /// The place of a cluster, with the flags of an entry that may be written.
        Cluster {
            /// Its number.
            number: u8,
        },
        /// The place of a cluster without flags.
        Bare {
            /// Its number.
            number: u8,
        },
        /// A compressed cluster there.
        Compressed {
            /// Its number.
            number: u8,
            /// How many, from 0 on; of requests, one more.
            sectors: u8,
        },
    }
}

input! {
    /// A request of the guest.
    pub enum Step {
        /// Read.
        Read {
            /// The first one, modulo the size.
            sector: u16,
            /// How many, from 0 on; of requests, one more.
            sectors: u8,
        },
        /// Write.
        Write {
            /// The first one, modulo the size.
            sector: u16,
            /// How many, from 0 on; of requests, one more.
            sectors: u8,
            /// The content.
            value: u8,
            /// Stable by itself.
            fua: bool,
        },
        /// Discard.
        Discard {
            /// The first one, modulo the size.
            sector: u16,
            /// How many, from 0 on; of requests, one more.
            sectors: u8,
        },
        /// Write zeroes.
        Zeroes {
            /// The first one, modulo the size.
            sector: u16,
            /// How many, from 0 on; of requests, one more.
            sectors: u8,
            /// Space may be given back.
            unmap: bool,
        },
        /// Flush.
        Flush,
        /// Close the image and open it again.
        Reopen,
    }
}

/// A sound image.
fn image(small: bool, used: bool) -> Vec<u8> {
    let bits: u32 = if small { 9 } else { 12 };
    let cluster = 1_usize << bits;
    let mut image = vec![0; HOST];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    let reach = cluster * (cluster / 8);
    let l1_entries = GUEST.div_ceil(reach);
    // Header, refcount table, refcounts, L1 table, then L2 tables and data, one each.
    let (table, block, l1) = (cluster, 2 * cluster, 3 * cluster);
    put(0, b"QFI\xfb");
    put(4, &3_u32.to_be_bytes());
    put(20, &bits.to_be_bytes());
    put(24, &(GUEST as u64).to_be_bytes());
    put(36, &(l1_entries as u32).to_be_bytes());
    put(40, &(l1 as u64).to_be_bytes());
    put(48, &(table as u64).to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    put(96, &4_u32.to_be_bytes());
    put(100, &(HEADER as u32).to_be_bytes());
    put(table, &(block as u64).to_be_bytes());
    let mut clusters = 4;
    if used {
        let entry = |number: usize| ((number * cluster) as u64 | 1 << 63).to_be_bytes();
        for index in 0..l1_entries.min(2) {
            put(l1 + index * 8, &entry(clusters));
            put(clusters * cluster, &entry(clusters + 1));
            clusters += 2;
        }
    }
    for index in 0..clusters {
        put(block + index * 2, &[0, 1]);
    }
    image
}

fn damage(image: &mut [u8], small: bool, patches: &[Patch]) {
    let cluster = if small { 512 } else { 4096 };
    for patch in patches {
        let number = |number: u8| u64::from(number) * cluster;
        let value = match patch.value {
            Value::Any { value } => value,
            Value::Cluster { number: at } => number(at) | 1 << 63,
            Value::Bare { number: at } => number(at),
            Value::Compressed {
                number: at,
                sectors,
            } => number(at) | 1 << 62 | u64::from(sectors) << 58,
        };
        let at = usize::from(patch.place) * 8;
        image[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }
}

fn open(host: &Arc<MemoryDisk>) -> Option<Qcow2Disk> {
    let files = Arc::new(Qcow2File::new("fuzzed"));
    Qcow2Disk::over(host.clone(), "fuzzed", files, Qcow2Options::new()).ok()
}

fn execute(queue: &mut dyn IoQueue, kind: OpKind, buf: IoBuf) -> Completion {
    let token = Token(7);
    let mut done = Vec::new();
    match queue.submit(Op { token, kind, buf }) {
        Submit::Done(completion) => done.push(completion),
        Submit::Queued => {}
        Submit::Full(_) => panic!("an empty queue is full"),
    }
    while done.is_empty() {
        queue.flush_batch().expect("the queue works");
        if queue.reap(&mut done).expect("the queue works") == 0
            && let Wait::Fd(_) = queue.wait()
        {
            std::thread::yield_now();
        }
    }
    assert_eq!((done.len(), done[0].token), (1, token));
    done.remove(0)
}

fn content(host: &Arc<MemoryDisk>, len: usize) -> Vec<u8> {
    let mut queue = host.open_queue(1).expect("memory");
    let done = execute(&mut *queue, OpKind::Read { offset: 0 }, IoBuf::zeroed(len));
    done.result.expect("memory");
    done.buf.to_vec()
}

/// Does with an image what the input says.
///
/// # Panics
/// The disk did what it must not do.
pub fn run(input: &Input) {
    let mut bytes = image(input.small, input.used);
    damage(&mut bytes, input.small, &input.patches);
    let host = Arc::new(MemoryDisk::new(HOST as u64).expect("memory"));
    let write = OpKind::Write {
        offset: 0,
        fua: false,
    };
    let header = bytes[..HEADER].to_vec();
    let mut queue = host.open_queue(1).expect("memory");
    let done = execute(&mut *queue, write, IoBuf::from_vec(bytes));
    done.result.expect("memory");
    let sound = input.patches.is_empty();
    let mut disk = open(&host);
    assert!(disk.is_some() || !sound, "a sound image is refused");
    let mut model = (sound && !input.used).then(|| vec![0_u8; GUEST]);
    let mut queue = disk.as_ref().and_then(|disk| disk.open_queue(4).ok());
    for step in input.steps.iter().take(MAX_STEPS) {
        let Some(open_queue) = &mut queue else {
            break;
        };
        let range = |sector: u16, sectors: u8| {
            let offset = u64::from(sector) * SECTOR % GUEST as u64;
            let len = (u64::from(sectors) + 1) * SECTOR;
            (offset, len.min(MAX_LEN).min(GUEST as u64 - offset))
        };
        let (kind, buf, change) = match *step {
            Step::Read { sector, sectors } => {
                let (offset, len) = range(sector, sectors);
                (OpKind::Read { offset }, IoBuf::zeroed(len as usize), None)
            }
            Step::Write {
                sector,
                sectors,
                value,
                fua,
            } => {
                let (offset, len) = range(sector, sectors);
                let buf = IoBuf::from_vec(vec![value; len as usize]);
                (
                    OpKind::Write { offset, fua },
                    buf,
                    Some((offset, len, value)),
                )
            }
            Step::Discard { sector, sectors } => {
                let (offset, len) = range(sector, sectors);
                let kind = OpKind::Discard { offset, len };
                (kind, IoBuf::new(), Some((offset, len, 0)))
            }
            Step::Zeroes {
                sector,
                sectors,
                unmap,
            } => {
                let (offset, len) = range(sector, sectors);
                let kind = OpKind::WriteZeroes {
                    offset,
                    len,
                    unmap,
                    fua: false,
                };
                (kind, IoBuf::new(), Some((offset, len, 0)))
            }
            Step::Flush => (OpKind::Flush, IoBuf::new(), None),
            Step::Reopen => {
                drop((queue.take(), disk.take()));
                disk = open(&host);
                assert!(disk.is_some() || !sound, "it has damaged its image");
                queue = disk.as_ref().and_then(|disk| disk.open_queue(4).ok());
                continue;
            }
        };
        let done = execute(&mut **open_queue, kind, buf);
        if let Some(model) = &mut model {
            assert!(done.result.is_ok(), "{step:?}: {:?}", done.result);
            if let Some((offset, len, value)) = change {
                model[offset as usize..(offset + len) as usize].fill(value);
            } else if let OpKind::Read { offset } = kind {
                let expected = &model[offset as usize..offset as usize + done.buf.len()];
                assert!(done.buf.to_vec() == expected, "{step:?}");
            }
        }
    }
    drop((queue, disk));
    // The refcount table may have moved, and features that are cleared by who does not know them are.
    let after = content(&host, 4096);
    for place in [0..48, 60..88, 96..HEADER] {
        assert!(
            after[place.clone()] == header[place],
            "the header is another"
        );
    }
}
