// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A directory with the files of sysfs, and a model of what the kernel does when they are written to
//! (`drivers/base/bus.c`, `drivers/vdpa/vdpa.c`).

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::super::sysfs::users;
use super::super::{DeviceName, Driver, ManagementError, Node, Sysfs};

/// As the kernel: the driver to use is written before, in the device's `driver_override`.
fn kernel(file: &Path, value: &str) -> io::Result<()> {
    let log = |bus: &Path| {
        let log = bus.join("log");
        let entry = file.strip_prefix(bus).unwrap().display().to_string();
        let before = fs::read_to_string(&log).unwrap_or_default();
        fs::write(&log, format!("{before}{entry} {value}\n"))
    };
    match file.file_name().unwrap().to_str().unwrap() {
        "driver_override" => {
            log(file.ancestors().nth(3).unwrap())?;
            fs::write(file, value)
        }
        "unbind" => {
            let device = file.ancestors().nth(2).unwrap();
            assert!(device.ends_with(value), "{value}");
            log(file.ancestors().nth(4).unwrap())?;
            fs::remove_file(device.join("driver"))?;
            fs::remove_dir_all(device.join("vhost-vdpa-0")).or(Ok(()))
        }
        "drivers_probe" => {
            let bus = file.parent().unwrap();
            log(bus)?;
            let device = bus.join("devices").join(value);
            let driver = fs::read_to_string(device.join("driver_override"))?;
            let driver = bus.join("drivers").join(driver);
            if driver.join("refuses").exists() {
                return Ok(());
            }
            symlink(driver, device.join("driver"))
        }
        other => panic!("wrote to {other}"),
    }
}

struct Bus {
    _place: tempfile::TempDir,
    bus: PathBuf,
    sysfs: Sysfs,
    name: DeviceName,
}

impl Bus {
    /// With both drivers and an unbound device, `disk0`.
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let bus = place.path().join("bus/vdpa");
        for directory in ["devices/disk0", "drivers/vhost_vdpa", "drivers/virtio_vdpa"] {
            fs::create_dir_all(bus.join(directory)).unwrap();
        }
        Self {
            sysfs: Sysfs::with_writer(place.path(), kernel),
            _place: place,
            bus,
            name: "disk0".parse().unwrap(),
        }
    }

    fn device(&self) -> PathBuf {
        self.bus.join("devices/disk0")
    }

    fn bind(&self, driver: Option<Driver>) -> Result<Option<String>, ManagementError> {
        self.sysfs.bind(&self.name, driver)?;
        self.sysfs.driver(&self.name)
    }

    /// What was written since the last time.
    fn log(&self) -> Vec<String> {
        let log = self.bus.join("log");
        let text = fs::read_to_string(&log).unwrap_or_default();
        let _ = fs::remove_file(log);
        text.lines().map(str::to_owned).collect()
    }
}

#[test]
fn bind_there_and_back() {
    let bus = Bus::new();
    assert_eq!(bus.sysfs.driver(&bus.name).unwrap(), None);
    let bound = |driver| bus.bind(driver).unwrap();
    assert_eq!(bound(Some(Driver::Virtio)).as_deref(), Some("virtio_vdpa"));
    assert_eq!(
        bus.log(),
        [
            "devices/disk0/driver_override virtio_vdpa",
            "drivers_probe disk0"
        ]
    );
    assert_eq!(bound(Some(Driver::Vhost)).as_deref(), Some("vhost_vdpa"));
    assert_eq!(
        bus.log(),
        [
            "devices/disk0/driver_override vhost_vdpa",
            "devices/disk0/driver/unbind disk0",
            "drivers_probe disk0"
        ]
    );
    assert_eq!(bound(None), None);
    assert_eq!(
        bus.log(),
        [
            "devices/disk0/driver_override none",
            "devices/disk0/driver/unbind disk0"
        ]
    );
}

#[test]
fn bound_already() {
    let bus = Bus::new();
    bus.bind(None).unwrap();
    assert_eq!(bus.log(), ["devices/disk0/driver_override none"]);
    bus.bind(Some(Driver::Vhost)).unwrap();
    bus.log();
    bus.bind(Some(Driver::Vhost)).unwrap();
    assert_eq!(bus.log(), ["devices/disk0/driver_override vhost_vdpa"]);
}

#[test]
fn a_driver_that_is_missing_changes_nothing() {
    let bus = Bus::new();
    bus.bind(Some(Driver::Vhost)).unwrap();
    bus.log();
    fs::remove_dir(bus.bus.join("drivers/virtio_vdpa")).unwrap();
    let error = bus.bind(Some(Driver::Virtio)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the driver virtio_vdpa isn't loaded (modprobe virtio_vdpa)"
    );
    assert_eq!(bus.log(), Vec::<String>::new());
    assert_eq!(
        bus.sysfs.driver(&bus.name).unwrap().as_deref(),
        Some("vhost_vdpa")
    );
}

#[test]
fn a_driver_that_does_not_take_it() {
    let bus = Bus::new();
    fs::write(bus.bus.join("drivers/virtio_vdpa/refuses"), "").unwrap();
    let error = bus.bind(Some(Driver::Virtio)).unwrap_err();
    assert!(
        matches!(error, ManagementError::NotBound { .. }),
        "{error:?}"
    );
}

#[test]
fn files_that_refuse() {
    let place = Bus::new();
    // The real writer: sysfs without such a file.
    let sysfs = Sysfs::at(place.bus.ancestors().nth(2).unwrap());
    let error = sysfs.bind(&place.name, Some(Driver::Vhost)).unwrap_err();
    assert_eq!(error.errno(), Some(2));
    assert!(error.to_string().contains("driver_override"), "{error}");
    fs::write(place.device().join("driver_override"), "(null)").unwrap();
    sysfs.bind(&place.name, None).unwrap();
    let written = fs::read_to_string(place.device().join("driver_override")).unwrap();
    assert!(written.starts_with("none"), "{written}");
}

#[test]
fn nodes() {
    let bus = Bus::new();
    let node = || bus.sysfs.node(&bus.name).unwrap();
    assert_eq!(node(), None);
    // Not by its name alone.
    fs::create_dir(bus.device().join("vhost-vdpa-x")).unwrap();
    fs::create_dir(bus.device().join("power")).unwrap();
    assert_eq!(node(), None);
    fs::create_dir(bus.device().join("vhost-vdpa-12")).unwrap();
    assert_eq!(node(), Some(Node::Vhost("/dev/vhost-vdpa-12".into())));
    fs::remove_dir(bus.device().join("vhost-vdpa-12")).unwrap();
    fs::create_dir(bus.device().join("virtio3")).unwrap();
    assert_eq!(node(), None);
    fs::create_dir_all(bus.device().join("virtio3/block/vdb")).unwrap();
    let found = node().unwrap();
    assert_eq!(found.path(), Path::new("/dev/vdb"));
    assert_eq!(found, Node::Block("/dev/vdb".into()));
}

#[test]
fn what_is_missing() {
    let bus = Bus::new();
    let other: DeviceName = "disk1".parse().unwrap();
    let error = bus.sysfs.bind(&other, None).unwrap_err();
    assert_eq!(error.to_string(), "there is no vDPA device \"disk1\"");
    fs::remove_dir_all(&bus.bus).unwrap();
    let error = bus.sysfs.driver(&bus.name).unwrap_err();
    assert!(error.to_string().contains("modprobe vdpa"), "{error}");
}

#[test]
fn users_of_a_node() {
    let root = tempfile::tempdir().unwrap();
    for (process, file) in [
        ("17", "/dev/vhost-vdpa-0"),
        ("4", "/dev/vhost-vdpa-0"),
        ("5", "/dev/vhost-vdpa-01"),
        ("self", "/dev/vhost-vdpa-0"),
    ] {
        let open = root.path().join(process).join("fd");
        fs::create_dir_all(&open).unwrap();
        symlink("/dev/null", open.join("0")).unwrap();
        symlink(file, open.join("9")).unwrap();
    }
    fs::create_dir(root.path().join("6")).unwrap();
    assert_eq!(users(root.path(), Path::new("/dev/vhost-vdpa-0")), [4, 17]);
}
