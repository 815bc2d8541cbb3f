// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A server that is started again with other options below a running guest: it keeps to what the guest was
//! told, or refuses and says what differs. One test, as it looks at what is logged.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::stuck::{At, StuckDisk};
use common::{Served, heads_in_flight, log, options, test_disk, wait_for};
use vblk_testing::frontend::{Client, Guest, InFlight, Queue};
use virtio_blk_core::device::DeviceOptions;
use virtio_blk_core::disk::{Caps, Disk, EraseLimits};
use virtio_blk_core::spec::feature;
use virtio_blk_core::testdisk::{Mode, TestDisk, WaitKind};
use virtio_blk_driver::request::Request;
use virtio_blk_driver::wire::Range;

/// A guest that lives on while servers come and go.
struct Survivor {
    guest: Guest,
    queue: Queue,
    area: InFlight,
    /// The configuration space as the guest read it.
    config: Vec<u8>,
    features: u64,
}

const WRITES: u8 = 6;

/// What the guest writes: to sector 8 times its number.
fn data(number: u8) -> [u8; 4096] {
    [number + 1; 4096]
}

impl Survivor {
    /// Served by a server that ends with requests in flight.
    fn new(disk: &TestDisk, options: DeviceOptions) -> Self {
        let stuck = StuckDisk::new(disk.clone(), At::Completion);
        let served = Served::started(Arc::new(stuck.clone()), options, Duration::ZERO);
        let mut client = Client::connect(&served.socket()).unwrap();
        let mut guest = Guest::new(&[(0, 4 << 20)]).unwrap();
        client.set_memory(&guest).unwrap();
        let area = client.get_in_flight(1, 32).unwrap();
        client.set_in_flight(&area).unwrap();
        // QEMU's ring is smaller than the device's largest.
        let mut queue = guest.queue(32, 4096, 0).unwrap();
        client.start(0, &queue, 0).unwrap();
        queue.write(0, &[0xee; 4096]).unwrap();
        let config = client.config(0, 96).unwrap();
        stuck.close();
        for number in 0..WRITES {
            let data = data(number);
            let write = Request::write(8 * u64::from(number), &data);
            queue.send(&write.indirect(true)).unwrap();
        }
        wait_for("the requests to be taken", || {
            heads_in_flight(&area).len() == usize::from(WRITES)
        });
        let features = client.acked;
        drop((client, served));
        assert_eq!(heads_in_flight(&area).len(), usize::from(WRITES));
        // As if it had been killed: what it had given to the disk may happen or not.
        stuck.open();
        Self {
            guest,
            queue,
            area,
            config,
            features,
        }
    }

    /// Connects as QEMU does, which does not read the configuration space again.
    fn connect(&self, served: &Served) -> Result<Client, vblk_testing::frontend::Error> {
        let all = vhost::vhost_user::message::VhostUserProtocolFeatures::all();
        let mut client = Client::greet(&served.socket(), all)?;
        client.set_in_flight(&self.area)?;
        client.set_features(self.features)?;
        client.set_memory(&self.guest)?;
        client.start(0, &self.queue, 0)?;
        Ok(client)
    }

    /// Everything that was in flight is done, and all is as the guest was told.
    fn goes_on(mut self, mut client: Client, disk: &TestDisk) {
        for _ in 0..WRITES {
            let done = self.queue.answer().unwrap();
            assert!(done.is_ok(), "{done:?}");
        }
        for number in 0..WRITES {
            let content = disk.content(4096 * usize::from(number), 4096);
            assert_eq!(content, data(number), "write {number}");
        }
        let config = client.config(0, 96).unwrap();
        assert_eq!(config[8..], self.config[8..]);
        let capacity = |config: &[u8]| u64::from_le_bytes(config[..8].try_into().unwrap());
        assert!(capacity(&config) >= capacity(&self.config));
        self.queue.write(0, &[0x11; 4096]).unwrap();
        assert_eq!(self.queue.read(0, 4096).unwrap(), [0x11; 4096]);
        let range = Range {
            sector: 16,
            num_sectors: 8,
            flags: 0,
        };
        let discard = self.queue.run(&Request::discard(&[range])).unwrap();
        assert!(discard.is_ok());
    }
}

/// The same content under other capabilities.
fn with_caps(of: &TestDisk, change: impl FnOnce(&mut Caps)) -> TestDisk {
    let mut caps = of.caps();
    change(&mut caps);
    let disk = TestDisk::new(caps).with_mode(Mode::AtFlush, WaitKind::Fd);
    let bytes = of.caps().capacity_bytes().min(caps.capacity_bytes());
    disk.set_content(0, &of.content(0, bytes as usize));
    disk
}

/// What the next server has.
type Change = Box<dyn Fn(&TestDisk, &mut DeviceOptions) -> TestDisk>;

/// Another option.
fn option(change: impl Fn(&mut DeviceOptions) + 'static) -> Change {
    Box::new(move |disk, options| {
        change(options);
        disk.clone()
    })
}

/// Another capability of the disk.
fn caps(change: impl Fn(&mut Caps) + 'static) -> Change {
    Box::new(move |disk, _| with_caps(disk, |caps| change(caps)))
}

fn erase(max_sectors: u32) -> Option<EraseLimits> {
    Some(EraseLimits {
        max_sectors,
        max_segments: 4,
        alignment: 1,
    })
}

#[test]
fn each_option_changed() {
    log::keep();
    // The change, and what a refusal names; `None`: the guest continues.
    let cases: Vec<(&str, Change, Option<&str>)> = vec![
        ("nothing", option(|_| {}), None),
        ("fewer queues", option(|o| o.queues = 2), Some("queues")),
        ("more queues", option(|o| o.queues = 8), None),
        (
            "smaller queues",
            option(|o| o.queue_size = 32),
            Some("queue size"),
        ),
        ("larger queues", option(|o| o.queue_size = 256), None),
        (
            "another serial number",
            option(|o| o.serial = "other".to_owned()),
            Some("serial number"),
        ),
        (
            "no serial number",
            option(|o| o.serial.clear()),
            Some("serial number"),
        ),
        (
            "read-only",
            option(|o| o.read_only = true),
            Some("read-only"),
        ),
        (
            "no cache mode",
            option(|o| o.config_wce = false),
            Some("CONFIG_WCE"),
        ),
        (
            "no indirect tables",
            option(|o| o.masked_features = feature::RING_INDIRECT_DESC),
            Some("INDIRECT"),
        ),
        (
            "no event index",
            option(|o| o.masked_features = feature::RING_EVENT_IDX),
            Some("EVENT_IDX"),
        ),
        ("fewer segments", option(|o| o.seg_max = Some(4)), None),
        ("more segments", option(|o| o.seg_max = Some(200)), None),
        (
            "another block size",
            caps(|c| c.align.guest_block = 4096),
            Some("block size"),
        ),
        (
            "a smaller image",
            caps(|c| c.capacity -= 8),
            Some("sectors"),
        ),
        ("a larger image", caps(|c| c.capacity += 8), None),
        (
            "a read-only disk",
            caps(|c| c.read_only = true),
            Some("read-only"),
        ),
        ("no discard", caps(|c| c.discard = None), Some("DISCARD")),
        (
            "smaller discards",
            caps(|c| c.discard = erase(64)),
            Some("max_discard_sectors"),
        ),
        ("larger discards", caps(|c| c.discard = erase(4096)), None),
        (
            "no zeroes",
            caps(|c| c.write_zeroes = None),
            Some("WRITE_ZEROES"),
        ),
        ("no flush", caps(|c| c.flush = false), Some("FLUSH")),
        ("secure erase", caps(|c| c.secure_erase = erase(64)), None),
        ("other hints", caps(|c| c.topology.opt_io_size = 8), None),
    ];
    for (what, change, refusal) in cases {
        println!("{what}");
        let disk = test_disk();
        let mut survivor = Survivor::new(&disk, options());
        log::clear();
        let mut changed = options();
        let other = change(&disk, &mut changed);
        let served = Served::with_device(Arc::new(other.clone()), changed);
        match (survivor.connect(&served), refusal) {
            (Ok(client), None) => {
                survivor.goes_on(client, &other);
                assert_eq!(log::text(), "");
            }
            (Err(_), Some(refusal)) => {
                served.wait_idle();
                let log = log::text();
                assert!(
                    log.contains(refusal) && log.contains("the guest was"),
                    "{what}: {log}"
                );
                assert!(survivor.queue.driver.poll().unwrap().is_none());
                // The right options again: nothing was lost by the attempt.
                drop(served);
                let served = Served::with_device(Arc::new(disk.clone()), options());
                let client = survivor.connect(&served).unwrap();
                survivor.goes_on(client, &disk);
            }
            (Ok(_), Some(_)) => panic!("{what} was not refused"),
            (Err(error), None) => panic!("{what}: {error}, {}", log::text()),
        }
    }
}
