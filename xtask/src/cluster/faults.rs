// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What happens to an image while it is written.

use std::time::{Duration, Instant};

use super::ceph::Ceph;
use super::process::Process;
use super::{LEN, Lab};
use crate::command::{Error, command, output, run as execute};

/// How long a load may take that is disturbed.
const PATIENCE: Duration = Duration::from_secs(3600);
/// How long nothing may be written after a kill: without breaking the lock it is half a minute.
const PAUSE: &str = "5";

/// Our process is killed with -9 and started again, in a namespace of the pool.
pub fn kills(lab: &Lab, ceph: &Ceph) -> Result<(), Error> {
    let disk = ceph.create("space/kills", LEN)?;
    let kills = lab.kills.to_string();
    let args = ["--disk", &disk, "--kills", &kills, "--pause", PAUSE];
    execute(&mut lab.client("kills", &args))
}

/// A load, while which something is done.
fn amid(lab: &Lab, ceph: &Ceph, name: &str, seed: u64) -> Result<(Process, Instant), Error> {
    let disk = ceph.create(name, LEN)?;
    let mut load = lab.verify(&disk, lab.operations / 2, seed);
    let load = Process::start(&mut load, &ceph.dir().join(format!("{name}.log")))?;
    // It is at work by then: there is no event to wait for.
    std::thread::sleep(Duration::from_secs(1));
    Ok((load, Instant::now()))
}

/// Waits for the end of a load that was disturbed and must not have ended before.
fn finish(load: &mut Process, began: Instant, done: bool) -> Result<(), Error> {
    let disturbed = began.elapsed();
    if !done {
        return Err(Error::Other("the load was over too early".to_owned()));
    }
    load.wait(PATIENCE)?;
    print!("{}", load.said());
    println!("    it was disturbed for {:.1} s", disturbed.as_secs_f64());
    Ok(())
}

/// The OSD is frozen, continues, ends and is started again.
pub fn osd(lab: &Lab, ceph: &mut Ceph) -> Result<(), Error> {
    let (mut load, began) = amid(lab, ceph, "osd", 11)?;
    ceph.freeze_osd(true)?;
    std::thread::sleep(Duration::from_secs(3));
    ceph.freeze_osd(false)?;
    let runs = load.runs().is_ok();
    ceph.restart_osd()?;
    finish(&mut load, began, runs)
}

/// The monitor is killed and started again.
pub fn monitor(lab: &Lab, ceph: &mut Ceph) -> Result<(), Error> {
    let (mut load, began) = amid(lab, ceph, "monitor", 12)?;
    let runs = load.runs().is_ok();
    ceph.restart_monitor()?;
    finish(&mut load, began, runs)
}

/// The image grows by the cluster's command, and by ours.
pub fn resize(lab: &Lab, ceph: &Ceph) -> Result<(), Error> {
    let disk = ceph.create("resize", LEN)?;
    let (socket, control) = (
        ceph.dir().join("resize.sock"),
        ceph.dir().join("resize.ctl"),
    );
    let mut server = command(lab.vblk(), ["serve", "vhost-user", "--disk", &disk]);
    server
        .arg("--socket")
        .arg(&socket)
        .arg("--control")
        .arg(&control);
    server.env("VBLK_LOG", "info");
    let mut server = Process::start(&mut server, &ceph.dir().join("resize.log"))?;
    server.until("listens", || control.exists() && socket.exists())?;
    let told = |bytes: u64| format!("the image has {bytes} bytes now");
    let log = ceph.dir().join("resize.log");
    let said = |words: &str| std::fs::read_to_string(&log).is_ok_and(|text| text.contains(words));
    let since = Instant::now();
    let size = format!("{}B", 2 * LEN);
    execute(&mut ceph.rbd(&["resize", "rbd/resize", "--no-progress", "--size", &size]))?;
    server.until("the image is larger", || said(&told(2 * LEN)))?;
    println!(
        "    told {} ms after the command began",
        since.elapsed().as_millis()
    );
    let mut ours = command(lab.vblk(), ["ctl"]);
    execute(ours.arg(&control).args(["resize", &(3 * LEN).to_string()]))?;
    let info = output(
        command("rbd", ["info", "--format", "json", "--conf"])
            .arg(ceph.dir().join("ceph.conf"))
            .arg("rbd/resize"),
    )?;
    if !info.contains(&format!("\"size\":{}", 3 * LEN)) {
        return Err(Error::Other(format!(
            "the cluster has another size: {info}"
        )));
    }
    server.stop()
}
