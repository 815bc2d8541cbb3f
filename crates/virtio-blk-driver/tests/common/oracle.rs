// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A block device on virtio-queue's device half: an independent judge of well-formed traffic.

use std::io::{Read, Write};

use virtio_blk_driver::wire::{S_IOERR, S_OK, S_UNSUPP, T_FLUSH, T_GET_ID, T_IN, T_OUT};
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::GuestMemory;

use super::ID;

pub struct Oracle<'m, M> {
    mem: &'m M,
    pub queue: Queue,
    pub disk: Vec<u8>,
    /// Chains taken from the ring and not yet used.
    pub held: Vec<(u16, u32)>,
}

impl<'m, M: GuestMemory> Oracle<'m, M> {
    pub fn new(mem: &'m M, state: QueueState, disk: Vec<u8>) -> Self {
        let queue = Queue::try_from(state).unwrap();
        assert!(queue.is_valid(mem));
        Self {
            mem,
            queue,
            disk,
            held: Vec::new(),
        }
    }

    /// Takes everything available and executes it, without using it yet. Returns how many.
    pub fn take(&mut self) -> usize {
        let chains: Vec<_> = self.queue.iter(self.mem).unwrap().collect();
        for chain in &chains {
            let mut reader = chain.clone().reader(self.mem).unwrap();
            let mut writer = chain.clone().writer(self.mem).unwrap();
            let (status, len) = match writer.available_bytes().checked_sub(1) {
                None => panic!("a chain without a status"),
                Some(data) => {
                    let mut status = writer.split_at(data).unwrap();
                    let answer = execute(&mut self.disk, &mut reader, &mut writer);
                    status.write_all(&[answer]).unwrap();
                    (answer, data as u32 + 1)
                }
            };
            // With an error the data is not written, so nothing is from the start on but the status.
            let len = if status == S_OK || len == 1 { len } else { 0 };
            self.held.push((chain.head_index(), len));
        }
        chains.len()
    }

    /// Uses the chain at `index` of those held.
    pub fn complete(&mut self, index: usize) {
        let (head, len) = self.held.remove(index);
        self.queue.add_used(self.mem, head, len).unwrap();
    }

    /// Takes, executes and uses everything available, in order, until there is nothing; then asks for
    /// kicks. Returns how many chains there were and whether the driver is to be interrupted.
    pub fn run(&mut self) -> (usize, bool) {
        let mut count = 0;
        loop {
            self.queue.disable_notification(self.mem).unwrap();
            count += self.take();
            while !self.held.is_empty() {
                self.complete(0);
            }
            if !self.queue.enable_notification(self.mem).unwrap() {
                break;
            }
        }
        (count, self.queue.needs_notification(self.mem).unwrap())
    }
}

fn execute(disk: &mut [u8], reader: &mut impl Read, writer: &mut impl Write) -> u8 {
    let mut header = [0; 16];
    if reader.read_exact(&mut header).is_err() {
        return S_IOERR;
    }
    let kind = u32::from_le_bytes(header[..4].try_into().unwrap());
    let sector = u64::from_le_bytes(header[8..].try_into().unwrap());
    let start = usize::try_from(sector).unwrap() * 512;
    match kind {
        T_IN => {
            // As much as there is room for.
            let data = disk.get(start..).unwrap_or_default();
            let mut rest = data;
            while !rest.is_empty() {
                match writer.write(rest) {
                    Ok(0) | Err(_) => break,
                    Ok(done) => rest = &rest[done..],
                }
            }
            S_OK
        }
        T_OUT => {
            let mut data = Vec::new();
            reader.read_to_end(&mut data).unwrap();
            match disk.get_mut(start..start + data.len()) {
                Some(place) => {
                    place.copy_from_slice(&data);
                    S_OK
                }
                None => S_IOERR,
            }
        }
        T_FLUSH => S_OK,
        T_GET_ID => {
            writer.write_all(&ID).unwrap();
            S_OK
        }
        _ => S_UNSUPP,
    }
}
