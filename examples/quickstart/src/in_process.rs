// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The form without a virtual machine: a driver in this process, with 32 requests in flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vdpa_bus::{Callback, VdpaDevice, VqAddress};
use vhost_vdpa_frontend::{
    GuestQueue, PathSwitch, SwitchOptions, SwitchParts, SwitchPolicy, ThreadExecutor,
};
use virtio_blk_core::spec::{feature, status};
use virtio_blk_driver::request::{Arena, ArenaConfig, Driver, Request};
use virtio_blk_driver::ring::{RingConfig, SplitLayout};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::moves::Moves;
use crate::{CHUNK_KIB, Outcome, Seen};

type Memory = Arc<GuestMemoryMmap<()>>;

/// Bytes of a chunk.
const CHUNK: usize = (CHUNK_KIB as usize) << 10;
const SECTOR: usize = 512;
const SECTORS: u64 = (CHUNK / SECTOR) as u64;
/// Chunks that a pass writes and reads.
const CHUNKS: u64 = 128;
/// Requests in flight.
const DEPTH: u16 = 32;
const QUEUE_SIZE: u16 = 128;

/// Brings `device` up as a guest and its VMM do, lets the driver work, and moves it.
///
/// # Errors
/// A move failed, or the driver found something wrong.
pub fn run(device: &Arc<dyn VdpaDevice>) -> Outcome<Seen> {
    let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&[(
        GuestAddress(0),
        16 << 20,
    )])?);
    let parts = SwitchParts {
        device: device.clone(),
        memory: memory.clone(),
        executor: Box::new(ThreadExecutor::new(Duration::ZERO)),
        vmm: Arc::new(()),
        layers: None,
    };
    let options = SwitchOptions {
        policy: SwitchPolicy::Auto,
        ..SwitchOptions::default()
    };
    let paths = PathSwitch::new(parts, options)?;
    let features = paths.offered();
    let ring = RingConfig {
        event_idx: features & feature::RING_EVENT_IDX != 0,
        indirect: features & feature::RING_INDIRECT_DESC != 0,
        start: 0,
    };
    let arena = ArenaConfig {
        slots: DEPTH,
        data_len: CHUNK as u32,
        ..ArenaConfig::default()
    };
    let layout = SplitLayout::contiguous(QUEUE_SIZE, GuestAddress(0x1000))?;
    let arena = Arena::new(GuestAddress(0x10_0000), arena)?;
    let mut guest = Guest {
        driver: Driver::new(memory, layout, ring, arena)?,
        kick: Arc::new(EventFd::new(EFD_NONBLOCK)?),
        interrupt: Arc::new(EventFd::new(0)?),
    };
    let mut byte = 0;
    for bit in [status::ACKNOWLEDGE, status::DRIVER] {
        byte |= bit;
        paths.set_status(byte)?;
    }
    paths.set_features(features)?;
    paths.set_status(byte | status::FEATURES_OK)?;
    paths.set_queue(0, guest.queue())?;
    paths.set_status(byte | status::FEATURES_OK | status::DRIVER_OK)?;

    let stop = AtomicBool::new(false);
    let (mut moves, compared) = std::thread::scope(|scope| {
        let driver = scope.spawn(|| guest.work(&stop));
        let moves = Moves::make(&paths, |time| {
            std::thread::sleep(time);
            if driver.is_finished() {
                return Err("the driver ended before it was told to".into());
            }
            Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        // What the driver found wrong says more than that it ended.
        let compared = driver.join().map_err(|_| "the driver panicked")??;
        Outcome::Ok((moves?, compared))
    })?;
    moves.finish(&**device, compared)?;
    Ok(Seen { moves, compared })
}

/// A driver, and the eventfds between it and its device.
struct Guest {
    driver: Driver<Memory>,
    kick: Arc<EventFd>,
    interrupt: Arc<EventFd>,
}

impl Guest {
    /// The queue as its device is told of it.
    fn queue(&self) -> GuestQueue {
        let state = self.driver.state();
        GuestQueue {
            size: state.size,
            address: VqAddress {
                desc: state.desc_table,
                driver: state.avail_ring,
                device: state.used_ring,
            },
            kick: self.kick.clone(),
            call: Callback::Trigger(self.interrupt.clone()),
        }
    }

    /// Writes, flushes, reads back and compares, other data in each pass, until it is told to `stop` after a pass. Returns how
    /// many chunks were compared.
    fn work(&mut self, stop: &AtomicBool) -> Outcome<u64> {
        let mut passes = 0;
        while !stop.load(Ordering::Relaxed) {
            self.run(Work::Write, passes, CHUNKS)?;
            self.run(Work::Flush, passes, 1)?;
            self.run(Work::Read, passes, CHUNKS)?;
            passes += 1;
        }
        Ok(passes * CHUNKS)
    }

    /// Runs `count` requests, [`DEPTH`] at a time, and checks what comes back.
    fn run(&mut self, work: Work, pass: u64, count: u64) -> Outcome<()> {
        let (mut expected, mut data) = (vec![0; CHUNK], vec![0; CHUNK]);
        let mut in_flight = Vec::new();
        let (mut chunks, mut finished) = (0..count, 0);
        while finished < count {
            while in_flight.len() < usize::from(DEPTH) {
                let Some(chunk) = chunks.next() else { break };
                let sector = chunk * SECTORS;
                let request = match work {
                    Work::Write => {
                        stamp(&mut data, pass, chunk);
                        Request::write(sector, &data)
                    }
                    Work::Flush => Request::flush(),
                    Work::Read => Request::read(sector, CHUNK as u32),
                };
                in_flight.push((self.driver.submit(&request)?, chunk));
            }
            if self.driver.publish()? {
                self.kick.write(1)?;
            }
            let before = finished;
            while let Some(done) = self.driver.poll()? {
                let at = in_flight.iter().position(|(token, _)| *token == done.token);
                let (_, chunk) = in_flight.swap_remove(at.ok_or("a completion of no request")?);
                if !done.is_ok() {
                    return Err(format!("{work:?} of chunk {chunk}: status {}", done.status).into());
                }
                if work == Work::Read {
                    stamp(&mut expected, pass, chunk);
                    self.driver.read_data(done.token, 0, &mut data)?;
                    if data != expected {
                        return Err(
                            format!("chunk {chunk} holds something else than was written").into(),
                        );
                    }
                }
                finished += 1;
            }
            // Asks for an interrupt, and sleeps unless something came meanwhile.
            let (ring, memory) = self.driver.ring_mut();
            if finished == before && !ring.enable_interrupts(memory)? {
                self.interrupt.read()?;
            }
        }
        Ok(())
    }
}

/// What the driver asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Write,
    Flush,
    Read,
}

/// What a chunk holds after a pass: no sector is like another one or like that of another pass.
fn stamp(data: &mut [u8], pass: u64, chunk: u64) {
    for (sector, bytes) in (chunk * SECTORS..).zip(data.chunks_mut(SECTOR)) {
        let word = (pass << 32 | sector).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&word.to_le_bytes());
        }
    }
}
