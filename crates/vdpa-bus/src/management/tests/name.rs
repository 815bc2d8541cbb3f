// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::super::{DeviceName, ManagementName, NameError};

#[test]
fn names_that_are_no_path() {
    for (name, error) in [
        ("", NameError::Empty),
        (".", NameError::Dots(".".to_owned())),
        ("..", NameError::Dots("..".to_owned())),
        ("../vduse", NameError::Character('/')),
        ("/dev/sda", NameError::Character('/')),
        ("disk\0", NameError::Character('\0')),
        ("disk\n", NameError::Character('\n')),
        ("disk\u{1b}[2J", NameError::Character('\u{1b}')),
        (&"x".repeat(256), NameError::TooLong(256)),
    ] {
        assert_eq!(DeviceName::new(name), Err(error.clone()), "{name:?}");
        if !name.contains('/') {
            assert_eq!(name.parse::<ManagementName>(), Err(error), "{name:?}");
        }
    }
    for name in ["vdpa0", "...", "a b", "späte-platte", &"x".repeat(255)] {
        assert_eq!(DeviceName::new(name).unwrap().as_str(), name);
    }
}

#[test]
fn management_devices_on_a_bus_and_on_none() {
    let name: ManagementName = "pci/0000:01:00.2".parse().unwrap();
    assert_eq!((name.bus(), name.device()), (Some("pci"), "0000:01:00.2"));
    assert_eq!(name.to_string(), "pci/0000:01:00.2");
    let name: ManagementName = "vduse".parse().unwrap();
    assert_eq!((name.bus(), name.device()), (None, "vduse"));
    assert_eq!(name.to_string(), "vduse");
    assert_eq!("/vduse".parse::<ManagementName>(), Err(NameError::Empty));
    assert_eq!("pci/".parse::<ManagementName>(), Err(NameError::Empty));
    assert_eq!(
        "pci/a/b".parse::<ManagementName>(),
        Err(NameError::Character('/'))
    );
}
