// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What one I/O costs: random 4 KiB reads and writes through an `IoQueue`; and writes, each made stable by a flush or
//! by itself (FUA), on several queues, each in its own thread.
//!
//! ```text
//! cargo run --release -p vblk-testing --bin raw-speed -- DISK [I/Os per run]
//! ```
//!
//! `DISK` as for `StackArg`, for example `raw:/var/tmp/test.img,engine=sync,dirty=a` (at least 4 KiB, its
//! content is overwritten) or `null:1G`. Per run: I/Os per second, and the CPU time of the whole
//! process, kernel threads of io_uring included, per I/O. The file is read once before, so that
//! without `direct=on` it is in the page cache as far as memory allows.

use std::error::Error;
use std::time::Instant;

use vblk_testing::cpu::of_process;
use virtio_blk_core::disk::{Disk, IoBuf, IoQueue, Op, OpKind, Submit, Token, Wait};
use virtio_blk_disks::disk_arg::{
    DiskKind, DiskKinds, FromTree, MemoryOptions, NullOptions, Tree, TreeError,
};
use virtio_blk_disks::stack::{Groups, Stack, StackArg};
use virtio_blk_disks::{DiskArg, RawOptions};
use virtio_blk_qcow2::Qcow2File;

const BLOCK: usize = 4096;

/// Waits until `reap` has something.
fn wait(queue: &dyn IoQueue) {
    if let Wait::Fd(fd) = queue.wait() {
        use std::os::fd::AsRawFd;
        let mut poll = libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one valid entry. Interruptions do no harm: the caller asks again.
        unsafe { libc::poll(&raw mut poll, 1, -1) };
    }
}

/// An aligned buffer, so that direct I/O needs no copy.
fn aligned() -> IoBuf {
    #[repr(align(4096))]
    struct Page([u8; BLOCK]);
    let page = std::sync::Arc::new(Page([1; BLOCK]));
    let base = page.0.as_ptr().cast_mut();
    let mut buf = IoBuf::new();
    buf.set_keep(page);
    // SAFETY: the page lives as long as the buffer and nothing else refers to it.
    unsafe { buf.push(base, BLOCK) };
    buf
}

fn run(disk: &dyn Disk, write: bool, depth: usize, count: u64) -> Result<(), Box<dyn Error>> {
    let mut queue = disk.open_queue(depth as u16)?;
    let blocks = disk.caps().capacity_bytes() / BLOCK as u64;
    let mut buffers: Vec<IoBuf> = (0..depth).map(|_| aligned()).collect();
    let mut done = Vec::new();
    let (mut sent, mut finished, mut inline, mut state) = (0_u64, 0_u64, 0_u64, 1_u64);
    let (wall, cpu) = (Instant::now(), of_process(std::process::id())?);
    while finished < count {
        while sent < count
            && let Some(buf) = buffers.pop()
        {
            state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
            let offset = ((u128::from(state) * u128::from(blocks)) >> 64) as u64 * BLOCK as u64;
            let kind = if write {
                OpKind::Write { offset, fua: false }
            } else {
                OpKind::Read { offset }
            };
            let token = Token(sent);
            sent += 1;
            match queue.execute_or_submit(Op { token, kind, buf }) {
                Submit::Queued => {}
                Submit::Done(completion) => {
                    inline += 1;
                    done.push(completion);
                }
                Submit::Full(_) => return Err("a queue was full below its depth".into()),
            }
        }
        queue.flush_batch()?;
        if queue.reap(&mut done)? == 0 && done.is_empty() {
            wait(&*queue);
        }
        for completion in done.drain(..) {
            completion.result?;
            buffers.push(completion.buf);
            finished += 1;
        }
    }
    let (wall, cpu) = (wall.elapsed(), of_process(std::process::id())? - cpu);
    println!(
        "{:5} depth {depth:3}: {:9.0} IOPS, {:6.2} us CPU per I/O, {:3} % inline",
        if write { "write" } else { "read" },
        count as f64 / wall.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / count as f64,
        inline * 100 / count,
    );
    Ok(())
}

/// `queues` threads, each with a queue, that make each write stable before the next.
fn run_stable(
    disk: &dyn Disk,
    fua: bool,
    queues: u64,
    count: u64,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let one = |thread: u64| -> Result<(), Box<dyn Error + Send + Sync>> {
        let mut queue = disk.open_queue(4)?;
        let blocks = disk.caps().capacity_bytes() / BLOCK as u64;
        let mut buf = aligned();
        let mut done = Vec::new();
        for number in 0..count / queues {
            let offset = (number * queues + thread) * 7919 % blocks * BLOCK as u64;
            for kind in [OpKind::Write { offset, fua }, OpKind::Flush] {
                if fua && kind == OpKind::Flush {
                    continue;
                }
                let token = Token(number);
                match queue.execute_or_submit(Op { token, kind, buf }) {
                    Submit::Queued => {}
                    Submit::Done(completion) => done.push(completion),
                    Submit::Full(_) => return Err("a queue was full below its depth".into()),
                }
                queue.flush_batch()?;
                while done.is_empty() && queue.reap(&mut done)? == 0 {
                    wait(&*queue);
                }
                let completion = done.pop().ok_or("nothing came back")?;
                completion.result?;
                buf = completion.buf;
            }
        }
        Ok(())
    };
    let start = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..queues)
            .map(|thread| scope.spawn(move || one(thread)))
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|_| Err("a thread".into())))
    })?;
    println!(
        "{} queues {queues}: {:7.0} a second",
        if fua {
            "FUA writes    "
        } else {
            "write and flush"
        },
        count as f64 / start.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Reads the whole disk once.
fn warm(disk: &dyn Disk) -> Result<(), Box<dyn Error>> {
    let mut queue = disk.open_queue(1)?;
    let bytes = disk.caps().capacity_bytes().min(4 << 30);
    for offset in (0..bytes).step_by(1 << 20) {
        let len = (bytes - offset).min(1 << 20) as usize;
        let op = Op {
            token: Token(0),
            kind: OpKind::Read { offset },
            buf: IoBuf::zeroed(len),
        };
        let mut done = Vec::new();
        if let Submit::Done(completion) = queue.execute_or_submit(op) {
            done.push(completion);
        }
        queue.flush_batch()?;
        while done.is_empty() && queue.reap(&mut done)? == 0 {
            wait(&*queue);
        }
    }
    Ok(())
}

/// The disk under the layers.
struct Named(DiskArg);

impl FromTree for Named {
    fn from_tree(tree: &Tree) -> Result<Self, TreeError> {
        let kinds = [
            DiskKind::of::<RawOptions>(),
            DiskKind::of::<Qcow2File>(),
            DiskKind::of::<MemoryOptions>(),
            DiskKind::of::<NullOptions>(),
        ];
        DiskKinds::new(&kinds).read(tree).map(Self)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let text = args.next().ok_or("usage: raw-speed DISK [I/Os]")?;
    let spec: StackArg<Named> = text.parse()?;
    let count = args.next().map_or(Ok(400_000), |text| text.parse())?;
    let disk = spec.disk.0.open(false)?;
    let disk = Stack::fixed(disk, &spec.layers, Groups::default())?.disk();
    warm(&*disk)?;
    println!("{text}");
    for depth in [1, 32] {
        run(&*disk, false, depth, count)?;
        run(&*disk, true, depth, count)?;
    }
    for queues in [1, 4] {
        for fua in [false, true] {
            run_stable(&*disk, fua, queues, count / 200).map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}
