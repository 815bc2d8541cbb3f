// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Stops end within their bound, whatever layers and disk do.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::stuck::{At, StuckDisk};
use common::{QUEUE_SIZE, Running, Served, heads_in_flight, mapped, start, test_disk, wait_for};
use vblk_testing::frontend::{Client, InFlight, Queue};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost_user_blk::STOP_TIME;
use virtio_blk_core::disk::DiskError;
use virtio_blk_core::testdisk::{Mode, WaitKind};
use virtio_blk_disks::PolicyDisk;
use virtio_blk_disks::policy::{ErrorPolicy, OnError};
use virtio_blk_disks::stack::{Groups, StackArg};
use virtio_blk_driver::request::Request;
use virtio_blk_driver::wire::S_IOERR;
use vm_memory::{Bytes, GuestAddress};

/// The bound of servers here.
const BOUND: Duration = Duration::from_millis(300);
/// What a busy machine may need beyond it.
const GRACE: Duration = Duration::from_secs(4);

/// What stops queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    GetVringBase,
    Disable,
    Addresses,
    Kick,
    Reset,
    RemoveMemory,
    Leave,
    Server,
}

const ALL: [What; 8] = [
    What::GetVringBase,
    What::Disable,
    What::Addresses,
    What::Kick,
    What::Reset,
    What::RemoveMemory,
    What::Leave,
    What::Server,
];

/// Does it. Returns whether the client was told of success.
fn stop(what: What, served: &mut Served, running: &mut Running) -> bool {
    let client = &mut running.client;
    match what {
        What::GetVringBase => client.stop(0).is_ok(),
        What::Disable => client.frontend().set_vring_enable(0, false).is_ok(),
        What::Addresses => {
            let other = running.guest.queue(QUEUE_SIZE, 512, 0).unwrap();
            client.set_addresses(0, &other, false).is_ok()
        }
        What::Kick => {
            let kick = vblk_testing::frontend::event().unwrap();
            client.frontend().set_vring_kick(0, &kick).is_ok()
        }
        What::Reset => client.frontend().reset_device().is_ok(),
        What::RemoveMemory => client.remove_memory(&running.guest).is_ok(),
        What::Leave => {
            client.stream().shutdown(std::net::Shutdown::Both).unwrap();
            served.wait_idle();
            false
        }
        What::Server => {
            served.handle.stop();
            served.join();
            false
        }
    }
}

/// A client with an in-flight area and requests that the disk has.
fn busy(served: &Served, disk: &StuckDisk, requests: u64) -> (Running, InFlight) {
    let mut client = Client::connect(&served.socket()).unwrap();
    let mut guest = common::guest();
    client.set_memory(&guest).unwrap();
    let area = client.get_in_flight(3, QUEUE_SIZE).unwrap();
    client.set_in_flight(&area).unwrap();
    let queues = start(&mut client, &mut guest, 3);
    let mut running = Running {
        client,
        guest,
        queues,
    };
    disk.close();
    for queue in &mut running.queues {
        for sector in 0..requests {
            queue.send(&Request::write(sector, &[7; 512])).unwrap();
        }
    }
    wait_for("a request to be taken", || {
        !heads_in_flight(&area).is_empty()
    });
    (running, area)
}

/// Continues after a reconnection.
fn resume(socket: &std::path::Path, running: &mut Running, area: &InFlight) {
    running.client = Client::connect(socket).unwrap();
    running.client.set_in_flight(area).unwrap();
    running.client.set_memory(&running.guest).unwrap();
    for (index, queue) in running.queues.iter().enumerate() {
        running.client.start(index, queue, 0).unwrap();
    }
}

fn over_a_disk_that_never_answers(what: What, at: At) {
    let (mode, wait) = match at {
        At::Completion => (Mode::AtFlush, WaitKind::Fd),
        At::Submit => (Mode::Inline, WaitKind::Inline),
    };
    let inner = test_disk().with_mode(mode, wait);
    let disk = StuckDisk::new(inner.clone(), at);
    let mut served = Served::with_stop_time(Arc::new(disk.clone()), BOUND);
    let (mut running, area) = busy(&served, &disk, 4);
    let named = heads_in_flight(&area);
    let started = Instant::now();
    assert!(!stop(what, &mut served, &mut running), "it can't be done");
    let took = started.elapsed();
    assert!(took >= BOUND && took < BOUND + GRACE, "{took:?}");
    // The connection is closed; the memory is mapped for the disk, and the log keeps the requests.
    assert!(running.client.capacity().is_err());
    assert!(mapped(&running.guest) > 2, "the disk has it");
    assert!(disk.is_active());
    assert!(
        named
            .iter()
            .all(|head| heads_in_flight(&area).contains(head))
    );
    assert!(running.queues[0].driver.poll().unwrap().is_none());
    if what == What::Server {
        // The server is gone, the disk is not: another one continues once it is there again.
        drop(served);
        disk.open();
        served = Served::new(Arc::new(inner));
    } else {
        served.wait_idle();
        for _ in 0..3 {
            let mut other = UnixStream::connect(served.socket()).unwrap();
            assert_eq!(other.read(&mut [0]).unwrap_or(0), 0, "turned away");
        }
        disk.open();
    }
    wait_for("the memory to be unmapped", || mapped(&running.guest) == 2);
    // Also if no client comes any more: another server may wait for the disk.
    wait_for("the disk to be left", || !disk.is_active());
    resume(&served.socket(), &mut running, &area);
    for queue in &mut running.queues {
        for _ in 0..4 {
            assert!(queue.answer().unwrap().is_ok());
        }
        queue.write(9, &[9; 512]).unwrap();
    }
    assert!(heads_in_flight(&area).is_empty());
}

#[test]
fn a_disk_that_never_completes() {
    for what in ALL {
        println!("{what:?}");
        over_a_disk_that_never_answers(what, At::Completion);
    }
}

#[test]
fn a_disk_that_never_returns() {
    for what in ALL {
        println!("{what:?}");
        over_a_disk_that_never_answers(what, At::Submit);
    }
}

/// Layers release what they hold, all of it is executed, and the client is told of success.
fn over_layers_that_hold(layers: &str, hold: bool) {
    for what in ALL {
        println!("{what:?}");
        let spec = layers.parse::<StackArg>().unwrap();
        let stack = spec.open_live(false, &Groups::default()).unwrap();
        let mut served = Served::new(stack.disk());
        let mut running = served.running(3);
        if hold {
            stack.hold(Duration::from_secs(3600)).unwrap();
        }
        for queue in &mut running.queues {
            for sector in 0..u64::from(QUEUE_SIZE) {
                let write = Request::write(sector, &[7; 512]);
                queue.send(&write.indirect(true)).unwrap();
            }
        }
        let started = Instant::now();
        let told = stop(what, &mut served, &mut running);
        assert!(started.elapsed() < STOP_TIME, "{:?}", started.elapsed());
        let asked = !matches!(what, What::Leave | What::Server);
        assert_eq!(told, asked, "the server ends, or answers");
        if told {
            // The connection stays.
            running.client.capacity().unwrap();
        }
        let answers = |queue: &mut Queue| {
            let polled = std::iter::from_fn(|| queue.driver.poll().unwrap());
            polled
                .inspect(|done| assert!(done.is_ok(), "{done:?}"))
                .count()
        };
        match what {
            // What was taken was executed: the queue's thread may not have seen the last kick.
            What::Leave | What::Server | What::RemoveMemory => {
                for queue in &mut running.queues {
                    let used = queue.driver.state().used_ring + 2;
                    let used: u16 = running.guest.memory().read_obj(GuestAddress(used)).unwrap();
                    assert_eq!(answers(queue), usize::from(used));
                }
            }
            // What was taken is forgotten.
            What::Reset => {}
            _ => drop(answers(&mut running.queues[0])),
        }
    }
}

#[test]
fn a_throttle_with_full_queues() {
    over_layers_that_hold("memory:1M,throttle=iops:1", false);
}

#[test]
fn a_stack_that_is_held_for_an_hour() {
    over_layers_that_hold("memory:1M", true);
}

/// Writes that failed and are kept to be tried again.
#[test]
fn what_a_policy_for_errors_holds() {
    for what in [What::GetVringBase, What::Reset, What::Leave, What::Server] {
        println!("{what:?}");
        let inner = test_disk();
        inner.set_fault(|kind| kind.is_write().then(|| DiskError::from_errno(libc::ENOSPC)));
        let policy = ErrorPolicy {
            write: OnError::Stop,
            ..ErrorPolicy::default()
        };
        let disk = Arc::new(PolicyDisk::new(Arc::new(inner.clone()), policy));
        let mut served = Served::new(disk.clone());
        // It never gets stuck.
        let unused = StuckDisk::new(inner.clone(), At::Submit);
        let (mut running, area) = busy(&served, &unused, 4);
        wait_for("the writes to be kept", || disk.held() == 12);
        let started = Instant::now();
        assert_eq!(
            stop(what, &mut served, &mut running),
            matches!(what, What::GetVringBase | What::Reset)
        );
        assert!(started.elapsed() < STOP_TIME);
        let queue = &mut running.queues[0];
        match what {
            // They fail.
            What::GetVringBase => {
                for _ in 0..4 {
                    let done = queue.driver.poll().unwrap().unwrap();
                    assert_eq!(done.status, S_IOERR);
                }
                assert!(heads_in_flight(&area).is_empty());
            }
            // They are forgotten.
            What::Reset => {
                assert!(queue.driver.poll().unwrap().is_none());
                assert!(heads_in_flight(&area).is_empty());
            }
            // They wait for the next server.
            _ => {
                assert!(queue.driver.poll().unwrap().is_none());
                assert_eq!(heads_in_flight(&area).len(), 4);
                inner.set_fault(|_| None);
                drop(served);
                let served = Served::new(Arc::new(inner));
                resume(&served.socket(), &mut running, &area);
                for queue in &mut running.queues {
                    for _ in 0..4 {
                        assert!(queue.answer().unwrap().is_ok());
                    }
                }
            }
        }
    }
}

/// A reset cancels what can be cancelled.
#[test]
fn a_reset_cancels() {
    let disk = test_disk();
    let served = Served::new(Arc::new(disk.clone()));
    let mut running = served.running(2);
    let area = {
        // It has to be there before queues start.
        for index in 0..2 {
            running.client.stop(index).unwrap();
        }
        let area = running.client.get_in_flight(2, QUEUE_SIZE).unwrap();
        running.client.set_in_flight(&area).unwrap();
        running.queues = start(&mut running.client, &mut running.guest, 2);
        area
    };
    disk.set_mode(Mode::Held);
    for sector in 0..8 {
        let request = Request::write(sector, &[1; 512]);
        running.queues[0].send(&request).unwrap();
    }
    wait_for("the requests to be taken", || disk.held() == 8);
    running.client.frontend().reset_device().unwrap();
    assert_eq!(disk.held(), 0, "cancelled");
    assert_eq!(disk.content(0, 4096), [0; 4096]);
    assert!(heads_in_flight(&area).is_empty());
    disk.set_mode(Mode::AtFlush);
    let features = running.client.acked;
    running.client.set_features(features).unwrap();
    let mut queues = start(&mut running.client, &mut running.guest, 2);
    queues[0].write(0, &[2; 512]).unwrap();
    assert_eq!(running.queues[0].driver.poll().unwrap(), None);
}

/// A bug in a disk: the client is told of it while it waits for the request, and not told a place where its ring does
/// not stand.
#[test]
fn a_panic_of_the_disk_is_told() {
    let (disk, served) = common::serve();
    let mut running = served.running(2);
    let error = vblk_testing::frontend::event().unwrap();
    running.client.frontend().set_vring_err(0, &error).unwrap();
    running.queues[0].write(0, &[1; 512]).unwrap();
    disk.set_panic();
    running.queues[0].send(&Request::read(0, 512)).unwrap();
    assert!(vblk_testing::frontend::readable(
        &error,
        vblk_testing::frontend::PATIENCE
    ));
    // Nor does it start there again.
    let enable = |client: &mut Client, on| client.frontend().set_vring_enable(0, on);
    enable(&mut running.client, false).unwrap();
    assert!(enable(&mut running.client, true).is_err());
    assert!(running.client.stop(0).is_err());
    served.wait_idle();
}
