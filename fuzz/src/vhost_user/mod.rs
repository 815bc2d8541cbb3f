// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! vhost-user messages with descriptors against a real server: a hostile client, and a good one after it.
//!
//! The client shares memory, brings queues to work and makes requests, and puts any other message, any wrong
//! descriptor and any change of memory between. Whatever it does, the server ends each session in time, and
//! serves a good client afterwards.

mod client;
mod input;
pub mod seeds;
mod things;

use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost_user_blk::socket::Listener;
use vhost_user_blk::{Server, ServerHandle, ServerOptions};
use virtio_blk_core::device::{Device, DeviceOptions};
use virtio_blk_disks::stack::{Groups, StackArg};

use client::Client;
pub use input::{Input, Step, Word};
use things::Things;

const SET_OWNER: u32 = 3;
const SET_FEATURES: u32 = 2;
const SET_MEM_TABLE: u32 = 5;
const SET_LOG_BASE: u32 = 6;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_VRING_ENABLE: u32 = 18;
const SET_BACKEND_REQ_FD: u32 = 21;
const GET_CONFIG: u32 = 24;
const GET_INFLIGHT_FD: u32 = 31;
const SET_INFLIGHT_FD: u32 = 32;
const RESET_DEVICE: u32 = 34;
const ADD_MEM_REG: u32 = 37;
const REM_MEM_REG: u32 = 38;

const PROTOCOL_FEATURES: u64 = 1 << 30;
const LOG_ALL: u64 = 1 << 26;
/// MQ, LOG_SHMFD, REPLY_ACK, BACKEND_REQ, CONFIG, INFLIGHT_SHMFD, RESET_DEVICE, CONFIGURE_MEM_SLOTS.
const PROTOCOL: u64 = 0xb22b;

const PAGE: u64 = 4096;
/// Pages of guest memory.
const PAGES: u64 = 64;
/// What the client's own addresses differ by from the guest's.
const USER: u64 = 1 << 40;
/// Regions of a whole table: the first pages belong to queues.
const REGION: u64 = PAGES / 4;

const QUEUES: u16 = 3;
const QUEUE_SIZE: u16 = 16;

/// How long a stop of the server may take; its disk is memory.
const STOP_TIME: Duration = Duration::from_secs(5);
/// How long a session may take to end.
const PATIENCE: Duration = Duration::from_secs(25);

/// A socket for servers that never accept: clients come by pairs of sockets.
fn unused_socket() -> Listener {
    static SOCKET: OnceLock<UnixListener> = OnceLock::new();
    let socket = SOCKET.get_or_init(|| {
        let name = format!("vblk-fuzz-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).expect("a short name");
        UnixListener::bind_addr(&address).expect("a name of our own")
    });
    Listener::inherit(socket.as_raw_fd()).expect("it listens")
}

/// A server, and the client's end of a session.
struct Session {
    server: Arc<Server>,
    handle: ServerHandle,
    thread: Option<JoinHandle<()>>,
    ended: Receiver<()>,
    client: Option<Client>,
}

impl Session {
    fn new(is_slow: bool) -> Self {
        let disk = if is_slow {
            "memory:64K,throttle=iops:20"
        } else {
            "memory:64K"
        };
        let spec: StackArg = disk.parse().expect("a disk");
        let stack = spec.open(false, &Groups::default()).expect("memory");
        let options = DeviceOptions {
            queues: QUEUES,
            queue_size: QUEUE_SIZE,
            ..DeviceOptions::default()
        };
        let device = Device::new(stack.disk(), options).expect("a device");
        let options = ServerOptions {
            stop_time: STOP_TIME,
            ..ServerOptions::default()
        };
        let server = Server::new(unused_socket(), device, options).expect("descriptors");
        let mut this = Self {
            handle: server.handle(),
            server: Arc::new(server),
            thread: None,
            ended: channel().1,
            client: None,
        };
        this.connect();
        this
    }

    fn connect(&mut self) {
        self.hang_up();
        let (ours, theirs) = UnixStream::pair().expect("descriptors");
        let (end, ended) = channel();
        let server = self.server.clone();
        self.thread = Some(std::thread::spawn(move || {
            server.serve(theirs);
            drop(end);
        }));
        self.ended = ended;
        self.client = Some(Client::new(ours));
    }

    /// Ends the session, which must not take long.
    fn hang_up(&mut self) {
        if let Some(client) = self.client.take() {
            client.end();
        }
        if let Some(thread) = self.thread.take() {
            // Nothing is ever sent: this waits for the end.
            let waited = self.ended.recv_timeout(PATIENCE);
            let timeout = std::sync::mpsc::RecvTimeoutError::Timeout;
            assert_ne!(waited, Err(timeout), "the session does not end");
            thread.join().expect("the server panicked");
        }
    }

    fn client(&mut self) -> &mut Client {
        self.client.as_mut().expect("connected")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.hang_up();
        }
        self.handle.stop();
    }
}

/// One region of a table: guest address, bytes, the client's address, offset in the file.
fn region(first: u64, pages: u64) -> [u64; 4] {
    let at = first * PAGE;
    [at, pages * PAGE, USER + at, at]
}

/// Sets a queue up. Its ring is at the beginning of its pages.
fn start(client: &mut Client, things: &mut Things, queue: usize, size: u16, base: u16) {
    let index = queue as u64;
    let ring = USER + Things::ring(queue);
    things.rings[queue] = (base, size);
    client.say(SET_VRING_NUM, &[u64::from(size) << 32 | index], &[]);
    client.say(SET_VRING_BASE, &[u64::from(base) << 32 | index], &[]);
    let addresses = [index, ring, ring + 2048, ring + 1024, 0];
    client.say(SET_VRING_ADDR, &addresses, &[]);
    for (number, event) in things.events[queue].iter().enumerate().rev() {
        let request = SET_VRING_KICK + number as u32;
        client.say(request, &[index], &[event.as_fd()]);
    }
    client.say(SET_VRING_ENABLE, &[1 << 32 | index], &[]);
}

/// Negotiates everything, but for the features of `but`.
fn negotiate(client: &mut Client, device: &Device, but: u64) {
    client.say(SET_OWNER, &[], &[]);
    client.say(SET_PROTOCOL_FEATURES, &[PROTOCOL], &[]);
    let features = (device.offered() | PROTOCOL_FEATURES) & !but;
    client.say(SET_FEATURES, &[features], &[]);
}

fn take_step(session: &mut Session, device: &Device, things: &mut Things, step: &Step) {
    let offered = device.offered() | PROTOCOL_FEATURES;
    let queue = |index: u8| usize::from(index) % usize::from(QUEUES);
    let client = session.client();
    match step {
        Step::Message {
            request,
            flags,
            words,
            descriptors,
        } => {
            let words: Vec<u64> = words.iter().map(|word| value(word, offered)).collect();
            let fds: Vec<_> = (descriptors.iter().take(40))
                .map(|which| things.descriptor(*which))
                .collect();
            // Mostly version 1, with and without a wish for a reply.
            let flags = 1 ^ u32::from(flags & 0xf8);
            client.message(u32::from(*request), flags, &words, &fds);
        }
        Step::Bytes { bytes, descriptors } => {
            let fds: Vec<_> = (descriptors.iter().take(40))
                .map(|which| things.descriptor(*which))
                .collect();
            client.bytes(bytes, &fds);
        }
        Step::Negotiate { but } => negotiate(client, device, 1 << (but % 64)),
        Step::Memory { regions } => {
            let regions = u64::from(*regions) % 4 + 1;
            let mut words = vec![regions];
            words.extend((0..regions).flat_map(|n| region(n * REGION, REGION)));
            let fds = vec![things.memory.as_fd(); regions as usize];
            client.say(SET_MEM_TABLE, &words, &fds);
        }
        Step::AddRegion { which } => {
            let mut words = vec![0];
            words.extend(region(u64::from(*which) % 4 * REGION, REGION));
            client.say(ADD_MEM_REG, &words, &[things.memory.as_fd()]);
        }
        Step::RemoveRegion { which } => {
            let mut words = vec![0];
            words.extend(region(u64::from(*which) % 4 * REGION, REGION));
            client.say(REM_MEM_REG, &words, &[]);
        }
        Step::Queue {
            index,
            exponent,
            base,
        } => {
            let size = 1 << (exponent % 6);
            start(client, things, queue(*index), size, u16::from(*base));
        }
        Step::GetBase { index } => client.say(GET_VRING_BASE, &[queue(*index) as u64], &[]),
        Step::Enable { index, on } => {
            let word = u64::from(*on) << 32 | queue(*index) as u64;
            client.say(SET_VRING_ENABLE, &[word], &[]);
        }
        Step::Descriptor { index, kind, which } => {
            let request = SET_VRING_KICK + u32::from(kind % 3);
            let fd = things.descriptor(*which);
            client.say(request, &[queue(*index) as u64], &[fd]);
        }
        Step::Reset {} => client.say(RESET_DEVICE, &[], &[]),
        Step::InFlight { queues, exponent } => {
            let shape = (u64::from(*queues) % 5) | ((1 << (exponent % 6)) << 16);
            client.settle();
            client.say(GET_INFLIGHT_FD, &[0, 0, shape], &[]);
            if let Some(reply) = client.reply(GET_INFLIGHT_FD)
                && let Some(file) = client.file()
                && let Some((words, _)) = reply.payload.split_first_chunk::<24>()
            {
                let (words, _) = words.as_chunks::<8>();
                let words: Vec<u64> = words.iter().map(|word| u64::from_ne_bytes(*word)).collect();
                client.say(SET_INFLIGHT_FD, &words, &[file.as_fd()]);
                things.area = words.try_into().ok().map(|words| (file, words));
            }
        }
        Step::Damage { offset, value } => {
            if let Some((file, words)) = &things.area {
                let offset = u64::from(*offset) % words[0].saturating_sub(8).max(1);
                // It may be sealed against growing.
                let _ = file.write_all_at(&value.to_ne_bytes(), offset);
                client.say(SET_INFLIGHT_FD, words, &[file.as_fd()]);
            }
        }
        Step::Log { len } => {
            let words = [u64::from(*len), 0];
            client.say(SET_LOG_BASE, &words, &[things.log.as_fd()]);
            client.say(SET_FEATURES, &[offered | LOG_ALL], &[]);
        }
        Step::Channel {} => client.say(SET_BACKEND_REQ_FD, &[], &[things.others[2].as_fd()]),
        Step::Request {
            queue: index,
            kind,
            sector,
            segments,
        } => {
            client.settle();
            let kind = u32::from(kind % 16);
            things.request(
                queue(*index),
                kind,
                u64::from(*sector),
                u16::from(*segments),
            );
            things.kick(queue(*index));
        }
        Step::Poke { at, value } => {
            client.settle();
            things.poke(8 * u64::from(*at), &value.to_le_bytes());
        }
        Step::Kick { queue: index } => things.kick(queue(*index)),
        Step::Shrink { pages } => {
            client.settle();
            let pages = u64::from(*pages) % (PAGES + 1);
            things.memory.set_len(pages * PAGE).expect("memory");
        }
        Step::Config { offset, len } => {
            // Three words of 32 bits, and room for the bytes.
            let mut bytes = Vec::new();
            for word in [GET_CONFIG, 1, 12 + u32::from(*len)] {
                bytes.extend(word.to_ne_bytes());
            }
            for word in [u32::from(*offset), u32::from(*len), 0] {
                bytes.extend(word.to_ne_bytes());
            }
            bytes.extend(vec![0; usize::from(*len)]);
            client.bytes(&bytes, &[]);
        }
        Step::Reconnect {} => session.connect(),
    }
}

fn value(word: &Word, offered: u64) -> u64 {
    match word {
        Word::Small { value } => u64::from(*value),
        Word::Pair { high, low } => u64::from(*high) << 32 | u64::from(*low),
        Word::Power { exponent } => 1 << (exponent % 64),
        Word::Address { page, offset } => {
            USER + (u64::from(*page) % PAGES) * PAGE + u64::from(*offset) % PAGE
        }
        Word::Features { but } => offered & !(1 << (but % 64)),
        Word::Any { value } => *value,
    }
}

/// The whole of it: a good client writes and reads.
fn assert_serves(session: &mut Session, device: &Device) {
    session.connect();
    let mut things = Things::new();
    let client = session.client();
    // Without event indices each answer is signalled.
    negotiate(client, device, 1 << 29);
    let mut words = vec![1];
    words.extend(region(0, PAGES));
    client.say(SET_MEM_TABLE, &words, &[things.memory.as_fd()]);
    start(client, &mut things, 0, QUEUE_SIZE, 0);
    client.settle();
    things.poke((PAGES - 1) * PAGE, &[0x5a; 1024]);
    things.request(0, 1, 8, 1);
    things.kick(0);
    let used = Things::ring(0) + 2048 + 2;
    for number in 1..=2u16 {
        let mut index = [0; 2];
        loop {
            things
                .memory
                .read_exact_at(&mut index, used)
                .expect("memory");
            if u16::from_le_bytes(index) == number {
                break;
            }
            let mut fds = [PollFd::new(&things.events[0][1], PollFlags::IN)];
            let patience = Timespec {
                tv_sec: PATIENCE.as_secs().cast_signed(),
                tv_nsec: 0,
            };
            let events = match poll(&mut fds, Some(&patience)) {
                Err(rustix::io::Errno::INTR) => continue,
                events => events.expect("an eventfd"),
            };
            assert_ne!(events, 0, "a good client gets no answer");
            // It may be empty by now.
            let _ = rustix::io::read(&things.events[0][1], &mut [0; 8]);
        }
        let mut byte = [0xff];
        let status = Things::slot(0, number - 1) + 16;
        things
            .memory
            .read_exact_at(&mut byte, status)
            .expect("memory");
        assert_eq!(byte, [0], "request {number}");
        if number == 1 {
            things.poke((PAGES - 1) * PAGE, &[0; 1024]);
            things.request(0, 0, 8, 1);
            things.kick(0);
        }
    }
    let mut data = [0; 512];
    let at = (PAGES - 1) * PAGE + 1;
    things.memory.read_exact_at(&mut data, at).expect("memory");
    assert_eq!(data, [0x5a; 512], "what was written is read");
    session.hang_up();
}

/// Runs an input.
pub fn run(input: &Input) {
    let mut session = Session::new(input.is_slow);
    let device = session.server.device().clone();
    let mut things = Things::new();
    for step in input.steps.iter().take(60) {
        take_step(&mut session, &device, &mut things, step);
    }
    assert_serves(&mut session, &device);
}

/// Runs an input and looks at this process's descriptors: to be called where nothing else runs.
pub fn run_alone(input: &Input) {
    let links = || -> Vec<_> {
        let all = std::fs::read_dir("/proc/self/fd").expect("a file system of processes");
        let links = all.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
        // The directory that is read has a descriptor, too; and `guarded-mmap` keeps one for good.
        let known = |link: &PathBuf| {
            link.starts_with("/proc") || link.to_string_lossy().contains("memfd:guarded-mmap")
        };
        links.filter(|link| !known(link)).collect()
    };
    unused_socket();
    let before = links();
    run(input);
    let after = links();
    assert_eq!(
        after.len(),
        before.len(),
        "left open: {before:?}, {after:?}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The steps that seeds are made of do what they say.
    #[test]
    fn requests_reach_the_disk() {
        let (_, input) = seeds::all().swap_remove(1);
        let mut session = Session::new(false);
        let device = session.server.device().clone();
        let mut things = Things::new();
        for step in &input.steps {
            take_step(&mut session, &device, &mut things, step);
        }
        let counters = device.counters(0).expect("a queue");
        while [counters.reads.get(), counters.writes.get()] != [1, 1] {
            assert!(!session.client().is_over());
            session.client().settle();
        }
    }
}
