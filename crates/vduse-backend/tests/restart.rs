// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Servers that die, and their successors.
//!
//! A server can't be killed inside a test's process (the lab does that): here it ends with an error, which
//! leaves its requests in flight to the next one, too.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{NAME, Rig, SECTORS, StallDisk};
use vduse_backend::fake::FakeKernel;
use vduse_backend::kernel::{Attribute, Kernel};
use vduse_backend::message::{Answer, Request as Ask};
use vduse_backend::{Outcome, ServerError, ServerOptions};
use virtio_blk_core::testdisk::Mode;
use virtio_blk_driver::request::Request;

#[test]
fn a_stopped_server_leaves_an_attached_device_to_the_next() {
    let mut rig = Rig::new(2);
    rig.start();
    rig.check();
    assert_eq!(rig.stop().unwrap(), Outcome::Attached);
    let token = rig.submit(0, &Request::read(0, 512));
    assert!(rig.queues[0].poll().unwrap().is_none());
    let irqs = [rig.bus.irqs(0), rig.bus.irqs(1)];
    assert!(rig.serve().unwrap(), "taken over");
    assert_eq!(rig.answer(0).token, token);
    rig.check();
    assert!(rig.bus.irqs(0) > irqs[0] && rig.bus.irqs(1) > irqs[1]);
    rig.ok(Ask::SetStatus(0));
    rig.start();
    rig.check();
}

/// What was in flight is executed again, in order; what was completed is not.
#[test]
fn requests_in_flight_go_to_the_successor() {
    let mut rig = Rig::with(FakeKernel::new(0, 0), StallDisk::held(), 2);
    let submitted = |rig: &Rig, count| {
        while rig.disk.inner().held() < count {
            std::thread::yield_now();
        }
    };
    rig.start();
    let first = rig.submit(0, &Request::write(0, &[1; 512]));
    let second = rig.submit(0, &Request::write(0, &[2; 512]));
    submitted(&rig, 2);
    let third = rig.submit(1, &Request::write(9, &[3; 512]));
    let fourth = rig.submit(0, &Request::write(0, &[4; 512]));
    submitted(&rig, 4);
    // The second is answered out of order.
    rig.disk.inner().release_at(1);
    assert_eq!(rig.answer(0).token, second);
    rig.bus.shorten_next(1);
    let pending = rig.bus.send(Ask::Unknown(99));
    rig.ended().unwrap_err();
    pending.kill();
    rig.disk.inner().take_ops();
    rig.disk.inner().set_mode(Mode::AtFlush);
    assert!(rig.serve().unwrap());
    assert_eq!(rig.answer(1).token, third);
    let mut tokens = [rig.answer(0).token, rig.answer(0).token];
    tokens.sort_by_key(|token| *token != first);
    assert_eq!(tokens, [first, fourth]);
    assert_eq!(rig.disk.inner().take_ops().len(), 3);
    assert_eq!(rig.disk.inner().content(0, 512), [4; 512]);
    rig.check();
}

/// The size is compared with the one that was shown, and pushed to the kernel.
#[test]
fn a_successor_shows_the_present_size() {
    let mut rig = Rig::new(1);
    rig.start();
    rig.stop().unwrap();
    rig.disk.inner().resize(3 * SECTORS);
    let irqs = 0;
    assert!(rig.serve().unwrap());
    assert!(rig.bus.config_irqs_after(irqs) > irqs);
    assert_eq!(rig.bus.config()[..8], (3 * SECTORS).to_le_bytes());
    rig.check();
}

#[test]
fn a_message_that_nobody_answered_goes_to_the_successor() {
    let mut rig = Rig::new(1);
    rig.start();
    rig.stop().unwrap();
    let reset = rig.bus.send(Ask::SetStatus(0));
    assert!(rig.serve().unwrap());
    assert_eq!(reset.wait(), Some(Answer::Ok));
    rig.start();
    rig.check();
}

#[test]
fn a_sender_that_was_killed_is_no_failure() {
    let mut rig = Rig::new(1);
    rig.start();
    rig.hang(0, &Request::read(0, 512));
    let state = rig.bus.send(Ask::GetVqState { index: 0 });
    state.kill();
    rig.disk.go_on();
    assert!(rig.answer(0).is_ok());
    rig.check();
}

#[test]
fn a_device_nobody_uses_is_made_anew_in_another_shape() {
    let mut rig = Rig::new(1);
    rig.start();
    rig.ok(Ask::SetStatus(0));
    rig.stop().unwrap();
    rig.options.queues = 2;
    rig.bus.attach(false);
    assert!(!rig.serve().unwrap(), "made anew");
    rig.bus.attach(true);
    rig.bus.set_regions(vec![rig.region()]);
    rig.start();
    rig.check();
}

#[test]
fn a_device_without_a_record_or_of_another_boot_is_made_anew() {
    let mut rig = Rig::new(1);
    rig.start();
    rig.stop().unwrap();
    std::fs::remove_dir_all(rig.dir.path().join("state")).unwrap();
    assert!(matches!(rig.serve(), Err(ServerError::Attached { .. })));
    rig.bus.attach(false);
    assert!(!rig.serve().unwrap());
    rig.bus.attach(true);
    rig.bus.set_regions(vec![rig.region()]);
    rig.start();
    rig.stop().unwrap();
    rig.kernel.reboot("boot-2");
    assert!(!rig.serve().unwrap(), "the record is of another boot");
}

#[test]
fn a_broken_device_is_made_anew() {
    let mut rig = Rig::new(1);
    rig.start();
    rig.bus.break_it();
    assert!(matches!(rig.ended(), Err(ServerError::Broken(name)) if name == NAME));
    match rig.serve() {
        Err(error @ ServerError::Attached { .. }) => {
            let said = error.to_string();
            assert!(
                said.contains("vdpa dev del disk0") && said.contains("broken"),
                "{said}"
            );
        }
        other => panic!("{other:?}"),
    }
    rig.bus.attach(false);
    assert!(!rig.serve().unwrap());
    assert!(!rig.bus.is_broken());
    rig.bus.attach(true);
    rig.bus.set_regions(vec![rig.region()]);
    rig.start();
    rig.check();
}

#[test]
fn what_is_in_the_way_is_said() {
    let rig = Rig::new(1);
    let fails = |options: ServerOptions| rig.try_serve(options).err().unwrap();
    assert!(matches!(fails(rig.server_options()), ServerError::InUse(_)));
    for name in [
        "",
        "a/b",
        "..",
        ".hidden",
        "control",
        "a b",
        &"x".repeat(65),
    ] {
        let mut options = rig.server_options();
        options.name = name.to_owned();
        assert!(matches!(fails(options), ServerError::Name(_)), "{name}");
    }
    let mut options = rig.server_options();
    options.name = "other".to_owned();
    options.bounce_size = Some(1);
    let error = fails(options);
    assert!(
        error
            .to_string()
            .starts_with("bounce_size can't be set to 1"),
        "{error}"
    );
    assert!(!rig.kernel.has("other"), "nothing is left behind");
    let mut options = rig.server_options();
    options.name = "other".to_owned();
    options.state_dir = "/proc/nowhere".into();
    assert!(matches!(fails(options), ServerError::State { .. }));
    rig.kernel.unload();
    let error = fails(rig.server_options());
    assert!(error.to_string().contains("modprobe vduse"), "{error}");
}

#[test]
fn settings_reach_the_kernel() {
    let mut rig = Rig::new(1);
    rig.bus.attach(false);
    rig.stop().unwrap();
    let options = ServerOptions {
        bounce_size: Some(1 << 20),
        msg_timeout: Some(9),
        ..rig.server_options()
    };
    let server = rig.try_serve(options).unwrap();
    let read = |attribute| rig.kernel.attribute(NAME, attribute).unwrap();
    assert_eq!(read(Attribute::BounceSize), 1 << 20);
    assert_eq!(read(Attribute::MsgTimeout), 9);
    drop(server);
}

/// Something else failed before it could.
#[test]
fn a_server_that_does_not_run_leaves_no_device() {
    let mut rig = Rig::new(1);
    rig.start();
    rig.check();
    rig.die();
    let server = rig.try_serve(rig.server_options()).unwrap();
    assert!(server.is_taken_over());
    drop(server);
    assert!(rig.kernel.has(NAME), "its driver needs the next server");
    rig.succeed();
    rig.check();
    rig.bus.attach(false);
    rig.die();
    let records = || std::fs::read_dir(rig.dir.path().join("state")).unwrap();
    for taken_over in [true, false] {
        let server = rig.try_serve(rig.server_options()).unwrap();
        assert_eq!(server.is_taken_over(), taken_over);
        assert_eq!(records().count(), 1);
        drop(server);
        assert!(!rig.kernel.has(NAME));
        assert_eq!(records().count(), 0);
    }
}

/// Where queues' threads run: by thread name, the CPUs that the system shows.
fn threads() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        // A thread of another test may be gone by now.
        let status = task.and_then(|task| std::fs::read_to_string(task.path().join("status")));
        let status = status.unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default().trim().to_owned()
        };
        found.push((field("Name:"), field("Cpus_allowed_list:")));
    }
    found
}

#[test]
fn a_queue_s_thread_runs_where_its_driver_is() {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let cpu = (0..1024).find(|cpu| allowed.is_set(*cpu)).unwrap();
    // No other test has so many queues.
    const QUEUE: u16 = 2;
    let name = format!("vblk-queue{QUEUE}");
    let mut rig = Rig::new(QUEUE + 1);
    rig.bus.set_vq_cpus(QUEUE, &[cpu]);
    rig.start();
    rig.check();
    // It moves itself, before or after the first requests.
    let deadline = std::time::Instant::now() + common::PATIENCE;
    while !threads().contains(&(name.clone(), cpu.to_string())) {
        assert!(std::time::Instant::now() < deadline, "{:?}", threads());
        std::thread::yield_now();
    }
}
